//! `numclip doctor`: is everything there that `numclip run` needs?

mod machine;
mod parts;

use std::io::Write as _;

use anyhow::Result;
use numclip::settings::Settings;
use serde::Serialize;

use crate::exit::Exit;
use crate::settings_args::SettingsArgs;
use crate::table::columns;

/// Check this machine: model, engines, camera, heat, disk, broker.
///
/// Takes the flags of `numclip run` and checks what they name. Ends with 1 if
/// something is broken; warnings do not count.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  numclip doctor --model models/gauge
  numclip doctor --config numclip.toml --json | jq '.checks[] | select(.verdict != \"ok\")'")]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was looked at and how it was.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    name: String,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// How it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Serialize)]
struct Report {
    passed: bool,
    checks: Vec<Check>,
}

/// Runs the command.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Args) -> Result<Exit> {
    let checks = match args.settings.settings() {
        Ok(settings) => check(args, &settings),
        Err(error) => vec![Check::fail(
            "settings",
            format!("{error:#}"),
            "correct the file; `numclip config init` prints one with every key",
        )],
    };
    let passed = checks.iter().all(|check| check.verdict != Verdict::Fail);
    let text = match args.json {
        true => format!("{}\n", serde_json::to_string(&Report { passed, checks })?),
        false => table(&checks),
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

fn check(args: &Args, settings: &Settings) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(file) = &args.settings.config {
        checks.push(Check::ok("settings", file.display().to_string()));
    }
    checks.extend(parts::model(settings));
    checks.extend(parts::source(settings));
    checks.extend(parts::detector(settings));
    checks.extend(parts::sinks(settings));
    checks.extend(parts::kept(settings));
    #[cfg(feature = "http")]
    checks.extend(parts::page(settings));
    checks.extend(machine::checks());
    checks
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Ok,
            found: found.into(),
            advice: None,
        }
    }

    /// It works, but.
    pub fn warn(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            advice: Some(advice.into()),
            ..Self::ok(name, found)
        }
    }

    /// It does not work.
    pub fn fail(name: &str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(name, found, advice)
        }
    }
}

fn table(checks: &[Check]) -> String {
    let mut rows = Vec::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "\x1b[32mok  \x1b[0m",
            Verdict::Warn => "\x1b[33mwarn\x1b[0m",
            Verdict::Fail => "\x1b[31mfail\x1b[0m",
        };
        rows.push(
            [verdict, &check.name, &check.found]
                .map(String::from)
                .to_vec(),
        );
        if let Some(advice) = &check.advice {
            let advice = format!("\x1b[2m→ {advice}\x1b[0m");
            // As wide to the eye as a verdict, to `columns` as well.
            let blank = "\x1b[32m    \x1b[0m".to_owned();
            rows.push(vec![blank, String::new(), advice]);
        }
    }
    columns(&rows)
}
