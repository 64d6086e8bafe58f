//! A roll-out: plain values and what follows from them. The command and the
//! simulation run the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::message::{Order, Phase, Report};
use super::origin::Found;
use super::plan::{Limits, Plan, Stage, stage_of};
use crate::flash::Health;

/// A package on its way to a fleet. Kept in a file, it goes on where it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// What devices know it by.
    pub name: String,
    /// Where the plan says that the package is.
    pub package: String,
    /// The package there when it began, pinned.
    pub release: Found,
    /// The stages of the plan that it began with.
    pub stages: Vec<Stage>,
    /// How far it is.
    pub status: Status,
    /// The stage whose turn it is; those before it have had theirs.
    pub stage: usize,
    /// Since when enough devices of the stage have updated, in unix seconds.
    pub watched_since: Option<u64>,
    /// The devices by name.
    pub devices: BTreeMap<String, Member>,
}

/// How far a roll-out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Devices are asked to update.
    Running,
    /// No more are asked.
    Paused,
    /// Too many failed: no more are asked, and who was asked no longer is.
    Halted,
    /// Devices that have updated are asked to go back.
    GoingBack,
    /// All that could have gone back.
    Back,
    /// Every stage has had its turn.
    Done,
}

/// What the person at the controls wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// It shall go on.
    #[default]
    Go,
    /// It shall ask no more devices for now.
    Pause,
    /// The devices shall serve what they did before.
    GoBack,
}

/// A device in a roll-out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its stage; none where no stage takes it.
    pub stage: Option<usize>,
    /// Whether it is connected.
    pub online: bool,
    /// SHA-256 of the bundle that serves there.
    pub serving: Option<String>,
    /// That of the bundle that served when it was asked to update.
    pub before: Option<String>,
    /// How far it is.
    pub standing: Standing,
}

/// How far a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its turn has yet to come.
    Waiting,
    /// It was asked to update, at this unix time in seconds.
    Asked(u64),
    /// It serves the new model, and is well.
    Done,
    /// It failed, for this reason; it is to serve what it did before.
    Failed(String),
    /// It was asked, and then no longer.
    Withdrawn,
    /// It had updated, and is asked to serve what it did before.
    GoingBack,
    /// It serves what it did before.
    Back,
}

/// A stage in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// The stage.
    pub stage: String,
    /// Devices in it.
    pub devices: usize,
    /// Those whose turn has yet to come, or was taken back.
    pub waiting: usize,
    /// Those that were asked to update.
    pub asked: usize,
    /// Those that have.
    pub done: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that go back or have.
    pub back: usize,
    /// Those that are not connected.
    pub offline: usize,
}

/// A roll-out in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress<'a> {
    /// Its name.
    pub rollout: &'a str,
    /// Name of the model.
    pub model: &'a str,
    /// Version of the model.
    pub version: &'a str,
    /// How far it is.
    pub status: Status,
    /// The stage whose turn it is, counted from 1.
    pub stage: usize,
    /// The stages.
    pub stages: Vec<Tally>,
}

impl Rollout {
    /// A roll-out of `release` by `plan` that has not begun. `name` tells it
    /// from others of the same release.
    pub fn new(name: String, plan: &Plan, release: Found) -> Self {
        Self {
            name,
            package: plan.package.clone(),
            release,
            stages: plan.stages.clone(),
            status: Status::Running,
            stage: 0,
            watched_since: None,
            devices: BTreeMap::new(),
        }
    }

    /// Takes note of a device's report. Says whether its [order](Self::order)
    /// is another now.
    pub fn hear(&mut self, report: &Report) -> bool {
        let (stages, salt) = (&self.stages, &self.release.sha256);
        let member = self.devices.entry(report.id.clone());
        let member = member.or_insert_with(|| Member {
            stage: stage_of(stages, &report.labels, salt, &report.id),
            online: false,
            serving: None,
            before: None,
            standing: Standing::Waiting,
        });
        member.serving = report
            .status
            .serving
            .as_ref()
            .map(|model| model.sha256.clone());
        let is_new = member.serving.as_deref() == Some(salt);
        let settled = report.phase == Phase::Settled;
        let ours = report
            .order
            .as_ref()
            .is_some_and(|order| order.rollout == self.name && order.sha256 == *salt);
        let failing = report.status.health == Health::Failing;
        let failed = |reason: &str| Standing::Failed(reason.into());
        let news = match &member.standing {
            Standing::Asked(_) | Standing::Waiting if is_new && settled && !failing => {
                Standing::Done
            }
            Standing::Asked(_) if is_new && settled => failed("not well with the new model"),
            Standing::Asked(_) if ours && report.phase == Phase::GivenUp => {
                failed(report.fault.as_deref().unwrap_or("gave up"))
            }
            Standing::Done if settled && !is_new => failed("serves another model again"),
            Standing::Done if settled && failing => failed("no longer well with the new model"),
            Standing::GoingBack if settled && !is_new => Standing::Back,
            _ => return false,
        };
        member.standing = news;
        matches!(member.standing, Standing::Failed(_))
    }

