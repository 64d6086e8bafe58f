//! `numclip run`: a camera in, estimates out.

mod print;
mod reload;
mod watch;

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use numclip::bundle::Bundle;
use numclip::capture::SourceAddress;
use numclip::keep::Keeper;
use numclip::live::{Counts, Event, Live, LiveError};
use numclip::pipeline::Pipeline;
#[cfg(feature = "http")]
use numclip::serve::{Screen, Server};
use numclip::settings::{Settings, Stdout};
use numclip::sink::file::FileSettings;
use numclip::sink::{Answer, Hub, Sink, SinkError, SinkSpec, Surroundings, Tell};
use numclip::status::{Board, Status};
use numclip::verify::prove;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::exit::{Exit, UsageError};
use crate::predict::describe;
use crate::settings_args::SettingsArgs;
#[cfg(feature = "http")]
use crate::web::{self, Web, WebArgs};
use print::Printer;
use watch::notify;

/// How long the last readings may take once a signal has come.
const GRACE: Duration = Duration::from_millis(900);
/// How often the end of the sinks is looked for.
const NAP: Duration = Duration::from_millis(2);

/// Estimate the quantity for what a camera sees, frame after frame.
///
/// The freshest frame is always the next: what comes too fast is dropped. A
/// camera that hangs or goes is opened again, with growing pauses.
#[derive(Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print one JSON object for each frame.
    #[arg(long)]
    json: bool,
    #[cfg(feature = "http")]
    #[command(flatten)]
    web: WebArgs,
}

const EXAMPLES: &str = "Sources:
  synth:gauge?fps=10                  a rendered gauge whose reading is known
  v4l2:///dev/video0?size=1280x720&fps=30&format=mjpeg   USB camera (needs ffmpeg)
  camera:0?size=1280x720&fps=30       the same without ffmpeg (feature camera)
  rpicam://0?size=1280x720&fps=30     Raspberry Pi camera (needs rpicam-vid)
  csi://0                             Jetson camera (needs gst-launch-1.0)
  rtsp://user:password@host/stream    network camera (needs ffmpeg)
  http://user:password@host/stream    network camera that serves JPEG pictures
  file:///clip.mp4?loop&realtime      video file (needs ffmpeg)
  dir:///inbox?watch                  pictures as they arrive in a folder
  'cmd:COMMAND?format=rgb&size=640x480'   frames on a command's stdout: rgb, bgr, grey, ppm or mjpeg

Sinks (several at once):
  json:estimates.jsonl?rotate=10MB&keep=5   a JSON object a line; csv: likewise; json:- to stdout
  mqtt://broker:1883/plant/hall?user=me&password_file=secret   with Home Assistant discovery
  'exec:./alarm.sh?above=80&until=75&hold=5&every=60'   a command, the estimate on its stdin
  'webhook:http://host/hook?below=10'       the estimate posted as JSON

On SIGHUP the settings file and the model are read again and replaced between
two frames; what cannot be used is refused, and the old goes on.

Examples:
  numclip run --model models/gauge --source synth:gauge --fps 5
  numclip run --model models/gauge --source dir:///inbox?watch --json >> estimates.jsonl
  numclip run --model models/gauge --source rpicam://0 --rotate 180 --roi 25%,25%,50%,50% \\
      --motion 6 --smooth median:5 --budget 20%
  numclip config init numclip.toml && numclip run --config numclip.toml";

impl Args {
    fn settings(&self) -> Result<Settings> {
        let mut settings = self.settings.settings()?;
        if self.json {
            settings.output.stdout = Stdout::Json;
        }
        #[cfg(feature = "http")]
        self.web.apply(&mut settings.http);
        Ok(settings)
    }
}

/// Runs the command.
///
/// # Errors
/// When settings, bundle, source or a sink cannot be used, or the engine fails.
pub fn run(args: &Args, verbose: bool) -> Result<Exit> {
    let signals = Signals::register()?;
    let loading = Instant::now();
    let settings = args.settings()?;
    let is_live = address(&settings)?.is_live();
    let pipeline = Arc::new(load(&settings)?);
    if verbose {
        describe(&pipeline, loading.elapsed());
    }
    let (mut running, feeder) = Running::start(settings, pipeline)?;
    let result = running.watch(args, &signals);
    let is_stuck =
        |error: &anyhow::Error| matches!(error.downcast_ref(), Some(LiveError::Stuck(_)));
    if result.as_ref().is_err_and(is_stuck) {
        // What does not come back is not waited for.
        signals.ended.store(true, Ordering::SeqCst);
    }
    notify(&[NotifyState::Stopping]);
    let status = running.end(feeder, &signals.ended);
    if verbose {
        anstream::eprintln!("{}", status.line());
    }
    result?;
    Ok(match status.counts {
        Counts { unusable: 0, .. } => Exit::Done,
        Counts { readings: 0, .. } => Exit::Input,
        // A torn frame now and then is a camera's everyday life.
        _ if is_live => Exit::Done,
        _ => Exit::Failed,
    })
}

