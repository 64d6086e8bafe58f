//! `numclip bench`: how fast this machine runs a bundle.

mod layers;

use std::io::Write as _;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use numclip::bundle::Bundle;
use numclip::decode;
use numclip::encode::Engine;
use numclip::frame::{Frame, PixelFormat};
use numclip::pipeline::{Pipeline, Worker};
use numclip::verify::replay;
use serde::{Deserialize, Serialize};

use crate::exit::{Exit, UsageError};
use crate::table::columns;

/// Measure a bundle on this machine, stage by stage.
///
/// Takes a picture, or else the first golden one of the bundle. With
/// `--engine all` every engine that can run the bundle is measured.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the model bundle.
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Engine that runs the encoder: auto, all, int8 or tract.
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Picture to decode and estimate.
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
    /// Threads that share each picture, where the engine can.
    #[arg(long, default_value = "1", value_name = "N")]
    threads: NonZero<usize>,
    /// Seconds to measure each engine.
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds)]
    seconds: f64,
    /// Tell what each layer of the encoder takes, too; not with `--engine all`.
    #[arg(long)]
    layers: bool,
    /// Print one JSON object for each engine.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  numclip bench --model models/gauge
  numclip bench --model models/gauge --engine all --image photo.jpg
  numclip bench --model models/gauge --layers
  numclip bench --model models/gauge --threads 4 --json";

/// What was measured of one engine, as `--json` prints it.
#[derive(Serialize, Deserialize)]
struct Measured {
    engine: String,
    /// The set of kernels, where the engine has several.
    kernels: Option<String>,
    /// Threads that share a picture.
    threads: NonZero<usize>,
    /// Of each stage, in the order of the stages.
    milliseconds: Stages,
    frames: usize,
    frames_per_second: f64,
    load_ms: f64,
    /// From the start of the process.
    first_estimate_ms: f64,
    /// Multiply-accumulates of the encoder for one picture.
    macs: Option<u64>,
    gmacs_per_second: Option<f64>,
    /// What the kernels reach on data in the cache, on as many threads.
    peak_gmacs_per_second: Option<f64>,
    peak_memory_bytes: Option<u64>,
    lowest_golden_cosine: f32,
    /// Asked for with `--layers`, where the engine can tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    layers: Vec<layers::Measured>,
}

#[derive(Serialize, Deserialize)]
struct Stages {
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Percentiles>,
    preprocess: Percentiles,
    encode: Percentiles,
    estimate: Percentiles,
    all: Percentiles,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// Runs the command; `start` is when the process began.
///
/// # Errors
/// When the bundle or the picture cannot be used.
pub fn run(args: &Args, start: Instant) -> Result<Exit> {
    if args.engine == "all" {
        if args.layers {
            return Err(UsageError("--layers takes one engine".into()).into());
        }
        return run_all(args);
    }
    let engine = match args.engine.as_str() {
        "auto" => None,
        name => Some(name.parse().map_err(UsageError)?),
    };
    let measured = measure(args, engine, start)?;
    print(match args.json {
        true => serde_json::to_string(&measured)? + "\n",
        false => measured.text(),
    })?;
    Ok(Exit::Done)
}

/// Measures each engine in a process of its own, so that none is charged
/// with the time and memory of another.
fn run_all(args: &Args) -> Result<Exit> {
    Bundle::open(&args.model)?;
    let mut all = Vec::new();
    for engine in Engine::ALL {
        match measure_apart(args, *engine)? {
            Ok(measured) => all.push(measured),
            Err(reason) => anstream::eprintln!("{engine} is left out: {}", reason.trim_end()),
        }
    }
    let text = match args.json {
        true => all
            .iter()
            .map(|measured| Ok(serde_json::to_string(measured)? + "\n"))
            .collect::<Result<String>>()?,
        false => side_by_side(&all),
    };
    print(text)?;
    Ok(if all.is_empty() {
        Exit::Failed
    } else {
        Exit::Done
    })
}

/// What another process measures, or what it says where it cannot.
fn measure_apart(args: &Args, engine: Engine) -> Result<Result<Measured, String>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "--json", "--engine", engine.name(), "--model"]);
    command.arg(&args.model);
    command.args(["--seconds", &args.seconds.to_string()]);
    command.args(["--threads", &args.threads.to_string()]);
    if let Some(image) = &args.image {
        command.arg("--image").arg(image);
    }
    let output = command.stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(Ok(serde_json::from_slice(&output.stdout)?)),
        false => Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0.01 to 3600".into()),
    }
}

