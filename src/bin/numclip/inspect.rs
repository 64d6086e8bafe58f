//! `numclip inspect`: what a bundle says about itself.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use numclip::bundle::{Bundle, Manifest, Precision, Provenance, Report};
use numclip::estimate::Regressor;
use numclip::preprocess::Plan;
use serde_json::json;

use crate::exit::Exit;
use crate::table::{aligned, columns, decimals, with_unit};

/// Show a bundle: task, bins, input, encoders, measured figures, origin.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  numclip inspect models/gauge --json | jq .report")]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Print the manifest as one JSON object, with its SHA-256.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the bundle cannot be used.
pub fn run(args: &Args) -> Result<Exit> {
    let bundle = Bundle::open(&args.model)?;
    let text = match args.json {
        true => format!(
            "{}\n",
            json!({"sha256": bundle.sha256(), "manifest": bundle.manifest()})
        ),
        false => described(&bundle),
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(Exit::Done)
}

fn described(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let mut sections = vec![
        aligned(&overview(bundle)),
        bins(manifest),
        encoders(bundle),
        aligned(&origin(&manifest.provenance)),
    ];
    if !manifest.report.is_empty() {
        sections.insert(3, reports(manifest));
    }
    sections.join("\n")
}

fn overview(bundle: &Bundle) -> Vec<(String, String)> {
    let manifest = bundle.manifest();
    let (model, task) = (&manifest.model, &manifest.task);
    let decimals = decimals(task);
    let [low, high] = task.range;
    let mut lines = vec![
        (
            "model",
            format!("\x1b[1m{}\x1b[0m {}", model.name, model.version),
        ),
        ("sha256", bundle.sha256().into()),
        (
            "estimates",
            format!(
                "{}, {low:.decimals$} to {high:.decimals$} {}",
                task.name, task.unit
            ),
        ),
        ("input", input(&manifest.preprocess)),
        ("embedding", format!("{} values", manifest.bins.dim)),
        ("regressor", regressor(&manifest.regressor).into()),
    ];
    if let Some(interval) = &manifest.interval {
        let percent = 100.0 * interval.coverage;
        lines.push(("interval", format!("covers {percent:.0} % of labels")));
    }
    let golden = bundle.golden().cases.len();
    lines.push(("golden", format!("{golden} pictures")));
    lines
        .into_iter()
        .map(|(name, value)| (name.into(), value))
        .collect()
}

fn input(plan: &Plan) -> String {
    let Plan {
        size,
        resize,
        filter,
        antialias,
        channels,
        mean,
        std,
    } = plan;
    let sampling = if *antialias { "" } else { " without antialias" };
    format!("{size}×{size} {channels}, {resize}, {filter}{sampling}, mean {mean:?}, std {std:?}")
}

fn regressor(regressor: &Regressor) -> &'static str {
    match regressor {
        Regressor::Expectation { .. } => "expectation over bins",
        Regressor::Ssr { .. } => "bin starts with learned shifts",
    }
}

fn bins(manifest: &Manifest) -> String {
    let decimals = decimals(&manifest.task);
    let number = |value: f32| format!("{value:.decimals$}");
    let mut rows = vec![["bin", "from", "to", "label"].map(String::from).to_vec()];
    for (index, bin) in manifest.bins.bin.iter().enumerate() {
        rows.push(vec![
            index.to_string(),
            number(bin.start),
            number(bin.end),
            bin.label.clone(),
        ]);
    }
    columns(&rows)
}

fn encoders(bundle: &Bundle) -> String {
    let mut rows = vec![["encoder", "precision", "size"].map(String::from).to_vec()];
    for encoder in &bundle.manifest().encoder {
        let bytes =
            fs::metadata(bundle.directory().join(&encoder.path)).map_or(0, |file| file.len());
        rows.push(vec![
            encoder.path.clone(),
            precision(encoder.precision).into(),
            format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)),
        ]);
    }
    columns(&rows)
}

fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Int8 => "int8",
    }
}

fn reports(manifest: &Manifest) -> String {
    let bounds: Vec<f32> = manifest.report[0]
        .metrics
        .cumulative_score
        .iter()
        .map(|score| score.k)
        .collect();
    let header = [
        "split",
        "precision",
        "pictures",
        "MAE",
        "RMSE",
        "value's bin",
        "top bin",
    ];
    let mut header: Vec<String> = header.map(String::from).to_vec();
    header.extend(bounds.iter().map(|k| format!("within {k}")));
    let mut rows = vec![header];
    rows.extend(
        manifest
            .report
            .iter()
            .map(|report| measured(manifest, report, &bounds)),
    );
    columns(&rows)
}

/// A report's row; `bounds` are those of the cumulative scores in the header.
fn measured(manifest: &Manifest, report: &Report, bounds: &[f32]) -> Vec<String> {
    let metrics = &report.metrics;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut row = vec![
        report.split.clone(),
        precision(report.precision).into(),
        metrics.count.to_string(),
        with_unit(&manifest.task, metrics.mae),
        with_unit(&manifest.task, metrics.rmse),
        percent(metrics.accuracy_expectation),
        percent(metrics.accuracy_argmax),
    ];
    row.extend(bounds.iter().map(|k| {
        let score = metrics.cumulative_score.iter().find(|score| score.k == *k);
        score.map_or("–".into(), |score| percent(score.score))
    }));
    row
}

fn origin(provenance: &Provenance) -> Vec<(String, String)> {
    let lines = [
        ("architecture", &provenance.architecture),
        ("weights", &provenance.weights),
        ("teacher", &provenance.teacher),
        ("quantisation", &provenance.quantization),
        ("interval", &provenance.interval),
        ("text tower", &provenance.text_tower),
        ("data", &provenance.data),
        ("data digest", &provenance.data_digest),
        ("seed", &provenance.seed.to_string()),
        ("trainer", &provenance.trainer),
        ("revision", &provenance.revision),
        ("licence", &provenance.licence),
    ];
    let known = lines.into_iter().filter(|(_, value)| !value.is_empty());
    known
        .map(|(name, value)| (name.into(), value.clone()))
        .collect()
}
