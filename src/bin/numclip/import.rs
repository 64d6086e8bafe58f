//! `numclip import`: a bundle of somebody else's encoder.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use numclip::bundle::{Bundle, Report};
use numclip::decode;
use numclip::encode::Engine;
use numclip::import::{Draft, Seen, Sources};
use numclip::pipeline::{Pipeline, Worker};
use numclip::verify::check_engines;
use rayon::prelude::*;
use serde_json::json;

use crate::exit::Exit;
use crate::inputs::Input;
use crate::labels::LabelsArgs;
use crate::table;
use crate::verify::{engine_json, engines_text};

/// Make a bundle of an image encoder that something else trained: an ONNX
/// file in floats or int8 (QDQ or QOperator).
///
/// Its input and output are held against the task file and the bin embeddings;
/// golden vectors are made from drawn patterns, and every engine is held
/// against them. What the encoder is worth only labelled pictures can tell:
/// with --labels it is measured and its interval fitted, on separate halves.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The encoder.
    #[arg(value_name = "ONNX")]
    onnx: PathBuf,
    /// Task file: [task], [[bin]] and [preprocess], as the trainer has them.
    #[arg(long, value_name = "FILE")]
    task: PathBuf,
    /// Bin embeddings: safetensors, a row for each bin.
    #[arg(long, value_name = "FILE")]
    bins: PathBuf,
    /// Folder of the bundle.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Output that is the embedding, where the encoder has several.
    #[arg(long, value_name = "NAME")]
    output: Option<String>,
    #[command(flatten)]
    labels: LabelsArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  numclip import visual.onnx --task age.toml --bins ages.safetensors --out models/age
  numclip import visual.onnx --task age.toml --bins ages.safetensors --out models/age \\
      --labels photos/labels.csv --where split=val
  numclip verify models/age --diagnose --csv photos/labels.csv   # is [preprocess] right?";

/// Runs the command.
///
/// # Errors
/// When the files do not fit together, no engine runs the encoder, or the
/// bundle cannot be written.
pub fn run(args: &Args) -> Result<Exit> {
    let mut draft = Draft::read(&Sources {
        onnx: &args.onnx,
        task: &args.task,
        bins: &args.bins,
        output: args.output.as_deref(),
    })?;
    let mut missed = 0;
    let mut report = None;
    if let Some(csv) = &args.labels.csv {
        let range = draft.bundle().manifest().task.range;
        let inputs = args.labels.read(csv, range)?;
        let seen = look(&Pipeline::new(draft.bundle().clone(), None)?, &inputs)?;
        missed = inputs.len() - seen.len();
        report = draft.measure(&seen).cloned();
    }
    draft.write(&args.out)?;
    let bundle = std::sync::Arc::new(Bundle::open(&args.out)?);
    let checks = check_engines(&bundle, Engine::ALL);
    let text = match args.json {
        true => format!(
            "{}\n",
            json!({
                "bundle": args.out,
                "sha256": bundle.sha256(),
                "notes": draft.notes(),
                "engines": checks.iter().map(engine_json).collect::<Vec<_>>(),
                "report": report,
                "interval": bundle.manifest().interval,
                "failed": missed,
            })
        ),
        false => {
            let engines = engines_text(bundle.manifest(), &checks);
            described(args, &bundle, draft.notes(), report.as_ref()) + &engines
        }
    };
    anstream::stdout().lock().write_all(text.as_bytes())?;
    Ok(if missed == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn described(args: &Args, bundle: &Bundle, notes: &[String], report: Option<&Report>) -> String {
    let manifest = bundle.manifest();
    let (size, dim) = (manifest.preprocess.size, manifest.bins.dim);
    let mut text = format!(
        "{}: {} {}, {size}×{size} pixels to {dim} values, {:?}\n",
        args.out.display(),
        manifest.model.name,
        manifest.model.version,
        manifest.encoder[0].precision
    );
    text.extend(notes.iter().map(|note| format!("{note}\n")));
    text += &match (report, &args.labels.csv) {
        (Some(report), _) => format!("\n{}", table::metrics(&manifest.task, &report.metrics)),
        (None, Some(_)) => "too few labelled pictures to measure anything\n".into(),
        (None, None) => "not measured: --labels names pictures of known value\n".into(),
    };
    if report.is_some() && manifest.interval.is_none() {
        text += "too few labelled pictures for an interval\n";
    }
    text
}

/// Embeddings of the pictures that can be read, in order; the others are named.
pub fn look(pipeline: &Pipeline, inputs: &[Input]) -> Result<Vec<Seen>> {
    let chunk = inputs.len().div_ceil(rayon::current_num_threads()).max(1);
    let parts: Vec<Vec<Seen>> = inputs
        .par_chunks(chunk)
        .map(|inputs| {
            let mut worker = pipeline.worker()?;
            let mut seen = Vec::with_capacity(inputs.len());
            for input in inputs {
                match see(&mut worker, input) {
                    Ok(picture) => seen.push(picture),
                    Err(error) => anstream::eprintln!("\x1b[1;31merror:\x1b[0m {error:#}"),
                }
            }
            Ok(seen)
        })
        .collect::<Result<_>>()?;
    Ok(parts.into_iter().flatten().collect())
}

fn see(worker: &mut Worker<'_>, input: &Input) -> Result<Seen> {
    let frame = decode::open(&input.path)?;
    worker.preprocess(&frame);
    Ok(Seen {
        embedding: worker.encode()?.to_vec(),
        label: input.label.unwrap_or(f32::NAN),
        group: input.group.clone(),
    })
}
