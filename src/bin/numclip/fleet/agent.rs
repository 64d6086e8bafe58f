//! `numclip agent`: what keeps a device up to date.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use numclip::flash::{Allow, STORE};
use numclip::fleet::message::{Phase, Report, is_plain};
use numclip::fleet::plan::Span;
use numclip::fleet::{Agent, AgentSettings, Place};
use numclip::sink::mqtt::MqttSettings;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::access::AccessArgs;
use crate::exit::{Exit, UsageError};

/// The least time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// Keep this device up to date: orders come from a broker, or from a place that
/// is looked at.
///
/// A package is taken only with a signature by one of the store's trusted keys,
/// replayed on this device's engine, switched in one step, and the service is
/// watched; if it is not well, the model before serves again. What fails three
/// times by itself is given up until another order comes; a broken network is
/// tried for ever, with growing waits. Tells systemd when it is ready, and feeds
/// its watchdog as long as work moves on. The unit numclip-agent runs it with the
/// options in /etc/numclip/agent.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Broker that orders come from and reports go to: mqtt://HOST[/PREFIX].
    #[arg(long, value_name = "URL", required_unless_present = "watch")]
    broker: Option<String>,
    /// User of the broker.
    #[arg(long, value_name = "NAME", requires = "broker")]
    mqtt_user: Option<String>,
    /// File that holds the password of the broker's user.
    #[arg(long, value_name = "FILE", requires = "mqtt_user")]
    mqtt_password_file: Option<PathBuf>,
    /// Look at this place instead of waiting for orders: a reference of a
    /// registry, a package behind http(s):// or file:///, or a folder there
    /// (http://…/) with an order.json.
    #[arg(long, value_name = "PLACE")]
    watch: Option<Place>,
    /// How often the place is looked at.
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = span)]
    every: Span,
    /// Look once, do what is to be done, and end: for timers.
    #[arg(long, requires = "watch", conflicts_with = "broker")]
    once: bool,
    /// Name of this device in the fleet; from host name and machine identity
    /// without it.
    #[arg(long, value_name = "NAME", value_parser = plain)]
    id: Option<String>,
    /// What this device is, for roll-outs to choose by.
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Folder of the models.
    #[arg(long, value_name = "DIR", default_value = STORE)]
    store: PathBuf,
    /// Take a package that is older than what serves.
    #[arg(long)]
    allow_downgrade: bool,
    /// Hold no signature and no key against this device's clock: for devices
    /// that have none.
    #[arg(long)]
    allow_any_clock: bool,
    /// Print each report as a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    access: AccessArgs,
}

const EXAMPLES: &str = "Examples:
  numclip agent --broker mqtt://broker.local/numclip/fleet --label site=lab
  numclip agent --watch registry.local/models/gauge:stable --every 15min
  numclip agent --watch https://models.local/gauge/ --once

A package in order.json lies beside it, or has an address of its own:
  {\"rollout\": \"spring\", \"sha256\": \"…\", \"package\": \"gauge-1.1.0.numclip\"}";

/// Runs the command until a signal ends it.
///
/// # Errors
/// When the store or the settings cannot be used.
pub fn run(args: &Args) -> Result<Exit> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let mut agent = Agent::start(args.settings()?)?;
    notify(&[NotifyState::Ready]);
    let mut last = None;
    let pulse = Pulse::default();
    while !ended.load(Ordering::SeqCst) {
        let mut report = |report: &Report| {
            notify(&[NotifyState::Status(&line(report))]);
            // Whoever reads may have gone; the device matters more.
            let _ = print(args.json, report);
            last = Some((report.phase, report.fault.is_some()));
        };
        agent.turn(&mut report, &|| pulse.beat());
        if args.once {
            break;
        }
        agent.rest();
    }
    notify(&[NotifyState::Stopping]);
    agent.end();
    Ok(match last {
        Some((phase, fault)) if args.once && (fault || phase != Phase::Settled) => Exit::Failed,
        _ => Exit::Done,
    })
}

/// The watchdog's food: not with every byte that comes.
#[derive(Default)]
struct Pulse(Cell<Option<Instant>>);

impl Pulse {
    fn beat(&self) {
        let last = self.0.get();
        if last.is_none_or(|last| last.elapsed() >= BEAT) {
            self.0.set(Some(Instant::now()));
            notify(&[NotifyState::Watchdog]);
        }
    }
}

impl Args {
    fn settings(&self) -> Result<AgentSettings> {
        let access = self.access.access()?;
        let broker = self.broker.as_ref().map(|url| {
            let mut broker = MqttSettings::new(url);
            broker.user.clone_from(&self.mqtt_user);
            broker.password_file.clone_from(&self.mqtt_password_file);
            broker.ca.clone_from(&access.transport.ca);
            broker
        });
        if let Some(broker) = &broker {
            broker.check().map_err(UsageError)?;
        }
        let id = self.id.clone();
        Ok(AgentSettings {
            store: self.store.clone(),
            id: id.unwrap_or_else(numclip::device::identity),
            labels: self.label.iter().cloned().collect::<BTreeMap<_, _>>(),
            broker,
            watch: self.watch.clone(),
            every: self.every.0,
            access,
            allow: Allow {
                downgrade: self.allow_downgrade,
                any_clock: self.allow_any_clock,
            },
        })
    }
}

fn print(as_json: bool, report: &Report) -> Result<()> {
    let text = match as_json {
        true => serde_json::to_string(report)?,
        false => line(report),
    };
    writeln!(anstream::stdout(), "{text}")?;
    Ok(())
}

/// A report for a person to read.
fn line(report: &Report) -> String {
    let serving = report
        .status
        .serving
        .as_ref()
        .map_or("nothing".into(), |model| {
            format!("{} {}", model.name, model.version)
        });
    let phase = match report.phase {
        Phase::Settled => "settled",
        Phase::Waiting => "waiting to try again",
        Phase::Updating => "updating",
        Phase::GivenUp => "given up",
    };
    let fault = report
        .fault
        .as_ref()
        .map_or(String::new(), |fault| format!(": {fault}"));
    format!("{}: {serving} serves, {phase}{fault}", report.id)
}

/// Tells the service manager; without one there is nobody to tell.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        anstream::eprintln!("cannot reach the service manager: {error}");
    }
}

fn span(text: &str) -> Result<Span, String> {
    Span::try_from(text.to_owned())
}

fn plain(text: &str) -> Result<String, String> {
    match is_plain(text) {
        true => Ok(text.into()),
        false => Err("expected letters, digits, - _ and .".into()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}
