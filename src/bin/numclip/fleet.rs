//! Many devices: registries, the agent on a device, staged roll-outs.

mod access;
mod registry;

use anyhow::Result;

use crate::exit::Exit;

/// The commands of this part.
#[derive(clap::Subcommand)]
pub enum Command {
    Push(registry::PushArgs),
    Pull(registry::PullArgs),
}

/// Runs one of them.
///
/// # Errors
/// Whatever it fails with.
pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::Push(args) => registry::push(args),
        Command::Pull(args) => registry::pull(args),
    }
}
