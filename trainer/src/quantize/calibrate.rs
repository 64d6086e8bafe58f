//! What the activations of a float network are on sample images.

use std::io::Cursor;
use std::sync::Arc;

use rayon::prelude::*;
use tract_onnx::prelude::*;

use super::ends::Ends;
use super::onnx::float_tapped;
use super::range::{Histogram, Seen};
use crate::graph::ConvNet;

/// What calibration saw of one node's output.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Its values.
    pub seen: Seen,
    /// Largest magnitude in each channel.
    pub peaks: Vec<f32>,
}

/// Runs `images` (planar `[3, size, size]` each) through `net`; one observation for each node.
///
/// # Errors
/// What the engine says when it cannot run the network, or that there are no images.
pub fn observe(net: &ConvNet, images: &[Vec<f32>]) -> TractResult<Vec<Observation>> {
    let plan = tapped_plan(net)?;
    let ends = observe_ends(&plan, net, images)?;
    let histograms = observe_histograms(&plan, net, images, &ends)?;
    let observation = |(ends, histogram): (Ends, Histogram)| Observation {
        peaks: ends.peaks,
        seen: Seen {
            extremes: ends.extremes,
            histogram,
        },
    };
    Ok(ends.into_iter().zip(histograms).map(observation).collect())
}

fn tapped_plan(net: &ConvNet) -> TractResult<Arc<TypedSimplePlan>> {
    let [channels, height, width] = net.input;
    onnx()
        .model_for_read(&mut Cursor::new(float_tapped(net)))?
        .with_input_fact(0, f32::fact([1, channels, height, width]).into())?
        .into_optimized()?
        .into_runnable()
}

/// Outputs of every node for one image, in node order.
fn run(plan: &Arc<TypedSimplePlan>, net: &ConvNet, image: &[f32]) -> TractResult<Vec<Vec<f32>>> {
    let [channels, height, width] = net.input;
    let input = Tensor::from_shape(&[1, channels, height, width], image)?;
    let outputs = plan.run(tvec![input.into()])?;
    let values = |output: &TValue| -> TractResult<Vec<f32>> {
        Ok(output
            .to_plain_array_view::<f32>()?
            .iter()
            .copied()
            .collect())
    };
    outputs.iter().map(values).collect()
}

fn observe_ends(
    plan: &Arc<TypedSimplePlan>,
    net: &ConvNet,
    images: &[Vec<f32>],
) -> TractResult<Vec<Ends>> {
    let shapes = net.output_shapes();
    let observe = |image: &Vec<f32>| -> TractResult<Vec<Ends>> {
        let outputs = run(plan, net, image)?;
        let ends = |(values, shape): (&Vec<f32>, &[usize; 3])| Ends::of_planes(values, shape[0]);
        Ok(outputs.iter().zip(&shapes).map(ends).collect())
    };
    let each: Vec<Vec<Ends>> = images.par_iter().map(observe).collect::<TractResult<_>>()?;
    let join = |mut all: Vec<Ends>, image: Vec<Ends>| {
        let pairs = all.iter_mut().zip(image);
        pairs.for_each(|(all, one)| all.add(one));
        all
    };
    each.into_iter()
        .reduce(join)
        .ok_or_else(|| TractError::msg("calibration needs at least one image"))
}

fn observe_histograms(
    plan: &Arc<TypedSimplePlan>,
    net: &ConvNet,
    images: &[Vec<f32>],
    ends: &[Ends],
) -> TractResult<Vec<Histogram>> {
    let empty = || -> Vec<Histogram> {
        let empty = |ends: &Ends| Histogram::new(ends.low(), ends.high());
        ends.iter().map(empty).collect()
    };
    let observe = |mut all: Vec<Histogram>, image: &Vec<f32>| -> TractResult<Vec<Histogram>> {
        let outputs = run(plan, net, image)?;
        let pairs = all.iter_mut().zip(&outputs);
        pairs.for_each(|(histogram, values)| histogram.count(values));
        Ok(all)
    };
    let merge = |mut a: Vec<Histogram>, b: Vec<Histogram>| {
        a.iter_mut().zip(&b).for_each(|(a, b)| a.merge(b));
        Ok(a)
    };
    images
        .par_iter()
        .try_fold(empty, observe)
        .try_reduce(empty, merge)
}
