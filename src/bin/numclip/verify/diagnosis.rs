//! What differs, told to a person and to a machine.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use numclip::bundle::{Bundle, Manifest};
use numclip::decode;
use numclip::encode::Engine;
use numclip::pipeline::Pipeline;
use numclip::preprocess::Plan;
use numclip::verify::{
    Better, COSINE_TOLERANCE, EngineCheck, Mismatch, PlanDiagnosis, cosine, cosine_of_tensors,
    diagnose_plan, search,
};
use serde::Serialize;

use crate::inputs::Input;
use crate::labels::LabelsArgs;
use crate::table::with_unit;

/// Labelled pictures that plans are tried on.
const TRIED: usize = 32;

/// What was found out.
#[derive(Serialize)]
pub struct Diagnosis {
    /// The plan that made the golden tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanDiagnosis>,
    /// Engines fed with the golden tensors themselves.
    engines: Vec<Fed>,
    /// The plan that gives the golden embeddings, if the stated one does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Better>,
    /// Plans tried on labelled pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<Tried>,
}

/// An engine fed with the golden tensors.
#[derive(Serialize)]
struct Fed {
    engine: &'static str,
    /// Least cosine to the golden embeddings.
    cosine: f32,
    passed: bool,
}

/// Plans tried on labelled pictures.
#[derive(Serialize)]
struct Tried {
    pictures: usize,
    /// Mean absolute error with the plan of the bundle, in the task's unit.
    mae: f64,
    /// A plan that is better by more than chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    better: Option<Better>,
}

/// Finds out what differs between the bundle, its golden vectors, the engines
/// that run it and, where there are any, labelled pictures.
///
/// # Errors
/// When an engine fails, or the labels cannot be read.
pub fn make(
    bundle: &Arc<Bundle>,
    checks: &[EngineCheck],
    labels: &LabelsArgs,
) -> Result<Diagnosis> {
    let manifest = bundle.manifest();
    let plan = diagnose_plan(&manifest.preprocess, &bundle.golden().cases);
    let running = checks.iter().filter(|check| check.outcome.is_ok());
    let pipelines: Vec<Pipeline> = running
        .map(|check| Pipeline::new(Arc::clone(bundle), Some(check.engine)))
        .collect::<Result<_, _>>()?;
    let engines: Vec<Fed> = pipelines.iter().map(fed).collect::<Result<_>>()?;
    let first = pipelines
        .first()
        .context("no engine ran the golden vectors")?;
    let embeddings = match engines.iter().any(|fed| fed.passed) {
        true => None,
        false => by_embeddings(first)?,
    };
    let labels = match &labels.csv {
        Some(file) => Some(by_labels(first, &labels.read(file, manifest.task.range)?)?),
        None => None,
    };
    Ok(Diagnosis {
        plan,
        engines,
        embeddings,
        labels,
    })
}

fn fed(pipeline: &Pipeline) -> Result<Fed> {
    let cosine = cosine_of_tensors(pipeline)?;
    Ok(Fed {
        engine: Engine::name(pipeline.engine()),
        cosine,
        passed: cosine >= COSINE_TOLERANCE,
    })
}

/// Plans whose embeddings of the golden pictures come nearest to the golden ones.
fn by_embeddings(pipeline: &Pipeline) -> Result<Option<Better>> {
    let bundle = pipeline.bundle();
    let mut worker = pipeline.worker()?;
    let found = search(&bundle.manifest().preprocess, |plans| -> Result<_> {
        let mut errors = vec![Vec::new(); plans.len()];
        for case in &bundle.golden().cases {
            let frame = case.frame()?;
            for (plan, errors) in plans.iter().zip(&mut errors) {
                let embedding = worker.encode_tensor(&plan.tensor(&frame))?;
                errors.push(1.0 - f64::from(cosine(&embedding, &case.embedding)));
            }
        }
        Ok(errors)
    })?;
    Ok(found.filter(|better| better.after <= 1.0 - f64::from(COSINE_TOLERANCE)))
}

