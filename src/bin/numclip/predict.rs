//! `numclip predict`: pictures in, estimates out.

mod abstain;
mod tally;

use std::collections::HashSet;
use std::fs;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use numclip::bundle::Bundle;
use numclip::decode;
use numclip::pipeline::{Pipeline, Timed, Worker};
use numclip::record::{Failure, Record};

use crate::EngineChoice;
use crate::annotate::{self, Painter};
use crate::exit::{Exit, UsageError};
use crate::inputs::{self, Input, InputError};
use crate::labels::LabelsArgs;
use crate::table::Layout;
use abstain::Abstain;
use tally::{Tally, measured, print_metrics, summarise};

/// Results that a thread may be ahead of what is printed.
const QUEUE: usize = 16;
/// From this many pictures on a progress bar is of use.
const WORTH_A_BAR: usize = 8;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Estimate the quantity for pictures, folders or patterns.
///
/// Prints one line for each picture in the order given. A picture that cannot
/// be read is reported and skipped.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Pictures (JPEG, PNG, WebP, BMP, TIFF), folders, patterns in quotes, or
    /// `-` for a list of paths on stdin.
    #[arg(
        value_name = "PATH",
        required_unless_present = "csv",
        conflicts_with = "csv"
    )]
    inputs: Vec<PathBuf>,
    /// Folder of the model bundle.
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,
    /// Engine that runs the encoder: auto, int8 or tract.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Pictures handled at a time [default: one for each core].
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Print one JSON object for each picture.
    #[arg(long)]
    json: bool,
    /// Write every picture, with its estimate drawn beside it, to this folder.
    #[arg(long, value_name = "DIR")]
    annotate: Option<PathBuf>,
    /// Count only estimates that are not in doubt: `auto` doubts pictures that
    /// are unfamiliar or uncertain beyond what the bundle has seen, a number
    /// also intervals wider than that, in the task's unit.
    #[arg(long, value_name = "WIDTH|auto")]
    abstain: Option<Abstain>,
    #[command(flatten)]
    labels: LabelsArgs,
}

const EXAMPLES: &str = "Examples:
  numclip predict --model models/gauge photo.jpg
  numclip predict --model models/gauge photos/ '2026-*/**/*.png' --annotate out
  find . -name '*.jpg' | numclip predict --model models/gauge - --json
  numclip predict --model models/gauge --csv labels.csv --where split=test
  numclip predict --model models/gauge photos/ --abstain 8 --json | jq 'select(.doubt == null)'";

/// What was looked for and may be looked at.
struct Job {
    source: String,
    input: Result<Input, String>,
    annotated: Option<PathBuf>,
}

/// What came out for one picture.
type Outcome = Result<Seen, Fault>;

struct Seen {
    timed: Timed,
    decode: Duration,
    time: SystemTime,
}

/// Why a picture gave nothing.
enum Fault {
    /// It could not be read.
    Input(String),
    /// Something after that went wrong.
    Work(String),
}

/// Runs the command.
///
/// # Errors
/// When the bundle cannot be used, or results cannot be written.
pub fn run(args: &Args, verbose: bool) -> Result<Exit> {
    let start = Instant::now();
    let bundle = Bundle::open(&args.model)?;
    abstain::check(args.abstain, bundle.manifest())?;
    let jobs = jobs(args, &bundle)?;
    let pipeline = Pipeline::new(bundle, args.engine.0)?;
    if verbose {
        describe(&pipeline, start.elapsed());
    }
    ctrlc::set_handler(interrupt).context("cannot listen for Ctrl-C")?;
    let started = Instant::now();
    let tally = score_all(args, &pipeline, &jobs)?;
    conclude(args, &pipeline, &jobs, &tally, started.elapsed(), verbose)
}

/// The first Ctrl-C lets the pictures at hand finish, the second does not.
fn interrupt() {
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        std::process::exit(Exit::Failed as i32);
    }
}

fn jobs(args: &Args, bundle: &Bundle) -> Result<Vec<Job>> {
    let mut jobs: Vec<Job> = match &args.labels.csv {
        Some(file) => {
            let inputs = args.labels.read(file, bundle.manifest().task.range)?;
            inputs.into_iter().map(Job::picture).collect()
        }
        None => args.inputs.iter().flat_map(|path| expanded(path)).collect(),
    };
    if jobs.is_empty() {
        return Err(InputError::Nothing.into());
    }
    if let Some(folder) = &args.annotate {
        place_annotated(folder, &mut jobs)?;
    }
    Ok(jobs)
}

fn expanded(argument: &Path) -> Vec<Job> {
    match inputs::expand(argument) {
        Ok(inputs) => inputs.into_iter().map(Job::picture).collect(),
        Err(error) => vec![Job {
            source: argument.display().to_string(),
            input: Err(error.to_string()),
            annotated: None,
        }],
    }
}

