//! Numbers of a batch, and what they say where the truth is known.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use numclip::bundle::Manifest;
use numclip::estimate::Estimate;
use numclip::metrics::{self, Metrics};

use crate::table;

/// Groups in the table; all of them are in the JSON.
const WORST_GROUPS: usize = 5;
/// What `stages` are the times of.
const STAGES: [&str; 4] = ["decode", "preprocess", "encode", "estimate"];

/// Numbers of a batch.
#[derive(Default)]
pub struct Tally {
    pub unreadable: usize,
    pub failed: usize,
    /// Estimates that were no answers.
    pub abstained: usize,
    pub estimates: Vec<Estimate>,
    pub labels: Vec<f32>,
    pub groups: Vec<Option<String>>,
    pub stages: [Duration; 4],
}

impl Tally {
    /// Pictures that gave an estimate.
    pub fn done(&self) -> usize {
        self.estimates.len() + self.abstained
    }
}

/// The measures, where there are labels; thresholds of the cumulative score
/// are those of the bundle's own report.
pub fn measured(manifest: &Manifest, tally: &Tally) -> Option<Metrics> {
    let [low, high] = manifest.task.range;
    let thresholds = match manifest.report.first() {
        Some(report) => report
            .metrics
            .cumulative_score
            .iter()
            .map(|score| score.k)
            .collect(),
        None => vec![0.05 * (high - low), 0.1 * (high - low)],
    };
    metrics::measure(
        &manifest.bins.bin,
        &tally.estimates,
        &tally.labels,
        &thresholds,
    )
}

/// The measures over all pictures, then by range and, where there are groups,
/// by the groups that fared worst.
pub fn print_metrics(
    json: bool,
    manifest: &Manifest,
    metrics: &Metrics,
    tally: &Tally,
) -> Result<()> {
    let (estimates, labels) = (&tally.estimates, &tally.labels);
    let by_range = metrics::by_range(estimates, labels, manifest.task.range);
    let by_group = metrics::by_group(estimates, labels, &tally.groups);
    let text = match json {
        true => format!(
            "{}\n",
            serde_json::json!({
                "metrics": metrics,
                "failed": tally.unreadable + tally.failed,
                "abstained": tally.abstained,
                "by_range": by_range,
                "by_group": by_group,
            })
        ),
        false => {
            let task = &manifest.task;
            let mut text = format!("\n{}", table::metrics(task, metrics));
            text += &format!("\n{}", table::parts(task, "labels", &by_range));
            if !by_group.is_empty() {
                let worst = &by_group[..by_group.len().min(WORST_GROUPS)];
                text += &format!("\n{}", table::parts(task, "worst groups", worst));
            }
            text
        }
    };
    Ok(anstream::stdout().lock().write_all(text.as_bytes())?)
}

/// What was done, on stderr.
pub fn summarise(tally: &Tally, took: Duration, verbose: bool) {
    let (done, missed) = (tally.done(), tally.unreadable + tally.failed);
    let rate = (done + missed) as f64 / took.as_secs_f64().max(1e-9);
    let mut summary = format!(
        "{done} pictures in {:.1} s ({rate:.1}/s)",
        took.as_secs_f64()
    );
    if missed > 0 {
        summary += &format!(", {missed} failed");
    }
    if tally.abstained > 0 {
        summary += &format!(", {} in doubt and not counted", tally.abstained);
    }
    if verbose && done > 0 {
        for (name, sum) in STAGES.iter().zip(tally.stages) {
            summary += &format!(", {name} {:.2} ms", 1e3 * sum.as_secs_f64() / done as f64);
        }
    }
    anstream::eprintln!("{summary}");
}
