//! Carrying out a roll-out, and looking at whom it would reach.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use numclip::fleet::plan::Plan;
use numclip::fleet::registry::Access;
use numclip::fleet::rollout::Rollout;
use numclip::fleet::{Place, Tower};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::controls::Controls;
use super::show::{self, Screen};
use crate::exit::{Exit, UsageError};

/// How often it is looked what follows.
const STEP: Duration = Duration::from_millis(500);
/// How often presence alone is worth a write.
const KEEP: Duration = Duration::from_secs(5);
/// How long a survey waits for a broker.
const PATIENCE: Duration = Duration::from_secs(15);

/// Carries it out until it is over or a signal comes.
///
/// # Errors
/// When package, plan or state cannot be used.
pub fn conduct(plan: &Plan, access: &Access, controls: &Controls, as_json: bool) -> Result<Exit> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let _held = controls.hold()?;
    let mut rollout = match controls.find()? {
        Some(rollout) => continued(rollout, plan)?,
        None => begun(plan, access)?,
    };
    controls.keep(&rollout)?;
    let mut tower = start(plan)?;
    tower.send(&rollout, &rollout.ordered());
    let (mut screen, mut fault, mut kept) = (Screen::new(as_json), None, Instant::now());
    let (mut heard, mut is_known) = (0, false);
    while !ended.load(Ordering::SeqCst) {
        let hearing = tower.hear(&mut rollout, STEP);
        heard += hearing.messages;
        let mut news = hearing.news;
        is_known |= tower.is_settled();
        if is_known {
            news.extend(rollout.step(&plan.limits, controls.wished()?, now()));
        }
        // What was over may go on by another plan or wish.
        let is_over = is_known && rollout.is_over();
        if !news.is_empty() || is_over || (heard > 0 && kept.elapsed() >= KEEP) {
            // First the file, then the devices: what was ordered is known.
            controls.keep(&rollout)?;
            (heard, kept) = (0, Instant::now());
        }
        tower.send(&rollout, &news);
        if tower.fault() != fault {
            fault = tower.fault();
            fault
                .iter()
                .for_each(|fault| anstream::eprintln!("{fault}"));
        }
        screen.show(&rollout)?;
        if !news.is_empty() || is_over {
            tower.announce(&serde_json::to_string(&rollout.progress())?);
        }
        if is_over {
            break;
        }
    }
    controls.keep(&rollout)?;
    tower.leave(&serde_json::to_string(&rollout.progress())?);
    match as_json {
        true => Ok(show::exit(rollout.status)),
        false => {
            eprint_reasons(&rollout);
            Ok(show::exit(rollout.status))
        }
    }
}

/// Shows which devices there are and the stage of each.
///
/// # Errors
/// When the package cannot be found or the broker cannot be reached.
pub fn survey(plan: &Plan, access: &Access, as_json: bool) -> Result<Exit> {
    let mut rollout = begun(plan, access)?;
    let mut tower = start(plan)?;
    let start = Instant::now();
    while !tower.is_quiet() {
        tower.hear(&mut rollout, STEP);
        if let (Some(fault), true) = (tower.fault(), start.elapsed() > PATIENCE) {
            bail!(fault);
        }
    }
    show::assignment(&rollout, as_json)?;
    Ok(Exit::Done)
}

fn start(plan: &Plan) -> Result<Tower> {
    Tower::start(&plan.broker).map_err(|error| anyhow!(UsageError(format!("broker: {error}"))))
}

/// A new roll-out of what lies at the plan's place now.
fn begun(plan: &Plan, access: &Access) -> Result<Rollout> {
    let place: Place = plan.package.parse().context("package")?;
    let release = place.look(access)?;
    let name = format!("{}-{}-{}", release.name, release.version, now());
    Ok(Rollout::new(name, plan, release))
}

/// The roll-out as it was left. Who is connected is heard anew.
fn continued(mut rollout: Rollout, plan: &Plan) -> Result<Rollout> {
    if rollout.package != plan.package || rollout.stages != plan.stages {
        bail!(UsageError(
            "the plan's package or stages changed since it began; put them back, or begin another roll-out with --state FILE"
                .into()
        ));
    }
    let ids: Vec<String> = rollout.devices.keys().cloned().collect();
    ids.iter().for_each(|id| rollout.presence(id, false));
    Ok(rollout)
}

fn eprint_reasons(rollout: &Rollout) {
    let reasons = show::reasons(rollout);
    if !reasons.is_empty() {
        anstream::eprint!("{reasons}");
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
