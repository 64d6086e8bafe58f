//! How an encoder was quantised, and what that costs, as one page.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use numclip::bundle::{Precision, Report};

use super::layers::{Costs, LayerCost};
use super::{Evidence, Exported};
use crate::config::Config;
use crate::file::write_whole;
use crate::report::page::{document, table};
use crate::report::plot::{At, Axis, Plot, escape};

/// Name of the page in the run's folder.
pub const FILE_NAME: &str = "quantization.html";

/// Writes the page into `folder` and returns its path. An older page is replaced in one step.
///
/// # Errors
/// If the folder cannot be written to.
pub fn write(folder: &Path, config: &Config, exported: &Exported) -> io::Result<PathBuf> {
    let path = folder.join(FILE_NAME);
    write_whole(&path, render(config, exported).as_bytes())?;
    Ok(path)
}

fn render(config: &Config, exported: &Exported) -> String {
    let evidence = &exported.evidence;
    let unit = &config.task.unit;
    let mut body = verdict(evidence);
    body += &measures(&exported.reports, unit);
    body += &tried(evidence, unit);
    body += &engines(exported);
    if let Some(costs) = &evidence.costs {
        body += &layers(costs, unit);
    }
    let title = format!("{}: quantisation", config.task.name);
    let subtitle = format!(
        "{}; ranges from {} training images",
        evidence.method, evidence.calibration_images
    );
    document(&title, &subtitle, &body)
}

fn verdict(evidence: &Evidence) -> String {
    let budget = &evidence.budget;
    let text = match (
        budget.mae.is_some() || budget.milliseconds.is_some(),
        &evidence.broken[..],
    ) {
        (false, _) => return String::new(),
        (true, []) => "The budget holds.".into(),
        (true, broken) => format!("The budget is broken: {}.", broken.join("; ")),
    };
    format!("<p>{}</p>", escape(&text))
}

