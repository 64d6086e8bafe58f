//! Opening a teacher, whatever it is.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module as _;
use burn::tensor::Device;
use numclip::bins::{Bin, Bins};
use numclip::bundle::{self, Bundle};
use numclip::encode::int8::Int8Model;
use numclip::encode::tract::TractModel;
use numclip::encode::{self, EncodeError, Model};
use numclip::estimate::{Estimator, Regressor};
use numclip::preprocess::Plan;
use sha2::{Digest as _, Sha256};

use super::super::prepare::{prepare, prepare_for, prompt, untrained};
use super::super::{FitError, Run, Weights};
use super::{Network, Teacher, TeacherError, TeacherSource};
use crate::checkpoint::Checkpoint;
use crate::clip::ClipFile;
use crate::config::{Config, TeacherKind};
use crate::data::Dataset;
use crate::data::digest::hexadecimal;
use crate::model::ImageEncoder;
use crate::text::{BinEmbeddings, TextSource, TextTower, bin_embeddings, load_bin_embeddings};

/// CLIP's scale of the cosines.
const CLIP_SCALE: f64 = 100.0;

impl Teacher {
    /// Opens the teacher that a task file names; none if it names none.
    ///
    /// # Errors
    /// [`TeacherError`]: it cannot be opened, or does not fit the task.
    pub fn open(config: &Config, device: &Device) -> Result<Option<Self>, TeacherError> {
        let Some(wanted) = &config.teacher else {
            return Ok(None);
        };
        let teacher = match wanted.named().first() {
            Some((TeacherKind::Run, path)) => Self::of_run(path, device)?,
            Some((TeacherKind::Bundle, path)) => Self::of_bundle(path)?,
            Some((TeacherKind::Weights, path)) => Self::of_weights(config, path, device)?,
            Some((TeacherKind::Onnx, path)) => Self::of_onnx(config, path)?,
            None => return Ok(None),
        };
        teacher.check(config)?;
        Ok(Some(teacher))
    }

    fn check(&self, config: &Config) -> Result<(), TeacherError> {
        let known = self.estimator.bins().as_slice();
        if known != config.bin {
            let bin = |bin: &Bin| format!("{:?} {} to {}", bin.label, bin.start, bin.end);
            return Err(TeacherError::Bins {
                teacher: self.source.name.clone(),
                known: known.iter().map(bin).collect::<Vec<_>>().join(", "),
            });
        }
        let student = config.model.head.logit_scale;
        let compared = config.teacher.iter().any(|t| t.loss.distribution > 0.0);
        match compared && (self.logit_scale / student - 1.0).abs() > 1e-3 {
            true => Err(TeacherError::LogitScale {
                teacher: self.logit_scale,
                student,
            }),
            false => Ok(()),
        }
    }

    fn of_run(path: &Path, device: &Device) -> Result<Self, TeacherError> {
        let (folder, weights) = run_at(path).ok_or_else(|| TeacherError::NoRun(path.into()))?;
        let open = || -> Result<_, FitError> {
            let (run, config, provenance) = Run::read(&folder)?;
            let prepared = prepare_for(&config, Dataset::default(), device)?;
            let model = run.load(untrained(&config, &prepared, device)?, weights)?;
            let model = model.valid();
            let estimator = prepared.estimator(&config, &model, None)?;
            let bins = prepared.bin_embeddings(&model)?;
            Ok((run, config, provenance, model, estimator, bins))
        };
        let (run, mut config, provenance, model, estimator, bins) =
            open().map_err(|error| TeacherError::Run(error.into()))?;
        let (_, sha256) = Checkpoint::open(&match weights {
            Weights::Best => run.best(),
            Weights::Last => run.checkpoint(),
        })?
        .identity()?;
        let seen = seen(&config, device);
        config.model.init = None;
        Ok(Self {
            source: TeacherSource {
                name: format!("run {}", file_name(&folder)),
                learned_from: learned_from(&config.data.description, &provenance.data_digest),
                sha256: sha256.clone(),
            },
            bins,
            plan: config.preprocess,
            estimator,
            logit_scale: config.model.head.logit_scale,
            network: Network::Run(Box::new(model)),
            key: format!("run {sha256} {}", json(&config.model)),
            seen,
        })
    }

    fn of_bundle(path: &Path) -> Result<Self, TeacherError> {
        let bundle = Bundle::open(path).map_err(|error| TeacherError::Bundle {
            path: path.into(),
            error,
        })?;
        let model = encode::load(&bundle, None)?.model;
        let (manifest, estimator) = (bundle.manifest(), bundle.estimator());
        let (name, provenance) = (&manifest.model, &manifest.provenance);
        Ok(Self {
            source: TeacherSource {
                name: format!("bundle {} {}", name.name, name.version),
                sha256: bundle.sha256().into(),
                learned_from: learned_from(&provenance.data, &provenance.data_digest),
            },
            bins: BinEmbeddings {
                labels: labels(estimator.bins().as_slice()),
                dim: estimator.bins().dim(),
                values: estimator.bins().embeddings().to_vec(),
                source: TextSource::Embeddings {
                    file: bundle::BINS.into(),
                    sha256: manifest.files[bundle::BINS].clone(),
                    model: Some(provenance.text_tower.clone()),
                },
            },
            plan: manifest.preprocess.clone(),
            estimator: estimator.clone(),
            logit_scale: manifest.logit_scale.into(),
            key: format!("bundle {} {}", bundle.sha256(), model.engine()),
            seen: HashSet::new(),
            network: Network::Engine(model),
        })
    }

