//! The model that a student learns from.
//!
//! ```text
//! run, bundle, CLIP checkpoint or ONNX → Teacher → asked about every view → Answers → Lesson
//!                                                   ↑↓ files that runs share
//! ```
//!
//! A teacher is asked before training begins, one picture at a time, so what it says does not hang
//! on batches, threads, or what was kept from an earlier run.

mod ask;
mod cache;
mod lesson;
mod open;

use std::collections::HashSet;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use numclip::bundle::BundleError;
use numclip::encode::{EncodeError, Model, Session};
use numclip::estimate::Estimator;
use numclip::preprocess::Plan;
use thiserror::Error;

use super::FitError;
use super::start::TeacherSource;
use crate::checkpoint::CheckpointError;
use crate::data::loader::Skipped;
use crate::model::ImageEncoder;
use crate::model::numclip::NumClip;
use crate::text::{BinEmbeddings, TextError};

pub use ask::Answers;
pub use lesson::{Beside, Lesson, Lessons, views};

/// A trained model that is asked what it makes of images.
pub struct Teacher {
    source: TeacherSource,
    bins: BinEmbeddings,
    plan: Plan,
    estimator: Estimator,
    logit_scale: f64,
    network: Network,
    /// What its embeddings hang on beside the images.
    key: String,
    /// SHA-256 of the images that it was trained on, where that is known.
    seen: HashSet<[u8; 32]>,
}

/// What computes the embeddings.
enum Network {
    /// The runtime's engine.
    Engine(Box<dyn Model>),
    /// The model of a run.
    Run(Box<NumClip>),
    /// The image tower of a checkpoint.
    Tower(Box<ImageEncoder>),
}

/// A network as one thread asks it.
enum Asker<'a> {
    Engine(Box<dyn Session>),
    Run(&'a NumClip),
    Tower(&'a ImageEncoder),
}

/// Why there is nothing to learn from a teacher.
#[derive(Debug, Error)]
pub enum TeacherError {
    /// What is named is no run.
    #[error(
        "teacher.run: {} is neither the folder of a run nor its best.safetensors or \
         checkpoint.safetensors", .0.display()
    )]
    NoRun(PathBuf),
    /// The run cannot be read.
    #[error("teacher.run: {0}")]
    Run(Box<FitError>),
    /// The bundle cannot be opened.
    #[error("teacher.bundle: {}: {error}", path.display())]
    Bundle {
        /// Its folder.
        path: PathBuf,
        /// What is wrong.
        error: BundleError,
    },
    /// The network cannot be loaded or run.
    #[error("teacher: {0}")]
    Engine(#[from] EncodeError),
    /// The checkpoint cannot be used.
    #[error("teacher.weights: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The bins cannot be embedded.
    #[error("teacher: {0}")]
    Text(#[from] TextError),
    /// A file of the teacher cannot be read.
    #[error("teacher: {}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
    /// Image and text side of the checkpoint do not belong together.
    #[error(
        "teacher: images are embedded into {image} values, the bins into {bins}; take both from \
         the same model"
    )]
    Width {
        /// Width of the image embeddings.
        image: usize,
        /// Width of the bin embeddings.
        bins: usize,
    },
    /// The teacher knows other bins.
    #[error(
        "the bins of the task are not those of {teacher}, which knows {known}; copy them into the task file"
    )]
    Bins {
        /// The teacher.
        teacher: String,
        /// Its bins: label and range.
        known: String,
    },
    /// Distributions over the bins can only be equal at the same scale.
    #[error(
        "the teacher's logit scale is {teacher}, the student's {student}; set model.head.logit_scale = {teacher}, or teacher.loss.distribution = 0"
    )]
    LogitScale {
        /// Of the teacher.
        teacher: f64,
        /// Of the task file.
        student: f64,
    },
    /// Its parts make no estimator.
    #[error("teacher: {0}")]
    Estimator(String),
    /// An image cannot be read.
    #[error("the teacher cannot read {0}; replace it, remove it, or set data.max_unreadable")]
    Unreadable(Skipped),
    /// More images than allowed cannot be read.
    #[error("the teacher cannot read {count} images, {limit} are allowed; the last one: {last}")]
    TooMany {
        /// How many.
        count: usize,
        /// How many are allowed.
        limit: usize,
        /// The last one.
        last: Skipped,
    },
    /// An image is not the one that was fingerprinted.
    #[error("{} changed while the run was prepared; start again", .0.display())]
    Changed(PathBuf),
    /// The teacher failed on an image.
    #[error("the teacher failed on {}: {error}", image.display())]
    Failed {
        /// The image.
        image: PathBuf,
        /// What the engine says.
        error: EncodeError,
    },
    /// The teacher gave no usable embedding.
    #[error("the teacher's embedding of {} is not finite", .0.display())]
    NotFinite(PathBuf),
    /// An image that the teacher was not asked about.
    #[error("{} could not be read when the teacher was asked, and can be now; start again", .0.display())]
    NotAsked(PathBuf),
    /// The user asked to stop.
    #[error(
        "stopped while the teacher was asked; what it said is kept: give the same command again"
    )]
    Interrupted,
}

impl Teacher {
    /// Where it comes from.
    pub fn source(&self) -> &TeacherSource {
        &self.source
    }

    /// Its bins, which are the student's.
    pub fn bins(&self) -> &BinEmbeddings {
        &self.bins
    }

    /// How it wants its images.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How many of the images with these digests it was trained on, as far as that is known.
    pub fn has_seen(&self, images: impl Iterator<Item = [u8; 32]>) -> usize {
        images.filter(|image| self.seen.contains(image)).count()
    }

    fn asker(&self) -> Result<Asker<'_>, EncodeError> {
        Ok(match &self.network {
            Network::Engine(model) => Asker::Engine(model.session()?),
            Network::Run(model) => Asker::Run(model),
            Network::Tower(tower) => Asker::Tower(tower),
        })
    }
}

impl Asker<'_> {
    /// The embedding of one picture: planar `[3, size, size]` to `[D]`, of any length.
    fn embed(&mut self, tensor: Vec<f32>, size: usize) -> Result<Vec<f32>, EncodeError> {
        let image = |values: Vec<f32>| {
            let data = TensorData::new(values, [1, 3, size, size]);
            Tensor::<4>::from_data(data, &Device::flex())
        };
        let embedding = match self {
            Self::Engine(session) => return session.encode(&tensor),
            Self::Run(model) => model.embed(image(tensor)),
            Self::Tower(tower) => tower.forward(image(tensor)),
        };
        Ok(embedding.into_data_as::<f32>().iter().collect())
    }
}