/// A pipeline at work, and what it was made of.
struct Running {
    live: Live,
    hub: Arc<Hub>,
    around: Surroundings,
    /// Name of the source, as estimates give it.
    source: Arc<Mutex<Arc<str>>>,
    /// The sinks, each by the hub's number.
    outlets: Vec<(u64, Outlet)>,
    settings: Settings,
    pipeline: Arc<Pipeline>,
    /// Keeps pictures, where that is asked for.
    keeper: Option<Keeper>,
    /// Times that a model was put in place of another.
    swaps: u64,
    #[cfg(feature = "http")]
    web: Option<(Arc<Screen>, Server)>,
}

/// Signals that came.
struct Signals {
    /// It is to end.
    ended: Arc<AtomicBool>,
    /// Settings and model are to be read again.
    reload: Arc<AtomicBool>,
}

/// Where estimates go.
#[derive(Clone, Debug, PartialEq)]
enum Outlet {
    /// A table on standard output.
    Table,
    /// Anything else.
    Sink(SinkSpec),
}

impl Running {
    /// Opens the sinks, then the source. Gives as well the thread that brings
    /// estimates from one to the other.
    fn start(settings: Settings, pipeline: Arc<Pipeline>) -> Result<(Self, JoinHandle<()>)> {
        let address = address(&settings)?.clone();
        let live_settings = settings.live()?;
        let board = Arc::<Board>::default();
        #[cfg(feature = "http")]
        let web = web::open(&settings.http, &pipeline, &board, live_settings.stall)?;
        #[cfg(feature = "http")]
        let screen = web.as_ref().map(Web::screen);
        let around = Surroundings {
            bundle: Arc::clone(pipeline.bundle()),
            board,
            #[cfg(feature = "http")]
            tell: tell_on(screen.clone()),
            #[cfg(not(feature = "http"))]
            tell: Arc::new(|notice| tell(&notice)),
        };
        let patient = live_settings.pace.every_frame;
        let hub = Arc::new(Hub::new(patient, Arc::clone(&around.tell)));
        let mut outlets = Vec::new();
        for outlet in outlets_of(&settings)? {
            let sink = outlet.open(&settings, &around)?;
            outlets.push((hub.add(outlet.to_string(), sink), outlet));
        }
        #[cfg(feature = "http")]
        if let Some(screen) = &screen {
            hub.add("http".into(), Box::new(Arc::clone(screen)));
        }
        let source = Arc::new(Mutex::new(Arc::from(address.to_string())));
        let open = Arc::new(move || address.open());
        let (live, events) = Live::start(open, Arc::clone(&pipeline), live_settings);
        let feeder = {
            let (hub, source) = (Arc::clone(&hub), Arc::clone(&source));
            let tell = Arc::clone(&around.tell);
            thread::spawn(move || feed(&events, &hub, &source, &tell))
        };
        let keeper = keeper(&settings, &live, &around.tell)?;
        #[cfg(feature = "http")]
        let server = web.map(|web| web.serve(live.tap())).transpose()?;
        let running = Self {
            #[cfg(feature = "http")]
            web: screen.zip(server),
            live,
            hub,
            around,
            source,
            outlets,
            settings,
            pipeline,
            keeper,
            swaps: 0,
        };
        Ok((running, feeder))
    }

    /// Ends the pipeline and lets the sinks take what is on its way; the state
    /// at the end.
    fn end(self, feeder: JoinHandle<()>, ended: &AtomicBool) -> Status {
        let mut status = self.around.board.get();
        status.counts = self.live.counts();
        drop(self.live);
        #[cfg(feature = "http")]
        if let Some((_, server)) = self.web {
            server.stop();
        }
        drain(feeder, &self.hub, ended);
        status.sinks = self.hub.status();
        status
    }
}