    /// Takes note of a device's presence. One that never reported is unknown.
    pub fn presence(&mut self, id: &str, online: bool) {
        if let Some(member) = self.devices.get_mut(id) {
            member.online = online;
        }
    }

    /// Forgets a device that no longer exists.
    pub fn forget(&mut self, id: &str) {
        self.devices.remove(id);
    }

    /// What follows at the unix time `now` in seconds. Gives the devices whose
    /// [order](Self::order) is another than before.
    pub fn step(&mut self, limits: &Limits, wish: Wish, now: u64) -> Vec<String> {
        if self.devices.is_empty() {
            return Vec::new();
        }
        let mut news = self.fail_the_slow(limits, now);
        match (self.status, wish) {
            (Status::Back, _) | (Status::Done, Wish::Go | Wish::Pause) => {}
            (Status::GoingBack, _) => self.settle_return(),
            (_, Wish::GoBack) => news.extend(self.go_back()),
            (Status::Running, Wish::Pause) => self.status = Status::Paused,
            (Status::Paused, Wish::Go) => self.status = Status::Running,
            (Status::Halted, _) if self.failed() <= self.tolerance(limits) => {
                self.status = match wish {
                    Wish::Pause => Status::Paused,
                    _ => Status::Running,
                };
                self.replace(
                    |standing| *standing == Standing::Withdrawn,
                    &Standing::Waiting,
                );
            }
            _ => {}
        }
        if matches!(self.status, Status::Running | Status::Paused)
            && self.failed() > self.tolerance(limits)
        {
            news.extend(self.halt(limits));
        }
        if self.status == Status::Running {
            self.advance(limits, now);
            news.extend(self.ask(limits, now));
        }
        news
    }

    /// What a device is to be told: `None` if nothing, `Some(None)` that it has
    /// no order.
    pub fn order(&self, id: &str) -> Option<Option<Order>> {
        let member = self.devices.get(id)?;
        let order = |sha256: &String, package: Option<&String>| Order {
            rollout: self.name.clone(),
            sha256: sha256.clone(),
            package: package.cloned(),
        };
        match member.standing {
            Standing::Waiting => None,
            Standing::Asked(_) | Standing::Done => Some(Some(order(
                &self.release.sha256,
                Some(&self.release.package),
            ))),
            _ => Some(member.before.as_ref().map(|before| order(before, None))),
        }
    }

    /// Devices that failed.
    pub fn failed(&self) -> usize {
        let failed = |member: &&Member| matches!(member.standing, Standing::Failed(_));
        self.devices.values().filter(failed).count()
    }

    /// Devices that may fail before it halts.
    pub fn tolerance(&self, limits: &Limits) -> usize {
        let taken = self.devices.values().filter(|member| self.has_turn(member));
        (taken.count() as f64 * limits.failures / 100.0) as usize
    }

