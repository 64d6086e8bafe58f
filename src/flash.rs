//! Models onto devices, so that a device always serves a whole one.
//!
//! A device keeps its models in a *store*: a folder with a slot for each
//! bundle and one small file that says which of them serves. An update fills
//! a slot that nothing points at, waits until the medium has all of it, proves
//! it on the device's own engine, and only then exchanges that file by one
//! rename. A package may also ask that the new model comes near the one that
//! serves on pictures of the device's own camera. Power may go at any moment: [`torture`] cuts it at every step.
//!
//! ```text
//! /var/lib/numclip/
//!   current            which bundle serves, and the one before it
//!   slots/<sha256>/    a bundle
//!   staging/<sha256>   a file on its way, to be continued
//!   trust.d/*.pub      keys whose packages are taken; `revoked` lists others
//!   device.toml        how the service is told and watched (optional)
//!   lock               held while something changes
//! ```

mod disk;
mod simulated;
mod store;
mod install;
mod service;
mod shadow;
mod device;
mod wire;
mod place;
mod target;
mod runtime;
pub mod torture;

pub use device::{
    Allow, Device, DeviceError, Model, SERVICE, STORE, Site, Stage, Status, TRUST, status,
    status_on,
};
pub use disk::{Disk, Folder};
pub use install::{Need, Outcome, Source, install, prune, rollback};
pub use place::place;
pub use runtime::{Processor, RuntimeError, install_runtime};
pub use service::{Health, Service};
pub use shadow::Comparison;
pub use simulated::{Fate, Lie, SimulatedDisk};
pub use store::{Listing, StoreError, intact, listing, state};
pub use target::{Reach, Target};
pub use wire::{Delivery, PROTOCOL, Progress, SendError, receive, send};