impl Signals {
    fn register() -> Result<Self> {
        let signals = Self {
            ended: Arc::default(),
            reload: Arc::default(),
        };
        let register = || {
            for signal in [SIGINT, SIGTERM] {
                // The second signal does not wait.
                let status = Exit::Failed as i32;
                let ended = || Arc::clone(&signals.ended);
                signal_hook::flag::register_conditional_shutdown(signal, status, ended())?;
                signal_hook::flag::register(signal, ended())?;
            }
            signal_hook::flag::register(SIGHUP, Arc::clone(&signals.reload))
        };
        register().context("cannot listen for signals")?;
        Ok(signals)
    }
}

impl Outlet {
    fn open(&self, settings: &Settings, around: &Surroundings) -> Result<Box<dyn Sink>, SinkError> {
        match self {
            Self::Sink(spec) => spec.open(around),
            Self::Table => {
                let source = settings.source.address.as_ref();
                let source = source.map(ToString::to_string).unwrap_or_default();
                Ok(Box::new(Printer::new(source, Arc::clone(&around.bundle))))
            }
        }
    }
}

impl Display for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("stdout"),
            Self::Sink(spec) => spec.fmt(f),
        }
    }
}

/// The sinks, standard output among them unless another has it.
fn outlets_of(settings: &Settings) -> Result<Vec<Outlet>> {
    let sinks = settings.sinks().map_err(UsageError)?;
    let stdout = match settings.output.stdout {
        _ if sinks.iter().any(SinkSpec::is_stdout) => None,
        Stdout::None => None,
        Stdout::Table => Some(Outlet::Table),
        Stdout::Json => Some(Outlet::Sink(SinkSpec::Json(FileSettings::new("-")))),
    };
    let outlets: Vec<Outlet> = stdout
        .into_iter()
        .chain(sinks.into_iter().map(Outlet::Sink))
        .collect();
    #[cfg(feature = "http")]
    let served = settings.http.listen.is_some();
    #[cfg(not(feature = "http"))]
    let served = false;
    if outlets.is_empty() && !served {
        let message = "estimates would go nowhere: add a sink, or set output.stdout";
        return Err(UsageError(message.into()).into());
    }
    Ok(outlets)
}

/// Keeps pictures of `live`, if the settings say so.
fn keeper(settings: &Settings, live: &Live, tell: &Tell) -> Result<Option<Keeper>> {
    let Some(keep) = settings.keep.keep() else {
        return Ok(None);
    };
    let folder = keep.folder.display().to_string();
    let tell = Arc::clone(tell);
    let keeper = Keeper::start(live.tap(), keep, move |notice| tell(notice));
    Ok(Some(keeper.with_context(|| format!("keep: {folder}"))?))
}

fn address(settings: &Settings) -> Result<&SourceAddress> {
    let address = settings.source.address.as_ref();
    address.ok_or_else(|| UsageError("no source: set source.address or --source".into()).into())
}

/// The model, once it has met all golden vectors of its bundle: a few pictures'
/// time.
fn load(settings: &Settings) -> Result<Pipeline> {
    let model = settings.model.path.as_ref();
    let model = model.ok_or_else(|| UsageError("no model: set model.path or --model".into()))?;
    let pipeline = Pipeline::new(Bundle::open(model)?, settings.model.engine)?;
    prove(&pipeline)?;
    Ok(pipeline)
}

/// Takes events apart until there are no more: readings to the sinks, notices
/// to the user.
fn feed(events: &Receiver<Event>, hub: &Hub, source: &Mutex<Arc<str>>, tell: &Tell) {
    for event in events {
        match event {
            Event::Notice(notice) => tell(notice),
            Event::Reading(reading) => {
                let source = Arc::clone(&source.lock().unwrap_or_else(PoisonError::into_inner));
                hub.put(Answer { source, reading });
            }
        }
    }
}

/// Lets the sinks take what is on its way. Once a signal has come, one that
/// hangs is not waited for.
fn drain(feeder: JoinHandle<()>, hub: &Hub, ended: &AtomicBool) {
    let mut signalled = None;
    let mut patient = || match ended.load(Ordering::SeqCst) {
        false => true,
        true => signalled.get_or_insert_with(Instant::now).elapsed() < GRACE,
    };
    while !feeder.is_finished() && patient() {
        thread::sleep(NAP);
    }
    hub.close();
    while !hub.is_finished() && patient() {
        thread::sleep(NAP);
    }
}

/// Tells the user, and whoever watches `screen`.
#[cfg(feature = "http")]
fn tell_on(screen: Option<Arc<Screen>>) -> Tell {
    Arc::new(move |notice| {
        tell(&notice);
        if let Some(screen) = &screen {
            screen.notice(&notice);
        }
    })
}

fn tell(notice: &str) {
    anstream::eprintln!("\x1b[1;33mnotice:\x1b[0m {notice}");
}
