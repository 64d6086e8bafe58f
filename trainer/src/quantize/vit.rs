//! The int8 form of a vision transformer: its patches and its products with constant weights in
//! integers, everything else in floats.
//!
//! A product is `QuantizeLinear → MatMulInteger → Cast → Mul`: unsigned activations with one
//! scale, signed weights with one for each output, and a result that is not rounded again. ONNX
//! Runtime and tract run it as it stands; `numclip`'s engine fuses it.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;

use rayon::prelude::*;
use tract_onnx::prelude::*;

use super::affine::Affine;
use super::range::{Histogram, RangeMethod, Seen};
use super::towers::{self, Tower};
use crate::graph::ConvNet;
use crate::model::vit::Vit;

/// Quantises `vit` for images of `size` height and width, followed by `tail` over its embeddings.
/// `input` quantises the image tensor; the ranges of all else are those of `images` (planar
/// `[3, size, size]` each), chosen by `method`.
///
/// # Errors
/// What the engine says when it cannot run the network, or that there are no images.
pub fn int8(
    vit: &Vit,
    tail: Option<&ConvNet>,
    size: usize,
    input: Affine,
    images: &[Vec<f32>],
    method: RangeMethod,
) -> TractResult<Tower> {
    let float = towers::vit(vit, tail, size);
    let seen = observe(&float, size, images)?;
    let affine = |seen: Seen| {
        let (low, high) = seen.range(method);
        Affine::covering(low, high)
    };
    let mut affines: HashMap<String, Affine> = float
        .products
        .into_iter()
        .zip(seen.into_iter().map(affine))
        .collect();
    affines.insert(super::onnx::INPUT.into(), input);
    Ok(towers::vit_int8(vit, tail, size, affines))
}

/// What is multiplied with constant weights, on each image.
fn observe(tower: &Tower, size: usize, images: &[Vec<f32>]) -> TractResult<Vec<Seen>> {
    let plan = onnx()
        .model_for_read(&mut Cursor::new(&tower.bytes))?
        .with_outputs_by_name(&tower.products)?
        .with_input_fact(0, f32::fact([1, 3, size, size]).into())?
        .into_optimized()?
        .into_runnable()?;
    let extremes: Vec<Vec<[f32; 2]>> = images
        .par_iter()
        .map(|image| {
            let outputs = run(&plan, size, image)?;
            Ok(outputs.iter().map(|values| ends(values)).collect())
        })
        .collect::<TractResult<_>>()?;
    if extremes.is_empty() {
        return Err(TractError::msg("calibration needs at least one image"));
    }
    let of_tensor =
        |tensor: usize| -> Vec<[f32; 2]> { extremes.iter().map(|image| image[tensor]).collect() };
    let extremes: Vec<Vec<[f32; 2]>> = (0..tower.products.len()).map(of_tensor).collect();
    let empty = || -> Vec<Histogram> { extremes.iter().map(|ends| empty(ends)).collect() };
    let count = |mut all: Vec<Histogram>, image: &Vec<f32>| -> TractResult<Vec<Histogram>> {
        let outputs = run(&plan, size, image)?;
        let pairs = all.iter_mut().zip(&outputs);
        pairs.for_each(|(histogram, values)| histogram.count(values));
        Ok(all)
    };
    let merge = |mut all: Vec<Histogram>, more: Vec<Histogram>| {
        let pairs = all.iter_mut().zip(&more);
        pairs.for_each(|(histogram, more)| histogram.merge(more));
        Ok(all)
    };
    let histograms = images
        .par_iter()
        .try_fold(empty, count)
        .try_reduce(empty, merge)?;
    let seen = extremes.into_iter().zip(histograms);
    Ok(seen
        .map(|(extremes, histogram)| Seen {
            extremes,
            histogram,
        })
        .collect())
}

fn run(plan: &Arc<TypedSimplePlan>, size: usize, image: &[f32]) -> TractResult<Vec<Vec<f32>>> {
    let input = Tensor::from_shape(&[1, 3, size, size], image)?;
    let outputs = plan.run(tvec![input.into()])?;
    let values = |output: &TValue| -> TractResult<Vec<f32>> {
        let values = output.to_plain_array_view::<f32>()?;
        Ok(values.iter().copied().collect())
    };
    outputs.iter().map(values).collect()
}