impl Job {
    fn picture(input: Input) -> Self {
        Self {
            source: input.path.display().to_string(),
            input: Ok(input),
            annotated: None,
        }
    }

    fn label(&self) -> Option<f32> {
        self.input.as_ref().ok().and_then(|input| input.label)
    }
}

/// Gives every picture a place below `folder`.
fn place_annotated(folder: &Path, jobs: &mut [Job]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    let paths: Vec<PathBuf> = jobs
        .iter()
        .filter_map(|job| job.input.as_ref().ok())
        .map(|input| input.path.clone())
        .collect();
    let names = annotate::names(&paths);
    let originals: HashSet<PathBuf> = paths.iter().map(|path| annotate::plain(path)).collect();
    let readable = jobs.iter_mut().filter(|job| job.input.is_ok());
    for (job, name) in readable.zip(names) {
        let place = folder.join(name);
        if originals.contains(&annotate::plain(&place)) {
            let message = format!(
                "--annotate would overwrite {}; name another folder",
                place.display()
            );
            return Err(UsageError(message).into());
        }
        job.annotated = Some(place);
    }
    Ok(())
}

/// Says on stderr which model runs, by which engine, and why no faster one does.
pub fn describe(pipeline: &Pipeline, loading: Duration) {
    let (bundle, manifest) = (pipeline.bundle(), pipeline.bundle().manifest());
    let engine = pipeline.engine();
    for refusal in pipeline.refusals() {
        anstream::eprintln!("passed over a faster engine: {refusal}");
    }
    anstream::eprintln!(
        "{} {} (sha256 {}…), {} by {engine}, loaded in {:.0} ms",
        manifest.model.name,
        manifest.model.version,
        &bundle.sha256()[..12],
        manifest.task.name,
        1e3 * loading.as_secs_f64(),
    );
}

/// Scores every job on as many threads as asked for, printing in order.
///
/// Thread `t` of `n` takes jobs `t`, `t + n`, … and hands the results over
/// through a short queue of its own: emptied in turn, the queues give the
/// order of the jobs back, and no thread runs far ahead.
fn score_all(args: &Args, pipeline: &Pipeline, jobs: &[Job]) -> Result<Tally> {
    let threads = threads(args, jobs.len());
    let workers: Vec<Worker<'_>> = (0..threads)
        .map(|_| pipeline.worker())
        .collect::<Result<_, _>>()?;
    let painter = Painter::new(pipeline.bundle().manifest());
    let mut printer = Printer::new(args, pipeline.bundle(), jobs);
    thread::scope(|scope| {
        let mut queues: Vec<Receiver<Outcome>> = Vec::new();
        for (first, worker) in workers.into_iter().enumerate() {
            let (sender, queue) = sync_channel(QUEUE);
            queues.push(queue);
            let share = jobs.iter().skip(first).step_by(threads);
            let (painter, abstain) = (&painter, args.abstain);
            scope.spawn(move || score_share(worker, painter, abstain, share, &sender));
        }
        for (index, job) in jobs.iter().enumerate() {
            // A queue that ends early belongs to a batch that was interrupted.
            let Ok(outcome) = queues[index % threads].recv() else {
                break;
            };
            printer.print(job, outcome)?;
        }
        Ok(printer.finish())
    })
}

fn threads(args: &Args, jobs: usize) -> usize {
    let cores = || available_parallelism().map_or(1, NonZero::get);
    args.threads
        .map_or_else(cores, NonZero::get)
        .min(jobs)
        .max(1)
}

fn score_share<'a>(
    mut worker: Worker<'_>,
    painter: &Painter<'_>,
    abstain: Option<Abstain>,
    jobs: impl Iterator<Item = &'a Job>,
    queue: &SyncSender<Outcome>,
) {
    for job in jobs {
        let stop = INTERRUPTED.load(Ordering::SeqCst);
        if stop
            || queue
                .send(score(&mut worker, painter, abstain, job))
                .is_err()
        {
            return;
        }
    }
}

fn score(
    worker: &mut Worker<'_>,
    painter: &Painter<'_>,
    abstain: Option<Abstain>,
    job: &Job,
) -> Outcome {
    let input = job.input.as_ref();
    let input = input.map_err(|error| Fault::Input(error.clone()))?;
    let start = Instant::now();
    let frame = decode::open(&input.path).map_err(|error| Fault::Input(error.to_string()))?;
    let decode = start.elapsed();
    let failed = |error| Fault::Work(format!("{}: {error}", job.source));
    let mut timed = worker.estimate(&frame).map_err(failed)?;
    if let Some(Abstain::Beyond(width)) = abstain {
        timed.estimate.doubt_beyond(width);
    }
    if let Some(place) = &job.annotated {
        let picture = painter.paint(&frame, &timed.estimate, input.label);
        let failed = |error| Fault::Work(format!("{}: {error}", place.display()));
        annotate::save(&picture, place).map_err(failed)?;
    }
    Ok(Seen {
        timed,
        decode,
        time: frame.time.unwrap_or_else(SystemTime::now),
    })
}

