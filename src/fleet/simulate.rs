//! A fleet that does not exist: thousands of devices that decide as the agent
//! does, under a roll-out that decides as the command does. Only the clock, the
//! network and the update itself are played.

mod device;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::origin::Found;
use super::plan::Plan;
use super::rollout::{Rollout, Standing, Status, Tally, Wish};
use device::{NEW, OLD, Simulated};

/// Seconds between two steps of the roll-out.
const STEP: u64 = 20;
/// The same once it has ended.
const IDLE_STEP: u64 = 600;
/// Seconds after which a simulation ends, come what may.
const LIMIT: u64 = 30 * 24 * 3600;
/// Seconds that a fleet has to settle once the roll-out has ended.
const SETTLE: u64 = 12 * 3600;
/// The clock at the beginning, in unix seconds.
const DAWN: u64 = 1_800_000_000;

/// How a simulated fleet is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct World {
    /// Devices.
    pub devices: usize,
    /// Share of them on which the update fails, 0 to 1.
    pub failing: f64,
    /// Share of the time that a device is not connected, 0 to 1.
    pub offline: f64,
    /// Chance that a download breaks, and that power fails during an update,
    /// 0 to 1; a tenth of it that the roll-out is restarted at a step.
    pub trouble: f64,
    /// What chance follows.
    pub seed: u64,
}

/// How a simulation ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How far the roll-out came.
    pub status: Status,
    /// The stages in numbers.
    pub stages: Vec<Tally>,
    /// Seconds of simulated time until it ended.
    pub seconds: u64,
    /// Devices that failed, and that were allowed to.
    pub failed: usize,
    /// Most devices that could fail by the rule: the tolerated, the one that
    /// halts, and those that went away while they updated.
    pub bound: usize,
    /// Devices that serve the new model in the end, and the old one.
    pub new: usize,
    /// Devices that serve the old model in the end.
    pub old: usize,
    /// Attempts at an update.
    pub attempts: u64,
    /// Devices that lost power during an update.
    pub power_cuts: u64,
    /// Times that the roll-out was restarted from its file.
    pub restarts: u64,
    /// What must never happen and did.
    pub violations: Vec<String>,
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The roll-out looks at what it heard.
    Step,
    /// A device looks at what it is to do.
    Turn(usize),
    /// A device's attempt ends.
    End(usize),
    /// A device's power returns.
    Boot(usize),
    /// A device's connection comes or goes.
    Flip(usize),
    /// A device's report arrives.
    Report(usize),
}

struct Simulation<'a> {
    plan: &'a Plan,
    world: World,
    chance: ChaCha8Rng,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    made: u64,
    devices: Vec<Simulated>,
    rollout: Rollout,
    wish: Wish,
    summary: Summary,
    silent: usize,
}

/// Carries out `plan` on a simulated fleet. With `return_at` the wish to go
/// back comes that many seconds after the beginning.
pub fn simulate(plan: &Plan, world: World, return_at: Option<u64>) -> Summary {
    let mut simulation = Simulation::new(plan, world);
    simulation.begin();
    let return_at = return_at.map(|seconds| DAWN + seconds);
    let mut end = None;
    while let Some(Reverse((time, _, event))) = simulation.events.pop() {
        let since = end.map_or(LIMIT, |end: u64| end + SETTLE - DAWN);
        if time > DAWN + since {
            break;
        }
        simulation.now = time;
        if return_at.is_some_and(|at| time >= at) {
            simulation.wish = Wish::GoBack;
        }
        simulation.happen(event);
        let awaited = return_at.is_some_and(|at| time < at);
        if end.is_none() && simulation.rollout.is_over() && !awaited {
            end = Some(time);
        }
    }
    simulation.summary.seconds = end.unwrap_or(DAWN + LIMIT) - DAWN;
    simulation.judge()
}

impl<'a> Simulation<'a> {
    fn new(plan: &'a Plan, world: World) -> Self {
        let mut chance = ChaCha8Rng::seed_from_u64(world.seed);
        let numbers = 0..world.devices;
        let devices = numbers.map(|number| Simulated::new(number, plan, &world, &mut chance));
        let release = Found {
            name: "simulated".into(),
            version: "2.0.0".into(),
            sha256: NEW.into(),
            package: "r.local/simulated:2.0.0".into(),
        };
        let rollout = Rollout::new("simulated".into(), plan, release);
        Self {
            plan,
            world,
            devices: devices.collect(),
            chance,
            now: DAWN,
            events: BinaryHeap::new(),
            made: 0,
            summary: Summary {
                status: rollout.status,
                stages: Vec::new(),
                seconds: 0,
                failed: 0,
                bound: 0,
                new: 0,
                old: 0,
                attempts: 0,
                power_cuts: 0,
                restarts: 0,
                violations: Vec::new(),
            },
            rollout,
            wish: Wish::Go,
            silent: 0,
        }
    }