fn measures(reports: &[Report], unit: &str) -> String {
    let rows = reports.iter().map(|report| {
        let metrics = &report.metrics;
        let mut row = vec![
            format!("{}, {}", report.split, name(report.precision)),
            metrics.count.to_string(),
            format!("{:.4}", metrics.mae),
            format!("{:.4}", metrics.rmse),
        ];
        let scores = metrics.cumulative_score.iter();
        row.extend(scores.map(|score| percent(score.score)));
        row
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let scores = reports
        .iter()
        .take(1)
        .flat_map(|report| &report.metrics.cumulative_score);
    let scores: Vec<String> = scores
        .map(|score| with_unit(&format!("error ≤ {}", score.k), unit))
        .collect();
    let (mae, rmse) = (with_unit("MAE", unit), with_unit("RMSE", unit));
    let mut columns = vec!["", "images", &mae, &rmse];
    columns.extend(scores.iter().map(String::as_str));
    table("Floats and int8", &columns, &rows)
}

fn tried(evidence: &Evidence, unit: &str) -> String {
    if evidence.tried.is_empty() {
        return String::new();
    }
    let rows = evidence.tried.iter().map(|tried| {
        let score = &tried.score;
        vec![
            match tried.chosen {
                true => format!("→ {}", tried.method),
                false => tried.method.clone(),
            },
            format!("{:.4}", score.mae),
            format!("{:+.4}", score.mae_increase),
            format!("{:.4}", score.drift),
            format!("{:.5}", score.lowest_cosine),
            tried
                .milliseconds
                .map(|ms| format!("{ms:.2}"))
                .unwrap_or_default(),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let (mae, increase) = (with_unit("MAE", unit), with_unit("beside floats", unit));
    let drift = with_unit("value moves by", unit);
    let columns = ["", &mae, &increase, &drift, "lowest cosine", "ms"];
    let mut section = table("Ways tried, on validation images", &columns, &rows);
    section += "<p class=\"subtitle\">→ Chosen is what keeps the values closest to the float \
                network's, or what first meets the budget: on some hundred images the error itself \
                is larger or smaller by chance.</p>";
    section
}

fn engines(exported: &Exported) -> String {
    let size = format!(
        "{:.2} MB, {:.0} million multiply-accumulates for one picture",
        exported.encoder_bytes as f64 / 1e6,
        exported.macs as f64 / 1e6
    );
    let latencies = &exported.evidence.latencies;
    if latencies.is_empty() {
        return format!("<h2>Encoder</h2><p>{size}</p>");
    }
    let rows = latencies.iter().map(|latency| {
        vec![
            latency.engine.clone(),
            name(latency.precision).into(),
            latency.kernels.clone().unwrap_or_default(),
            format!("{:.2}", latency.milliseconds),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let columns = ["engine", "arithmetic", "kernels", "ms for one picture"];
    let table = table("Encoder, on one thread of this machine", &columns, &rows);
    format!("{table}<p class=\"subtitle\">{size}</p>")
}

fn layers(costs: &Costs, unit: &str) -> String {
    let mut section = String::from("<h2>Layer by layer</h2>");
    let _ = write!(
        section,
        "<p class=\"subtitle\">On {} validation images. Alone: weights and output of this layer \
         are rounded, everything else is exact. One image more or less is {:.2} % of errors within \
         a bound.</p><div class=\"figures\">{}{}</div>",
        costs.images,
        100.0 / costs.images.max(1) as f64,
        noise(&costs.layers),
        drift(&costs.layers, unit)
    );
    let rows: Vec<Vec<String>> = costs.layers.iter().map(row).collect();
    let drift = with_unit("value moves by", unit);
    let increase = with_unit("MAE grows by", unit);
    let space = if unit.is_empty() { "" } else { " " };
    let bound = costs.threshold;
    let score = format!("errors ≤ {bound}{space}{unit}: share grows by");
    let columns = [
        "",
        &drift,
        &increase,
        &score,
        "SQNR alone, dB",
        "in int8, dB",
        "beyond the levels",
        "levels cover",
        "arithmetic",
        "million MACs",
        "KB",
        "output",
        "what",
    ];
    section + &table("All layers", &columns, &rows)
}

fn row(layer: &LayerCost) -> Vec<String> {
    let decibels = |value: Option<f64>| value.map_or("exact".into(), |value| format!("{value:.1}"));
    let [channels, height, width] = layer.output;
    let range = |[low, high]: [f32; 2]| format!("{low:.3} to {high:.3}");
    let scaled = |count: f64, unit: f64| match count {
        0.0 => String::new(),
        count => format!("{:.2}", count / unit),
    };
    vec![
        layer.name.clone(),
        format!("{:.4}", layer.drift),
        format!("{:+.4}", layer.mae_increase),
        format!("{:+.2} %", layer.score_increase * 100.0),
        decibels(layer.sqnr_alone),
        match (layer.sqnr_alone, layer.sqnr_whole) {
            // Not measured: what makes noise alone makes it in company.
            (Some(_), None) => String::new(),
            (_, whole) => decibels(whole),
        },
        format!("{:.3} %", layer.saturated * 100.0),
        layer.range.map_or("stays in floats".into(), range),
        name(layer.precision).into(),
        scaled(layer.macs as f64, 1e6),
        scaled(layer.bytes as f64, 1e3),
        format!("{channels} × {height} × {width}"),
        layer.kind.clone(),
    ]
}

/// Signal to noise of each layer; layers without noise are left out.
fn noise(layers: &[LayerCost]) -> String {
    let points = |of: fn(&LayerCost) -> Option<f64>| -> Vec<(At, String)> {
        let points = layers.iter().enumerate().filter_map(|(index, layer)| {
            let value = of(layer)?;
            let text = format!("{}: {value:.1} dB", layer.name);
            Some(((index as f64, value), text))
        });
        points.collect()
    };
    let (alone, whole) = (
        points(|layer| layer.sqnr_alone),
        points(|layer| layer.sqnr_whole),
    );
    let values = alone.iter().chain(&whole).map(|(at, _)| at.1);
    let mut plot = Plot::new(
        Axis::from_zero("layer", [layers.len() as f64]),
        Axis::from_zero("signal to quantisation noise, dB", values),
    );
    for (series, name, points) in [
        ("first", "alone", &alone),
        ("second", "in the int8 network", &whole),
    ] {
        let line: Vec<At> = points.iter().map(|(at, _)| *at).collect();
        plot.line(series, &line);
        plot.dots(series, 3.0, points);
        plot.name(series, name);
    }
    plot.finish("Noise")
}

/// How far each layer alone moves the value.
fn drift(layers: &[LayerCost], unit: &str) -> String {
    let mut plot = Plot::new(
        Axis::from_zero("layer", [layers.len() as f64]),
        Axis::from_zero(
            &with_unit("mean distance of the value", unit),
            layers.iter().map(|layer| layer.drift),
        ),
    );
    for (index, layer) in layers.iter().enumerate() {
        let text = format!("{}: {:.4}", layer.name, layer.drift);
        plot.bar("first", (index as f64, layer.drift), 0.8, &text);
    }
    plot.finish("What each layer alone costs")
}

fn with_unit(name: &str, unit: &str) -> String {
    match unit {
        "" => name.to_owned(),
        unit => format!("{name}, {unit}"),
    }
}

fn name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Int8 => "int8",
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}