fn ends(values: &[f32]) -> [f32; 2] {
    let none = [f32::INFINITY, f32::NEG_INFINITY];
    values.iter().fold(none, |[low, high], &value| {
        [low.min(value), high.max(value)]
    })
}

fn empty(extremes: &[[f32; 2]]) -> Histogram {
    let [low, high] = ends(extremes.as_flattened());
    Histogram::new(low, high)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use numclip::encode::Model;
    use numclip::encode::int8::Int8Model;
    use numclip::encode::tract::TractModel;
    use numclip::verify::cosine;

    use super::*;
    use crate::clip::{Activation, ImageShape, TransformerShape, VitForm, VitShape};
    use crate::clip::{image_layout, random};
    use crate::graph::{Conv, Op, Value};

    const SIZE: usize = 64;
    const DIM: usize = 16;

    fn image(seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * (seed + 3)) as f32 * 0.37).sin();
        (0..3 * SIZE * SIZE).map(value).collect()
    }

    fn network(activation: Activation, form: VitForm) -> Vit {
        let shape = VitShape {
            image: SIZE,
            patch: 16,
            transformer: TransformerShape {
                width: 24,
                layers: 2,
                heads: 3,
                mlp: 40,
                activation,
            },
            embedding: DIM,
            form,
        };
        let layout = image_layout(&ImageShape::Vit(shape.clone()));
        let weights = &mut random(layout, 1).with_epsilon(form.epsilon());
        Vit::take(weights, &shape, SIZE, &Device::flex())
    }

    /// Two layers, a rectifier and a sum, as an adapter folds.
    fn tail() -> ConvNet {
        let layer = |activation| {
            let weight = (0..DIM * DIM).map(|i| (i as f32 * 0.71).sin() * 0.3);
            Op::Conv(Conv {
                weight: weight.collect(),
                shape: [DIM, DIM, 1, 1],
                bias: vec![0.01; DIM],
                stride: [1, 1],
                padding: [0; 4],
                groups: 1,
                activation,
            })
        };
        let mut net = ConvNet {
            input: [DIM, 1, 1],
            nodes: Vec::new(),
        };
        let down = net.push(
            "down",
            layer(crate::graph::Activation::Relu),
            vec![Value::Image],
        );
        let up = net.push("up", layer(crate::graph::Activation::None), vec![down]);
        net.push("sum", Op::Add, vec![up, Value::Image]);
        net
    }

    #[test]
    fn engines_agree_with_each_other_and_nearly_with_the_float_network() {
        for (activation, form, tail) in [
            (Activation::QuickGelu, VitForm::Clip, None),
            (Activation::Gelu, VitForm::Plain, Some(tail())),
        ] {
            let vit = network(activation, form);
            let images: Vec<Vec<f32>> = (0..4).map(image).collect();
            let input = Affine::covering(-1.0, 1.0);
            let method = RangeMethod::default();
            let tower = int8(&vit, tail.as_ref(), SIZE, input, &images, method).unwrap();
            let fast = Int8Model::from_bytes("int8", &tower.bytes, SIZE, DIM).unwrap();
            let general = TractModel::from_bytes("int8", &tower.bytes, SIZE, DIM).unwrap();
            assert_eq!(fast.macs(), Some(tower.macs));
            for seed in 0..8 {
                let image = image(seed);
                let run = |model: &dyn Model| model.session().unwrap().encode(&image).unwrap();
                let (a, b) = (run(&fast), run(&general));
                assert!(cosine(&a, &b) > 0.9999, "{a:?} {b:?}");
                if form == VitForm::Clip {
                    let data = TensorData::new(image.clone(), [1, 3, SIZE, SIZE]);
                    let exact = vit.forward(Tensor::from_data(data, &Device::flex()));
                    let exact: Vec<f32> = exact.into_data().iter::<f32>().collect();
                    assert!(cosine(&a, &exact) > 0.995, "{a:?} {exact:?}");
                }
            }
        }
    }

    #[test]
    fn without_images_nothing_is_known() {
        let vit = network(Activation::Gelu, VitForm::Plain);
        let input = Affine::covering(-1.0, 1.0);
        let error = int8(&vit, None, SIZE, input, &[], RangeMethod::default());
        assert!(
            error
                .err()
                .unwrap()
                .to_string()
                .contains("at least one image")
        );
    }
}
