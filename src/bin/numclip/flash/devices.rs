//! `numclip status`, `numclip rollback`, `numclip prune`.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use numclip::flash::{Device, Health, Model, Site, Status, Target, status_on};
use rayon::prelude::*;
use serde_json::json;

use super::reach::{ReachArgs, Session};
use crate::exit::Exit;
use crate::table::columns;

/// Show what devices serve and how they are.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  numclip status pi@kitchen pi@cellar:2222 dir:///media/card")]
pub struct StatusArgs {
    #[command(flatten)]
    targets: TargetArgs,
    /// Print one JSON object for each target.
    #[arg(long)]
    json: bool,
}

/// Let devices serve the model again that they served before.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  numclip rollback pi@kitchen")]
pub struct RollbackArgs {
    #[command(flatten)]
    targets: TargetArgs,
}

/// Remove from devices what neither serves nor did before.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  numclip prune pi@kitchen")]
pub struct PruneArgs {
    #[command(flatten)]
    targets: TargetArgs,
}

#[derive(clap::Args)]
struct TargetArgs {
    /// [user@]host[:port], or dir:///FOLDER.
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    #[command(flatten)]
    reach: ReachArgs,
}

impl TargetArgs {
    /// Runs `here` on folders and `numclip store ACTION` on devices, all at a
    /// time.
    fn each<T: Send>(
        &self,
        action: &str,
        here: impl Fn(&std::path::Path) -> Result<T> + Sync,
        there: impl Fn(String) -> Result<T> + Sync,
    ) -> Vec<(&Target, Result<T>)> {
        let reach = self.reach.reach();
        let ask = |target: &Target| match target {
            Target::Folder(root) => here(root),
            Target::Device { host, port } => {
                there(Session::open(&reach, host, *port, action)?.said()?)
            }
        };
        let targets = self.targets.par_iter();
        targets.map(|target| (target, ask(target))).collect()
    }
}

