//! All stages in a row: the one module that knows each of them.

use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bundle::Bundle;
use crate::encode::{self, EncodeError, Engine, Layer, Loaded, Session};
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
    embedding: Vec<f32>,
    scratch: Scratch,
}

/// An estimate and how long each stage took.
#[derive(Clone, Debug)]
pub struct Timed {
    /// The estimate.
    pub estimate: Estimate,
    /// Resize and crop.
    pub preprocess: Duration,
    /// Normalisation and the network.
    pub encode: Duration,
    /// Bin matching and regression.
    pub estimation: Duration,
}

impl Pipeline {
    /// Loads the encoder of `bundle` by `engine`, or the best this build has.
    ///
    /// # Errors
    /// [`EncodeError`] when no engine can load it.
    pub fn new(
        bundle: impl Into<Arc<Bundle>>,
        engine: Option<Engine>,
    ) -> Result<Self, EncodeError> {
        let bundle = bundle.into();
        let loaded = encode::load(&bundle, engine)?;
        Ok(Self { bundle, loaded })
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

    /// The set of kernels that the engine uses, where it has several.
    pub fn kernels(&self) -> Option<&'static str> {
        self.loaded.model.kernels()
    }

    /// Multiply-accumulates per second that one thread could reach at most,
    /// where the engine can tell; measured when asked for.
    pub fn peak_macs_per_second(&self) -> Option<f64> {
        self.loaded.model.peak_macs_per_second()
    }

    /// A worker for the calling thread.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine cannot set up another session.
    pub fn worker(&self) -> Result<Worker<'_>, EncodeError> {
        self.worker_on(NonZero::<usize>::MIN)
    }

    /// A worker that shares each picture between this many threads of its
    /// own, where the engine can. Estimates do not depend on their number.
    ///
    /// # Errors
    /// As [`Pipeline::worker`].
    pub fn worker_on(&self, threads: NonZero<usize>) -> Result<Worker<'_>, EncodeError> {
        Ok(Worker {
            bundle: &self.bundle,
            session: self.loaded.model.session_on(threads)?,
            preprocessor: Preprocessor::default(),
            embedding: Vec::new(),
            scratch: Scratch::default(),
        })
    }
}

impl Worker<'_> {
    /// Resizes and crops `frame`: RGB, interleaved, `size · size · 3` bytes.
    pub fn preprocess(&mut self, frame: &Frame) -> &[u8] {
        self.preprocess_view(&View::whole(frame))
    }

    /// As [`Worker::preprocess`], for a part of a frame.
    pub fn preprocess_view(&mut self, view: &View<'_>) -> &[u8] {
        let plan = &self.bundle.manifest().preprocess;
        self.preprocessor.fit_view(plan, view)
    }

    /// The embedding of a tensor made elsewhere: planar `[3, size, size]`.
    ///
    /// # Errors
    /// [`EncodeError`] when the tensor does not fit or the engine fails.
    pub fn encode_tensor(&mut self, tensor: &[f32]) -> Result<Vec<f32>, EncodeError> {
        self.session.encode(tensor)
    }

    /// The embedding of the frame last preprocessed: `[dim]`, any norm.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine fails, or there was no frame.
    pub fn encode(&mut self) -> Result<&[f32], EncodeError> {
        let plan = &self.bundle.manifest().preprocess;
        let pixels = self.preprocessor.fitted();
        self.session
            .encode_pixels(plan, pixels, &mut self.embedding)?;
        Ok(&self.embedding)
    }

    /// How long each layer of the encoder takes for the frame last
    /// preprocessed; none where the engine cannot tell.
    ///
    /// # Errors
    /// As [`Worker::encode`].
    pub fn time_layers(&mut self) -> Result<Vec<Layer>, EncodeError> {
        let plan = &self.bundle.manifest().preprocess;
        self.session.time_layers(plan, self.preprocessor.fitted())
    }

    /// The estimate for `frame`.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine fails.
    pub fn estimate(&mut self, frame: &Frame) -> Result<Timed, EncodeError> {
        self.estimate_view(&View::whole(frame))
    }

    /// Takes the memory of an estimate that is done with, for the next.
    pub fn recycle(&mut self, estimate: Estimate) {
        self.scratch.recycle(estimate);
    }

    /// The estimate for a part of a frame.
    ///
    /// # Errors
    /// [`EncodeError`] when the engine fails.
    pub fn estimate_view(&mut self, view: &View<'_>) -> Result<Timed, EncodeError> {
        let start = Instant::now();
        self.preprocess_view(view);
        let preprocessed = Instant::now();
        self.encode()?;
        let encoded = Instant::now();
        let estimator = self.bundle.estimator();
        let estimate = estimator.estimate_with(&self.embedding, &mut self.scratch);
        Ok(Timed {
            estimate,
            preprocess: preprocessed - start,
            encode: encoded - preprocessed,
            estimation: encoded.elapsed(),
        })
    }
}
