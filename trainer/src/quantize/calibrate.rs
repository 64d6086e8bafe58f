//! What the activations of a float network are on sample images.

use std::io::Cursor;
use std::sync::Arc;

use rayon::prelude::*;
use tract_onnx::prelude::*;

use super::ends::{Channels, Ends};
use super::onnx::float_tapped;
use super::range::{Histogram, Seen};
use crate::graph::ConvNet;

/// What calibration saw of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Its values.
    pub seen: Seen,
    /// Largest magnitude in each channel.
    pub peaks: Vec<f32>,
}

/// The values of a tensor for one image.
pub struct Values {
    /// All of them.
    pub values: Vec<f32>,
    /// How they lie.
    pub channels: Channels,
}

/// Runs `images` (planar `[3, size, size]` each) through `net`; one observation for each node.
///
/// # Errors
/// What the engine says when it cannot run the network, or that there are no images.
pub fn observe(net: &ConvNet, images: &[Vec<f32>]) -> TractResult<Vec<Observation>> {
    let plan = tapped_plan(net)?;
    let shapes = net.output_shapes();
    observe_by(images, |image| {
        let layouts = shapes.iter().map(|shape| Channels::Planes(shape[0]));
        let outputs = run(&plan, net.input, image)?;
        let pairs = outputs.iter().zip(layouts);
        pairs
            .map(|(output, channels)| values(output, channels))
            .collect()
    })
}

/// Observes the tensors that `run` gives for an image, which it is asked for twice: how far values
/// reach comes first, then how often each is met.
///
/// # Errors
/// What `run` says, or that there are no images.
pub fn observe_by(
    images: &[Vec<f32>],
    run: impl Fn(&[f32]) -> TractResult<Vec<Values>> + Sync,
) -> TractResult<Vec<Observation>> {
    let ends = observe_ends(images, &run)?;
    let histograms = observe_histograms(images, &run, &ends)?;
    let observation = |(ends, histogram): (Ends, Histogram)| Observation {
        peaks: ends.peaks,
        seen: Seen {
            extremes: ends.extremes,
            histogram,
        },
    };
    Ok(ends.into_iter().zip(histograms).map(observation).collect())
}

/// What `plan` gives for one image of this shape.
///
/// # Errors
/// What the engine says.
pub fn run(
    plan: &Arc<TypedSimplePlan>,
    [channels, height, width]: [usize; 3],
    image: &[f32],
) -> TractResult<TVec<TValue>> {
    let input = Tensor::from_shape(&[1, channels, height, width], image)?;
    plan.run(tvec![input.into()])
}

/// The values of an output whose channels lie so.
///
/// # Errors
/// When it holds no floats.
pub fn values(output: &TValue, channels: Channels) -> TractResult<Values> {
    let values = output.to_plain_array_view::<f32>()?;
    Ok(Values {
        values: values.iter().copied().collect(),
        channels,
    })
}

fn tapped_plan(net: &ConvNet) -> TractResult<Arc<TypedSimplePlan>> {
    let [channels, height, width] = net.input;
    onnx()
        .model_for_read(&mut Cursor::new(float_tapped(net)))?
        .with_input_fact(0, f32::fact([1, channels, height, width]).into())?
        .into_optimized()?
        .into_runnable()
}

fn observe_ends(
    images: &[Vec<f32>],
    run: &(impl Fn(&[f32]) -> TractResult<Vec<Values>> + Sync),
) -> TractResult<Vec<Ends>> {
    let observe = |image: &Vec<f32>| -> TractResult<Vec<Ends>> {
        let tensors = run(image)?;
        let ends = tensors.iter().map(|of| Ends::of(&of.values, of.channels));
        Ok(ends.collect())
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
    images: &[Vec<f32>],
    run: &(impl Fn(&[f32]) -> TractResult<Vec<Values>> + Sync),
    ends: &[Ends],
) -> TractResult<Vec<Histogram>> {
    let empty = || -> Vec<Histogram> {
        let empty = |ends: &Ends| Histogram::new(ends.low(), ends.high());
        ends.iter().map(empty).collect()
    };
    let observe = |mut all: Vec<Histogram>, image: &Vec<f32>| -> TractResult<Vec<Histogram>> {
        let tensors = run(image)?;
        let pairs = all.iter_mut().zip(&tensors);
        pairs.for_each(|(histogram, of)| histogram.count(&of.values));
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
