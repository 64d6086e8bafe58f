//! Many devices: registries, the agent on a device, staged roll-outs.

mod access;
mod agent;
mod rauc;
mod registry;
mod rollout;

use anyhow::Result;

use crate::exit::Exit;

/// The commands of this part.
#[derive(clap::Subcommand)]
pub enum Command {
    Push(registry::PushArgs),
    Pull(registry::PullArgs),
    Agent(Box<agent::Args>),
    Rollout(Box<rollout::Args>),
    ExportRauc(rauc::Args),
}

/// Runs one of them.
///
/// # Errors
/// Whatever it fails with.
pub fn run(command: &Command) -> Result<Exit> {
    match command {
        Command::Push(args) => registry::push(args),
        Command::Pull(args) => registry::pull(args),
        Command::Agent(args) => agent::run(args),
        Command::Rollout(args) => rollout::run(args),
        Command::ExportRauc(args) => rauc::run(args),
    }
}
