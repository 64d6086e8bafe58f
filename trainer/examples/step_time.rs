//! Milliseconds per training step (forward and backward) of an image encoder on this machine.
//!
//! `cargo run --release --example step_time -- mobilenet-v2 128 32 folded`

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Distribution, Tensor};
use numclip_trainer::model::{ConvEncoder, EncoderConfig};

/// Steps measured after the first, which warms up.
const STEPS: usize = 5;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, default| arguments.get(index).map_or(default, String::as_str);
    let (architecture, norm) = (argument(0, "mobilenet-v2"), argument(3, "folded"));
    let size: usize = argument(1, "128").parse().context("image size")?;
    let batch: usize = argument(2, "32").parse().context("batch size")?;
    let config = format!("architecture = '{architecture}'\nnorm = '{norm}'\nembedding = 512");
    let config: EncoderConfig = toml::from_str(&config)?;

    let device = Device::flex().autodiff();
    let encoder = config.init(0, &device)?;
    let images = Tensor::random([batch, 3, size, size], Distribution::Default, &device);
    step(&encoder, images.clone());
    let mut times: Vec<[f64; 2]> = (0..STEPS).map(|_| step(&encoder, images.clone())).collect();
    times.sort_by(|a, b| (a[0] + a[1]).total_cmp(&(b[0] + b[1])));
    let [forward, backward] = times[STEPS / 2];
    println!(
        "{architecture} {norm} {size} px, batch {batch}: {:.0} ms (forward {forward:.0}, backward {backward:.0})",
        forward + backward
    );
    Ok(())
}

/// One step; the milliseconds of its forward and backward pass.
fn step(encoder: &ConvEncoder, images: Tensor<4>) -> [f64; 2] {
    let start = Instant::now();
    let loss = encoder.forward(images).powf_scalar(2.0).mean();
    let forward = start.elapsed();
    loss.backward();
    [forward, start.elapsed() - forward].map(|time| time.as_secs_f64() * 1e3)
}
