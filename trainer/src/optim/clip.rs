//! Gradient clipping by the global norm.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// Added to the norm before dividing, as PyTorch's `clip_grad_norm_` does.
const NORM_EPSILON: f64 = 1e-6;

/// Scales all gradients of `module` so that their joint Euclidean norm is at most `max_norm`, and
/// returns the norm they had before.
///
/// A norm that is infinite or NaN leaves the gradients as they are: skip the step or stop, and
/// tell the user. The same gradients give the same norm whatever the number of threads.
pub fn clip_gradients<M: Module>(
    module: &M,
    gradients: &mut GradientsParams,
    max_norm: Option<f64>,
) -> f64 {
    let mut squares = Squares {
        gradients,
        sums: Vec::new(),
    };
    module.visit(&mut squares);
    let norm = read_together(squares.sums)
        .into_iter()
        .map(f64::from)
        .sum::<f64>();
    let norm = norm.sqrt();
    let factor = max_norm.map_or(1.0, |max| max / (norm + NORM_EPSILON));
    if norm.is_finite() && factor < 1.0 {
        scale_gradients(module, gradients, factor);
    }
    norm
}

/// Multiplies all gradients of `module` by `factor`.
pub fn scale_gradients<M: Module>(module: &M, gradients: &mut GradientsParams, factor: f64) {
    module.visit(&mut Scale { gradients, factor });
}

/// The values of many tensors of one value. They come together: on a GPU every single one would
/// wait for all that was asked before it.
pub(crate) fn read_together(values: Vec<Tensor<1>>) -> Vec<f32> {
    match values.is_empty() {
        true => Vec::new(),
        false => Tensor::cat(values, 0)
            .into_data_as::<f32>()
            .iter()
            .collect(),
    }
}

struct Squares<'a> {
    gradients: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            // Dimension by dimension: a plain sum over millions of values is split by thread.
            self.sums.push(gradient.square().sum_dim(0).sum());
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let scaled = gradient.mul_scalar(self.factor);
            self.gradients.register(param.id, scaled);
        }
    }
}
