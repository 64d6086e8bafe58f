//! The int8 form of a vision transformer: its patches and its products with constant weights in
//! integers, everything else in floats.
//!
//! A product is `QuantizeLinear → MatMulInteger → Cast → Mul`: unsigned activations with one
//! scale, signed weights with one for each output, and a result that is not rounded again. ONNX
//! Runtime and tract run it as it stands; `numclip`'s engine fuses it.

use std::collections::HashMap;
use std::fmt;
use std::io::Cursor;
use std::sync::Arc;

use tract_onnx::prelude::*;

use super::affine::Affine;
use super::calibrate::{Observation, observe_by, run, values};
use super::ends::Channels;
use super::range::{RangeMethod, Seen};
use super::smooth::smooth;
use super::towers::{self, Tower};
use crate::graph::ConvNet;
use crate::model::vit::Vit;

/// How a transformer is quantised after training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recipe {
    /// How the range of an activation is chosen.
    pub range: RangeMethod,
    /// How much of the activations' outliers moves into the weights, 0 (nothing does) to 1.
    pub smoothing: f64,
}

impl Recipe {
    /// Other choices of each kind, from the cheapest to the dearest.
    pub const CHOICES: [fn(Self) -> Vec<Self>; 2] = [
        |from| {
            let methods = RangeMethod::all().into_iter();
            methods.map(|range| Self { range, ..from }).collect()
        },
        |from| {
            let strengths = [0.0, 0.3, 0.5, 0.7].into_iter();
            let other = strengths.map(|smoothing| Self { smoothing, ..from });
            other.collect()
        },
    ];
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.smoothing {
            0.0 => write!(f, "{}", self.range),
            strength => write!(f, "{}, smoothed by {strength}", self.range),
        }
    }
}

/// A vision transformer for images of `size` height and width, followed by `tail` over its
/// embeddings.
#[derive(Clone, Copy)]
pub struct Float<'a> {
    /// The transformer.
    pub vit: &'a Vit,
    /// What follows.
    pub tail: Option<&'a ConvNet>,
    /// Side of the images.
    pub size: usize,
}

/// A float transformer with the images it is quantised by. What recipes share is computed once.
pub struct Calibrated<'a> {
    float: Float<'a>,
    input: Affine,
    images: &'a [Vec<f32>],
    plain: Observed,
    smoothed: Option<(f64, Observed)>,
}

/// What the levels of a value lose of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Losses {
    /// Lowest and highest value that they cover.
    pub range: [f32; 2],
    /// Channels.
    pub width: usize,
    /// Share of the values beyond them.
    pub saturated: f64,
    /// Signal to quantisation noise in dB; none without noise.
    pub sqnr: Option<f64>,
}

/// What is multiplied with constant weights: names in ONNX, and what was seen of each.
struct Observed {
    vit: Vit,
    products: Vec<String>,
    observations: Vec<Observation>,
}

impl<'a> Calibrated<'a> {
    /// Runs `images` (planar `[3, size, size]` each, quantised by `input`) through `float`.
    ///
    /// # Errors
    /// What the engine says when it cannot run the network, or that there are no images.
    pub fn new(float: Float<'a>, input: Affine, images: &'a [Vec<f32>]) -> TractResult<Self> {
        Ok(Self {
            float,
            input,
            images,
            plain: float.observed(float.vit.clone(), images)?,
            smoothed: None,
        })
    }

    /// Names of what is multiplied with constant weights, the image left out.
    pub fn products(&self) -> &[String] {
        &self.plain.products
    }

    /// Writes the network with its products in int8, but for those of `floats`.
    ///
    /// # Errors
    /// As [`Calibrated::new`].
    pub fn quantize(&mut self, recipe: &Recipe, floats: &[String]) -> TractResult<Tower> {
        let input = self.input;
        let Float { tail, size, .. } = self.float;
        let observed = self.observed(recipe.smoothing)?;
        let mut levels = observed.levels(recipe.range, |name| !floats.contains(name));
        levels.insert(super::onnx::INPUT.into(), input);
        Ok(towers::vit_int8(&observed.vit, tail, size, levels))
    }

    /// Writes the network with the products of `name` alone in int8.
    ///
    /// # Errors
    /// As [`Calibrated::new`].
    pub fn alone(&mut self, recipe: &Recipe, name: &str) -> TractResult<Tower> {
        let Float { tail, size, .. } = self.float;
        let observed = self.observed(recipe.smoothing)?;
        let levels = observed.levels(recipe.range, |other| other == name);
        Ok(towers::vit_int8(&observed.vit, tail, size, levels))
    }

