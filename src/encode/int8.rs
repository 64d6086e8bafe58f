//! The fast engine: int8 convolution networks, each layer in one pass, and
//! transformers whose linear layers are int8.
//!
//! ```text
//! ONNX bytes → Graph → Plan → Program → Runner
//!              names   what   packed    at work, one for each thread
//!              and     is     for one
//!              values  done   machine
//! ```
//!
//! Activations are unsigned bytes, `[height, width, channels]`; weights are
//! signed bytes. A layer multiplies, adds the bias, applies the activation and
//! rounds back to bytes without leaving the registers. What a transformer does
//! between its linear layers (normalisation, attention, GELU) is done in floats.
//! The instruction set is chosen when the model is loaded; `NUMCLIP_ISA` names another one.

mod arena;
mod fuse;
mod graph;
mod kernels;
mod label;
mod lower;
mod memory;
mod peak;
mod plan;
mod program;
mod proto;
mod run;
mod shares;
mod view;
#[cfg(test)]
mod tests;

use std::num::NonZero;
use std::sync::Arc;

use super::{EncodeError, Engine, Layer, Model, Session};
use crate::bundle::{Bundle, EncoderFile};
use crate::preprocess::Plan;
use graph::{Graph, GraphError};
use kernels::Kernels;
use program::{Placed, Program};
use run::{Lookup, Runner};

/// Environment variable that names the instruction set.
pub const ISA: &str = "NUMCLIP_ISA";

/// An int8 network, packed for this machine.
pub struct Int8Model {
    file: String,
    program: Arc<Program>,
}

struct Int8Session {
    file: String,
    runner: Runner,
    /// What bytes become under the plan last used.
    lookups: Option<(Plan, [Lookup; 3])>,
}

impl Int8Model {
    /// Loads one of the bundle's encoders.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine does not run the network, or it does
    /// not map `[1, 3, size, size]` to `dim` values.
    pub fn load(bundle: &Bundle, encoder: &EncoderFile) -> Result<Self, EncodeError> {
        let bytes = bundle.read_encoder(encoder)?;
        let manifest = bundle.manifest();
        let size = manifest.preprocess.size as usize;
        Self::of(&encoder.path, bytes, size, manifest.bins.dim)
    }

    /// Loads an ONNX network that maps `[1, 3, size, size]` to `dim` values;
    /// `file` names it in errors.
    ///
    /// # Errors
    /// As [`Int8Model::load`].
    pub fn from_bytes(
        file: &str,
        bytes: &[u8],
        size: usize,
        dim: usize,
    ) -> Result<Self, EncodeError> {
        Self::of(file, bytes, size, dim)
    }

    fn of(
        file: &str,
        bytes: impl AsRef<[u8]>,
        size: usize,
        dim: usize,
    ) -> Result<Self, EncodeError> {
        let refused = |message: String| EncodeError::Load {
            file: file.into(),
            engine: Engine::Int8,
            message,
        };
        let kernels = chosen().map_err(refused)?;
        let program = program(bytes, size, kernels).map_err(|error| refused(error.to_string()))?;
        if program.dim() != dim {
            return Err(EncodeError::Shape {
                file: file.into(),
                what: "output of the network",
                expected: format!("[1, {dim}]"),
                got: format!("[1, {}]", program.dim()),
            });
        }
        Ok(Self {
            file: file.into(),
            program: Arc::new(program),
        })
    }
}

/// The weights lie in memory in three forms, one after the other: each is
/// dropped as soon as the next is there.
fn program(
    bytes: impl AsRef<[u8]>,
    size: usize,
    kernels: &'static dyn Kernels,
) -> Result<Program, GraphError> {
    let mut graph = Graph::read(bytes.as_ref())?;
    drop(bytes);
    fuse::fuse(&mut graph);
    let plan = lower::lower(&graph, size)?;
    drop(graph);
    Program::new(plan, kernels)
}

