//! `numclip bench`: how fast this machine runs a bundle.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use numclip::bundle::Bundle;
use numclip::decode;
use numclip::encode::Engine;
use numclip::frame::{Frame, PixelFormat};
use numclip::pipeline::Pipeline;
use numclip::verify::replay;
use serde_json::{Value, json};

use crate::exit::{Exit, UsageError};
use crate::table::columns;

/// Measure a bundle on this machine, stage by stage, on one thread.
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
    /// Seconds to measure each engine.
    #[arg(long, default_value_t = 2.0, value_name = "S", value_parser = seconds)]
    seconds: f64,
    /// Print one JSON object for each engine.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  numclip bench --model models/gauge
  numclip bench --model models/gauge --engine all --image photo.jpg
  numclip bench --model models/gauge --json";

/// What was measured of one engine.
struct Measured {
    engine: Engine,
    load: Duration,
    first: Duration,
    stages: Vec<(&'static str, Vec<Duration>)>,
    macs: Option<u64>,
    lowest_cosine: f32,
    peak_memory: Option<u64>,
}

/// Runs the command; `start` is when the process began.
///
/// # Errors
/// When the bundle or the picture cannot be used.
pub fn run(args: &Args, start: Instant) -> Result<Exit> {
    let every = args.engine == "all";
    let engines: Vec<Option<Engine>> = match args.engine.as_str() {
        "auto" => vec![None],
        "all" => Engine::ALL.iter().copied().map(Some).collect(),
        name => vec![Some(name.parse().map_err(UsageError)?)],
    };
    for engine in engines {
        match measure(args, engine, start) {
            Ok(measured) => print(args, &measured)?,
            Err(error) if every => anstream::eprintln!("left out: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    Ok(Exit::Done)
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
    let mut worker = pipeline.worker()?;
    let frame = frame(args.image.as_deref(), pipeline.bundle())?;
    worker.estimate(&frame)?;
    let first = start.elapsed();
    let names = ["decode", "preprocess", "encode", "estimate", "all"];
    let mut stages: Vec<(&str, Vec<Duration>)> = names.map(|name| (name, Vec::new())).to_vec();
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < args.seconds {
        let decoding = Instant::now();
        let decoded = args.image.as_deref().map(decode::open).transpose()?;
        let decode = decoding.elapsed();
        let timed = worker.estimate(decoded.as_ref().unwrap_or(&frame))?;
        let parts = [decode, timed.preprocess, timed.encode, timed.estimation];
        let times = parts.into_iter().chain([parts.iter().sum()]);
        for ((_, stage), time) in stages.iter_mut().zip(times) {
            stage.push(time);
        }
    }
    if args.image.is_none() {
        stages.remove(0);
    }
    stages
        .iter_mut()
        .for_each(|(_, times)| times.sort_unstable());
    let cosines = replay(&pipeline)?.into_iter().map(|replay| replay.cosine);
    Ok(Measured {
        engine: pipeline.engine(),
        load,
        first,
        stages,
        macs: pipeline.macs(),
        lowest_cosine: cosines.fold(1.0, f32::min),
        peak_memory: peak_memory(),
    })
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

impl Measured {
    /// Percentiles of a stage in milliseconds: 50, 90, 99, 100.
    fn percentiles(times: &[Duration]) -> [f64; 4] {
        [0.5, 0.9, 0.99, 1.0].map(|share| {
            let rank = (share * times.len() as f64).ceil() as usize;
            milliseconds(times[rank.clamp(1, times.len()) - 1])
        })
    }

    fn median(&self, name: &str) -> f64 {
        let stage = self.stages.iter().find(|(stage, _)| *stage == name);
        stage.map_or(0.0, |(_, times)| Self::percentiles(times)[0])
    }

    fn frames_per_second(&self) -> f64 {
        1e3 / self.median("all")
    }

    /// Multiply-accumulates per second of the encoder, in thousands of millions.
    fn gmacs(&self) -> Option<f64> {
        Some(self.macs? as f64 / 1e6 / self.median("encode"))
    }

    fn text(&self) -> String {
        let mut rows = vec![["", "p50", "p90", "p99", "max"].map(String::from).to_vec()];
        for (name, times) in &self.stages {
            let cells = Self::percentiles(times).map(|time| format!("{time:.3}"));
            rows.push([name.to_string()].into_iter().chain(cells).collect());
        }
        let mut text = format!("{}, milliseconds\n{}", self.engine, columns(&rows));
        text += &format!(
            "{:.0} frames/s; loaded in {:.0} ms, first estimate {:.0} ms after the start\n",
            self.frames_per_second(),
            milliseconds(self.load),
            milliseconds(self.first),
        );
        if let Some(gmacs) = self.gmacs() {
            text += &format!("encoder: {gmacs:.0} thousand million multiply-accumulates/s\n");
        }
        if let Some(bytes) = self.peak_memory {
            text += &format!("peak memory {:.1} MB\n", bytes as f64 / 1e6);
        }
        text + &format!("golden vectors: lowest cosine {:.5}\n", self.lowest_cosine)
    }

    fn json(&self) -> Value {
        let stage = |(name, times): &(&str, Vec<Duration>)| {
            let [p50, p90, p99, max] = Self::percentiles(times);
            let times = json!({"p50": p50, "p90": p90, "p99": p99, "max": max});
            (name.to_string(), times)
        };
        json!({
            "engine": self.engine.name(),
            "milliseconds": self.stages.iter().map(stage).collect::<serde_json::Map<_, _>>(),
            "frames": self.stages[0].1.len(),
            "frames_per_second": self.frames_per_second(),
            "load_ms": milliseconds(self.load),
            "first_estimate_ms": milliseconds(self.first),
            "macs": self.macs,
            "gmacs_per_second": self.gmacs(),
            "peak_memory_bytes": self.peak_memory,
            "lowest_golden_cosine": self.lowest_cosine,
        })
    }
}

fn milliseconds(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

fn print(args: &Args, measured: &Measured) -> Result<()> {
    let text = match args.json {
        true => format!("{}\n", measured.json()),
        false => measured.text(),
    };
    Ok(anstream::stdout().lock().write_all(text.as_bytes())?)
}
