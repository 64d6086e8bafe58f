//! What a device does about an order. Plain functions of what it knows: the
//! agent and the simulation decide by the same.

use serde::{Deserialize, Serialize};

use super::message::{Order, Phase};

/// Times that an order may fail by itself before it is given up.
pub const ATTEMPTS: u32 = 3;
/// Seconds before the second attempt at an order that failed by itself.
const SECOND: f64 = 30.0;
/// Seconds before the second attempt where only the way there failed.
const RETRY: f64 = 2.0;
/// The longest wait in seconds, and how much longer each is than the one before.
const LONGEST: f64 = 900.0;
const GROWTH: f64 = 2.0;

/// What a device has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// SHA-256 of the bundle that serves.
    pub serving: Option<String>,
    /// SHA-256 of the one before it.
    pub previous: Option<String>,
    /// Whether the service is known not to be well.
    pub failing: bool,
}

/// A device's attempts at one order, kept over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The order.
    pub order: Order,
    /// Times that it failed by itself, the one under way included.
    pub refusals: u32,
    /// Times in a row that only the way there failed.
    pub interruptions: u32,
    /// Whether an attempt is under way, or was when the device stopped.
    pub begun: bool,
    /// Unix time in seconds before which it is not tried again.
    pub not_before: u64,
    /// What went wrong the last time.
    pub fault: Option<String>,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: there is no order, or it is fulfilled.
    Rest,
    /// Nothing until this unix time in seconds.
    Wait(u64),
    /// Nothing any more: it failed too often.
    GiveUp,
    /// The bundle before the one that serves is wanted, or was not replaced well.
    GoBack,
    /// The package is to be fetched and installed.
    Install,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The order is fulfilled.
    Done,
    /// The package or the device is at fault: the same again would hardly help.
    Refused(String),
    /// Only the way there is at fault.
    Interrupted(String),
}

/// What to do about `order`, at the unix time `now` in seconds.
pub fn decide(order: Option<&Order>, held: &Held, trial: Option<&Trial>, now: u64) -> Step {
    let Some(order) = order else {
        return Step::Rest;
    };
    let trial = trial.filter(|trial| trial.order == *order);
    let wanted = Some(&order.sha256);
    if held.serving.as_ref() == wanted {
        // The device stopped while it watched the service.
        let unproved = trial.is_some_and(|trial| trial.begun);
        return match unproved && held.failing && held.previous.is_some() {
            true => Step::GoBack,
            false => Step::Rest,
        };
    }
    match trial {
        Some(trial) if trial.refusals >= ATTEMPTS => Step::GiveUp,
        Some(trial) if is_early(trial, now) => Step::Wait(trial.not_before),
        _ if held.previous.as_ref() == wanted => Step::GoBack,
        _ => Step::Install,
    }
}

/// The trial to be kept before an attempt at `order` begins: should the device
/// stop in the middle of it, it has failed.
pub fn begin(order: &Order, trial: Option<Trial>) -> Trial {
    let before = trial.filter(|trial| trial.order == *order);
    let refusals = before.as_ref().map_or(0, |trial| trial.refusals);
    Trial {
        order: order.clone(),
        refusals: refusals + 1,
        interruptions: before.map_or(0, |trial| trial.interruptions),
        begun: true,
        not_before: 0,
        fault: Some("the device stopped during the update".into()),
    }
}

/// The trial to be kept after the attempt; none where it was the last.
/// `chance` from 0 to 1 spreads devices that failed together.
pub fn conclude(trial: Trial, ending: Ending, now: u64, chance: f64) -> Option<Trial> {
    let later = |first: f64, before: u32| {
        let wait = (first * GROWTH.powi(before.min(32) as i32)).min(LONGEST);
        now + (wait * (0.5 + chance)).ceil() as u64
    };
    match ending {
        Ending::Done => None,
        Ending::Refused(fault) => Some(Trial {
            interruptions: 0,
            begun: false,
            not_before: later(SECOND, trial.refusals - 1),
            fault: Some(fault),
            ..trial
        }),
        Ending::Interrupted(fault) => Some(Trial {
            refusals: trial.refusals - 1,
            interruptions: trial.interruptions.saturating_add(1),
            begun: false,
            not_before: later(RETRY, trial.interruptions),
            fault: Some(fault),
            ..trial
        }),
    }
}

