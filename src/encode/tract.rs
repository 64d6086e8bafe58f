//! The general engine: tract-onnx runs any ONNX encoder, f32 or int8.

use std::io::Cursor;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_onnx::prelude::*;

use super::{EncodeError, Engine, Model, Session};
use crate::bundle::{Bundle, EncoderFile};

/// An ONNX network, optimised for this machine.
pub struct TractModel {
    file: String,
    plan: Arc<TypedSimplePlan>,
    input: [usize; 4],
    dim: usize,
}

struct TractSession {
    file: String,
    state: TypedSimpleState,
    input: [usize; 4],
    dim: usize,
}

impl TractModel {
    /// Loads one of the bundle's encoders.
    ///
    /// # Errors
    /// [`EncodeError`] when tract cannot load the file, or the network does not
    /// map `[1, 3, size, size]` to `dim` values.
    pub fn load(bundle: &Bundle, encoder: &EncoderFile) -> Result<Self, EncodeError> {
        let bytes = bundle.read_encoder(encoder)?;
        let manifest = bundle.manifest();
        Self::from_bytes(
            &encoder.path,
            &bytes,
            manifest.preprocess.size as usize,
            manifest.bins.dim,
        )
    }

    /// Loads an ONNX network that maps `[1, 3, size, size]` to `dim` values;
    /// `file` names it in errors.
    ///
    /// # Errors
    /// As [`TractModel::load`].
    pub fn from_bytes(
        file: &str,
        bytes: &[u8],
        size: usize,
        dim: usize,
    ) -> Result<Self, EncodeError> {
        let input = [1, 3, size, size];
        let load = |message: String| EncodeError::Load {
            file: file.into(),
            engine: Engine::Tract,
            message,
        };
        // tract asserts in places on models that contradict themselves.
        let plan = catch_unwind(AssertUnwindSafe(|| optimise(bytes, &input)))
            .map_err(|_| load("the network contradicts itself".into()))?
            .map_err(|error| load(format!("{error:#}")))?;
        let output = plan
            .model()
            .output_fact(0)
            .map_err(|error| load(format!("{error:#}")))?;
        let shape = output.shape.as_concrete().unwrap_or_default().to_vec();
        let values: usize = shape.iter().product();
        if shape.is_empty() || values != dim || output.datum_type != f32::datum_type() {
            return Err(EncodeError::Shape {
                file: file.into(),
                what: "output of the network",
                expected: format!("F32 [1, {dim}]"),
                got: format!("{:?} {:?}", output.datum_type, output.shape),
            });
        }
        Ok(Self {
            file: file.into(),
            plan,
            input,
            dim,
        })
    }
}

impl Model for TractModel {
    fn engine(&self) -> Engine {
        Engine::Tract
    }

    /// tract runs a picture on one thread, whatever is asked for.
    fn session_on(&self, _threads: NonZero<usize>) -> Result<Box<dyn Session>, EncodeError> {
        let state = self.plan.spawn().map_err(failed)?;
        Ok(Box::new(TractSession {
            file: self.file.clone(),
            state,
            input: self.input,
            dim: self.dim,
        }))
    }
}

impl Session for TractSession {
    fn encode(&mut self, tensor: &[f32]) -> Result<Vec<f32>, EncodeError> {
        let expected: usize = self.input.iter().product();
        if tensor.len() != expected {
            return Err(EncodeError::Shape {
                file: self.file.clone(),
                what: "input of the network",
                expected: format!("{expected} values"),
                got: format!("{} values", tensor.len()),
            });
        }
        let input = Tensor::from_shape(&self.input, tensor).map_err(failed)?;
        let output = self.state.run(tvec![input.into()]).map_err(failed)?;
        let view = output[0].to_plain_array_view::<f32>().map_err(failed)?;
        let embedding: Vec<f32> = view.iter().copied().collect();
        match embedding.len() == self.dim && embedding.iter().all(|value| value.is_finite()) {
            true => Ok(embedding),
            false => Err(failed("the embedding is not finite")),
        }
    }
}

fn optimise(bytes: &[u8], input: &[usize; 4]) -> TractResult<Arc<TypedSimplePlan>> {
    onnx()
        .model_for_read(&mut Cursor::new(bytes))?
        .with_input_fact(0, f32::fact(input).into())?
        .into_optimized()?
        .into_runnable()
}

fn failed(error: impl std::fmt::Display) -> EncodeError {
    EncodeError::Run {
        engine: Engine::Tract,
        message: format!("{error:#}"),
    }
}