fn measure(args: &Args, engine: Option<Engine>, start: Instant) -> Result<Measured> {
    let loading = Instant::now();
    let pipeline = Pipeline::new(Bundle::open(&args.model)?, engine)?;
    let load = loading.elapsed();
    let mut worker = pipeline.worker_on(args.threads)?;
    let frame = frame(args.image.as_deref(), pipeline.bundle())?;
    worker.estimate(&frame)?;
    let first = start.elapsed();
    let times = times(args, &mut worker, &frame)?;
    let memory = peak_memory();
    let cosines = replay(&pipeline)?.into_iter().map(|replay| replay.cosine);
    let [decode, preprocess, encode, estimate, all] =
        times.each_ref().map(|times| Percentiles::of(times));
    let macs = pipeline.macs();
    let peak = pipeline.peak_macs_per_second();
    let peak = peak.map(|peak| peak * args.threads.get() as f64);
    let layers = match args.layers {
        true => layers::measure(&mut worker, args.seconds, peak)?,
        false => Vec::new(),
    };
    if args.layers && layers.is_empty() {
        anstream::eprintln!(
            "the engine {} cannot tell its layers apart",
            pipeline.engine()
        );
    }
    Ok(Measured {
        engine: pipeline.engine().name().into(),
        kernels: pipeline.kernels().map(String::from),
        threads: args.threads,
        frames: times[0].len(),
        frames_per_second: 1e3 / all.p50,
        load_ms: milliseconds(load),
        first_estimate_ms: milliseconds(first),
        macs,
        gmacs_per_second: macs.map(|macs| macs as f64 / 1e6 / encode.p50),
        peak_gmacs_per_second: peak.map(|peak| peak / 1e9),
        milliseconds: Stages {
            decode: args.image.is_some().then_some(decode),
            preprocess,
            encode,
            estimate,
            all,
        },
        peak_memory_bytes: memory,
        lowest_golden_cosine: cosines.fold(1.0, f32::min),
        layers,
    })
}

/// How long each stage takes, and all of them, frame after frame.
fn times(args: &Args, worker: &mut Worker<'_>, frame: &Frame) -> Result<[Vec<Duration>; 5]> {
    let mut stages: [Vec<Duration>; 5] = Default::default();
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < args.seconds {
        let decoding = Instant::now();
        let decoded = args.image.as_deref().map(decode::open).transpose()?;
        let decode = decoding.elapsed();
        let timed = worker.estimate(decoded.as_ref().unwrap_or(frame))?;
        let parts = [decode, timed.preprocess, timed.encode, timed.estimation];
        let times = parts.into_iter().chain([parts.iter().sum()]);
        for (stage, time) in stages.iter_mut().zip(times) {
            stage.push(time);
        }
    }
    Ok(stages)
}

/// The picture named, or the first golden one.
fn frame(image: Option<&Path>, bundle: &Bundle) -> Result<Frame> {
    match (image, bundle.golden().cases.first()) {
        (Some(path), _) => Ok(decode::open(path)?),
        (None, Some(case)) => {
            let pixels = case.pixels.clone();
            Ok(Frame::new(
                case.width,
                case.height,
                PixelFormat::Rgb,
                pixels,
            )?)
        }
        (None, None) => {
            let message = "the bundle has no golden pictures; name one with --image";
            Err(UsageError(message.into()).into())
        }
    }
}