fn chosen() -> Result<&'static dyn Kernels, String> {
    let all = kernels::all();
    let names = || {
        all.iter()
            .map(|kernels| kernels.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match std::env::var(ISA) {
        Ok(name) => kernels::by_name(&name)
            .ok_or_else(|| format!("{ISA} is {name:?}; this machine has {}", names())),
        Err(_) => Ok(all[0]),
    }
}

impl Model for Int8Model {
    fn engine(&self) -> Engine {
        Engine::Int8
    }

    fn macs(&self) -> Option<u64> {
        Some(self.program.macs)
    }

    fn kernels(&self) -> Option<&'static str> {
        Some(self.program.kernels.name())
    }

    fn peak_macs_per_second(&self) -> Option<f64> {
        Some(peak::macs_per_second(self.program.kernels))
    }

    fn session_on(&self, threads: NonZero<usize>) -> Result<Box<dyn Session>, EncodeError> {
        let runner = Runner::new(Arc::clone(&self.program)).with_threads(threads);
        Ok(Box::new(Int8Session {
            file: self.file.clone(),
            runner: runner.map_err(failed)?,
            lookups: None,
        }))
    }
}

impl Session for Int8Session {
    fn encode(&mut self, tensor: &[f32]) -> Result<Vec<f32>, EncodeError> {
        self.check_input(tensor.len())?;
        let embedding = self.runner.run(tensor);
        finite(&embedding)?;
        Ok(embedding)
    }

    /// Each byte of a picture can become one of 256 levels, so that a table
    /// stands for normalisation and quantisation.
    fn encode_pixels(
        &mut self,
        plan: &Plan,
        pixels: &[u8],
        embedding: &mut Vec<f32>,
    ) -> Result<(), EncodeError> {
        self.check_input(pixels.len())?;
        let lookups = known(&mut self.lookups, plan, self.runner.image());
        self.runner.run_pixels(pixels, lookups, embedding);
        finite(embedding)
    }

    fn time_layers(&mut self, plan: &Plan, pixels: &[u8]) -> Result<Vec<Layer>, EncodeError> {
        self.check_input(pixels.len())?;
        let lookups = known(&mut self.lookups, plan, self.runner.image());
        Ok(self.runner.time_layers(pixels, lookups))
    }
}

impl Int8Session {
    fn check_input(&self, values: usize) -> Result<(), EncodeError> {
        let expected = self.runner.image().shape.values();
        match values == expected {
            true => Ok(()),
            false => Err(EncodeError::Shape {
                file: self.file.clone(),
                what: "input of the network",
                expected: format!("{expected} values"),
                got: format!("{values} values"),
            }),
        }
    }
}

/// What bytes become under `plan`, which is mostly what they became last.
fn known<'a>(
    last: &'a mut Option<(Plan, [Lookup; 3])>,
    plan: &Plan,
    image: &Placed,
) -> &'a [Lookup; 3] {
    let known = last.take().filter(|(of, _)| of == plan);
    let (_, lookups) = last.insert(known.unwrap_or_else(|| (plan.clone(), lookups(plan, image))));
    lookups
}

/// For each channel of `image`, the levels of all bytes after the plan's
/// normalisation.
fn lookups(plan: &Plan, image: &Placed) -> [Lookup; 3] {
    let ramp: [[u8; 3]; 256] = std::array::from_fn(|byte| [byte as u8; 3]);
    let mut tensor = [0.0; 3 * 256];
    plan.normalize(ramp.as_flattened(), &mut tensor);
    [0, 1, 2].map(|channel| Lookup {
        source: plan.channels.source(channel),
        levels: std::array::from_fn(|byte| image.affine.level(tensor[256 * channel + byte])),
    })
}

fn finite(embedding: &[f32]) -> Result<(), EncodeError> {
    match embedding.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(failed("the embedding is not finite")),
    }
}

fn failed(error: impl std::fmt::Display) -> EncodeError {
    EncodeError::Run {
        engine: Engine::Int8,
        message: error.to_string(),
    }
}