    /// All of it in numbers.
    pub fn progress(&self) -> Progress<'_> {
        Progress {
            rollout: &self.name,
            model: &self.release.name,
            version: &self.release.version,
            status: self.status,
            stage: self.stage + 1,
            stages: self.tallies(),
        }
    }

    /// The devices that have been told something.
    pub fn ordered(&self) -> Vec<String> {
        let ids = self.devices.keys();
        ids.filter(|id| self.order(id).is_some()).cloned().collect()
    }

    /// Whether nothing more follows by itself.
    pub fn is_over(&self) -> bool {
        matches!(self.status, Status::Halted | Status::Back | Status::Done)
    }

    /// Every stage in numbers, and last the devices that no stage takes.
    pub fn tallies(&self) -> Vec<Tally> {
        let titles = self.stages.iter().map(Stage::title);
        let mut tallies: Vec<Tally> = titles
            .chain(["(none)".into()])
            .map(|stage| Tally {
                stage,
                ..Tally::default()
            })
            .collect();
        for member in self.devices.values() {
            tallies[member.stage.unwrap_or(self.stages.len())].count(member);
        }
        if tallies.last().is_some_and(|none| none.devices == 0) {
            tallies.pop();
        }
        tallies
    }

    fn has_turn(&self, member: &Member) -> bool {
        member.stage.is_some_and(|stage| stage <= self.stage)
    }

    /// Gives every device whose standing `is_meant` another; says which.
    fn replace(&mut self, is_meant: impl Fn(&Standing) -> bool, to: &Standing) -> Vec<String> {
        let mut changed = Vec::new();
        for (id, member) in &mut self.devices {
            if is_meant(&member.standing) {
                member.standing = to.clone();
                changed.push(id.clone());
            }
        }
        changed
    }

    fn fail_the_slow(&mut self, limits: &Limits, now: u64) -> Vec<String> {
        let late = |member: &Member| match member.standing {
            Standing::Asked(at) => member.online && is_over(at, limits, now),
            _ => false,
        };
        let mut slow = Vec::new();
        for (id, member) in self.devices.iter_mut().filter(|(_, member)| late(member)) {
            let patience = limits.patience.seconds();
            member.standing = Standing::Failed(format!("not done within {patience} s"));
            slow.push(id.clone());
        }
        slow
    }

    fn halt(&mut self, limits: &Limits) -> Vec<String> {
        if limits.go_back {
            return self.go_back();
        }
        self.status = Status::Halted;
        self.replace(
            |standing| matches!(standing, Standing::Asked(_)),
            &Standing::Withdrawn,
        )
    }

    fn go_back(&mut self) -> Vec<String> {
        self.status = Status::GoingBack;
        let asked = |standing: &Standing| matches!(standing, Standing::Asked(_));
        let mut news = self.replace(asked, &Standing::Withdrawn);
        for (id, member) in &mut self.devices {
            // Who had the model already was never asked, and keeps it.
            if member.standing == Standing::Done && member.before.is_some() {
                member.standing = Standing::GoingBack;
                news.push(id.clone());
            }
        }
        news
    }

    fn settle_return(&mut self) {
        let mut members = self.devices.values();
        if !members.any(|member| member.standing == Standing::GoingBack && member.online) {
            self.status = Status::Back;
        }
    }

    /// Moves on to the next stage when this one has had its time.
    fn advance(&mut self, limits: &Limits, now: u64) {
        if !self.is_complete(limits, now) {
            self.watched_since = None;
            return;
        }
        let since = *self.watched_since.get_or_insert(now);
        if now.saturating_sub(since) < self.stages[self.stage].wait.seconds() {
            return;
        }
        self.watched_since = None;
        match self.stage + 1 < self.stages.len() {
            true => self.stage += 1,
            false => self.status = Status::Done,
        }
    }

    /// Whether nobody who is there is under way or waits, and enough of the
    /// stage have updated.
    fn is_complete(&self, limits: &Limits, now: u64) -> bool {
        let busy = |member: &Member| match member.standing {
            Standing::Waiting => member.online,
            Standing::Asked(at) => member.online || !is_over(at, limits, now),
            _ => false,
        };
        if self
            .devices
            .values()
            .any(|member| self.has_turn(member) && busy(member))
        {
            return false;
        }
        let of_stage = |member: &&Member| member.stage == Some(self.stage);
        let of_stage: Vec<&Member> = self.devices.values().filter(of_stage).collect();
        let ended =
            |member: &&&Member| !matches!(member.standing, Standing::Waiting | Standing::Asked(_));
        let ended = of_stage.iter().filter(ended).count();
        ended as f64 >= of_stage.len() as f64 * limits.enough / 100.0
    }

    /// Asks as many as may be under way: no more than may still fail before it
    /// halts, and the one that halts it.
    fn ask(&mut self, limits: &Limits, now: u64) -> Vec<String> {
        let under_way = |member: &&Member| match member.standing {
            Standing::Asked(at) => member.online || !is_over(at, limits, now),
            _ => false,
        };
        let under_way = self.devices.values().filter(under_way).count();
        let risk = (self.tolerance(limits) + 1).saturating_sub(self.failed());
        let room = limits.parallel.min(risk).saturating_sub(under_way);
        let stage = self.stage;
        let can = |(_, member): &(&String, &mut Member)| {
            let has_turn = member.stage.is_some_and(|of| of <= stage);
            has_turn && member.online && member.standing == Standing::Waiting
        };
        let mut asked = Vec::new();
        for (id, member) in self.devices.iter_mut().filter(can).take(room) {
            member.standing = Standing::Asked(now);
            if member.serving.as_ref() != Some(&self.release.sha256) {
                member.before.clone_from(&member.serving);
            }
            asked.push(id.clone());
        }
        asked
    }
}

impl Tally {
    fn count(&mut self, member: &Member) {
        self.devices += 1;
        self.offline += usize::from(!member.online);
        *match member.standing {
            Standing::Waiting | Standing::Withdrawn => &mut self.waiting,
            Standing::Asked(_) => &mut self.asked,
            Standing::Done => &mut self.done,
            Standing::Failed(_) => &mut self.failed,
            Standing::GoingBack | Standing::Back => &mut self.back,
        } += 1;
    }
}

fn is_over(since: u64, limits: &Limits, now: u64) -> bool {
    now.saturating_sub(since) >= limits.patience.seconds()
}

#[cfg(test)]
mod tests;