    fn begin(&mut self) {
        for number in 0..self.devices.len() {
            self.rollout.hear(&self.devices[number].report(self.now));
            self.tell_presence(number);
            let first = self.flip_in(number);
            self.after(first, Event::Flip(number));
        }
        self.after(0, Event::Step);
    }

    fn after(&mut self, seconds: u64, event: Event) {
        self.made += 1;
        self.events
            .push(Reverse((self.now + seconds, self.made, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step => self.step(),
            Event::Turn(number) => self.turn(number),
            Event::End(number) => self.finish(number),
            Event::Boot(number) => {
                self.devices[number].boot();
                self.tell_presence(number);
                self.after(1, Event::Turn(number));
            }
            Event::Flip(number) => self.flip(number),
            Event::Report(number) => self.report(number),
        }
    }

    fn step(&mut self) {
        if self.chance.random_bool(self.world.trouble / 10.0) {
            self.restart();
        }
        let news = self.rollout.step(&self.plan.limits, self.wish, self.now);
        for id in news {
            self.send(&id);
        }
        let pause = match self.rollout.is_over() {
            true => IDLE_STEP,
            false => STEP,
        };
        self.after(pause, Event::Step);
    }

    /// The roll-out comes back from its file and hears again what was retained.
    fn restart(&mut self) {
        self.summary.restarts += 1;
        let kept = serde_json::to_string(&self.rollout);
        let read = kept.and_then(|text| serde_json::from_str::<Rollout>(&text));
        match read {
            Ok(rollout) if rollout == self.rollout => self.rollout = rollout,
            _ => self.violate("the roll-out is another after a restart".into()),
        }
        for number in 0..self.devices.len() {
            self.tell_presence(number);
            self.report(number);
        }
    }

    /// The broker keeps the order; a device that is there hears it soon.
    fn send(&mut self, id: &str) {
        let Some(number) = device::number(id) else {
            return;
        };
        if let Some(order) = self.rollout.order(id) {
            self.devices[number].retained = order;
            let delay = self.chance.random_range(0..5);
            self.after(delay, Event::Turn(number));
        }
    }

    fn turn(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let Some(time) = device.turn(self.now, &mut self.chance) else {
            self.after(1, Event::Report(number));
            if let Some(wait) = self.devices[number].wait(self.now) {
                self.after(wait, Event::Turn(number));
            }
            return;
        };
        self.summary.attempts += 1;
        self.after(1, Event::Report(number));
        self.after(time, Event::End(number));
    }

    fn finish(&mut self, number: usize) {
        let trouble = self.world.trouble;
        let cut = self.chance.random_bool(trouble);
        let torn = self.chance.random_bool(trouble);
        let device = &mut self.devices[number];
        let was_new = device.serves_new();
        device.finish(self.now, cut, torn, &mut self.chance);
        if self.devices[number].serves_new() && !was_new {
            self.look_at_new(number);
        }
        if cut {
            self.summary.power_cuts += 1;
            self.tell_presence(number);
            let time = self.chance.random_range(20..600);
            self.after(time, Event::Boot(number));
            return;
        }
        self.after(1, Event::Turn(number));
    }

    fn flip(&mut self, number: usize) {
        let device = &mut self.devices[number];
        device.connected = !device.connected;
        let is_asked = |standing: &Standing| matches!(standing, Standing::Asked(_));
        let member = self.rollout.devices.get(&self.devices[number].id);
        if !self.devices[number].connected
            && member.is_some_and(|member| is_asked(&member.standing))
        {
            self.silent += 1;
        }
        self.tell_presence(number);
        let next = self.flip_in(number);
        self.after(next, Event::Flip(number));
        self.after(1, Event::Turn(number));
    }

    /// How long a device stays connected, or away.
    fn flip_in(&mut self, number: usize) -> u64 {
        let away = self.chance.random_range(60..4 * 3600);
        let share = self.world.offline;
        match self.devices[number].connected {
            _ if share <= 0.0 => LIMIT + SETTLE,
            true => (away as f64 * (1.0 - share) / share).min(LIMIT as f64) as u64,
            false => away,
        }
    }

    fn tell_presence(&mut self, number: usize) {
        let device = &self.devices[number];
        self.rollout.presence(&device.id, device.is_online());
    }

    fn report(&mut self, number: usize) {
        let device = &self.devices[number];
        if !device.is_online() {
            return;
        }
        if self.rollout.hear(&device.report(self.now)) {
            let id = self.devices[number].id.clone();
            self.send(&id);
        }
    }

    /// Whether a device may serve the new model that just has begun to.
    fn look_at_new(&mut self, number: usize) {
        let id = self.devices[number].id.clone();
        let member = self.rollout.devices.get(&id);
        let stage = member.and_then(|member| member.stage);
        let current = self.rollout.stage;
        if stage.is_none_or(|stage| stage > current) {
            self.violate(format!(
                "{id} of stage {stage:?} got the model in stage {current}"
            ));
        }
    }

    fn violate(&mut self, what: String) {
        self.summary.violations.push(what);
    }

    fn judge(mut self) -> Summary {
        let limits = &self.plan.limits;
        let rollout = &self.rollout;
        self.summary.status = rollout.status;
        self.summary.stages = rollout.tallies();
        self.summary.failed = rollout.failed();
        self.summary.bound = rollout.tolerance(limits) + 1 + self.silent;
        let mut counts = BTreeMap::<&str, usize>::new();
        for device in &self.devices {
            let serving = device.serving().unwrap_or_default();
            *counts.entry(serving).or_default() += 1;
        }
        self.summary.new = counts.remove(NEW).unwrap_or(0);
        self.summary.old = counts.remove(OLD).unwrap_or(0);
        let strange: Vec<String> = counts
            .keys()
            .map(|name| format!("a device serves {name:?}"))
            .collect();
        self.summary.violations.extend(strange);
        if self.summary.failed > self.summary.bound {
            let (failed, bound) = (self.summary.failed, self.summary.bound);
            self.violate(format!("{failed} devices failed, {bound} may"));
        }
        if self.summary.status == Status::Back && self.summary.new > 0 && self.world.offline == 0.0
        {
            let new = self.summary.new;
            self.violate(format!("{new} devices did not go back"));
        }
        self.summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: World = World {
        devices: 10_000,
        failing: 0.003,
        offline: 0.05,
        trouble: 0.01,
        seed: 1,
    };

    fn plan(limits: &str) -> Plan {
        let toml = format!(
            "package = 'r.local/simulated:2.0.0'\n[broker]\nurl = 'mqtt://b'\n[limits]\n{limits}\n\
             [[stage]]\nlabels = {{ site = 'lab' }}\nwait = '10min'\n\
             [[stage]]\npercent = 5\nwait = '30min'\n[[stage]]\npercent = 25\nwait = '30min'\n[[stage]]\n"
        );
        Plan::parse(&toml).unwrap()
    }

    #[test]
    fn ten_thousand_devices_are_updated_in_stages() {
        let summary = simulate(&plan("parallel = 200"), FLEET, None);
        assert_eq!(summary.violations, [""; 0]);
        assert_eq!(summary.status, Status::Done);
        assert_eq!(summary.new + summary.old, FLEET.devices);
        assert!(
            summary.new > 9_700 && summary.restarts > 0 && summary.power_cuts > 0,
            "{summary:?}"
        );
        let lab = &summary.stages[0];
        assert!(
            lab.devices > 150 && lab.devices < 250 && lab.done > 140,
            "{lab:?}"
        );
    }

    #[test]
    fn a_bad_model_halts_within_what_may_fail() {
        for (failing, seed) in [(1.0, 1), (0.2, 2), (0.05, 3)] {
            let world = World {
                failing,
                seed,
                ..FLEET
            };
            let summary = simulate(&plan("parallel = 200"), world, None);
            assert_eq!(summary.violations, [""; 0]);
            assert_eq!(summary.status, Status::Halted, "{summary:?}");
            assert!(
                summary.failed <= summary.bound && summary.failed < 300,
                "{summary:?}"
            );
            assert_eq!(summary.new + summary.old, world.devices);
        }
    }

    #[test]
    fn on_a_quiet_network_the_bound_is_exact() {
        for seed in 0..5 {
            let world = World {
                devices: 2_000,
                failing: 0.1,
                offline: 0.0,
                trouble: 0.0,
                seed,
            };
            let limits = plan("parallel = 1000\nfailures = 5.0");
            let summary = simulate(&limits, world, None);
            assert_eq!(summary.status, Status::Halted);
            let asked: usize = summary
                .stages
                .iter()
                .map(|tally| tally.done + tally.failed)
                .sum();
            assert!(
                summary.failed == summary.bound && asked < 2_000,
                "{summary:?}"
            );
        }
    }

    #[test]
    fn all_go_back_when_it_halts_or_somebody_wishes() {
        let world = World {
            offline: 0.0,
            failing: 0.05,
            ..FLEET
        };
        let halted = simulate(&plan("go_back = true"), world, None);
        assert_eq!((halted.status, halted.new), (Status::Back, 0));
        let world = World {
            failing: 0.0,
            ..world
        };
        let wished = simulate(&plan("parallel = 500"), world, Some(4 * 3600));
        assert_eq!(wished.violations, [""; 0]);
        assert_eq!((wished.status, wished.new), (Status::Back, 0));
        assert!(wished.attempts > 2 * 1_000);
    }

    #[test]
    fn the_same_seed_is_the_same_story() {
        let world = World {
            devices: 500,
            ..FLEET
        };
        let plan = plan("parallel = 20");
        assert_eq!(simulate(&plan, world, None), simulate(&plan, world, None));
        let other = World { seed: 2, ..world };
        assert_ne!(simulate(&plan, world, None), simulate(&plan, other, None));
    }
}
