//! `numclip verify`: is the bundle whole, does this machine compute what its
//! trainer did, and if not, what is it that differs?

mod diagnosis;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Error, Result};
use numclip::bundle::{Bundle, FileCheck, Manifest, check_files};
use numclip::encode::Engine;
use numclip::verify::{
    COSINE_TOLERANCE, Check, EngineCheck, TENSOR_TOLERANCE_LEVELS, VALUE_TOLERANCE, check_engines,
};
use serde_json::{Value, json};

use crate::EngineChoice;
use crate::exit::Exit;
#[cfg(feature = "flash")]
use crate::exit::UsageError;
use crate::labels::LabelsArgs;
use crate::table::{columns, padded, with_unit};
use diagnosis::Diagnosis;

/// Check a bundle: checksums, then its golden vectors on every engine of this
/// machine; or a package: checksums and signature.
///
/// Ends with 3 if the bundle is damaged, with 1 if an engine computes
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
    /// Engine to hold against the golden vectors; auto stands for all of them.
    #[arg(long, default_value = "auto")]
    engine: EngineChoice,
    /// Find out what differs: order of channels, normalisation, crop, resize,
    /// antialias, or the engine. With --csv also whether the encoder was
    /// trained on pictures prepared in another way.
    #[arg(long)]
    diagnose: bool,
    #[command(flatten)]
    labels: LabelsArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  numclip verify models/gauge
  numclip verify models/gauge --diagnose
  numclip verify imported --diagnose --csv labels.csv
  numclip verify gauge.numclip --trust release.pub";

/// Runs the command.
///
/// # Errors
/// When the bundle or package cannot be used, or a golden case cannot be run at all.
pub fn run(args: &Args) -> Result<Exit> {
    #[cfg(feature = "flash")]
    if args.model.is_file() || args.trust.is_some() {
        if args.diagnose || args.labels.csv.is_some() || args.engine.0.is_some() {
            let reason = "a package is checked, not run: unpack it with `numclip unpack` and verify the folder";
            return Err(UsageError(reason.into()).into());
        }
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
    let bundle = Arc::new(Bundle::open(&args.model)?);
    let chosen = args.engine.0.as_ref();
    let checks = check_engines(&bundle, chosen.map_or(Engine::ALL, std::slice::from_ref));
    if !args.json {
        print(&engines_text(bundle.manifest(), &checks))?;
    }
    if checks.iter().all(EngineCheck::is_refusal) {
        return Err(last_refusal(checks));
    }
    let diagnosis = (args.diagnose || args.labels.csv.is_some())
        .then(|| diagnosis::make(&bundle, &checks, &args.labels))
        .transpose()?;
    let passed = checks
        .iter()
        .all(|check| check.passed() || check.is_refusal())
        && diagnosis.as_ref().is_none_or(Diagnosis::is_clean);
    if args.json {
        let mut report = json!({
            "passed": passed,
            "sha256": bundle.sha256(),
            "files": files_json(&files),
            "engines": checks.iter().map(engine_json).collect::<Vec<_>>(),
        });
        if let Some(diagnosis) = &diagnosis {
            report["diagnosis"] = json!(diagnosis);
        }
        print(&format!("{report}\n"))?;
    } else if let Some(diagnosis) = &diagnosis {
        print(&diagnosis.text(bundle.manifest())?)?;
    }
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

fn last_refusal(checks: Vec<EngineCheck>) -> Error {
    match checks.into_iter().next_back().map(|check| check.outcome) {
        Some(Err(error)) => error.into(),
        _ => anyhow::anyhow!("this build of numclip has no engine"),
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

/// A row for each engine that runs the bundle, and why the others do not.
pub fn engines_text(manifest: &Manifest, checks: &[EngineCheck]) -> String {
    let header = [
        "engine",
        "cosine",
        "value off",
        "input off",
        "latency",
        "golden",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    let mut refusals = String::new();
    for check in checks {
        match &check.outcome {
            Ok(checked) => rows.push(engine_row(manifest, check.engine, checked)),
            Err(error) => refusals += &format!("{} does not run it: {error}\n", check.engine),
        }
    }
    let mut text = match rows.len() {
        1 => String::new(),
        _ => format!("\n{}", columns(&rows)),
    };
    if checks
        .iter()
        .any(|check| check.outcome.is_ok() && !check.passed())
    {
        let [low, high] = manifest.task.range;
        let apart = with_unit(&manifest.task, (VALUE_TOLERANCE * (high - low)).into());
        text += &format!(
            "accepted are cosine {COSINE_TOLERANCE}, {apart}, {TENSOR_TOLERANCE_LEVELS:.0}/255; --diagnose looks for the cause\n"
        );
    }
    text + &refusals
}

fn engine_row(manifest: &Manifest, engine: Engine, check: &Check) -> Vec<String> {
    vec![
        engine.to_string(),
        format!("{:.5}", check.cosine()),
        with_unit(&manifest.task, check.value_difference().into()),
        format!("{:.2}/255", check.tensor_levels()),
        format!("{:.2} ms", 1e3 * check.latency.as_secs_f64()),
        verdict(check.passed()).into(),
    ]
}

/// One engine as JSON.
pub fn engine_json(check: &EngineCheck) -> Value {
    let engine = check.engine.name();
    let checked = match &check.outcome {
        Ok(checked) => checked,
        Err(error) => {
            return json!({"engine": engine, "passed": false, "refusal": error.to_string()});
        }
    };
    let replays = checked.replays.iter();
    let golden: Vec<Value> = replays
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
        "engine": engine,
        "passed": checked.passed(),
        "cosine": checked.cosine(),
        "value_difference": checked.value_difference(),
        "latency_ms": 1e3 * checked.latency.as_secs_f64(),
        "golden": golden,
    })
}

fn verdict(passed: bool) -> &'static str {
    match passed {
        true => "\x1b[32mok\x1b[0m",
        false => "\x1b[1;31mfailed\x1b[0m",
    }
}
