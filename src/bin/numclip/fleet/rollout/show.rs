//! A roll-out for a person, or a program, to read.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;
use console::Term;
use numclip::fleet::Summary;
use numclip::fleet::rollout::{Progress, Rollout, Standing, Status, Tally};
use serde_json::json;

use crate::exit::Exit;
use crate::table::{aligned, columns};

/// Reasons that are shown for failures.
const REASONS: usize = 5;

/// What is on the screen.
pub struct Screen {
    as_json: bool,
    shown: String,
    /// Lines that the next table takes the place of.
    lines: usize,
}

impl Screen {
    /// Nothing yet.
    pub fn new(as_json: bool) -> Self {
        Self {
            as_json,
            shown: String::new(),
            lines: 0,
        }
    }

    /// Shows how far it is, where that changed.
    pub fn show(&mut self, rollout: &Rollout) -> Result<()> {
        let progress = rollout.progress();
        let text = match self.as_json {
            true => format!("{}\n", serde_json::to_string(&progress)?),
            false => table(&progress),
        };
        if text == self.shown {
            return Ok(());
        }
        if !self.as_json && std::io::stdout().is_terminal() {
            Term::stdout().clear_last_lines(self.lines)?;
            self.lines = text.lines().count();
        }
        anstream::stdout().lock().write_all(text.as_bytes())?;
        self.shown = text;
        Ok(())
    }
}

/// Prints how far it is; the exit code says whether it halted.
pub fn state(rollout: &Rollout, as_json: bool) -> Result<Exit> {
    Screen::new(as_json).show(rollout)?;
    if !as_json {
        anstream::stdout()
            .lock()
            .write_all(reasons(rollout).as_bytes())?;
    }
    Ok(exit(rollout.status))
}

/// The exit code of a roll-out that is this far.
pub fn exit(status: Status) -> Exit {
    match status {
        Status::Halted => Exit::Failed,
        _ => Exit::Done,
    }
}

/// Prints which device is in which stage.
pub fn assignment(rollout: &Rollout, as_json: bool) -> Result<()> {
    let mut stdout = anstream::stdout().lock();
    let titles = rollout.tallies();
    if as_json {
        for (id, member) in &rollout.devices {
            let stage = member.stage.map(|stage| &titles[stage].stage);
            let line = json!({"device": id, "stage": stage, "online": member.online, "serving": member.serving});
            writeln!(stdout, "{line}")?;
        }
        return Ok(());
    }
    let heads = ["device", "stage", "connected", "serves"];
    let mut rows = vec![heads.map(String::from).to_vec()];
    for (id, member) in &rollout.devices {
        let stage = member
            .stage
            .map_or("(none)".into(), |stage| titles[stage].stage.clone());
        let online = if member.online { "yes" } else { "no" };
        let serving = match &member.serving {
            Some(sha256) if *sha256 == rollout.release.sha256 => "the new model".into(),
            Some(sha256) => sha256.chars().take(12).collect(),
            None => "nothing".to_owned(),
        };
        rows.push(vec![id.clone(), stage, online.into(), serving]);
    }
    let text = format!("{}\n{}", columns(&rows), table(&rollout.progress()));
    stdout.write_all(text.as_bytes())?;
    Ok(())
}

/// Prints how a simulation ended.
pub fn summary(summary: &Summary, as_json: bool) -> Result<()> {
    let text = if as_json {
        format!("{}\n", serde_json::to_string(summary)?)
    } else {
        let time = format!(
            "{} h {} min",
            summary.seconds / 3600,
            summary.seconds / 60 % 60
        );
        let lines = [
            (
                "ended".into(),
                format!("{} after {time}", word(summary.status)),
            ),
            ("new model".into(), format!("{} devices", summary.new)),
            ("old model".into(), format!("{} devices", summary.old)),
            (
                "failed".into(),
                format!("{} of at most {}", summary.failed, summary.bound),
            ),
            ("attempts".into(), summary.attempts.to_string()),
            ("power cuts".into(), summary.power_cuts.to_string()),
            ("restarts".into(), summary.restarts.to_string()),
        ];
        let violations = summary.violations.iter().take(20);
        let violations: String = violations
            .map(|violation| format!("\x1b[1;31mviolated\x1b[0m  {violation}\n"))
            .collect();
        format!(
            "{}\n{}{violations}",
            columns(&rows(&summary.stages)),
            aligned(&lines)
        )
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

fn table(progress: &Progress<'_>) -> String {
    let Progress {
        model,
        version,
        stage,
        stages,
        ..
    } = progress;
    let of = progress.stages.len();
    let status = word(progress.status);
    let head = format!("{model} {version}: {status}, stage {stage} of {of}\n");
    head + &columns(&rows(stages))
}

fn rows(stages: &[Tally]) -> Vec<Vec<String>> {
    let heads = [
        "stage", "devices", "waiting", "asked", "done", "failed", "back", "offline",
    ];
    let mut rows = vec![heads.map(String::from).to_vec()];
    rows.extend(stages.iter().map(|tally| {
        let numbers = [
            tally.devices,
            tally.waiting,
            tally.asked,
            tally.done,
            tally.failed,
            tally.back,
            tally.offline,
        ];
        let numbers = numbers.iter().map(usize::to_string);
        [tally.stage.clone()].into_iter().chain(numbers).collect()
    }));
    rows
}

/// The most frequent reasons of failures, each with a device.
pub fn reasons(rollout: &Rollout) -> String {
    let mut reasons = BTreeMap::<&str, Vec<&str>>::new();
    for (id, member) in &rollout.devices {
        if let Standing::Failed(reason) = &member.standing {
            reasons.entry(reason).or_default().push(id);
        }
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
    let lines = reasons.iter().take(REASONS);
    lines
        .map(|(reason, ids)| format!("failed on {} ({}): {reason}\n", ids.len(), ids[0]))
        .collect()
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Halted => "halted, too many failed",
        Status::GoingBack => "going back",
        Status::Back => "gone back",
        Status::Done => "done",
    }
}
