//! A study as one page.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::collect::{Setting, Study};
use crate::file::write_whole;
use crate::report::figures;
use crate::report::page::{document, table};
use crate::report::plot::{At, Axis, Plot};

/// Curves are told apart by this many colours.
const COLOURS: [&str; 3] = ["first", "second", "faint"];
/// Bins of more settings than this make an unreadable table.
const MOST_SETTINGS: usize = 8;

/// Writes the page to `path`; an older one is replaced in one step.
///
/// # Errors
/// If the folder cannot be written to.
pub fn write(path: &Path, study: &Study) -> io::Result<()> {
    write_whole(path, render(study).as_bytes())
}

/// The whole page.
fn render(study: &Study) -> String {
    let runs: usize = study
        .settings
        .iter()
        .map(|setting| setting.runs.len())
        .sum();
    let subtitle = format!("{runs} runs, {} images, {}", study.images, study.repeated());
    let (columns, rows) = study.table();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut body = table("Settings", &columns, &rows);
    let mut charts = vec![errors(study)];
    charts.extend(few_shot(study));
    charts.push(curves(study));
    charts.extend(ordinality(study));
    let _ = write!(body, r#"<div class="figures">{}</div>"#, charts.concat());
    body += &by_bin(study);
    body += &all_runs(study);
    document(&format!("{}: study", study.task), &subtitle, &body)
}

/// Every run's error, a column of dots for each setting, with mean and interval.
fn errors(study: &Study) -> String {
    let mae = |setting: &Setting| setting.measures.get("mae").copied();
    let runs = || {
        let settings = study.settings.iter().enumerate();
        settings.flat_map(|(at, setting)| {
            let of = move |run: &super::collect::Member| {
                Some((
                    at,
                    run.evaluation.measure("mae")?.value,
                    run.folder.display().to_string(),
                ))
            };
            setting.runs.iter().filter_map(of)
        })
    };
    let ends = study.settings.iter().filter_map(mae).flat_map(|mean| {
        let half = mean.half_width.unwrap_or(0.0);
        [mean.mean - half, mean.mean + half]
    });
    let values: Vec<f64> = runs().map(|(_, value, _)| value).chain(ends).collect();
    let places = [0.5, study.settings.len() as f64 + 0.5];
    let mut plot = Plot::new(
        Axis::around("setting, in the order of the table", places),
        Axis::around(&unit("mean absolute error", study), values),
    );
    for (at, setting) in study.settings.iter().enumerate() {
        let x = (at + 1) as f64;
        let Some(mean) = mae(setting) else { continue };
        if let Some(half) = mean.half_width {
            plot.line("second", &[(x, mean.mean - half), (x, mean.mean + half)]);
        }
        plot.dots(
            "second",
            5.0,
            &[(
                (x, mean.mean),
                format!("{}: {}", setting.name, mean.text(1.0, 3)),
            )],
        );
    }
    let dots: Vec<(At, String)> = runs()
        .map(|(at, value, name)| (((at + 1) as f64, value), format!("{name}: {value:.3}")))
        .collect();
    plot.dots("first", 3.0, &dots);
    plot.name("first", "a run");
    plot.name("second", "mean and 95 % interval");
    plot.finish("Error by setting")
}

/// Error against the number of training images of each class.
fn few_shot(study: &Study) -> Option<String> {
    const KEY: &str = "data.protocol.few_shot.images";
    let shots = |setting: &Setting| setting.differs.get(KEY)?.parse::<f64>().ok();
    let mut points: Vec<(f64, super::statistics::Mean)> = study
        .settings
        .iter()
        .filter_map(|setting| Some((shots(setting)?, *setting.measures.get("mae")?)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    if points.len() < 2
        || study
            .settings
            .iter()
            .any(|setting| setting.differs.len() > 2)
    {
        return None;
    }
    let line = |sign: f64| -> Vec<At> {
        let end =
            |mean: &super::statistics::Mean| mean.mean + sign * mean.half_width.unwrap_or(0.0);
        points
            .iter()
            .map(|(shots, mean)| (shots.log2(), end(mean)))
            .collect()
    };
    let (low, middle, high) = (line(-1.0), line(0.0), line(1.0));
    let mut plot = Plot::new(
        Axis::around(
            "training images of each class, as a power of 2",
            middle.iter().map(|p| p.0),
        ),
        Axis::from_zero(
            &unit("mean absolute error", study),
            high.iter().map(|p| p.1),
        ),
    );
    plot.band("first", &low, &high);
    plot.line("first", &middle);
    plot.name("first", "mean and 95 % interval");
    Some(plot.finish("Few-shot"))
}

/// Validation error over the epochs, a line for each run.
fn curves(study: &Study) -> String {
    let all = || study.settings.iter().flat_map(|setting| &setting.runs);
    let epochs = all().map(|run| run.curve.len() as f64);
    let values = all().flat_map(|run| run.curve.iter().copied());
    let mut plot = Plot::new(
        Axis::from_zero("epoch", epochs),
        Axis::from_zero(&unit("validation error", study), values),
    );
    for (setting, colour) in study.settings.iter().zip(COLOURS.iter().cycle()) {
        for run in &setting.runs {
            let points: Vec<At> = (1..)
                .map(f64::from)
                .zip(run.curve.iter().copied())
                .collect();
            plot.line(colour, &points);
        }
    }
    for (setting, colour) in study.settings.iter().zip(COLOURS) {
        plot.name(colour, &setting.name);
    }
    plot.finish("Validation error over time")
}

/// Similarities of the bin embeddings: one matrix for each different one.
fn ordinality(study: &Study) -> Vec<String> {
    let mut seen: Vec<&Vec<Vec<f32>>> = Vec::new();
    let mut charts = Vec::new();
    for setting in &study.settings {
        let ordinality = &setting.runs[0].evaluation.ordinality;
        if seen.contains(&&ordinality.similarities) {
            continue;
        }
        seen.push(&ordinality.similarities);
        let title = format!(
            "Similarity of the bin embeddings, ordinality {:.2} ({})",
            ordinality.score, setting.name
        );
        charts.push(figures::similarities(
            &title,
            &ordinality.labels,
            &ordinality.similarities,
        ));
    }
    charts
}

/// Mean absolute error by bin, a column for each setting.
fn by_bin(study: &Study) -> String {
    let settings = &study.settings[..study.settings.len().min(MOST_SETTINGS)];
    let bins = settings
        .first()
        .map(|setting| setting.runs[0].evaluation.bins.clone());
    let mut columns = vec![""];
    columns.extend(settings.iter().map(|setting| setting.name.as_str()));
    let error = |setting: &Setting, bin: &str| -> Option<f64> {
        let parts = setting.runs.iter().flat_map(|run| &run.evaluation.by_bin);
        let of_bin: Vec<_> = parts.filter(|part| part.name == bin).collect();
        let images: usize = of_bin.iter().map(|part| part.count).sum();
        let sum: f64 = of_bin.iter().map(|part| part.mae * part.count as f64).sum();
        (images > 0).then(|| sum / images as f64)
    };
    let row = |bin: &numclip::bins::Bin| {
        let cell =
            |setting| error(setting, &bin.label).map_or(String::new(), |e| format!("{e:.3}"));
        [bin.label.clone()]
            .into_iter()
            .chain(settings.iter().map(cell))
            .collect()
    };
    let rows: Vec<Vec<String>> = bins.iter().flatten().map(row).collect();
    table(&unit("Mean absolute error by bin", study), &columns, &rows)
}

fn all_runs(study: &Study) -> String {
    let folds: BTreeSet<&str> = study
        .settings
        .iter()
        .flat_map(|setting| setting.runs.iter().map(|run| run.fold.as_str()))
        .collect();
    let mut columns = vec!["run", "seed"];
    columns.extend((folds.len() > 1).then_some("fold"));
    columns.extend(["training images", "images measured", "MAE", "95 % interval"]);
    let runs = study.settings.iter().flat_map(|setting| &setting.runs);
    let rows: Vec<Vec<String>> = runs
        .map(|run| {
            let mut row = vec![run.folder.display().to_string(), run.seed.to_string()];
            row.extend((folds.len() > 1).then(|| run.fold.clone()));
            let mae = run.evaluation.measure("mae");
            let interval = mae.and_then(|mae| mae.interval);
            row.extend([
                run.train_images.to_string(),
                run.evaluation.count.to_string(),
                mae.map_or(String::new(), |mae| format!("{:.3}", mae.value)),
                interval.map_or(String::new(), |[low, high]| {
                    format!("{low:.3} to {high:.3}")
                }),
            ]);
            row
        })
        .collect();
    table("Runs", &columns, &rows)
}

fn unit(text: &str, study: &Study) -> String {
    match study.unit.as_str() {
        "" => text.into(),
        unit => format!("{text}, {unit}"),
    }
}