    /// The levels of `name`, and what they lose of it.
    ///
    /// # Errors
    /// As [`Calibrated::new`].
    pub fn losses(&mut self, recipe: &Recipe, name: &str) -> TractResult<Option<Losses>> {
        let observed = self.observed(recipe.smoothing)?;
        let known = observed.products.iter().position(|known| known == name);
        Ok(known.map(|index| {
            let Observation { seen, peaks } = &observed.observations[index];
            let affine = covering(seen, recipe.range);
            let (saturated, sqnr) = seen.losses(affine);
            Losses {
                range: [0, 255].map(|level| affine.dequantize(level)),
                width: peaks.len(),
                saturated,
                sqnr,
            }
        }))
    }

    fn observed(&mut self, smoothing: f64) -> TractResult<&Observed> {
        if smoothing == 0.0 {
            return Ok(&self.plain);
        }
        let known = self.smoothed.take().filter(|(of, _)| *of == smoothing);
        let observed = match known {
            Some((_, observed)) => observed,
            None => {
                let named = self.plain.named();
                let peaks = named.map(|(name, of)| (name.clone(), of.peaks.clone()));
                let peaks = peaks.collect();
                let vit = smooth(self.float.vit, &peaks, smoothing);
                self.float.observed(vit, self.images)?
            }
        };
        Ok(&self.smoothed.insert((smoothing, observed)).1)
    }
}

impl Observed {
    fn named(&self) -> impl Iterator<Item = (&String, &Observation)> {
        self.products.iter().zip(&self.observations)
    }

    /// The levels of the products that are wanted.
    fn levels(
        &self,
        range: RangeMethod,
        wanted: impl Fn(&String) -> bool,
    ) -> HashMap<String, Affine> {
        let wanted = self.named().filter(|(name, _)| wanted(name));
        let levels = wanted.map(|(name, of)| (name.clone(), covering(&of.seen, range)));
        levels.collect()
    }
}

impl Float<'_> {
    /// Runs the images through the network with `vit` in place of its own.
    fn observed(self, vit: Vit, images: &[Vec<f32>]) -> TractResult<Observed> {
        let tower = towers::vit(&vit, self.tail, self.size);
        let plan = plan(&tower, self.size)?;
        let rows = |output: &TValue| {
            let width = output.shape().last().copied().unwrap_or(1);
            values(output, Channels::Rows(width))
        };
        let observations = observe_by(images, |image| {
            let outputs = run(&plan, [3, self.size, self.size], image)?;
            outputs.iter().map(rows).collect()
        })?;
        Ok(Observed {
            vit,
            products: tower.products,
            observations,
        })
    }
}

fn covering(seen: &Seen, range: RangeMethod) -> Affine {
    let (low, high) = seen.range(range);
    Affine::covering(low, high)
}

