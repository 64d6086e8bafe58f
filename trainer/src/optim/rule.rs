//! The update rules, for one parameter at a time.

use burn::optim::{AdaptiveMomentumState, Optimizer};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::OptimConfig;

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019, algorithm 2).
    AdamW,
    /// Adam with a rectified step size (Liu et al., ICLR 2020, algorithm 2), which warms itself up.
    RAdam,
}

/// A method with its constants; the numbers and their order are PyTorch's.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    method: Method,
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: f64,
}

impl Rule {
    pub(super) fn new(config: &OptimConfig) -> Self {
        Self {
            method: config.method,
            betas: config.betas,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
        }
    }

    fn moments<const D: usize>(
        &self,
        gradient: Tensor<D>,
        state: Option<AdaptiveMomentumState<D>>,
    ) -> AdaptiveMomentumState<D> {
        let [first, second] = self.betas;
        let (time, moment_1, moment_2) = match state {
            Some(state) => (state.time, state.moment_1, state.moment_2),
            None => (0, gradient.zeros_like(), gradient.zeros_like()),
        };
        AdaptiveMomentumState {
            time: time + 1,
            moment_1: moment_1.mul_scalar(first) + gradient.clone().mul_scalar(1.0 - first),
            moment_2: moment_2.mul_scalar(second) + gradient.square().mul_scalar(1.0 - second),
            max_moment_2: None,
        }
    }

    /// What the learning rate multiplies.
    fn update<const D: usize>(&self, state: &AdaptiveMomentumState<D>) -> Tensor<D> {
        let time = state.time as f64;
        let [first, second] = self.betas.map(|beta| 1.0 - beta.powf(time));
        let mean = state.moment_1.clone().div_scalar(first);
        let root = state.moment_2.clone().sqrt();
        match self.method {
            Method::AdamW => mean / root.div_scalar(second.sqrt()).add_scalar(self.epsilon),
            Method::RAdam => match rectification(self.betas[1], time) {
                Some(factor) => {
                    mean.mul_scalar(factor * second.sqrt()) / root.add_scalar(self.epsilon)
                }
                None => mean,
            },
        }
    }
}

impl Optimizer for Rule {
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        lr: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let state = self.moments(gradient, state);
        let update = self.update(&state).mul_scalar(lr);
        let decay = if D >= 2 { lr * self.weight_decay } else { 0.0 };
        (parameter.mul_scalar(1.0 - decay) - update, Some(state))
    }

    fn to_device<const D: usize>(mut state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.moment_1 = state.moment_1.to_device(device);
        state.moment_2 = state.moment_2.to_device(device);
        state
    }
}

/// The variance rectification r of RAdam at step `time` (from 1); `None` while the variance is
/// not tractable (length of the approximated average at most 5, as PyTorch draws the line).
fn rectification(beta: f64, time: f64) -> Option<f64> {
    let limit = 2.0 / (1.0 - beta) - 1.0;
    let power = beta.powf(time);
    let length = limit - 2.0 * time * power / (1.0 - power);
    let ratio =
        ((length - 4.0) * (length - 2.0) * limit) / ((limit - 4.0) * (limit - 2.0) * length);
    (length > 5.0).then(|| ratio.sqrt())
}
