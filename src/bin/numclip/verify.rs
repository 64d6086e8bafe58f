//! `numclip verify`: is the bundle whole, and does this machine compute what
//! its trainer did?

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Error, Result};
use numclip::bundle::{Bundle, FileCheck, check_files};
use numclip::pipeline::Pipeline;
use numclip::verify::{COSINE_TOLERANCE, Replay, TENSOR_TOLERANCE_LEVELS, VALUE_TOLERANCE, replay};
use serde_json::{Value, json};

use crate::EngineChoice;
use crate::exit::Exit;
use crate::table::{padded, with_unit};

/// Check a bundle: checksums, then its golden vectors on this machine; or a
/// package: checksums and signature.
///
/// Ends with 3 if the bundle is damaged, with 1 if this machine computes
/// something else than the trainer did.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of the model bundle, or a package.
    #[arg(value_name = "DIR|PACKAGE")]
    model: PathBuf,
    /// Trusted key, or folder of them: check the package's signature too.
    #[cfg(feature = "flash")]
    #[arg(long, value_name = "DIR|FILE")]
    trust: Option<PathBuf>,
    /// Engine that runs the encoder: auto, int8 or tract.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  numclip verify models/gauge
  numclip verify gauge.numclip --trust release.pub";

/// Runs the command.
///
/// # Errors
/// When the bundle or package cannot be used, or a golden case cannot be run at all.
pub fn run(args: &Args) -> Result<Exit> {
    #[cfg(feature = "flash")]
    if args.model.is_file() || args.trust.is_some() {
        return crate::flash::verify_package(&args.model, args.trust.as_deref(), args.json);
    }
    let files = check_files(&args.model)?;
    if !args.json {
        print(&files_text(&files))?;
    }
    let faults = files.iter().filter(|file| file.fault.is_some()).count();
    if faults > 0 {
        if args.json {
            print(&format!(
                "{}\n",
                json!({"passed": false, "files": files_json(&files)})
            ))?;
        }
        return Err(first_fault(files, faults));
    }
    let pipeline = Pipeline::new(Bundle::open(&args.model)?, args.engine.0)?;
    let replays = replay(&pipeline)?;
    let passed = replays.iter().all(|replay| replay.passed);
    print(&match args.json {
        true => format!("{}\n", report(&pipeline, &files, &replays, passed)),
        false => replays_text(&pipeline, &replays, passed),
    })?;
    Ok(if passed { Exit::Done } else { Exit::Failed })
}

fn print(text: &str) -> Result<()> {
    Ok(anstream::stdout().lock().write_all(text.as_bytes())?)
}

fn first_fault(files: Vec<FileCheck>, faults: usize) -> Error {
    match files.into_iter().find_map(|file| file.fault) {
        Some(fault) if faults == 1 => fault.into(),
        Some(fault) => Error::new(fault).context(format!("{faults} files are damaged, the first")),
        None => unreachable!("there are faults"),
    }
}

fn files_text(files: &[FileCheck]) -> String {
    let longest = files.iter().map(|file| file.name.len()).max().unwrap_or(0);
    let line = |file: &FileCheck| {
        let name = padded(&file.name, longest);
        format!("{name}  {}\n", verdict(file.fault.is_none()))
    };
    files.iter().map(line).collect()
}

fn files_json(files: &[FileCheck]) -> Vec<Value> {
    let entry = |file: &FileCheck| {
        let fault = file.fault.as_ref().map(ToString::to_string);
        json!({"name": file.name, "passed": fault.is_none(), "fault": fault})
    };
    files.iter().map(entry).collect()
}

fn replays_text(pipeline: &Pipeline, replays: &[Replay], passed: bool) -> String {
    let (manifest, engine) = (pipeline.bundle().manifest(), pipeline.engine());
    let number = |value: f32| with_unit(&manifest.task, value.into());
    let mut text = String::new();
    for replay in replays {
        text += &format!(
            "golden {}  {}  input off by {:.2}/255, cosine {:.5}, {} for {}\n",
            replay.case,
            verdict(replay.passed),
            replay.tensor_levels,
            replay.cosine,
            number(replay.got),
            number(replay.expected),
        );
    }
    let [low, high] = manifest.task.range;
    text += &match passed {
        true => format!("{engine} on this machine computes what the trainer did\n"),
        false => format!(
            "{engine} on this machine computes something else: accepted are {TENSOR_TOLERANCE_LEVELS:.0}/255, cosine {COSINE_TOLERANCE}, {} apart\n",
            number(VALUE_TOLERANCE * (high - low)),
        ),
    };
    text
}

fn report(pipeline: &Pipeline, files: &[FileCheck], replays: &[Replay], passed: bool) -> Value {
    let (bundle, engine) = (pipeline.bundle(), pipeline.engine().name());
    let golden: Vec<Value> = replays
        .iter()
        .map(|replay| {
            json!({
                "case": replay.case,
                "passed": replay.passed,
                "tensor_levels": replay.tensor_levels,
                "cosine": replay.cosine,
                "expected": replay.expected,
                "value": replay.got,
            })
        })
        .collect();
    json!({
        "passed": passed,
        "sha256": bundle.sha256(),
        "engine": engine,
        "files": files_json(files),
        "golden": golden,
    })
}

fn verdict(passed: bool) -> &'static str {
    match passed {
        true => "\x1b[32mok\x1b[0m",
        false => "\x1b[1;31mfailed\x1b[0m",
    }
}
