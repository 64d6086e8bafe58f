//! Scales, zero points and constants that nodes refer to.

use super::Lowering;
use crate::encode::int8::graph::{Constant, Data, GraphError, Node};
use crate::encode::int8::plan::Affine;

/// Constant levels and what they mean: `real = scale · level`, the zero point
/// taken off already.
#[derive(Clone)]
pub struct Weights {
    /// Dimensions.
    pub dims: Vec<usize>,
    /// Levels less their zero points.
    pub levels: Vec<i32>,
    /// One for all, or one for each index along `axis`.
    pub scales: Vec<f32>,
    /// The dimension that `scales` follows.
    pub axis: usize,
}

/// Signed levels move up by this to become unsigned.
const SIGN: u8 = 128;

impl Lowering<'_> {
    /// The constant that `node` reads as input `index`.
    pub fn constant(&self, node: &Node, index: usize) -> Result<&Constant, GraphError> {
        let name = node.input(index);
        let constant = self.graph.constants.get(name);
        constant.ok_or_else(|| node.error(format!("input {index} ({name:?}) is not constant")))
    }

    /// The single float of this name.
    pub fn scalar(&self, node: &Node, name: &str) -> Result<f32, GraphError> {
        match self.graph.constants.get(name).and_then(Constant::floats) {
            Some(&[value]) => Ok(value),
            _ => Err(node.error(format!("{name} is no constant of one float"))),
        }
    }

    /// Scale and zero point of an activation: inputs `index` and `index + 1`.
    pub fn affine(&self, node: &Node, index: usize) -> Result<Affine, GraphError> {
        let scale = self.scalar(node, node.input(index))?;
        check_scale(node, scale)?;
        let zero_point = self.zero_point(node, index + 1)?;
        Ok(Affine { scale, zero_point })
    }

    /// Zero point of an activation; 0 where it is left out.
    pub fn zero_point(&self, node: &Node, index: usize) -> Result<u8, GraphError> {
        if node.input(index).is_empty() {
            return Ok(0);
        }
        match &self.constant(node, index)?.data {
            Data::U8(levels) if levels.len() == 1 => Ok(levels[0]),
            Data::I8(levels) if levels.len() == 1 => Ok(levels[0].cast_unsigned() ^ SIGN),
            _ => Err(node.error(format!("input {index}: expected one zero point of 8 bits"))),
        }
    }

    /// The constants of input 1, with zero points in input 3, whose scales are yet to come.
    pub fn integer_weights(&self, node: &Node, axis: usize) -> Result<Weights, GraphError> {
        let constant = self.constant(node, 1)?;
        let zero_points = match node.input(3) {
            "" => Vec::new(),
            _ => integers(node, self.constant(node, 3)?)?,
        };
        let weights = Weights {
            dims: constant.dims.clone(),
            levels: integers(node, constant)?,
            scales: vec![1.0],
            axis,
        };
        weights.without_zero_points(node, &zero_points)
    }

    /// Quantised constants that stand at `index` with their scale and zero
    /// point behind them; `axis` is that of scales per channel.
    pub fn weights(&self, node: &Node, index: usize, axis: usize) -> Result<Weights, GraphError> {
        let constant = self.constant(node, index)?;
        let scales = self.constant(node, index + 1)?.floats();
        let scales = scales.ok_or_else(|| node.error("the scale of its weights is no float"))?;
        let zero_points = match node.input(index + 2) {
            "" => Vec::new(),
            _ => integers(node, self.constant(node, index + 2)?)?,
        };
        let weights = Weights {
            dims: constant.dims.clone(),
            levels: integers(node, constant)?,
            scales: scales.to_vec(),
            axis,
        };
        weights.without_zero_points(node, &zero_points)
    }

    /// The result of a `DequantizeLinear` of a constant.
    pub fn dequantized(&self, node: &Node, constant: &Constant) -> Result<Weights, GraphError> {
        let rank = constant.dims.len() as i64;
        let axis = node.int("axis", 1);
        let axis = if axis < 0 {
            axis.saturating_add(rank)
        } else {
            axis
        };
        self.weights(node, 0, usize::try_from(axis).unwrap_or(usize::MAX))
    }
}

impl Weights {
    /// One scale for each index along `axis`.
    ///
    /// # Errors
    /// [`GraphError`] when the scales follow another dimension.
    pub fn scales_along(&self, node: &Node, axis: usize) -> Result<Vec<f32>, GraphError> {
        let count = self.dims.get(axis).copied().unwrap_or(1);
        match self.scales.as_slice() {
            [scale] => Ok(vec![*scale; count]),
            scales if self.axis == axis && scales.len() == count => Ok(scales.to_vec()),
            scales => Err(node.error(format!(
                "{} scales of its weights along dimension {}; expected 1, or {count} along {axis}",
                scales.len(),
                self.axis
            ))),
        }
    }

    /// The real values.
    pub fn reals(&self) -> Vec<f32> {
        let after: usize = self.dims.iter().skip(self.axis.saturating_add(1)).product();
        let scale = |index: usize| self.scales[index / after.max(1) % self.scales.len()];
        let levels = self.levels.iter().enumerate();
        levels
            .map(|(index, &level)| level as f32 * scale(index))
            .collect()
    }

    /// The levels as weights of this engine.
    ///
    /// # Errors
    /// [`GraphError`] when one does not fit a signed byte.
    pub fn bytes(&self, node: &Node) -> Result<Vec<i8>, GraphError> {
        let byte = |&level: &i32| {
            i8::try_from(level).map_err(|_| {
                node.error(format!(
                    "weight level {level} less its zero point is outside -128 to 127; quantise weights symmetrically"
                ))
            })
        };
        self.levels.iter().map(byte).collect()
    }

    fn without_zero_points(mut self, node: &Node, zero_points: &[i32]) -> Result<Self, GraphError> {
        for &scale in &self.scales {
            check_scale(node, scale)?;
        }
        let along = self.dims.get(self.axis).copied().unwrap_or(1);
        let fits = |count: usize| count == 1 || count == along;
        if !fits(self.scales.len()) || !(zero_points.is_empty() || fits(zero_points.len())) {
            return Err(node.error(format!(
                "{} scales and {} zero points for constants of {:?}",
                self.scales.len(),
                zero_points.len(),
                self.dims
            )));
        }
        if zero_points.iter().any(|&zero_point| zero_point != 0) {
            let after: usize = self.dims.iter().skip(self.axis.saturating_add(1)).product();
            for (index, level) in self.levels.iter_mut().enumerate() {
                let channel = index / after.max(1) % along.max(1);
                *level = level.wrapping_sub(zero_points[channel % zero_points.len()]);
            }
        }
        Ok(self)
    }
}

fn integers(node: &Node, constant: &Constant) -> Result<Vec<i32>, GraphError> {
    match &constant.data {
        Data::U8(values) => Ok(values.iter().map(|&value| value.into()).collect()),
        Data::I8(values) => Ok(values.iter().map(|&value| value.into()).collect()),
        Data::I32(values) => Ok(values.clone()),
        Data::F32(_) | Data::I64(_) => {
            Err(node.error("a constant that should be quantised is not"))
        }
    }
}

fn check_scale(node: &Node, scale: f32) -> Result<(), GraphError> {
    match scale.is_normal() && scale > 0.0 {
        true => Ok(()),
        false => Err(node.error(format!("scale {scale}; expected a positive number"))),
    }
}
