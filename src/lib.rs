//! On-device ordinal estimation from a camera.
//!
//! An image encoder embeds a frame, the embedding is matched against text
//! embeddings of common-language bins ("child", "teenager", …), and a small
//! regressor turns the match into a number. The method is NumCLIP (Du et al.,
//! "Teach CLIP to Develop a Number Sense for Ordinal Regression", ECCV 2024).
//!
//! Modules are declared in flow order: one uses only those above it, stages
//! exchange plain values, and [`pipeline`] alone sees every stage.
//!
//! ```text
//! decode → Frame → preprocess → tensor → encode → embedding → estimate → Estimate
//! ```

pub mod frame;
pub mod decode;
pub mod view;
pub mod preprocess;
pub mod bins;
pub mod estimate;
pub mod metrics;
pub mod bundle;
pub mod encode;
pub mod pipeline;
pub mod verify;
#[cfg(feature = "tract")]
pub mod import;
#[cfg(feature = "flash")]
pub mod package;
#[cfg(feature = "flash")]
pub mod signature;
#[cfg(feature = "flash")]
pub mod flash;
#[cfg(feature = "synth")]
pub mod synth;
#[cfg(feature = "live")]
pub mod capture;
#[cfg(feature = "live")]
pub mod detect;
#[cfg(feature = "live")]
pub mod live;
#[cfg(feature = "live")]
mod snapshot;
#[cfg(feature = "live")]
pub mod keep;
#[cfg(feature = "record")]
pub mod record;
#[cfg(feature = "live")]
pub mod device;
#[cfg(feature = "live")]
pub mod status;
#[cfg(feature = "live")]
pub mod sink;
#[cfg(any(feature = "fleet", feature = "http"))]
mod host;
#[cfg(feature = "fleet")]
pub mod fleet;
#[cfg(feature = "http")]
pub mod serve;
#[cfg(feature = "live")]
pub mod settings;