/// Plans by their error on some of the labelled pictures, evenly spread.
fn by_labels(pipeline: &Pipeline, inputs: &[Input]) -> Result<Tried> {
    let (bundle, step) = (pipeline.bundle(), inputs.len().div_ceil(TRIED).max(1));
    let chosen: Vec<&Input> = inputs.iter().step_by(step).collect();
    let mut worker = pipeline.worker()?;
    let mut stated = Vec::new();
    let better = search(
        &bundle.manifest().preprocess,
        |plans: &[Plan]| -> Result<_> {
            let mut errors = vec![Vec::new(); plans.len()];
            for input in &chosen {
                let (Ok(frame), Some(label)) = (decode::open(&input.path), input.label) else {
                    continue;
                };
                for (plan, errors) in plans.iter().zip(&mut errors) {
                    let embedding = worker.encode_tensor(&plan.tensor(&frame))?;
                    let value = bundle.estimator().estimate(&embedding).value;
                    errors.push(f64::from((value - label).abs()));
                }
            }
            if stated.is_empty() {
                stated.clone_from(&errors[0]);
            }
            Ok(errors)
        },
    )?;
    if stated.is_empty() {
        let first = chosen.first().map(|input| input.path.display().to_string());
        anyhow::bail!(
            "none of the labelled pictures can be read; the first: {}",
            first.unwrap_or_default()
        );
    }
    Ok(Tried {
        pictures: stated.len(),
        mae: stated.iter().sum::<f64>() / stated.len() as f64,
        better,
    })
}

impl Diagnosis {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        let plan = self.plan.as_ref();
        plan.is_none_or(|plan| plan.explained && plan.mismatches.is_empty())
            && self.engines.iter().all(|fed| fed.passed)
            && self
                .labels
                .as_ref()
                .is_none_or(|tried| tried.better.is_none())
    }

    /// For a person to read.
    ///
    /// # Errors
    /// When a plan cannot be written as TOML.
    pub fn text(&self, manifest: &Manifest) -> Result<String> {
        let mut text = String::from("\ndiagnosis\n");
        if let Some(plan) = &self.plan {
            text += &plan_text(plan)?;
        }
        for fed in &self.engines {
            let verdict = match fed.passed {
                true => "gives the golden embeddings",
                false => "gives other embeddings than the golden ones",
            };
            let (engine, cosine) = (fed.engine, fed.cosine);
            text +=
                &format!("{engine}, fed with the golden tensors, {verdict} (cosine {cosine:.5})\n");
        }
        text += &self.engine_advice();
        if let Some(better) = &self.embeddings {
            text += "the golden embeddings were made from other tensors:\n";
            text += &found_text(&better.mismatches, &better.found)?;
        }
        if let Some(tried) = &self.labels {
            text += &tried.text(manifest)?;
        }
        Ok(text)
    }

    fn engine_advice(&self) -> String {
        let (good, bad): (Vec<&Fed>, Vec<&Fed>) = self.engines.iter().partition(|fed| fed.passed);
        match (good.first(), bad.first()) {
            (Some(good), Some(bad)) => format!(
                "the engine {} is at fault here: use --engine {}, and please report it\n",
                bad.engine, good.engine
            ),
            (None, Some(_)) if self.embeddings.is_none() => {
                "no engine gives the golden embeddings from the golden tensors: the encoder is not the one that they were made with\n".into()
            }
            _ => String::new(),
        }
    }
}

fn plan_text(plan: &PlanDiagnosis) -> Result<String> {
    let rest = plan.rest_levels;
    Ok(match (plan.explained, plan.mismatches.is_empty()) {
        (true, true) => format!("preprocessing makes the golden tensors ({rest:.2}/255 off)\n"),
        (true, false) => format!(
            "the golden tensors were made otherwise than the bundle says ({rest:.2}/255 off with this):\n{}",
            found_text(&plan.mismatches, &plan.found)?
        ),
        (false, _) => format!(
            "no known preprocessing makes the golden tensors; the nearest is {rest:.1}/255 off:\n{}",
            found_text(&plan.mismatches, &plan.found)?
        ),
    })
}

impl Tried {
    fn text(&self, manifest: &Manifest) -> Result<String> {
        let (pictures, mae) = (self.pictures, with_unit(&manifest.task, self.mae));
        let Some(better) = &self.better else {
            return Ok(format!(
                "{pictures} labelled pictures: MAE {mae}; no other preprocessing is better by more than chance\n"
            ));
        };
        let after = with_unit(&manifest.task, better.after);
        Ok(format!(
            "{pictures} labelled pictures: MAE {mae} as the bundle says, {after} with other preprocessing:\n{}",
            found_text(&better.mismatches, &better.found)?
        ))
    }
}

fn found_text(mismatches: &[Mismatch], found: &Plan) -> Result<String> {
    let mut text = String::new();
    for mismatch in mismatches {
        text += &format!("  \x1b[1;31m{mismatch}\x1b[0m\n");
    }
    #[derive(Serialize)]
    struct Section<'a> {
        preprocess: &'a Plan,
    }
    if !mismatches.is_empty() {
        let section = toml::to_string(&Section { preprocess: found })?;
        text += "  what should stand in the task file or bundle.toml:\n";
        let lines = section.lines().filter(|line| !line.is_empty());
        text.extend(lines.map(|line| format!("    {line}\n")));
    }
    Ok(text)
}
