//! Signed packages and the devices that take them.

mod deliver;
mod devices;
mod keys;
mod packages;
mod reach;
mod runtime;
mod store;
mod torture;

use anyhow::Result;

use crate::exit::Exit;

pub use packages::verify_package;
#[cfg(feature = "fleet")]
pub use packages::{read_signature, signature_path};

/// The commands of this part.
#[derive(clap::Subcommand)]
pub enum Command {
    Pack(packages::PackArgs),
    Unpack(packages::UnpackArgs),
    Keygen(keys::KeygenArgs),
    Sign(keys::SignArgs),
    Flash(deliver::Args),
    Status(devices::StatusArgs),
    Rollback(devices::RollbackArgs),
    Prune(devices::PruneArgs),
    Store(store::Args),
    Torture(torture::Args),
}

/// Runs one of them.
///
/// # Errors
/// Whatever it fails with.
pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::Pack(args) => packages::pack(args),
        Command::Unpack(args) => packages::unpack(args),
        Command::Keygen(args) => keys::keygen(args),
        Command::Sign(args) => keys::sign(args),
        Command::Flash(args) => deliver::run(args),
        Command::Status(args) => devices::status(args),
        Command::Rollback(args) => devices::rollback(args),
        Command::Prune(args) => devices::prune(args),
        Command::Store(args) => store::run(args),
        Command::Torture(args) => torture::run(args),
    }
}
