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
    let rollout = match controls.find()? {
        Some(rollout) => continued(rollout, plan)?,
        None => begun(plan, access)?,
    };
    controls.keep(&rollout)?;
    let mut watch = Watch::begin(plan, controls, rollout, as_json)?;
    while !ended.load(Ordering::SeqCst) && !watch.turn()? {}
    watch.end()
}

/// A roll-out at work.
struct Watch<'a> {
    plan: &'a Plan,
    controls: &'a Controls,
    rollout: Rollout,
    tower: Tower,
    screen: Screen,
    /// Whether the fleet has been heard.
    is_known: bool,
    /// Messages since it was kept, and when that was.
    unkept: usize,
    kept: Instant,
    /// What was announced, and what was said of the broker.
    told: String,
    fault: Option<String>,
}

impl<'a> Watch<'a> {
    /// What was ordered before is ordered again: the last time may have ended
    /// between the file and the broker.
    fn begin(
        plan: &'a Plan,
        controls: &'a Controls,
        rollout: Rollout,
        as_json: bool,
    ) -> Result<Self> {
        let tower = start(plan)?;
        tower.send(&rollout, &rollout.ordered());
        Ok(Self {
            plan,
            controls,
            rollout,
            tower,
            screen: Screen::new(as_json),
            is_known: false,
            unkept: 0,
            kept: Instant::now(),
            told: String::new(),
            fault: None,
        })
    }

    /// Hears, decides, keeps, orders, in this row: what was ordered is known.
    /// Says whether it is over, and the devices can know.
    fn turn(&mut self) -> Result<bool> {
        let hearing = self.tower.hear(&mut self.rollout, STEP);
        let mut news = hearing.news;
        self.unkept += hearing.messages;
        self.is_known |= self.tower.is_settled();
        if self.is_known {
            let wish = self.controls.wished()?;
            news.extend(self.rollout.step(&self.plan.limits, wish, now()));
        }
        if !news.is_empty() || (self.unkept > 0 && self.kept.elapsed() >= KEEP) {
            self.controls.keep(&self.rollout)?;
            (self.unkept, self.kept) = (0, Instant::now());
        }
        self.tower.send(&self.rollout, &news);
        let is_told = self.tell()?;
        // What was over before may go on by another plan or wish.
        Ok(self.is_known && self.rollout.is_over() && is_told && self.tower.is_done())
    }

    /// Says how far it is, where that changed; whether nothing did.
    fn tell(&mut self) -> Result<bool> {
        let fault = self.tower.fault();
        if let (Some(text), true) = (&fault, fault != self.fault) {
            anstream::eprintln!("{text}");
        }
        self.fault = fault;
        self.screen.show(&self.rollout)?;
        let progress = serde_json::to_string(&self.rollout.progress())?;
        if progress == self.told {
            return Ok(true);
        }
        self.tower.announce(&progress);
        self.told = progress;
        Ok(false)
    }

    fn end(self) -> Result<Exit> {
        self.controls.keep(&self.rollout)?;
        self.tower.leave(&self.told);
        anstream::eprint!("{}", show::reasons(&self.rollout));
        Ok(show::exit(self.rollout.status))
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
    while !tower.is_settled() {
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

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
