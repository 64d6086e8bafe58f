//! Labelled images: reading, splitting, augmenting, loading in parallel.
//!
//! ```text
//! table → Dataset → Splits → order of samples → decode → augment → plan → Batch
//! ```
//!
//! Everything random is drawn from a seed, the epoch and the place in the
//! epoch, so that a resumed run sees the very batches of an unbroken one.

pub mod augment;
pub mod dataset;
pub(crate) mod digest;
mod error;
pub mod fingerprint;
pub mod leak;
pub mod loader;
pub mod protocol;
pub mod sampling;
pub mod split;
pub mod unlabelled;
pub mod view;

pub use augment::Augment;
pub use dataset::{Columns, Dataset, Sample};
pub use error::{DataError, DataErrorKind};
pub use leak::{Leak, LeakPolicy};
pub use loader::{Batch, Loader, LoaderConfig, Unreadable};
pub use protocol::Protocol;
pub use sampling::{Sampling, Weighting};
pub use split::{SplitPlan, Splits};
pub use view::Views;
