//! Times training steps of an image encoder (forward, backward, AdamW) and prints one line for
//! each line read from stdin: the milliseconds of as many steps as that line says. Made for
//! `step.py`, which takes turns with PyTorch.
//!
//! `step ARCHITECTURE SIZE BATCH [batch|folded]`

use std::io::{BufRead as _, stdin};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Tensor};
use numclip_trainer::model::{ConvEncoder, EncoderConfig};
use numclip_trainer::optim::{GroupedOptimizer, OptimConfig};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [architecture, size, batch, norm @ ..] = arguments.as_slice() else {
        bail!("expected: step ARCHITECTURE SIZE BATCH [batch|folded]");
    };
    let norm = norm.first().map_or("batch", String::as_str);
    let config = format!("architecture = '{architecture}'\nnorm = '{norm}'\nembedding = 512");
    let config: EncoderConfig = toml::from_str(&config)?;
    let (size, batch): (usize, usize) = (size.parse()?, batch.parse()?);

    let device = Device::flex().autodiff();
    let mut encoder = config.init(0, &device)?;
    let mut optimizer = GroupedOptimizer::new(&OptimConfig::default(), &encoder)?;
    let images = Tensor::random([batch, 3, size, size], Distribution::Default, &device);
    for line in stdin().lock().lines() {
        let steps: usize = line?.trim().parse().context("a number of steps")?;
        let mut times = Vec::with_capacity(steps);
        for _ in 0..steps {
            let start = Instant::now();
            encoder = step(encoder, &mut optimizer, images.clone());
            times.push(format!("{:.2}", 1e3 * start.elapsed().as_secs_f64()));
        }
        println!("{}", times.join(" "));
    }
    Ok(())
}

fn step(encoder: ConvEncoder, optimizer: &mut GroupedOptimizer, images: Tensor<4>) -> ConvEncoder {
    let loss = encoder.forward(images).powf_scalar(2.0).mean();
    let gradients = GradientsParams::from_grads(loss.backward(), &encoder);
    optimizer.step(1e-3, encoder, gradients)
}