/// Writes outcomes as they come and keeps count.
struct Printer<'a> {
    bundle: &'a Bundle,
    layout: Layout,
    json: bool,
    abstains: bool,
    bar: ProgressBar,
    tally: Tally,
}

impl<'a> Printer<'a> {
    fn new(args: &Args, bundle: &'a Bundle, jobs: &[Job]) -> Self {
        let sources = jobs.iter().map(|job| job.source.as_str());
        Self {
            bundle,
            layout: Layout::new(bundle.manifest(), sources),
            json: args.json,
            abstains: args.abstain.is_some(),
            bar: progress_bar(jobs.len()),
            tally: Tally::default(),
        }
    }

    fn print(&mut self, job: &Job, outcome: Outcome) -> Result<()> {
        let lines = match &outcome {
            Ok(seen) => self.lines_of(job, seen)?,
            Err(Fault::Input(error) | Fault::Work(error)) => self.lines_of_fault(job, error)?,
        };
        self.bar.suspend(|| lines.write())?;
        self.bar.inc(1);
        match outcome {
            Ok(seen) => self.count(job, seen),
            Err(Fault::Input(_)) => self.tally.unreadable += 1,
            Err(Fault::Work(_)) => self.tally.failed += 1,
        }
        Ok(())
    }

    fn lines_of(&self, job: &Job, seen: &Seen) -> Result<Lines> {
        let (source, label, timed) = (&job.source, job.label(), &seen.timed);
        let data = match self.json {
            true => {
                let record = Record::new(self.bundle, source, label, seen.decode, timed, seen.time);
                serde_json::to_string(&record)?
            }
            false => {
                let bins = &self.bundle.manifest().bins.bin;
                self.layout.row(source, &timed.estimate, bins, label)
            }
        };
        Ok(Lines {
            data: Some(data),
            fault: None,
        })
    }

    fn lines_of_fault(&self, job: &Job, error: &str) -> Result<Lines> {
        let record = Failure {
            source: &job.source,
            error,
        };
        Ok(Lines {
            data: self
                .json
                .then(|| serde_json::to_string(&record))
                .transpose()?,
            fault: Some(format!("\x1b[1;31merror:\x1b[0m {error}")),
        })
    }

    fn count(&mut self, job: &Job, seen: Seen) {
        let timed = &seen.timed;
        let stages = [
            seen.decode,
            timed.preprocess,
            timed.encode,
            timed.estimation,
        ];
        for (sum, stage) in self.tally.stages.iter_mut().zip(stages) {
            *sum += stage;
        }
        if self.abstains && timed.estimate.doubt.is_some() {
            self.tally.abstained += 1;
            return;
        }
        if let Ok(input) = &job.input {
            self.tally.labels.extend(input.label);
            self.tally.groups.push(input.group.clone());
        }
        self.tally.estimates.push(seen.timed.estimate);
    }

    fn finish(self) -> Tally {
        self.bar.finish_and_clear();
        self.tally
    }
}

/// What goes to stdout and what to stderr for one picture.
struct Lines {
    data: Option<String>,
    fault: Option<String>,
}

impl Lines {
    fn write(&self) -> std::io::Result<()> {
        if let Some(fault) = &self.fault {
            anstream::eprintln!("{fault}");
        }
        match &self.data {
            Some(data) => writeln!(anstream::stdout().lock(), "{data}"),
            None => Ok(()),
        }
    }
}

fn progress_bar(pictures: usize) -> ProgressBar {
    if pictures <= WORTH_A_BAR || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} pictures, {per_sec}, {eta} left");
    ProgressBar::new(pictures as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Metrics, a summary on stderr, and how it all ended.
fn conclude(
    args: &Args,
    pipeline: &Pipeline,
    jobs: &[Job],
    tally: &Tally,
    took: Duration,
    verbose: bool,
) -> Result<Exit> {
    let (done, missed) = (tally.done(), tally.unreadable + tally.failed);
    let manifest = pipeline.bundle().manifest();
    if let Some(metrics) = measured(manifest, tally) {
        print_metrics(args.json, manifest, &metrics, tally)?;
    }
    if verbose || jobs.len() > 1 {
        summarise(tally, took, verbose);
    }
    if done + missed < jobs.len() {
        anstream::eprintln!(
            "interrupted after {} of {} pictures",
            done + missed,
            jobs.len()
        );
        return Ok(Exit::Failed);
    }
    Ok(match tally {
        _ if missed == 0 => Exit::Done,
        _ if tally.unreadable == jobs.len() => Exit::Input,
        _ => Exit::Failed,
    })
}
