//! The plan of a roll-out: what, to whom first, and when to stop.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bundle::sha256;
use crate::sink::mqtt::MqttSettings;

/// A commented plan to begin with.
pub const TEMPLATE: &str = include_str!("plan.toml");

/// Most stages of a plan.
const MAX_STAGES: usize = 64;

/// Who gets what, in which order.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Where the package is: a reference of a registry, or an address.
    pub package: String,
    /// The broker that the devices are connected to.
    pub broker: MqttSettings,
    /// When to go on and when to stop.
    #[serde(default)]
    pub limits: Limits,
    /// The stages, the first first. A device belongs to the first that it fits.
    #[serde(rename = "stage")]
    pub stages: Vec<Stage>,
}

/// Some of the devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// What it is called.
    #[serde(default)]
    pub name: String,
    /// Labels that its devices have, all of them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Share of the devices with these labels, earlier stages included, from 0
    /// to 100.
    #[serde(default = "everybody")]
    pub percent: f64,
    /// How long the devices are watched before the next stage begins.
    #[serde(default)]
    pub wait: Span,
}

/// When to go on and when to stop.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most devices that update at the same time.
    pub parallel: usize,
    /// Share in percent of the devices whose turn has come that may fail; one
    /// more, and the roll-out halts.
    pub failures: f64,
    /// Share in percent of a stage's devices that must have updated before the
    /// next begins; the others follow when they are there.
    pub enough: f64,
    /// How long a device may take that is there. One that is not is no longer
    /// waited for after this time.
    pub patience: Span,
    /// Whether the devices that have updated go back when it halts.
    pub go_back: bool,
}

/// A time, written as `90s`, `10min`, `1h 30min` or `2d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

/// Why a plan cannot be used.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct PlanError(String);

fn everybody() -> f64 {
    100.0
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            parallel: 50,
            failures: 2.0,
            enough: 90.0,
            patience: Span(Duration::from_secs(30 * 60)),
            go_back: false,
        }
    }
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// [`PlanError`] names the field.
    pub fn parse(toml: &str) -> Result<Self, PlanError> {
        let plan: Self = toml::from_str(toml).map_err(|error| PlanError(error.to_string()))?;
        plan.check().map_err(PlanError)?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), String> {
        let limits = &self.limits;
        if !(1..=MAX_STAGES).contains(&self.stages.len()) {
            return Err(format!("stage: expected 1 to {MAX_STAGES} of them"));
        }
        if limits.parallel == 0 {
            return Err("limits.parallel: expected at least 1".into());
        }
        let shares = [
            ("limits.failures", limits.failures),
            ("limits.enough", limits.enough),
        ];
        let percents = self
            .stages
            .iter()
            .map(|stage| ("stage.percent", stage.percent));
        for (name, share) in shares.into_iter().chain(percents) {
            if !(0.0..=100.0).contains(&share) {
                return Err(format!("{name}: expected 0 to 100, got {share}"));
            }
        }
        self.broker
            .check()
            .map_err(|error| format!("broker: {error}"))
    }
}

impl Stage {
    /// What it is called, or whom it is for.
    pub fn title(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value} "));
        format!("{}{} %", labels.collect::<String>(), self.percent)
    }

    fn takes(&self, labels: &BTreeMap<String, String>, place: f64) -> bool {
        let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
        self.labels.iter().all(has) && place < self.percent
    }
}

/// The stage of a device: the first whose labels it has and whose share its
/// place is in.
pub fn stage_of(
    stages: &[Stage],
    labels: &BTreeMap<String, String>,
    salt: &str,
    id: &str,
) -> Option<usize> {
    let place = place_of(salt, id);
    stages.iter().position(|stage| stage.takes(labels, place))
}

/// A device's place among all, from 0 to 100: by SHA-256 of `salt` and name,
/// so the same for ever, spread evenly, and another in the next roll-out.
fn place_of(salt: &str, id: &str) -> f64 {
    let digest = sha256(format!("{salt}\0{id}").as_bytes());
    // 52 bits are exact in a double.
    let number = u64::from_str_radix(&digest[..13], 16).unwrap_or(0);
    number as f64 * (100.0 / (1_u64 << 52) as f64)
}

impl Span {
    /// Whole seconds.
    pub fn seconds(self) -> u64 {
        self.0.as_secs()
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let expected = || format!("{text:?}: expected a time as 90s, 10min, 1h 30min or 2d");
        let (days, rest) = match text.split_once('d') {
            Some((days, rest)) => (days.trim().parse::<u32>().map_err(|_| expected())?, rest),
            None => (0, &*text),
        };
        let rest = match rest.trim() {
            "" if days > 0 => SignedDuration::ZERO,
            rest => rest.parse().map_err(|_| expected())?,
        };
        let rest = Duration::try_from(rest).map_err(|_| expected())?;
        Ok(Self(Duration::from_secs(u64::from(days) * 86_400) + rest))
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        format!("{}s", span.seconds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: &str) -> Result<Plan, PlanError> {
        Plan::parse(&format!(
            "package = 'r.local/gauge:1'\n[broker]\nurl = 'mqtt://b'\n{change}"
        ))
    }

    #[test]
    fn the_template_is_a_plan() {
        let plan = Plan::parse(TEMPLATE).unwrap();
        assert_eq!(plan.limits, Limits::default());
        assert_eq!(plan.stages.len(), 4);
        assert_eq!(plan.stages[1].title(), "5 %");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90s", 90),
            ("10min", 600),
            ("1h 30min", 5400),
            ("2d", 172_800),
            ("1d 1h", 90_000),
        ] {
            assert_eq!(Span::try_from(text.to_owned()).unwrap().seconds(), seconds);
        }
        for text in ["", "10", "-5s", "soon", "d"] {
            assert!(Span::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn plans_that_cannot_work_say_why() {
        for (change, reason) in [
            ("", "stage"),
            ("[[stage]]\npercent = 101", "stage.percent"),
            ("[limits]\nfailures = -1\n[[stage]]", "limits.failures"),
            ("[limits]\nparallel = 0\n[[stage]]", "limits.parallel"),
            ("[[stage]]\nwait = 'soon'", "expected a time"),
            ("[[stage]]\nprecent = 5", "precent"),
        ] {
            let error = plan(change).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn shares_are_met_and_grow_into_each_other() {
        let stages = plan("[[stage]]\npercent = 1\n[[stage]]\npercent = 10\n[[stage]]")
            .unwrap()
            .stages;
        let mut counts = [0_i32; 3];
        for number in 0..20_000 {
            let id = format!("cam-{number}");
            let stage = stage_of(&stages, &BTreeMap::new(), "salt", &id).unwrap();
            counts[stage] += 1;
            assert_eq!(
                stage_of(&stages, &BTreeMap::new(), "salt", &id),
                Some(stage)
            );
        }
        // Within five standard deviations of 200, 1800 and 18000.
        assert!(
            (counts[0] - 200).abs() < 71 && (counts[1] - 1800).abs() < 202,
            "{counts:?}"
        );
        let lab = plan("[[stage]]\nlabels = { site = 'lab' }").unwrap().stages;
        let labels = |site: &str| [("site".to_owned(), site.to_owned())].into();
        assert_eq!(stage_of(&lab, &labels("lab"), "salt", "a"), Some(0));
        assert_eq!(stage_of(&lab, &labels("field"), "salt", "a"), None);
    }
}
