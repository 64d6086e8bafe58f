//! All stages in a row: the one module that knows each of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bundle::Bundle;
use crate::encode::{self, EncodeError, Engine, Loaded, Session};
use crate::estimate::{Estimate, Scratch};
use crate::frame::Frame;
use crate::preprocess::Preprocessor;
use crate::view::View;

/// A bundle with its encoder loaded; shared between threads.
pub struct Pipeline {
    bundle: Arc<Bundle>,
    loaded: Loaded,
}

/// What one thread needs to turn frames into estimates.
pub struct Worker<'a> {
    bundle: &'a Bundle,
    session: Box<dyn Session>,
    preprocessor: Preprocessor,
    tensor: Vec<f32>,
    scratch: Scratch,
}

/// An estimate and how long each stage took.
#[derive(Clone, Debug)]
pub struct Timed {
    /// The estimate.
    pub estimate: Estimate,
    /// Resize, crop and normalisation.
    pub preprocess: Duration,
    /// The network.
    pub encode: Duration,
    /// Bin matching and regression.
    pub estimation: Duration,
}

impl Pipeline {
    /// Loads the encoder of `bundle` by `engine`, or the best this build has.
    ///
    /// # Errors
    /// [`EncodeError`] when no engine can load it.
    pub fn new(bundle: Bundle, engine: Option<Engine>) -> Result<Self, EncodeError> {
        let loaded = encode::load(&bundle, engine)?;
        Ok(Self {
            bundle: Arc::new(bundle),
            loaded,
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// The engine that runs the encoder.
    pub fn engine(&self) -> Engine {
        self.loaded.model.engine()
    }

    /// Multiply-accumulates of the encoder for one picture, where the engine
    /// counts them.
    pub fn macs(&self) -> Option<u64> {
        self.loaded.model.macs()
    }

    /// Why faster engines were passed over, the fastest first.
    pub fn refusals(&self) -> &[EncodeError] {
        &self.loaded.refusals
    }

    /// A worker for the calling thread.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine cannot set up another session.
    pub fn worker(&self) -> Result<Worker<'_>, EncodeError> {
        Ok(Worker {
            bundle: &self.bundle,
            session: self.loaded.model.session()?,
            preprocessor: Preprocessor::default(),
            tensor: vec![0.0; self.bundle.manifest().preprocess.pixel_len()],
            scratch: Scratch::default(),
        })
    }
}

impl Worker<'_> {
    /// The encoder's input for `frame`: planar `[3, size, size]`.
    pub fn preprocess(&mut self, frame: &Frame) -> &[f32] {
        self.preprocess_view(&View::whole(frame))
    }

    /// As [`Worker::preprocess`], for a part of a frame.
    pub fn preprocess_view(&mut self, view: &View<'_>) -> &[f32] {
        let plan = &self.bundle.manifest().preprocess;
        plan.normalize(self.preprocessor.fit_view(plan, view), &mut self.tensor);
        &self.tensor
    }

    /// The embedding of the tensor last preprocessed: `[dim]`, any norm.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine fails.
    pub fn encode(&mut self) -> Result<Vec<f32>, EncodeError> {
        self.session.encode(&self.tensor)
    }

    /// The estimate for `frame`.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine fails.
    pub fn estimate(&mut self, frame: &Frame) -> Result<Timed, EncodeError> {
        self.estimate_view(&View::whole(frame))
    }

    /// The estimate for a part of a frame.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine fails.
    pub fn estimate_view(&mut self, view: &View<'_>) -> Result<Timed, EncodeError> {
        let start = Instant::now();
        self.preprocess_view(view);
        let preprocessed = Instant::now();
        let embedding = self.encode()?;
        let encoded = Instant::now();
        let estimator = self.bundle.estimator();
        let estimate = estimator.estimate_with(&embedding, &mut self.scratch);
        Ok(Timed {
            estimate,
            preprocess: preprocessed - start,
            encode: encoded - preprocessed,
            estimation: encoded.elapsed(),
        })
    }
}
