//! `numclip run`: a camera in, estimates out.

use std::io::{ErrorKind, Write as _};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use numclip::bundle::{Bundle, Manifest};
use numclip::capture::SourceAddress;
use numclip::device::Device;
use numclip::live::{Counts, Event, Live, Pace, Settings};
use numclip::pipeline::Pipeline;
use numclip::sink::{Answer, Hub, Sink, SinkError, Tell};
use numclip::status::{Board, Status};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::EngineChoice;
use crate::exit::Exit;
use crate::predict::describe;
use crate::table::Layout;
use crate::view::ViewArgs;
#[cfg(feature = "http")]
use crate::web::{Web, WebArgs};

/// How often the pipeline is looked after.
const CHECK: Duration = Duration::from_millis(50);
/// How often the service manager hears of it.
const REPORT: Duration = Duration::from_secs(1);
/// How long the last readings may take once a signal has come.
const GRACE: Duration = Duration::from_millis(900);
/// How often the end of the sinks is looked for.
const NAP: Duration = Duration::from_millis(2);

/// Estimate the quantity for what a camera sees, frame after frame.
///
/// The freshest frame is always the next: what comes too fast is dropped. A
/// camera that hangs or goes is opened again, with growing pauses.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Where the frames come from.
    #[arg(short, long, value_name = "ADDRESS")]
    source: SourceAddress,
    /// Engine that runs the encoder: auto, int8 or tract.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Frames in a second at most.
    #[arg(long, value_name = "N", value_parser = parse_fps)]
    fps: Option<f32>,
    /// Seconds without a frame after which a camera is opened again.
    #[arg(long, value_name = "S", default_value = "3", value_parser = parse_seconds)]
    stall: Duration,
    /// Let the source wait rather than drop frames, as folders always do.
    #[arg(long)]
    every_frame: bool,
    /// Threads that share each picture: less delay, no less work.
    #[arg(long, default_value = "1", value_name = "N")]
    threads: NonZero<usize>,
    /// Print one JSON object for each frame.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    view: ViewArgs,
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
  file:///clip.mp4?loop&realtime      video file (needs ffmpeg)
  dir:///inbox?watch                  pictures as they arrive in a folder
  'cmd:COMMAND?format=rgb&size=640x480'   frames on a command's stdout: rgb, bgr, grey, ppm or mjpeg

Examples:
  numclip run --model models/gauge --source synth:gauge --fps 5
  numclip run --model models/gauge --source dir:///inbox?watch --json >> estimates.jsonl
  numclip run --model models/gauge --source rpicam://0 --rotate 180 --roi 25%,25%,50%,50% \\
      --motion 6 --smooth median:5 --budget 20%";

fn parse_fps(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(fps) if (0.001..=1000.0).contains(&fps) => Ok(fps),
        _ => Err("expected a number from 0.001 to 1000".into()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f32(seconds)),
        _ => Err("expected seconds from 0.1 to 3600".into()),
    }
}

/// Runs the command.
///
/// # Errors
/// When the bundle or the source cannot be used, or the engine fails.
pub fn run(args: &Args, verbose: bool) -> Result<Exit> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal does not wait.
        signal_hook::flag::register_conditional_shutdown(
            signal,
            Exit::Failed as i32,
            Arc::clone(&ended),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&ended)))
        .context("cannot listen for signals")?;
    }
    let loading = Instant::now();
    let pipeline = Arc::new(Pipeline::new(Bundle::open(&args.model)?, args.engine.0)?);
    if verbose {
        describe(&pipeline, loading.elapsed());
    }
    let settings = settings(args)?;
    let printer: Box<dyn Sink> = Box::new(Printer::new(args, pipeline.bundle().manifest()));
    let mut sinks = vec![("stdout".to_owned(), printer)];
    let board = Arc::<Board>::default();
    #[cfg(feature = "http")]
    let web = args.web.open(&pipeline, &board, settings.stall)?;
    #[cfg(feature = "http")]
    sinks.extend(web.as_ref().map(Web::sink));
    let tell: Tell = Arc::new(|notice| tell(&notice));
    let hub = Arc::new(Hub::start(sinks, settings.pace.every_frame, &tell));
    let source = args.source.clone();
    let open = Arc::new(move || source.open());
    let (live, events) = Live::start(open, Arc::clone(&pipeline), settings);
    let feeder = {
        let (hub, source) = (Arc::clone(&hub), args.source.to_string().into());
        thread::spawn(move || feed(&events, &hub, &source))
    };
    #[cfg(feature = "http")]
    let server = web.map(|web| web.serve(live.tap())).transpose()?;
    notify(&[NotifyState::Ready]);
    let result = watch(&live, &hub, &board, &ended);
    notify(&[NotifyState::Stopping]);
    let counts = live.counts();
    drop(live);
    #[cfg(feature = "http")]
    if let Some(server) = server {
        server.stop();
    }
    drain(feeder, &hub, &ended);
    if verbose {
        anstream::eprintln!("{}", status(counts, &hub).line());
    }
    result?;
    Ok(match counts {
        Counts { unusable: 0, .. } => Exit::Done,
        Counts { readings: 0, .. } => Exit::Input,
        // A torn frame now and then is a camera's everyday life.
        _ if args.source.is_live() => Exit::Done,
        _ => Exit::Failed,
    })
}