    fn of_weights(config: &Config, path: &Path, device: &Device) -> Result<Self, TeacherError> {
        let file = ClipFile::open(path, &config.clip)?;
        let given = config.teacher.as_ref().and_then(|t| t.preprocess.clone());
        let plan = match (given, file.image()?) {
            (Some(plan), _) => plan,
            (None, Some(shape)) => Plan::clip(shape.image() as u32),
            (None, None) => Plan::clip(224),
        };
        let tower = ImageEncoder::clip(&file, plan.size as usize, device)?;
        let bins = bin_embeddings(
            &TextTower::load(path, &config.clip, device)?,
            &prompt(config),
        )?;
        if tower.dim() != bins.dim {
            return Err(TeacherError::Width {
                image: tower.dim(),
                bins: bins.dim,
            });
        }
        let scale = file.logit_scale()?.map_or(CLIP_SCALE, f64::from);
        let (name, sha256) = file.checkpoint().identity()?;
        Ok(Self {
            source: untold("CLIP", &name, &sha256),
            estimator: expectation(config, &bins, scale)?,
            bins,
            plan,
            logit_scale: scale,
            network: Network::Tower(Box::new(tower)),
            key: format!("clip {sha256} {}", json(&config.clip)),
            seen: HashSet::new(),
        })
    }

    fn of_onnx(config: &Config, path: &Path) -> Result<Self, TeacherError> {
        let wanted = config.teacher.as_ref();
        let plan = wanted.and_then(|teacher| teacher.preprocess.clone());
        let bins = wanted.and_then(|teacher| teacher.embeddings.as_ref());
        let (Some(plan), Some(bins)) = (plan, bins) else {
            let missing = "onnx needs preprocess and embeddings beside it";
            return Err(TeacherError::Estimator(missing.into()));
        };
        let bins = load_bin_embeddings(bins, &labels(&config.bin))?;
        let bytes = fs::read(path).map_err(|error| TeacherError::File {
            path: path.into(),
            error,
        })?;
        let model = network(path, &bytes, plan.size as usize, bins.dim)?;
        let scale = config.model.head.logit_scale;
        let sha256 = hexadecimal(&Sha256::digest(&bytes));
        Ok(Self {
            source: untold("ONNX", &file_name(path), &sha256),
            estimator: expectation(config, &bins, scale)?,
            bins,
            plan,
            logit_scale: scale,
            key: format!("onnx {sha256} {}", model.engine()),
            seen: HashSet::new(),
            network: Network::Engine(model),
        })
    }
}

/// A file that does not say what it learned from.
fn untold(kind: &str, name: &str, sha256: &str) -> TeacherSource {
    TeacherSource {
        name: format!("{kind} {name}"),
        learned_from: String::new(),
        sha256: sha256.into(),
    }
}

/// SHA-256 of the images that a run was trained on; none if its data is gone.
fn seen(config: &Config, device: &Device) -> HashSet<[u8; 32]> {
    let Ok(prepared) = prepare(config, device) else {
        return HashSet::new();
    };
    let train = prepared.splits.train.iter();
    train.map(|&index| prepared.sha256[index]).collect()
}

/// By the fast engine where it can, else by the general one.
fn network(
    path: &Path,
    bytes: &[u8],
    size: usize,
    dim: usize,
) -> Result<Box<dyn Model>, EncodeError> {
    let name = path.display().to_string();
    match Int8Model::from_bytes(&name, bytes, size, dim) {
        Ok(model) => Ok(Box::new(model)),
        Err(_) => Ok(Box::new(TractModel::from_bytes(&name, bytes, size, dim)?)),
    }
}

/// An estimator without a regressor of its own: the mean of the bin centres.
fn expectation(
    config: &Config,
    bins: &BinEmbeddings,
    scale: f64,
) -> Result<Estimator, TeacherError> {
    let values = config.bin.iter().map(Bin::center).collect();
    let rows = Bins::new(config.bin.clone(), bins.values.clone());
    let rows = rows.map_err(|error| TeacherError::Estimator(error.to_string()))?;
    let regressor = Regressor::Expectation { values };
    Estimator::new(rows, regressor, scale as f32, config.task.range, None)
        .map_err(|error| TeacherError::Estimator(error.to_string()))
}

/// The folder of a run, and which of its weights `path` names.
fn run_at(path: &Path) -> Option<(PathBuf, Weights)> {
    let is_run = |folder: &Path| folder.join("task.toml").is_file();
    let weights = match path.file_name()?.to_str()? {
        "best.safetensors" => Weights::Best,
        "checkpoint.safetensors" => Weights::Last,
        _ => return is_run(path).then(|| (path.into(), Weights::Best)),
    };
    let folder = path.parent().filter(|folder| is_run(folder))?;
    Some((folder.into(), weights))
}

fn learned_from(description: &str, digest: &str) -> String {
    match description.is_empty() {
        true => format!("data of digest {digest}"),
        false => format!("{description} (digest {digest})"),
    }
}

fn labels(bins: &[Bin]) -> Vec<String> {
    bins.iter().map(|bin| bin.label.clone()).collect()
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
