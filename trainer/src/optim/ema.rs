//! An exponential moving average of the weights, for evaluation and export.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Tensor};

use super::OptimError;

/// The average of a model's weights and batch-norm statistics over the steps so far.
///
/// After update t (from 1) `average ← d · average + (1 − d) · model` with
/// `d = min(decay, t / (t + 9))`: early on it follows the model closely.
#[derive(Clone, Debug)]
pub struct Ema<M> {
    average: M,
    decay: f64,
    updates: u64,
}

impl<M: Module> Ema<M> {
    /// Starts from the model as it is. `decay` is at least 0 and below 1; 0.999 is usual.
    pub fn new(model: &M, decay: f64) -> Self {
        Self {
            average: model.valid(),
            decay,
            updates: 0,
        }
    }

    /// Takes the model's present weights into the average; call it after every step.
    pub fn update(&mut self, model: &M) {
        self.updates += 1;
        let count = self.updates as f64;
        let decay = self.decay.min(count / (count + 9.0));
        let mut blend = Blend {
            current: weights(&model.valid()),
            position: 0,
            decay,
        };
        self.average = self.average.clone().map(&mut blend);
    }

    /// The averaged model, ready for validation (no gradients, batch-norm by its statistics).
    pub fn model(&self) -> &M {
        &self.average
    }

    /// The average and its update count, exactly.
    ///
    /// # Errors
    ///
    /// [`OptimError::Record`] when the weights cannot be serialised.
    pub fn to_bytes(&self) -> Result<Vec<u8>, OptimError> {
        let record = self.average.clone().into_record().into_bytes()?;
        Ok([&self.updates.to_le_bytes()[..], &record].concat())
    }

    /// Continues from what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    ///
    /// [`OptimError::Mismatch`] for too few bytes, [`OptimError::Record`] for bytes that are no
    /// record or the record of another model.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, OptimError> {
        let (updates, record) = split(bytes)?;
        let record = ModuleRecord::from_bytes(Bytes::from_bytes_vec(record.to_vec()))?;
        Ok(Self {
            average: self.average.try_load_record(record)?,
            decay: self.decay,
            updates: u64::from_le_bytes(*updates),
        })
    }

    /// The averaged model's record in what [`to_bytes`](Self::to_bytes) gave.
    ///
    /// # Errors
    ///
    /// [`OptimError::Mismatch`] for too few bytes.
    pub fn record(bytes: &[u8]) -> Result<&[u8], OptimError> {
        split(bytes).map(|(_, record)| record)
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8; 8], &[u8]), OptimError> {
    let few = || OptimError::Mismatch(format!("{} bytes of averaged weights", bytes.len()));
    bytes.split_first_chunk().ok_or_else(few)
}

/// The model's tensors under their position in the module, in burn's container for tensors of
/// any rank.
fn weights<M: Module>(model: &M) -> GradientsParams {
    struct Collect {
        found: GradientsParams,
        position: u64,
    }
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found.register(self.position.into(), param.val());
            self.position += 1;
        }
    }
    let mut collect = Collect {
        found: GradientsParams::new(),
        position: 0,
    };
    model.visit(&mut collect);
    collect.found
}

struct Blend {
    current: GradientsParams,
    position: u64,
    decay: f64,
}

impl ModuleMapper for Blend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let position = self.position;
        self.position += 1;
        match self.current.remove::<D>(position.into()) {
            Some(current) => param.map(|average| {
                average.mul_scalar(self.decay) + current.mul_scalar(1.0 - self.decay)
            }),
            None => param,
        }
    }
}
