//! How a network is quantised after training, and doing so.

use std::fmt;

use serde::{Deserialize, Serialize};
use tract_onnx::prelude::TractResult;

use super::affine::Affine;
use super::calibrate::{Observation, observe};
use super::equalize::equalize;
use super::quantized::Quantized;
use super::range::RangeMethod;
use super::refine::{Refine, correct_alone, refine};
use crate::graph::{Activation, ConvNet, Op};

/// Images that weights and biases are refined on, at most: they pass through the network together.
const REFINE_IMAGES: usize = 64;

/// The choices of quantisation after training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// How the range of an activation is chosen.
    pub range: RangeMethod,
    /// Whether channels are equalised across layers.
    pub equalize: bool,
    /// Whether weights are rounded together instead of each to its nearest level.
    pub adaptive_rounding: bool,
    /// Whether biases take up the mean error.
    pub bias_correction: bool,
}

/// Choices that take the place of a recipe's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Changes {
    /// How the range of an activation is chosen.
    pub range: Option<RangeMethod>,
    /// Whether channels are equalised across layers.
    pub equalize: Option<bool>,
    /// Whether weights are rounded together.
    pub adaptive_rounding: Option<bool>,
    /// Whether biases take up the mean error.
    pub bias_correction: Option<bool>,
    /// How much of a transformer's outliers moves into its weights.
    pub smoothing: Option<f64>,
}

impl Changes {
    /// `recipe` with these choices.
    pub fn apply(self, recipe: Recipe) -> Recipe {
        let Recipe {
            range,
            equalize,
            adaptive_rounding,
            bias_correction,
        } = recipe;
        Recipe {
            range: self.range.unwrap_or(range),
            equalize: self.equalize.unwrap_or(equalize),
            adaptive_rounding: self.adaptive_rounding.unwrap_or(adaptive_rounding),
            bias_correction: self.bias_correction.unwrap_or(bias_correction),
        }
    }
}

impl Recipe {
    /// Other choices of each kind, from the cheapest to the dearest.
    pub const CHOICES: [fn(Self) -> Vec<Self>; 4] = [
        |from| {
            let methods = RangeMethod::all().into_iter();
            methods.map(|range| Self { range, ..from }).collect()
        },
        |from| {
            vec![Self {
                equalize: !from.equalize,
                ..from
            }]
        },
        |from| {
            vec![Self {
                adaptive_rounding: !from.adaptive_rounding,
                ..from
            }]
        },
        |from| {
            vec![Self {
                bias_correction: !from.bias_correction,
                ..from
            }]
        },
    ];
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.range)?;
        let choices = [
            (self.equalize, "equalised"),
            (self.adaptive_rounding, "adaptive rounding"),
            (self.bias_correction, "bias correction"),
        ];
        let chosen = choices.iter().filter(|(chosen, _)| *chosen);
        chosen
            .map(|(_, name)| name)
            .try_for_each(|name| write!(f, ", {name}"))
    }
}

/// A float network with the images it is quantised by. What recipes share is computed once.
pub struct Calibrated<'a> {
    input: Affine,
    images: &'a [Vec<f32>],
    plain: Observed,
    equalized: Option<Observed>,
}

#[derive(Clone)]
struct Observed {
    net: ConvNet,
    observations: Vec<Observation>,
}

impl Observed {
    fn new(net: ConvNet, images: &[Vec<f32>]) -> TractResult<Self> {
        let observations = observe(&net, images)?;
        Ok(Self { net, observations })
    }
}

impl<'a> Calibrated<'a> {
    /// Runs `images` (planar `[3, size, size]` each, quantised by `input`) through `net`.
    ///
    /// # Errors
    /// What the engine says when it cannot run the network, or that there are no images.
    pub fn new(net: ConvNet, input: Affine, images: &'a [Vec<f32>]) -> TractResult<Self> {
        Ok(Self {
            input,
            images,
            plain: Observed::new(net, images)?,
            equalized: None,
        })
    }

    /// Quantises the network but for the convolutions among the nodes `floats`.
    ///
    /// # Errors
    /// As [`Calibrated::new`].
    pub fn quantize(&mut self, recipe: &Recipe, floats: &[usize]) -> TractResult<Quantized> {
        let Observed { net, observations } = match recipe.equalize {
            true => self.equalized()?,
            false => &self.plain,
        };
        let outputs = outputs(net, observations, recipe.range);
        let mut quantized = Quantized::nearest(net.clone(), self.input, outputs);
        floats.iter().for_each(|&node| quantized.leave_float(node));
        let what = Refine {
            weights: recipe.adaptive_rounding,
            biases: recipe.bias_correction,
        };
        if what.weights || what.biases {
            refine(&mut quantized, self.refining(), what);
        }
        Ok(quantized)
    }

    /// `quantized` with biases that are right for each layer alone behind exact ones.
    pub fn alone(&self, quantized: &Quantized) -> Quantized {
        let mut alone = quantized.clone();
        correct_alone(&mut alone, self.refining());
        alone
    }

    fn refining(&self) -> &'a [Vec<f32>] {
        &self.images[..self.images.len().min(REFINE_IMAGES)]
    }

    fn equalized(&mut self) -> TractResult<&Observed> {
        let observed = match self.equalized.take() {
            Some(observed) => observed,
            None => Observed::new(
                equalize(&self.plain.net, &self.plain.observations),
                self.images,
            )?,
        };
        Ok(self.equalized.insert(observed))
    }
}

/// How the output of each node of `net` is quantised. A rectified output begins at 0.
pub fn outputs(net: &ConvNet, observations: &[Observation], method: RangeMethod) -> Vec<Affine> {
    let nodes = net.nodes.iter().zip(observations);
    nodes
        .map(|(node, observation)| {
            let (low, high) = observation.seen.range(method);
            let is_rectified =
                matches!(&node.op, Op::Conv(conv) if conv.activation != Activation::None);
            Affine::covering(if is_rectified { 0.0 } else { low }, high)
        })
        .collect()
}
