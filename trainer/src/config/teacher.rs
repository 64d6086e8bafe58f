//! The `[teacher]` of a task file: from whom a student learns, and what.

use std::path::PathBuf;

use numclip::preprocess::Plan;
use serde::{Deserialize, Serialize};

use super::check::require;
use super::{Config, ConfigErrorKind};

/// A trained model whose outputs the model learns to give; its bins and their embeddings are the
/// student's. One of `run`, `bundle`, `weights` and `onnx` names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Teacher {
    /// Folder of a run, or one of its weight files: `best.safetensors`, which a folder stands for,
    /// or `checkpoint.safetensors`, its last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<PathBuf>,
    /// Folder of a bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<PathBuf>,
    /// CLIP checkpoint: its image tower teaches, its text tower embeds the bins in the words of
    /// `[text] context`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Any image encoder in ONNX, `[1, 3, size, size]` to `[1, D]`; with `preprocess` and
    /// `embeddings`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnx: Option<PathBuf>,
    /// From image to the teacher's tensor, of `onnx`; of `weights`, CLIP's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Plan>,
    /// Bin embeddings in the space of `onnx`: a file as `text.embeddings` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<PathBuf>,
    /// Weights of what the student learns of the teacher.
    pub loss: TeacherLoss,
    /// Whether the labels are learned as well, by `train.loss`.
    pub supervised: bool,
    /// What teacher and student see of a training image.
    pub views: ViewPlan,
    /// Further images, without labels: a folder, a pattern such as `photos/**/*.jpg`, or a CSV
    /// table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlabelled: Option<PathBuf>,
    /// Unlabelled images beside each batch; `train.batch_size` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlabelled_batch: Option<usize>,
    /// Folder of the teacher's outputs, which runs share; `TABLE.teacher` beside the data if
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// Weights of what a student learns of its teacher; a term of weight 0 is not computed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherLoss {
    /// Direction of the embedding: `1 − cosine`. Logits are cosines times the logit scale, so the
    /// other terms pull at the embedding tens of times as hard as this one of the same weight.
    pub embedding: f64,
    /// Distribution over the bins: Kullback-Leibler, softened by `temperature`.
    pub distribution: f64,
    /// Absolute difference of the values, in the task's unit.
    pub value: f64,
    /// Divides the logits of `distribution`.
    pub temperature: f64,
}

/// What teacher and student see of a training image.
///
/// A student that sees other pictures than its teacher learns less (Beyer et al., "Knowledge
/// distillation: A good teacher is patient and consistent", CVPR 2022); but what the teacher says of
/// a picture can be kept only if the picture comes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"clean\" or a number of views of each image"
)]
pub enum ViewPlan {
    /// `"clean"`: the teacher sees the image as it is, once; the student sees it under new random
    /// changes in every epoch, and learns what the teacher says of it unchanged.
    Clean(Clean),
    /// So many random views of each image, one after the other, which both see. The teacher is
    /// asked about all of them before training; its answers stay in memory (images × views ×
    /// embedding width × 4 bytes) and on disk.
    Fixed(u32),
}

/// The word for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clean {
    /// As it is.
    Clean,
}

/// Whom a [`Teacher`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TeacherKind {
    /// A run of the trainer.
    Run,
    /// A bundle.
    Bundle,
    /// A CLIP checkpoint.
    Weights,
    /// An ONNX network.
    Onnx,
}

impl Default for Teacher {
    fn default() -> Self {
        Self {
            run: None,
            bundle: None,
            weights: None,
            onnx: None,
            preprocess: None,
            embeddings: None,
            loss: TeacherLoss::default(),
            supervised: true,
            views: ViewPlan::Fixed(8),
            unlabelled: None,
            unlabelled_batch: None,
            cache: None,
        }
    }
}

impl Default for TeacherLoss {
    fn default() -> Self {
        Self {
            embedding: 10.0,
            distribution: 1.0,
            value: 1.0,
            temperature: 2.0,
        }
    }
}

impl Teacher {
    /// The teachers named; exactly one in a task file that passed its checks.
    pub fn named(&self) -> Vec<(TeacherKind, &PathBuf)> {
        let all = [
            (TeacherKind::Run, &self.run),
            (TeacherKind::Bundle, &self.bundle),
            (TeacherKind::Weights, &self.weights),
            (TeacherKind::Onnx, &self.onnx),
        ];
        let named = all.into_iter();
        named
            .filter_map(|(kind, path)| Some((kind, path.as_ref()?)))
            .collect()
    }

    /// Paths of the teacher and its files, but for the pattern of unlabelled images.
    pub(super) fn paths(&mut self) -> [&mut Option<PathBuf>; 7] {
        [
            &mut self.run,
            &mut self.bundle,
            &mut self.weights,
            &mut self.onnx,
            &mut self.embeddings,
            &mut self.unlabelled,
            &mut self.cache,
        ]
    }
}

impl Config {
    pub(super) fn check_teacher(&self) -> Result<(), ConfigErrorKind> {
        let Some(teacher) = &self.teacher else {
            return Ok(());
        };
        teacher.check_source()?;
        teacher.check_lessons()?;
        require(
            self.text.weights.is_none()
                && self.text.embeddings.is_none()
                && !self.text.tune.is_some(),
            "text",
            "no weights, embeddings or tune beside [teacher]: the bins are the teacher's",
            &self.text,
        )
    }
}

impl Teacher {
    fn check_source(&self) -> Result<(), ConfigErrorKind> {
        let named = self.named();
        let kind = named.first().map(|(kind, _)| *kind);
        require(
            named.len() == 1,
            "teacher",
            "one of run, bundle, weights and onnx",
            &named,
        )?;
        let own = (self.preprocess.is_some(), self.embeddings.is_some());
        let fits = match kind {
            Some(TeacherKind::Onnx) => own == (true, true),
            Some(TeacherKind::Weights) => !own.1,
            _ => own == (false, false),
        };
        require(
            fits,
            "teacher",
            "preprocess and embeddings beside onnx, at most preprocess beside weights, and neither beside run and bundle",
            &named,
        )?;
        match &self.preprocess {
            Some(plan) => Ok(plan.check()?),
            None => Ok(()),
        }
    }

    fn check_lessons(&self) -> Result<(), ConfigErrorKind> {
        let loss = &self.loss;
        let weights = [loss.embedding, loss.distribution, loss.value];
        let usable = weights
            .iter()
            .all(|weight| weight.is_finite() && *weight >= 0.0);
        require(
            usable && (self.supervised || weights.iter().sum::<f64>() > 0.0),
            "teacher.loss",
            "weights of 0 or more, and not all 0 where supervised = false",
            loss,
        )?;
        require(
            loss.temperature.is_finite() && loss.temperature > 0.0,
            "teacher.loss.temperature",
            "a positive number",
            &loss.temperature,
        )?;
        require(
            !matches!(self.views, ViewPlan::Fixed(count) if !(1..=10_000).contains(&count)),
            "teacher.views",
            "\"clean\" or 1 to 10000",
            &self.views,
        )?;
        require(
            self.unlabelled_batch
                .is_none_or(|batch| (1..=4096).contains(&batch)),
            "teacher.unlabelled_batch",
            "1 to 4096",
            &self.unlabelled_batch,
        )
    }
}
