//! What each layer of the encoder takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use numclip::encode::Layer;
use numclip::pipeline::Worker;
use serde::{Deserialize, Serialize};

use super::milliseconds;
use crate::table::columns;

/// A layer, as `--json` prints it.
#[derive(Serialize, Deserialize)]
pub struct Measured {
    /// Name in the network.
    name: String,
    what: String,
    /// Median.
    milliseconds: f64,
    macs: u64,
    /// Multiply-accumulates per second over what the kernels reach on data in the cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_peak: Option<f64>,
}

/// The layers in the order of the network, timed for this long on the frame last
/// preprocessed; empty where the engine cannot tell. `peak` is in
/// multiply-accumulates per second.
///
/// # Errors
/// When the engine fails.
pub fn measure(worker: &mut Worker<'_>, seconds: f64, peak: Option<f64>) -> Result<Vec<Measured>> {
    let layers = worker.time_layers()?;
    let mut times: Vec<Vec<Duration>> = layers.iter().map(|layer| vec![layer.time]).collect();
    let began = Instant::now();
    while !layers.is_empty() && began.elapsed().as_secs_f64() < seconds {
        for (times, layer) in times.iter_mut().zip(worker.time_layers()?) {
            times.push(layer.time);
        }
    }
    let measured = layers.into_iter().zip(times);
    Ok(measured
        .map(|(layer, times)| Measured::new(layer, times, peak))
        .collect())
}

impl Measured {
    fn new(layer: Layer, mut times: Vec<Duration>, peak: Option<f64>) -> Self {
        times.sort_unstable();
        let median = times[times.len() / 2];
        let share = |peak: f64| layer.macs as f64 / median.as_secs_f64().max(1e-9) / peak;
        Self {
            share_of_peak: peak.filter(|_| layer.macs > 0).map(share),
            milliseconds: milliseconds(median),
            name: layer.name,
            what: layer.what,
            macs: layer.macs,
        }
    }
}

/// A line for each layer: medians, and each one's part of the whole.
pub fn text(layers: &[Measured]) -> String {
    let whole: f64 = layers.iter().map(|layer| layer.milliseconds).sum();
    let header = [
        "layer",
        "",
        "ms",
        "of the time",
        "million macs",
        "of the peak",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let none_without = |macs: u64, text: String| if macs > 0 { text } else { String::new() };
    rows.extend(layers.iter().map(|layer| {
        vec![
            layer.name.clone(),
            layer.what.clone(),
            format!("{:.4}", layer.milliseconds),
            percent(layer.milliseconds / whole),
            none_without(layer.macs, format!("{:.2}", layer.macs as f64 / 1e6)),
            layer.share_of_peak.map(percent).unwrap_or_default(),
        ]
    }));
    columns(&rows)
}