/// The most memory that the process has held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kilobytes)
}

impl Percentiles {
    /// In milliseconds, of at least one time.
    fn of(times: &[Duration]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|share| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            milliseconds(sorted[rank.clamp(1, sorted.len()) - 1])
        });
        Self { p50, p90, p99, max }
    }
}

impl Stages {
    fn named(&self) -> impl Iterator<Item = (&'static str, Percentiles)> {
        let decode = self.decode.map(|decode| ("decode", decode));
        decode.into_iter().chain([
            ("preprocess", self.preprocess),
            ("encode", self.encode),
            ("estimate", self.estimate),
            ("all", self.all),
        ])
    }
}

impl Measured {
    fn name(&self) -> String {
        match &self.kernels {
            Some(kernels) => format!("{} ({kernels})", self.engine),
            None => self.engine.clone(),
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![["", "p50", "p90", "p99", "max"].map(String::from).to_vec()];
        for (name, Percentiles { p50, p90, p99, max }) in self.milliseconds.named() {
            let cells = [p50, p90, p99, max].map(|time| format!("{time:.3}"));
            rows.push([name.to_string()].into_iter().chain(cells).collect());
        }
        let facts = self
            .facts()
            .map(|(name, fact)| vec![name.to_string(), fact]);
        let layers = match self.layers.as_slice() {
            [] => String::new(),
            layers => format!("\n{}", layers::text(layers)),
        };
        format!(
            "{}, milliseconds\n{}\n{}{layers}",
            self.name(),
            columns(&rows),
            columns(&facts)
        )
    }

    /// What is said beside the stages.
    fn facts(&self) -> [(&'static str, String); 7] {
        let or_unknown = |fact: Option<String>| fact.unwrap_or_else(|| "unknown".into());
        let share = self.gmacs_per_second.zip(self.peak_gmacs_per_second);
        [
            ("frames/s", format!("{:.0}", self.frames_per_second)),
            ("loaded in", format!("{:.0} ms", self.load_ms)),
            (
                "first estimate after",
                format!("{:.0} ms", self.first_estimate_ms),
            ),
            (
                "multiply-accumulates/s",
                or_unknown(
                    self.gmacs_per_second
                        .map(|gmacs| format!("{gmacs:.1} thousand million")),
                ),
            ),
            (
                "share of the peak",
                or_unknown(share.map(|(gmacs, peak)| {
                    format!(
                        "{:.0} % of {peak:.1} thousand million",
                        100.0 * gmacs / peak
                    )
                })),
            ),
            (
                "peak memory",
                or_unknown(
                    self.peak_memory_bytes
                        .map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6)),
                ),
            ),
            (
                "lowest golden cosine",
                format!("{:.5}", self.lowest_golden_cosine),
            ),
        ]
    }

    /// One cell for each stage and fact.
    fn cells(&self) -> Vec<(String, String)> {
        let stages = self.milliseconds.named().map(|(name, times)| {
            (
                format!("{name}, ms"),
                format!("{:.3} ({:.3})", times.p50, times.p99),
            )
        });
        let facts = self.facts().map(|(name, fact)| (name.to_string(), fact));
        stages.chain(facts).collect()
    }
}

/// A column for each engine: medians, with the 99th percentile in brackets.
fn side_by_side(all: &[Measured]) -> String {
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(all.iter().map(Measured::name));
    for (index, (name, _)) in all
        .first()
        .map(Measured::cells)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let cells = all
            .iter()
            .map(|measured| measured.cells().swap_remove(index).1);
        rows.push([name].into_iter().chain(cells).collect());
    }
    columns(&rows)
}

fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

fn print(text: String) -> Result<()> {
    Ok(anstream::stdout().lock().write_all(text.as_bytes())?)
}
