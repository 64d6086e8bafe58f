//! Image encoders: what runs the network of a bundle.
//!
//! Loading and running are different types: a [`Model`] is loaded once and
//! shared between threads, a [`Session`] runs it on one of them.

#[cfg(feature = "tract")]
pub mod tract;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::bundle::{Bundle, BundleError, EncoderFile, EncoderFormat};

/// A loaded encoder.
pub trait Model: Send + Sync {
    /// Name of the engine.
    fn engine(&self) -> Engine;

    /// A runner of its own for the calling thread.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine cannot set it up.
    fn session(&self) -> Result<Box<dyn Session>, EncodeError>;
}

/// A running encoder.
pub trait Session: Send {
    /// Embeds one picture: `tensor` is planar `[3, size, size]` as the
    /// bundle's plan makes it; the result has `dim` values and any norm.
    ///
    /// # Errors
    /// [`EncodeError`] when the tensor does not fit or the engine fails.
    fn encode(&mut self, tensor: &[f32]) -> Result<Vec<f32>, EncodeError>;
}

/// Engines that this build may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
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
        #[cfg(feature = "tract")]
        Self::Tract,
    ];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tract => "tract",
        }
    }

    fn reads(self, format: EncoderFormat) -> bool {
        match self {
            Self::Tract => format == EncoderFormat::Onnx,
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

/// Loads the first encoder of `bundle` that `engine`, or any engine of this
/// build, can run.
///
/// # Errors
/// [`EncodeError`] when none can, or the one that should cannot load it.
pub fn load(bundle: &Bundle, engine: Option<Engine>) -> Result<Box<dyn Model>, EncodeError> {
    let engines = engine.as_ref().map_or(Engine::ALL, std::slice::from_ref);
    for encoder in &bundle.manifest().encoder {
        if let Some(&engine) = engines.iter().find(|engine| engine.reads(encoder.format)) {
            return load_by(engine, bundle, encoder);
        }
    }
    Err(no_engine(bundle, engines))
}

#[cfg(feature = "tract")]
fn load_by(
    engine: Engine,
    bundle: &Bundle,
    encoder: &EncoderFile,
) -> Result<Box<dyn Model>, EncodeError> {
    match engine {
        Engine::Tract => Ok(Box::new(tract::TractModel::load(bundle, encoder)?)),
    }
}

/// A build without engines can open, check and describe bundles.
#[cfg(not(feature = "tract"))]
fn load_by(
    engine: Engine,
    bundle: &Bundle,
    _: &EncoderFile,
) -> Result<Box<dyn Model>, EncodeError> {
    Err(no_engine(bundle, &[engine]))
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