fn settings(args: &Args) -> Result<Settings> {
    let is_live = args.source.is_live();
    let mut settings = Settings {
        pace: Pace {
            interval: args.fps.map(|fps| Duration::from_secs_f32(1.0 / fps)),
            every_frame: args.every_frame || !is_live,
        },
        stall: is_live.then_some(args.stall),
        threads: Some(args.threads),
        ..Settings::default()
    };
    args.view.apply(&mut settings)?;
    Ok(settings)
}

/// Takes events apart until there are no more: readings to the sinks, notices
/// to the user.
fn feed(events: &Receiver<Event>, hub: &Hub, source: &Arc<str>) {
    for event in events {
        match event {
            Event::Notice(notice) => tell(&notice),
            Event::Reading(reading) => hub.put(Answer {
                source: Arc::clone(source),
                reading: *reading,
            }),
        }
    }
}

/// Looks after the pipeline until it ends, is told to, or nobody reads.
fn watch(live: &Live, hub: &Hub, board: &Board, ended: &AtomicBool) -> Result<()> {
    let mut reported = Instant::now();
    while live.check()? && !hub.is_finished() {
        if ended.load(Ordering::SeqCst) {
            live.stop();
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let status = status(live.counts(), hub);
            let line = status.line();
            board.set(status);
            notify(&[NotifyState::Watchdog, NotifyState::Status(&line)]);
        }
        thread::sleep(CHECK);
    }
    Ok(())
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

fn tell(notice: &str) {
    anstream::eprintln!("\x1b[1;33mnotice:\x1b[0m {notice}");
}

/// Without a service manager there is nobody to tell.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        anstream::eprintln!("cannot reach the service manager: {error}");
    }
}

fn status(counts: Counts, hub: &Hub) -> Status {
    Status {
        counts,
        sinks: hub.status(),
        device: Device::read(),
        ..Status::default()
    }
}

/// Writes readings to stdout, for a person or as JSON.
struct Printer {
    layout: Layout,
    json: bool,
}

impl Printer {
    fn new(args: &Args, manifest: &Manifest) -> Self {
        let source = args.source.to_string();
        Self {
            layout: Layout::new(manifest, std::iter::once(source.as_str())),
            json: args.json,
        }
    }

    fn line(&self, answer: &Answer) -> String {
        if self.json {
            return answer.to_json();
        }
        let reading = &answer.reading;
        let source = reading.name.as_deref().unwrap_or(&answer.source);
        let bins = &reading.bundle.manifest().bins.bin;
        self.layout
            .row(source, &reading.timed.estimate, bins, reading.truth)
    }
}

impl Sink for Printer {
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
        writeln!(anstream::stdout().lock(), "{}", self.line(answer)).map_err(|error| {
            match error.kind() {
                ErrorKind::BrokenPipe => SinkError::Closed,
                _ => SinkError::Io {
                    name: "stdout".into(),
                    error,
                },
            }
        })
    }

    fn keeps_all(&self) -> bool {
        true
    }
}
