use super::*;
use crate::flash::{self, Model};
use crate::fleet::plan::Span;
use std::time::Duration;

const OLD: &str = "old";
const NEW: &str = "new";

/// A roll-out to these devices, all there, in stages by share.
fn rollout(devices: usize, percents: &[f64]) -> (Rollout, Limits) {
    let stages = percents.iter().map(|percent| Stage {
        name: String::new(),
        labels: BTreeMap::new(),
        percent: *percent,
        wait: Span(Duration::from_secs(100)),
    });
    let mut rollout = Rollout {
        name: "r".into(),
        package: "r.local/tiny:1".into(),
        release: Found {
            name: "tiny".into(),
            version: "1.1.0".into(),
            sha256: NEW.into(),
            package: "r.local/tiny@sha256:…".into(),
        },
        stages: stages.collect(),
        status: Status::Running,
        stage: 0,
        watched_since: None,
        devices: BTreeMap::new(),
    };
    for number in 0..devices {
        hear(&mut rollout, &id(number), OLD, Phase::Settled);
        rollout.presence(&id(number), true);
    }
    (rollout, Limits::default())
}

fn id(number: usize) -> String {
    format!("cam-{number:03}")
}

fn report(rollout: &Rollout, id: &str, serving: &str, phase: Phase) -> Report {
    let model = Model {
        name: "tiny".into(),
        version: serving.into(),
        sha256: serving.into(),
        fault: None,
    };
    Report {
        id: id.into(),
        labels: BTreeMap::new(),
        phase,
        order: rollout.order(id).flatten(),
        fault: Some("golden".into()),
        status: flash::Status {
            serving: Some(model),
            health: Health::Well,
            ..flash::Status::unknown()
        },
    }
}

fn hear(rollout: &mut Rollout, id: &str, serving: &str, phase: Phase) -> bool {
    let report = report(rollout, id, serving, phase);
    rollout.hear(&report)
}

#[test]
fn a_stage_is_watched_before_the_next_begins() {
    let (mut rollout, limits) = rollout(100, &[10.0, 100.0]);
    let sizes: Vec<usize> = rollout
        .tallies()
        .iter()
        .map(|tally| tally.devices)
        .collect();
    assert_eq!(sizes.iter().sum::<usize>(), 100);
    let mut now = 0;
    for _ in 0..sizes[0] {
        // One may fail, so no more than one is asked at a time.
        let asked = rollout.step(&limits, Wish::Go, now);
        assert_eq!(asked.len(), 1);
        assert_eq!(rollout.devices[&asked[0]].stage, Some(0));
        hear(&mut rollout, &asked[0], NEW, Phase::Settled);
        now += 1;
    }
    for time in now..now + 100 {
        assert_eq!(rollout.step(&limits, Wish::Go, time), [""; 0]);
        assert_eq!(rollout.stage, 0);
    }
    let asked = rollout.step(&limits, Wish::Go, now + 100);
    assert_eq!((rollout.stage, asked.len()), (1, 3));
}

#[test]
fn a_halt_takes_back_what_was_asked_and_higher_limits_go_on() {
    let (mut rollout, mut limits) = rollout(100, &[100.0]);
    let asked = rollout.step(&limits, Wish::Go, 0);
    assert_eq!(asked.len(), 3);
    for id in &asked[..2] {
        assert!(hear(&mut rollout, id, OLD, Phase::GivenUp));
    }
    assert_eq!(rollout.step(&limits, Wish::Go, 1), [""; 0]);
    assert_eq!(rollout.status, Status::Running);
    hear(&mut rollout, &asked[2], OLD, Phase::GivenUp);
    rollout.step(&limits, Wish::Go, 2);
    assert_eq!((rollout.status, rollout.failed()), (Status::Halted, 3));
    let order = rollout.order(&asked[0]).unwrap().unwrap();
    assert_eq!((&*order.sha256, order.package), (OLD, None));
    assert_eq!(rollout.order("cam-099"), None);
    limits.failures = 10.0;
    assert_eq!(rollout.step(&limits, Wish::Pause, 3), [""; 0]);
    assert_eq!(rollout.status, Status::Paused);
    assert_eq!(rollout.step(&limits, Wish::Go, 3).len(), 8);
    assert_eq!(rollout.status, Status::Running);
}

