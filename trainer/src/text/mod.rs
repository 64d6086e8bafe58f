//! The CLIP text side: tokens, prompts, transformer, bin embeddings.
//!
//! ```text
//! Prompt → tokens → TextTower (embed → features) → BinEmbeddings [M, D], unit rows → TextSide
//! ```
//!
//! The tower is always frozen. It runs once per task, or in every step where the task tunes its
//! prompts ([`Tuning`]); only the bin embeddings leave this module. Each says by its
//! [`TextSource`] where it comes from, for a tower without weights knows no language.

mod bins;
mod learner;
mod ordinality;
mod prompt;
mod tower;

pub use bins::{BinEmbeddings, TextSource, bin_embeddings, load_bin_embeddings};
pub use learner::{BaseRanks, ContextTuning, Interpolation, TextSide, Tuning};
pub use ordinality::Ordinality;
pub use prompt::{Placement, Prompt};
pub use tower::{TextConfig, TextTower};

use crate::checkpoint::CheckpointError;
use std::path::PathBuf;
use thiserror::Error;

/// What went wrong on the text side.
#[derive(Debug, Error)]
pub enum TextError {
    /// A size in the configuration does not work.
    #[error("text tower: {0}")]
    Config(String),
    /// The file of the tower or of the embeddings does not fit.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A prompt has more tokens than the tower has positions.
    #[error("the prompt for bin {bin:?} has {tokens} tokens, at most {limit} fit: shorten it")]
    PromptTooLong {
        /// The bin's name.
        bin: String,
        /// Tokens, start and end included.
        tokens: usize,
        /// Positions of the tower.
        limit: usize,
    },
    /// Two bins cannot be told apart, or one says nothing.
    #[error("bin {index} ({bin:?}) {problem}: every bin needs words of its own")]
    BinName {
        /// Position of the bin, from 0.
        index: usize,
        /// The bin's name.
        bin: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The embedding file belongs to other bins.
    #[error("{}: embeddings for {got}, the task has {expected}", path.display())]
    OtherBins {
        /// The file.
        path: PathBuf,
        /// The bins of the file.
        got: String,
        /// The bins of the task.
        expected: String,
    },
    /// What is to be tuned does not fit the task.
    #[error("text.tune: {0}")]
    Tuning(String),
    /// An embedding is infinite, NaN or zero.
    #[error("{origin}: the embedding of bin {index} is {problem}")]
    BadEmbedding {
        /// Where it comes from.
        origin: String,
        /// Position of the bin, from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
}
