//! Image encoders: what runs the network of a bundle.
//!
//! Loading and running are different types: a [`Model`] is loaded once and
//! shared between threads, a [`Session`] runs it on one of them.

#[cfg(feature = "int8")]
pub mod int8;
#[cfg(feature = "tflite")]
pub mod tflite;
#[cfg(feature = "tract")]
pub mod tract;

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::bundle::{Bundle, BundleError, EncoderFile, EncoderFormat, Precision};
use crate::preprocess::Plan;

/// A loaded encoder.
pub trait Model: Send + Sync {
    /// Name of the engine.
    fn engine(&self) -> Engine;

    /// Multiply-accumulates for one picture, where the engine counts them.
    fn macs(&self) -> Option<u64> {
        None
    }

    /// The set of kernels in use, where the engine has several.
    fn kernels(&self) -> Option<&'static str> {
        None
    }

    /// Multiply-accumulates per second that one thread of the engine reaches
    /// on data in the cache, measured when asked for (tens of milliseconds).
    fn peak_macs_per_second(&self) -> Option<f64> {
        None
    }

    /// A runner of its own for the calling thread.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine cannot set it up.
    fn session(&self) -> Result<Box<dyn Session>, EncodeError> {
        self.session_on(NonZero::<usize>::MIN)
    }

    /// A runner that shares each picture between this many threads of its
    /// own, where the engine can; the embedding is the same, byte for byte.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine cannot set it up.
    fn session_on(&self, threads: NonZero<usize>) -> Result<Box<dyn Session>, EncodeError>;
}

/// A running encoder.
pub trait Session: Send {
    /// Embeds one picture: `tensor` is planar `[3, size, size]` as the
    /// bundle's plan makes it; the result has `dim` values and any norm.
    ///
    /// # Errors
    /// [`EncodeError`] when the tensor does not fit or the engine fails.
    fn encode(&mut self, tensor: &[f32]) -> Result<Vec<f32>, EncodeError>;

    /// Embeds one picture as [`Preprocessor::fit`] leaves it: RGB, interleaved,
    /// `size · size · 3` bytes. `embedding` gets the same as [`Session::encode`]
    /// gives of what `plan` normalises it to.
    ///
    /// [`Preprocessor::fit`]: crate::preprocess::Preprocessor::fit
    ///
    /// # Errors
    /// As [`Session::encode`].
    fn encode_pixels(
        &mut self,
        plan: &Plan,
        pixels: &[u8],
        embedding: &mut Vec<f32>,
    ) -> Result<(), EncodeError> {
        let mut tensor = vec![0.0; pixels.len()];
        plan.normalize(pixels, &mut tensor);
        *embedding = self.encode(&tensor)?;
        Ok(())
    }

    /// Embeds one picture as [`Session::encode_pixels`] does, and tells how
    /// long each layer took, in the order of the network; none where the
    /// engine cannot tell.
    ///
    /// # Errors
    /// As [`Session::encode`].
    fn time_layers(&mut self, _plan: &Plan, _pixels: &[u8]) -> Result<Vec<Layer>, EncodeError> {
        Ok(Vec::new())
    }
}

/// A layer of a network at work.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Name in the network.
    pub name: String,
    /// What it does, in a few words.
    pub what: String,
    /// Multiply-accumulates for one picture.
    pub macs: u64,
    /// How long it took.
    pub time: Duration,
}

/// Engines that this build may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The engine of this project for int8 convolution networks: the fastest.
    Int8,
    /// TensorFlow Lite, the vendor's library.
    Tflite,
    /// tract-onnx: any ONNX encoder.
    Tract,
}

