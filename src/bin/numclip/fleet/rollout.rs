//! `numclip rollout`: a package to a fleet, in stages.

mod controls;
mod show;
mod tower;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use numclip::fleet::plan::{Plan, TEMPLATE};
use numclip::fleet::rollout::Wish;
use numclip::fleet::{World, simulate};

use super::access::AccessArgs;
use crate::exit::{Exit, UsageError};
use controls::Controls;

/// Bring a package to a fleet in stages, and halt when too many devices fail.
///
/// Devices run `numclip agent`. The tag in the plan is pinned when the roll-out
/// begins. Interrupted and run again, it goes on where it was: what it knows is
/// kept beside the plan.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The plan (TOML).
    #[arg(value_name = "PLAN", required_unless_present = "init")]
    plan: Option<PathBuf>,
    #[command(flatten)]
    act: ActArgs,
    #[command(flatten)]
    fleet: FleetArgs,
    /// File that keeps how far it is; PLAN.state.json unless given.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print JSON objects.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

/// What is to be done, instead of rolling out.
#[derive(clap::Args)]
#[group(multiple = false)]
struct ActArgs {
    /// Write a commented plan to begin with.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Show which devices there are and the stage of each; order nothing.
    #[arg(long)]
    dry_run: bool,
    /// Show how far it is, and end.
    #[arg(long)]
    status: bool,
    /// Ask no more devices for now, whether it runs now or later.
    #[arg(long)]
    pause: bool,
    /// Go on after --pause.
    #[arg(long)]
    resume: bool,
    /// Let the devices that have updated serve again what they did before.
    #[arg(long)]
    go_back: bool,
    /// Try the plan on this many devices that do not exist.
    #[arg(long, value_name = "DEVICES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    simulate: Option<u32>,
}

/// The simulated fleet.
#[derive(clap::Args)]
struct FleetArgs {
    /// Simulation: percent of the devices on which the update fails.
    #[arg(long, value_name = "PERCENT", default_value = "0.5", requires = "simulate", value_parser = percent)]
    failing: f64,
    /// Simulation: percent of the time that a device is not connected.
    #[arg(long, value_name = "PERCENT", default_value = "5", requires = "simulate", value_parser = percent)]
    offline: f64,
    /// Simulation: chance in percent that a download breaks, and that power
    /// fails during an update.
    #[arg(long, value_name = "PERCENT", default_value = "1", requires = "simulate", value_parser = percent)]
    trouble: f64,
    /// Simulation: what chance follows.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "1",
        requires = "simulate"
    )]
    seed: u64,
}

const EXAMPLES: &str = "Examples:
  numclip rollout --init spring.toml            write a plan, then edit it
  numclip rollout spring.toml --simulate 10000 --failing 3
  numclip rollout spring.toml --dry-run
  numclip rollout spring.toml                   Ctrl-C leaves it as it is; run it again to go on
  numclip rollout spring.toml --pause           from another terminal; --resume, --go-back likewise

A roll-out that halted goes on when its limits are raised in the plan.
Exit code 0: every stage had its turn, or all went back. 1: it halted.";

/// Runs the command.
///
/// # Errors
/// When the plan, the package or the state cannot be used.
pub fn run(args: &Args) -> Result<Exit> {
    if let Some(path) = &args.act.init {
        let mut file = fs::File::create_new(path).with_context(|| path.display().to_string())?;
        std::io::Write::write_all(&mut file, TEMPLATE.as_bytes())?;
        return Ok(Exit::Done);
    }
    let Some(path) = &args.plan else {
        return Err(UsageError("name the plan".into()).into());
    };
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let plan =
        Plan::parse(&text).map_err(|error| UsageError(format!("{}: {error}", path.display())))?;
    if let Some(devices) = args.act.simulate {
        return play(args, &plan, devices as usize);
    }
    let controls = Controls::new(path, args.state.as_deref());
    let wish = [
        (args.act.pause, Wish::Pause),
        (args.act.resume, Wish::Go),
        (args.act.go_back, Wish::GoBack),
    ];
    let wish = wish
        .into_iter()
        .find_map(|(given, wish)| given.then_some(wish));
    if let Some(wish) = wish {
        controls.wish(wish)?;
        if wish != Wish::GoBack || controls.is_running() {
            return Ok(Exit::Done);
        }
    }
    if args.act.status {
        return show::state(&controls.read()?, args.json);
    }
    let access = args.access.access()?;
    match args.act.dry_run {
        true => tower::survey(&plan, &access, args.json),
        false => tower::conduct(&plan, &access, &controls, args.json),
    }
}

fn play(args: &Args, plan: &Plan, devices: usize) -> Result<Exit> {
    let fleet = &args.fleet;
    let world = World {
        devices,
        failing: fleet.failing / 100.0,
        offline: fleet.offline / 100.0,
        trouble: fleet.trouble / 100.0,
        seed: fleet.seed,
    };
    let summary = simulate(plan, world, None);
    show::summary(&summary, args.json)?;
    Ok(match summary.violations.is_empty() {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse().ok();
    let number = number.filter(|number| (0.0..=100.0).contains(number));
    number.ok_or_else(|| "expected 0 to 100".into())
}
