//! `trainer join`

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use numclip_trainer::device::Choice;
use numclip_trainer::fit::{self, Joined};
use numclip_trainer::study::Set;

use crate::variant::parse_address;

/// Lend this machine to a run on another one.
///
/// The run is started there with `trainer fit TASK.toml --listen ADDRESS:PORT`. This
/// machine hears the task from it, reads the same images from its own disk (they are
/// compared), and computes its share of the batches of every step. It may come and
/// go while the run goes on, and leaves nothing behind.
#[derive(Args)]
#[command(after_help = "\
Examples:
  trainer join workstation:29500
  trainer join 10.0.0.2:29500 --device cuda:0,1
  trainer join 10.0.0.2:29500 --set data.table=/mnt/faces/labels.csv
  srun --nodes 1 trainer join \"$HEAD:29500\" --wait 600")]
pub struct Join {
    /// Where the run listens
    #[arg(value_name = "HOST:PORT", value_parser = parse_address)]
    address: String,
    /// What to compute on: auto, cpu, cuda, cuda:1 or cuda:0,1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Choice,
    /// Where files of the task lie on this machine, by their keys in the task
    /// file, such as data.table; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Set>,
    /// How long to look for the run, at the start and when it goes away
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
}

impl Join {
    pub fn run(self) -> Result<()> {
        let interrupt = crate::interrupt_flag()?;
        let joined = fit::join(&fit::Join {
            address: &self.address,
            device: self.device,
            set: &self.set,
            wait: Duration::from_secs(self.wait),
            interrupt: &interrupt,
        })?;
        eprintln!(
            "{}",
            match joined {
                Joined::Over => "done: the run is over",
                Joined::Stopped => "done: the run was stopped; join it again when it is resumed",
                Joined::Left => "left the run, which goes on",
            }
        );
        Ok(())
    }
}