#[test]
fn a_pause_asks_nobody_and_a_wish_brings_all_back() {
    let (mut rollout, limits) = rollout(100, &[100.0]);
    let asked = rollout.step(&limits, Wish::Go, 0);
    hear(&mut rollout, &asked[0], NEW, Phase::Settled);
    assert_eq!(rollout.step(&limits, Wish::Pause, 1), [""; 0]);
    assert_eq!(rollout.status, Status::Paused);
    assert_eq!(rollout.step(&limits, Wish::Go, 2).len(), 1);
    assert_eq!(rollout.step(&limits, Wish::GoBack, 3).len(), 4);
    assert_eq!(rollout.status, Status::GoingBack);
    let order = rollout.order(&asked[0]).unwrap().unwrap();
    assert_eq!(order.sha256, OLD);
    rollout.step(&limits, Wish::GoBack, 4);
    assert_eq!(rollout.status, Status::GoingBack);
    hear(&mut rollout, &asked[0], OLD, Phase::Settled);
    rollout.step(&limits, Wish::GoBack, 5);
    assert_eq!(rollout.status, Status::Back);
}

#[test]
fn who_is_slow_fails_and_who_is_away_is_not_waited_for() {
    let (mut rollout, limits) = rollout(100, &[100.0]);
    let asked = rollout.step(&limits, Wish::Go, 0);
    rollout.presence(&asked[0], false);
    let patience = limits.patience.seconds();
    assert_eq!(rollout.step(&limits, Wish::Go, patience - 1), [""; 0]);
    let news = rollout.step(&limits, Wish::Go, patience);
    assert_eq!(rollout.failed(), 2);
    assert!(matches!(
        &rollout.devices[&asked[1]].standing,
        Standing::Failed(_)
    ));
    assert!(matches!(
        &rollout.devices[&asked[0]].standing,
        Standing::Asked(_)
    ));
    assert_eq!(news.len(), 3);
    // Whoever comes back has done it all the same.
    rollout.presence(&asked[0], true);
    hear(&mut rollout, &asked[0], NEW, Phase::Settled);
    assert_eq!(rollout.devices[&asked[0]].standing, Standing::Done);
}

#[test]
fn who_has_it_is_left_alone_and_who_loses_it_has_failed() {
    let (mut rollout, limits) = rollout(50, &[100.0]);
    hear(&mut rollout, "cam-000", NEW, Phase::Settled);
    assert_eq!(rollout.devices["cam-000"].standing, Standing::Done);
    let asked = rollout.step(&limits, Wish::Go, 0);
    assert!(!asked.contains(&"cam-000".into()));
    hear(&mut rollout, &asked[0], NEW, Phase::Updating);
    assert!(matches!(
        &rollout.devices[&asked[0]].standing,
        Standing::Asked(_)
    ));
    hear(&mut rollout, &asked[0], NEW, Phase::Settled);
    let mut ill = report(&rollout, &asked[0], NEW, Phase::Settled);
    ill.status.health = Health::Failing;
    assert!(rollout.hear(&ill));
    assert_eq!(rollout.order(&asked[0]).unwrap().unwrap().sha256, OLD);
    // Going back is not for those that nobody asked.
    rollout.step(&limits, Wish::GoBack, 1);
    assert_eq!(rollout.devices["cam-000"].standing, Standing::Done);
}

#[test]
fn a_fleet_that_nobody_knows_is_not_done() {
    let (mut rollout, limits) = rollout(0, &[100.0]);
    for now in 0..1000 {
        assert_eq!(rollout.step(&limits, Wish::Go, now), [""; 0]);
    }
    assert_eq!(rollout.status, Status::Running);
}
