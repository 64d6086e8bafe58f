//! One simulated device.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::World;
use crate::flash::{Health, Model, Status};
use crate::fleet::message::{Order, Report};
use crate::fleet::plan::Plan;
use crate::fleet::policy::{Ending, Held, Step, Trial, begin, conclude, decide, phase};

/// The bundle that devices serve before, and the one that is rolled out.
pub const OLD: &str = "old";
pub const NEW: &str = "new";
/// Share of the devices that have one of the plan's labels.
const LABELLED: f64 = 0.02;

/// A device with its agent.
pub struct Simulated {
    pub id: String,
    labels: BTreeMap<String, String>,
    /// What the broker keeps for it.
    pub retained: Option<Order>,
    /// Whether it has a connection, if it has power.
    pub connected: bool,
    powered: bool,
    held: Held,
    order: Option<Order>,
    trial: Option<Trial>,
    /// The step under way.
    busy: Option<Step>,
    /// Whether the update fails on it, as a matter of its hardware.
    fails: bool,
}

/// The number in a device's name.
pub fn number(id: &str) -> Option<usize> {
    id.strip_prefix("device-")?.parse().ok()
}

impl Simulated {
    pub fn new(number: usize, plan: &Plan, world: &World, chance: &mut ChaCha8Rng) -> Self {
        let all = plan.stages.iter().flat_map(|stage| &stage.labels);
        let mut labels = BTreeMap::new();
        for (key, value) in all {
            if chance.random_bool(LABELLED) {
                labels.insert(key.clone(), value.clone());
            }
        }
        Self {
            id: format!("device-{number}"),
            labels,
            retained: None,
            connected: !chance.random_bool(world.offline),
            powered: true,
            held: Held {
                serving: Some(OLD.into()),
                previous: None,
                failing: false,
            },
            order: None,
            trial: None,
            busy: None,
            fails: chance.random_bool(world.failing),
        }
    }

    pub fn is_online(&self) -> bool {
        self.powered && self.connected
    }

    pub fn serving(&self) -> Option<&str> {
        self.held.serving.as_deref()
    }

    pub fn serves_new(&self) -> bool {
        self.serving() == Some(NEW)
    }

    /// Looks at its order; gives the seconds that the attempt takes which it
    /// begins, if it does.
    pub fn turn(&mut self, now: u64, chance: &mut ChaCha8Rng) -> Option<u64> {
        if !self.powered || self.busy.is_some() {
            return None;
        }
        if self.connected {
            self.order.clone_from(&self.retained);
        }
        let step = self.step(now);
        let time = match step {
            Step::Install => chance.random_range(10..240),
            Step::GoBack => chance.random_range(5..30),
            _ => return None,
        };
        let order = self.order.as_ref()?;
        self.trial = Some(begin(order, self.trial.take()));
        self.busy = Some(step);
        Some(time)
    }

    /// Seconds until it is to look again.
    pub fn wait(&self, now: u64) -> Option<u64> {
        match self.step(now) {
            Step::Wait(until) if self.busy.is_none() => Some(until.saturating_sub(now)),
            _ => None,
        }
    }

    /// The attempt ends: by a power cut, by a torn download, or as it should.
    pub fn finish(&mut self, now: u64, cut: bool, torn: bool, chance: &mut ChaCha8Rng) {
        let (Some(step), Some(trial)) = (self.busy.take(), self.trial.take()) else {
            return;
        };
        let wanted = trial.order.sha256.clone();
        if cut {
            // The store has the old model or the new one, never a part of it.
            if chance.random_bool(0.5) {
                self.switch(&wanted);
            }
            (self.powered, self.trial) = (false, Some(trial));
            return;
        }
        let ending = match step {
            Step::GoBack => self.went_back(&wanted),
            _ if torn || !self.connected => Ending::Interrupted("the connection broke".into()),
            _ if trial.order.package.is_none() => Ending::Refused("no package".into()),
            _ if self.fails && wanted == NEW => Ending::Refused("not well".into()),
            _ => {
                self.switch(&wanted);
                Ending::Done
            }
        };
        self.trial = conclude(trial, ending, now, chance.random_range(0.0..1.0));
    }

    /// Power returns.
    pub fn boot(&mut self) {
        self.powered = true;
    }

    pub fn report(&self, now: u64) -> Report {
        let model = |name: &String| Model {
            name: "simulated".into(),
            version: name.clone(),
            sha256: name.clone(),
            fault: None,
        };
        let step = self.busy.unwrap_or_else(|| self.step(now));
        Report {
            id: self.id.clone(),
            labels: self.labels.clone(),
            phase: phase(step),
            order: self.order.clone(),
            fault: self.trial.as_ref().and_then(|trial| trial.fault.clone()),
            status: Status {
                serving: self.held.serving.as_ref().map(model),
                previous: self.held.previous.as_ref().map(model),
                health: match self.held.failing {
                    true => Health::Failing,
                    false => Health::Well,
                },
                ..Status::unknown()
            },
        }
    }

    fn step(&self, now: u64) -> Step {
        decide(self.order.as_ref(), &self.held, self.trial.as_ref(), now)
    }

    fn switch(&mut self, wanted: &str) {
        if self.serving() != Some(wanted) {
            self.held.previous = self.held.serving.replace(wanted.into());
        }
        self.held.failing = self.fails && wanted == NEW;
    }

    /// What served before serves again, unless it is not well with that.
    fn went_back(&mut self, wanted: &str) -> Ending {
        let target = self.held.previous.clone().unwrap_or_default();
        if self.fails && target == NEW {
            return Ending::Refused("not well".into());
        }
        self.switch(&target);
        match target == wanted {
            true => Ending::Done,
            false => Ending::Refused("the service was not well".into()),
        }
    }
}