fn plan(tower: &Tower, size: usize) -> TractResult<Arc<TypedSimplePlan>> {
    onnx()
        .model_for_read(&mut Cursor::new(&tower.bytes))?
        .with_outputs_by_name(&tower.products)?
        .with_input_fact(0, f32::fact([1, 3, size, size]).into())?
        .into_optimized()?
        .into_runnable()
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::nn::LayerNorm;
    use burn::tensor::{Device, Tensor, TensorData};
    use numclip::encode::Model;
    use numclip::encode::int8::Int8Model;
    use numclip::encode::tract::TractModel;
    use numclip::verify::cosine;

    use super::*;
    use crate::clip::{Activation, VitForm};
    use crate::graph::{Conv, Op, Value};
    use crate::quantize::tests::transformer;

    const PLAIN: Recipe = Recipe {
        range: RangeMethod::MinMax,
        smoothing: 0.0,
    };
    const SIZE: usize = 64;
    const DIM: usize = 16;

    fn image(seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * (seed + 3)) as f32 * 0.37).sin();
        (0..3 * SIZE * SIZE).map(value).collect()
    }

    fn network(activation: Activation, form: VitForm) -> Vit {
        transformer([SIZE; 2], DIM, activation, form)
    }

    fn calibrated<'a>(
        vit: &'a Vit,
        tail: Option<&'a ConvNet>,
        images: &'a [Vec<f32>],
    ) -> TractResult<Calibrated<'a>> {
        let size = SIZE;
        let float = Float { vit, tail, size };
        Calibrated::new(float, Affine::covering(-1.0, 1.0), images)
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
            let mut calibrated = calibrated(&vit, tail.as_ref(), &images).unwrap();
            let tower = calibrated.quantize(&PLAIN, &[]).unwrap();
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

    /// A network whose layer norms have outliers, and its images.
    fn with_outliers() -> (Vit, Vec<Vec<f32>>) {
        let mut vit = network(Activation::Gelu, VitForm::Plain);
        let outliers = |norm: &mut LayerNorm, weight: &mut Param<Tensor<2>>| {
            let factors: Vec<f32> = (0..24)
                .map(|i| if i % 9 == 4 { 40.0 } else { 1.0 })
                .collect();
            let factors: Tensor<1> =
                Tensor::from_data(TensorData::new(factors, [24]), &Device::flex());
            norm.gamma = Param::from_tensor(norm.gamma.val() * factors.clone());
            norm.beta = norm
                .beta
                .as_ref()
                .map(|b| Param::from_tensor(b.val() * factors.clone()));
            *weight = Param::from_tensor(weight.val() / factors.unsqueeze_dim::<2>(1));
        };
        for block in &mut vit.transformer.blocks {
            outliers(&mut block.norm_1, &mut block.attention.in_proj.weight);
            outliers(&mut block.norm_2, &mut block.fc.weight);
        }
        (vit, (0..4).map(image).collect())
    }

    fn encoded(tower: &Tower, image: &[f32]) -> Vec<f32> {
        let model = TractModel::from_bytes("test", &tower.bytes, SIZE, DIM).unwrap();
        model.session().unwrap().encode(image).unwrap()
    }

    fn apart(a: &[f32], b: &[f32]) -> f32 {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>()
            .sqrt()
    }

    #[test]
    fn smoothing_leaves_the_function_and_takes_the_outliers_from_the_levels() {
        let (vit, images) = with_outliers();
        let exact = encoded(&towers::vit(&vit, None, SIZE), &images[0]);
        let mut calibrated = calibrated(&vit, None, &images).unwrap();
        let smoothed = calibrated.observed(0.5).unwrap().vit.clone();
        let same = encoded(&towers::vit(&smoothed, None, SIZE), &images[0]);
        let length = apart(&exact, &[0.0; DIM]);
        assert!(apart(&exact, &same) < 1e-4 * length, "{exact:?} {same:?}");
        let mut error = |smoothing| {
            let recipe = Recipe { smoothing, ..PLAIN };
            apart(
                &encoded(&calibrated.quantize(&recipe, &[]).unwrap(), &images[0]),
                &exact,
            )
        };
        let (plain, smooth) = (error(0.0), error(0.5));
        assert!(smooth < 0.5 * plain, "{smooth} beside {plain}");
    }

    #[test]
    fn products_stay_in_floats_where_that_is_asked() {
        let (vit, images) = with_outliers();
        let exact = encoded(&towers::vit(&vit, None, SIZE), &images[0]);
        let mut calibrated = calibrated(&vit, None, &images).unwrap();
        let all = calibrated.products().to_vec();
        assert_eq!(all.len(), 2 * 4 + 1, "{all:?}");
        let mut errors = Vec::new();
        for floats in [&all[..0], &all[..5], &all] {
            let tower = calibrated.quantize(&PLAIN, floats).unwrap();
            let fast = Int8Model::from_bytes("int8", &tower.bytes, SIZE, DIM).unwrap();
            let fast = fast.session().unwrap().encode(&images[0]).unwrap();
            assert!(cosine(&fast, &encoded(&tower, &images[0])) > 0.9999);
            errors.push(apart(&fast, &exact));
        }
        assert!(errors[0] > errors[1] && errors[1] > errors[2], "{errors:?}");
        let alone = calibrated.alone(&PLAIN, &all[0]).unwrap();
        let error = apart(&encoded(&alone, &images[0]), &exact);
        assert!(error > 0.0 && error < errors[0], "{error} {errors:?}");
    }

    #[test]
    fn without_images_nothing_is_known() {
        let vit = network(Activation::Gelu, VitForm::Plain);
        let error = calibrated(&vit, None, &[]).err().unwrap().to_string();
        assert!(error.contains("at least one image"), "{error}");
    }
}