/// Runs `numclip status`.
///
/// # Errors
/// When the table cannot be printed.
pub fn status(args: &StatusArgs) -> Result<Exit> {
    let parse = |text: String| serde_json::from_str(&text).context("not an answer of numclip");
    let found = args.targets.each(
        "status --json",
        |root| Ok(status_on(root, Site::of(root))?),
        parse,
    );
    let failed = found.iter().any(|(_, status)| status.is_err());
    let text = match args.json {
        true => found.iter().map(json_line).collect(),
        false => table(&found),
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// Runs `numclip rollback`.
///
/// # Errors
/// When the outcome cannot be printed.
pub fn rollback(args: &RollbackArgs) -> Result<Exit> {
    let here = |root: &std::path::Path| {
        let site = Site::of(root);
        Device::open_on(root, site)?.rollback(&mut |_| ())?;
        Ok(super::store::serves(&status_on(root, site)?))
    };
    report(&args.targets.each("rollback", here, Ok))
}

/// Runs `numclip prune`.
///
/// # Errors
/// When the outcome cannot be printed.
pub fn prune(args: &PruneArgs) -> Result<Exit> {
    let here = |root: &std::path::Path| {
        let mut device = Device::open_on(root, Site::of(root))?;
        Ok(super::store::removed(&device.prune()?))
    };
    report(&args.targets.each("prune", here, Ok))
}

/// A line for each target.
fn report(outcomes: &[(&Target, Result<String>)]) -> Result<Exit> {
    let row = |(target, outcome): &(&Target, Result<String>)| {
        let words = match outcome {
            Ok(words) => words.trim_end().into(),
            Err(error) => format!("\x1b[1;31mfailed\x1b[0m  {error:#}"),
        };
        vec![target.to_string(), words]
    };
    let rows: Vec<_> = outcomes.iter().map(row).collect();
    anstream::stdout()
        .lock()
        .write_all(columns(&rows).as_bytes())?;
    let failed = outcomes.iter().any(|(_, outcome)| outcome.is_err());
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

fn json_line((target, status): &(&Target, Result<Status>)) -> String {
    let line = match status {
        Ok(status) => json!({"target": target.to_string(), "status": status}),
        Err(error) => json!({"target": target.to_string(), "error": format!("{error:#}")}),
    };
    format!("{line}\n")
}

/// One table for all that answered; a line for each that did not.
pub fn table(found: &[(&Target, Result<Status>)]) -> String {
    let heads = [
        "target", "model", "version", "slot", "before", "health", "up", "temp",
    ];
    let mut rows = vec![heads.map(String::from).to_vec()];
    let mut failures = String::new();
    for (target, status) in found {
        match status {
            Ok(status) => rows.push([vec![target.to_string()], cells(status)].concat()),
            Err(error) => {
                failures += &format!("{target}  \x1b[1;31mfailed\x1b[0m  {error:#}\n");
            }
        }
    }
    match rows.len() {
        1 => failures,
        _ => columns(&rows) + &failures,
    }
}

fn cells(status: &Status) -> Vec<String> {
    let none = || "-".to_owned();
    let of =
        |model: &Option<Model>, part: fn(&Model) -> String| model.as_ref().map_or_else(none, part);
    let health = match &status.serving {
        Some(Model { fault: Some(_), .. }) => "damaged",
        _ => match status.health {
            Health::Well => "well",
            Health::Failing => "failing",
            Health::Unwatched => "-",
        },
    };
    vec![
        of(&status.serving, |model| model.name.clone()),
        of(&status.serving, |model| model.version.clone()),
        of(&status.serving, |model| {
            model.sha256.chars().take(12).collect()
        }),
        of(&status.previous, |model| {
            format!("{} {}", model.name, model.version)
        }),
        health.into(),
        status.uptime_s.map_or_else(none, |seconds| {
            format!(
                "{}",
                indicatif::HumanDuration(std::time::Duration::from_secs(seconds))
            )
        }),
        status
            .temperature_c
            .map_or_else(none, |degrees| format!("{degrees:.0} °C")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_row_for_each_device_that_answers_and_a_line_for_the_others() {
        let model = |version: &str, digit: &str, fault: Option<&str>| {
            Some(Model {
                name: "gauge".into(),
                version: version.into(),
                sha256: digit.repeat(64),
                fault: fault.map(Into::into),
            })
        };
        let whole = Status {
            serving: model("1.1.0", "a", None),
            previous: model("1.0.0", "b", None),
            health: Health::Well,
            uptime_s: Some(7200),
            temperature_c: Some(48.25),
            numclip: "0.1.0".into(),
        };
        let rotten = Status {
            serving: model("1.1.0", "a", Some("bins.safetensors has changed")),
            ..Status::unknown()
        };
        let failing = Status {
            health: Health::Failing,
            ..whole.clone()
        };
        let targets = ["pi@kitchen", "dir:///card", "new", "hall", "gone"];
        let targets = targets.map(|target| target.parse::<Target>().unwrap());
        let answers = [
            Ok(whole),
            Ok(rotten),
            Ok(Status::unknown()),
            Ok(failing),
            Err(anyhow!("no route to host")),
        ];
        let found: Vec<_> = targets.iter().zip(answers).collect();
        let text = anstream::adapter::strip_str(&table(&found)).to_string();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").collect())
            .collect();
        let cells = |row: usize| -> Vec<&str> {
            let cells = rows[row].iter().map(|cell| cell.trim());
            cells.filter(|cell| !cell.is_empty()).collect()
        };
        let heads = [
            "target", "model", "version", "slot", "before", "health", "up", "temp",
        ];
        assert_eq!(cells(0), heads);
        let row = [
            "pi@kitchen",
            "gauge",
            "1.1.0",
            "aaaaaaaaaaaa",
            "gauge 1.0.0",
            "well",
        ];
        assert_eq!(cells(1), [&row[..], &["2 hours", "48 °C"]].concat());
        let row = [
            "dir:///card",
            "gauge",
            "1.1.0",
            "aaaaaaaaaaaa",
            "-",
            "damaged",
            "-",
            "-",
        ];
        assert_eq!(cells(2), row);
        assert_eq!(cells(3), ["new", "-", "-", "-", "-", "-", "-", "-"]);
        assert_eq!(cells(4)[5], "failing");
        assert_eq!(cells(5), ["gone", "failed", "no route to host"]);
        assert_eq!(rows.len(), 6);
    }
}