/// What a device that is to do `step` says of itself.
pub fn phase(step: Step) -> Phase {
    match step {
        Step::Rest => Phase::Settled,
        Step::Wait(_) => Phase::Waiting,
        Step::GiveUp => Phase::GivenUp,
        Step::GoBack | Step::Install => Phase::Updating,
    }
}

/// A wait that is longer than any comes from a clock that was put back.
fn is_early(trial: &Trial, now: u64) -> bool {
    let wait = trial.not_before.saturating_sub(now);
    wait > 0 && wait as f64 <= 1.5 * LONGEST + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(sha256: &str, package: bool) -> Order {
        Order {
            rollout: "r".into(),
            sha256: sha256.into(),
            package: package.then(|| "place".into()),
        }
    }

    fn held(serving: &str, previous: &str) -> Held {
        Held {
            serving: Some(serving.into()),
            previous: Some(previous.into()),
            failing: false,
        }
    }

    fn refused(trial: Trial, now: u64) -> Trial {
        conclude(trial, Ending::Refused("bad".into()), now, 0.5).unwrap()
    }

    #[test]
    fn orders_are_followed_once() {
        let new = order("new", true);
        let decide = |order, held| decide(order, &held, None, 0);
        assert_eq!(decide(None, held("old", "older")), Step::Rest);
        assert_eq!(decide(Some(&new), held("old", "older")), Step::Install);
        assert_eq!(decide(Some(&new), Held::default()), Step::Install);
        assert_eq!(decide(Some(&new), held("new", "old")), Step::Rest);
        assert_eq!(decide(Some(&new), held("old", "new")), Step::GoBack);
    }

    #[test]
    fn a_bad_update_is_given_up_and_another_order_begins_anew() {
        let (new, old) = (order("new", true), held("old", "older"));
        let (mut trial, mut now) = (None, 1_000_000);
        for attempt in 1..=ATTEMPTS {
            assert_eq!(decide(Some(&new), &old, trial.as_ref(), now), Step::Install);
            let ended = refused(begin(&new, trial), now);
            assert_eq!(ended.refusals, attempt);
            now = ended.not_before;
            trial = Some(ended);
        }
        assert_eq!(decide(Some(&new), &old, trial.as_ref(), now), Step::GiveUp);
        let again = Order {
            rollout: "s".into(),
            ..new
        };
        assert_eq!(
            decide(Some(&again), &old, trial.as_ref(), now),
            Step::Install
        );
    }

    #[test]
    fn a_bad_way_is_tried_for_ever_with_growing_waits() {
        let new = order("new", true);
        let (mut trial, mut now, mut waits) = (None, 0, Vec::new());
        for _ in 0..40 {
            let ending = Ending::Interrupted("away".into());
            let ended = conclude(begin(&new, trial), ending, now, 0.5).unwrap();
            assert_eq!(
                decide(Some(&new), &Held::default(), Some(&ended), now),
                Step::Wait(ended.not_before)
            );
            waits.push(ended.not_before - now);
            now = ended.not_before;
            trial = Some(ended);
        }
        assert_eq!(waits[..4], [2, 4, 8, 16]);
        assert_eq!(waits[39], 900);
        assert_eq!(
            decide(Some(&new), &Held::default(), trial.as_ref(), now),
            Step::Install
        );
    }

    #[test]
    fn a_device_that_stops_in_every_attempt_gives_up() {
        let (new, old) = (order("new", true), held("old", "older"));
        let mut trial = None;
        for _ in 0..ATTEMPTS {
            assert_eq!(decide(Some(&new), &old, trial.as_ref(), 0), Step::Install);
            trial = Some(begin(&new, trial));
        }
        assert_eq!(decide(Some(&new), &old, trial.as_ref(), 0), Step::GiveUp);
    }

    #[test]
    fn a_switch_that_nobody_watched_is_looked_at_again() {
        let new = order("new", true);
        let begun = begin(&new, None);
        let mut held = held("new", "old");
        assert_eq!(decide(Some(&new), &held, Some(&begun), 0), Step::Rest);
        held.failing = true;
        assert_eq!(decide(Some(&new), &held, Some(&begun), 0), Step::GoBack);
        assert_eq!(decide(Some(&new), &held, None, 0), Step::Rest);
    }

    #[test]
    fn a_clock_that_was_put_back_stops_nobody() {
        let new = order("new", true);
        let trial = refused(begin(&new, None), 1_800_000_000);
        assert_eq!(
            decide(Some(&new), &Held::default(), Some(&trial), 100),
            Step::Install
        );
    }
}