/// Why an encoder cannot be loaded or run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The bundle's file cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No encoder of the bundle suits an engine of this build.
    #[error(
        "no encoder of this bundle ({formats}) can be run by {engine}; build numclip with another engine or export another format"
    )]
    NoEngine {
        /// Formats in the bundle.
        formats: String,
        /// Engines that were considered.
        engine: String,
    },
    /// The engine cannot load the file.
    #[error("{file}: {engine} cannot load it: {message}")]
    Load {
        /// File of the encoder.
        file: String,
        /// Engine that tried.
        engine: Engine,
        /// What the engine says.
        message: String,
    },
    /// Input or output of the network is not what the bundle says.
    #[error("{file}: {what}: expected {expected}, got {got}")]
    Shape {
        /// File of the encoder.
        file: String,
        /// Input or output.
        what: &'static str,
        /// The shape that the bundle asks for.
        expected: String,
        /// The shape found.
        got: String,
    },
    /// The engine failed on one picture.
    #[error("{engine} failed: {message}")]
    Run {
        /// Engine that ran.
        engine: Engine,
        /// What the engine says.
        message: String,
    },
}

impl Engine {
    /// Every engine of this build, best first.
    pub const ALL: &[Self] = &[
        #[cfg(feature = "int8")]
        Self::Int8,
        #[cfg(feature = "tflite")]
        Self::Tflite,
        #[cfg(feature = "tract")]
        Self::Tract,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Tflite => "tflite",
            Self::Tract => "tract",
        }
    }

    fn reads(self, encoder: &EncoderFile) -> bool {
        let onnx = encoder.format == EncoderFormat::Onnx;
        match self {
            Self::Int8 => onnx && encoder.precision == Precision::Int8,
            Self::Tflite => encoder.format == EncoderFormat::Tflite,
            Self::Tract => onnx,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || {
            Self::ALL
                .iter()
                .map(|engine| engine.name())
                .collect::<Vec<_>>()
                .join(", ")
        };
        Self::ALL
            .iter()
            .find(|engine| engine.name() == name)
            .copied()
            .ok_or_else(|| format!("no engine {name:?} in this build, which has: {}", known()))
    }
}

/// A loaded encoder, and why it was not loaded by a faster engine.
pub struct Loaded {
    /// The encoder.
    pub model: Box<dyn Model>,
    /// What engines said that were tried before, the fastest first.
    pub refusals: Vec<EncodeError>,
}

/// Loads an encoder of `bundle` by `engine`, or by the fastest engine of this
/// build that can run one.
///
/// # Errors
/// [`EncodeError`] when no engine can: that of the last which tried.
pub fn load(bundle: &Bundle, engine: Option<Engine>) -> Result<Loaded, EncodeError> {
    let engines = engine.as_ref().map_or(Engine::ALL, std::slice::from_ref);
    let mut refusals = Vec::new();
    for &engine in engines {
        let mut encoders = bundle.manifest().encoder.iter();
        let Some(encoder) = encoders.find(|encoder| engine.reads(encoder)) else {
            continue;
        };
        match load_by(engine, bundle, encoder) {
            Ok(model) => return Ok(Loaded { model, refusals }),
            Err(error) => refusals.push(error),
        }
    }
    Err(refusals.pop().unwrap_or_else(|| no_engine(bundle, engines)))
}

#[allow(
    unused_variables,
    reason = "a build without engines can open, check and describe bundles"
)]
fn load_by(
    engine: Engine,
    bundle: &Bundle,
    encoder: &EncoderFile,
) -> Result<Box<dyn Model>, EncodeError> {
    match engine {
        #[cfg(feature = "int8")]
        Engine::Int8 => Ok(Box::new(int8::Int8Model::load(bundle, encoder)?)),
        #[cfg(feature = "tflite")]
        Engine::Tflite => Ok(Box::new(tflite::TfliteModel::load(bundle, encoder)?)),
        #[cfg(feature = "tract")]
        Engine::Tract => Ok(Box::new(tract::TractModel::load(bundle, encoder)?)),
        #[cfg(not(all(feature = "int8", feature = "tflite", feature = "tract")))]
        engine => Err(no_engine(bundle, &[engine])),
    }
}

fn no_engine(bundle: &Bundle, engines: &[Engine]) -> EncodeError {
    let formats: Vec<_> = bundle
        .manifest()
        .encoder
        .iter()
        .map(|e| format!("{}: {:?}", e.path, e.format))
        .collect();
    let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
    EncodeError::NoEngine {
        formats: formats.join(", "),
        engine: names.join(", "),
    }
}
