//! What a task file may say of the task, the model and the data: the checks, and the errors of all
//! of them.

use std::path::PathBuf;

use numclip::bins::{BinsError, check_ranges};
use numclip::preprocess::PlanError;
use thiserror::Error;

use super::Config;
use crate::checkpoint::CheckpointError;
use crate::clip::transformer::Precision;
use crate::data::augment::AugmentError;
use crate::model::numclip::RegressorConfig;
use crate::model::{Architecture, Norm, Padding};
use crate::optim::OptimError;

/// A task file that cannot be used.
#[derive(Debug, Error)]
#[error("{}: {kind}", path.display())]
pub struct ConfigError {
    pub(super) path: PathBuf,
    pub(super) kind: ConfigErrorKind,
}

/// What is wrong with a task file.
#[derive(Debug, Error)]
pub enum ConfigErrorKind {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is not TOML of this form.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// The bins are not ascending ranges.
    #[error("{0}")]
    Bins(#[from] BinsError),
    /// The preprocessing cannot be carried out.
    #[error("{0}")]
    Plan(#[from] PlanError),
    /// The CLIP checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The learning-rate schedule does not work.
    #[error("train.schedule: {0}")]
    Schedule(OptimError),
    /// The optimiser does not work.
    #[error("train.optimizer: {0}")]
    Optimizer(OptimError),
    /// A random change of images is out of its range.
    #[error(transparent)]
    Augment(#[from] AugmentError),
    /// A value is out of bounds.
    #[error("{field}: expected {expected}, got {got}")]
    Value {
        /// The field.
        field: &'static str,
        /// What may stand there.
        expected: String,
        /// What stands there.
        got: String,
    },
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigErrorKind> {
        check_ranges(&self.bin)?;
        self.preprocess.check()?;
        self.check_task()?;
        self.check_tuning()?;
        self.check_head()?;
        self.check_encoder()?;
        self.check_protocol()?;
        self.check_teacher()?;
        self.check_train()?;
        self.check_export()
    }

    fn check_task(&self) -> Result<(), ConfigErrorKind> {
        let [low, high] = self.task.range;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let name = &self.task.name;
        require(
            !name.is_empty() && name.chars().all(plain),
            "task.name",
            "letters, digits, '-', '_' and '.'",
            name,
        )?;
        require(
            low.is_finite() && high.is_finite() && low < high,
            "task.range",
            "two finite numbers, ascending",
            &self.task.range,
        )
    }

    fn check_head(&self) -> Result<(), ConfigErrorKind> {
        let head = &self.model.head;
        let share =
            |field, value: f64| require((0.0..=1.0).contains(&value), field, "0 to 1", &value);
        require(
            head.logit_scale.is_finite() && head.logit_scale > 0.0,
            "model.head.logit_scale",
            "a positive number",
            &head.logit_scale,
        )?;
        if let Some(adapter) = &head.adapter {
            require(
                adapter.reduction >= 1,
                "model.head.adapter.reduction",
                "1 or more",
                &adapter.reduction,
            )?;
            share("model.head.adapter.ratio", adapter.ratio)?;
        }
        match head.regressor {
            RegressorConfig::Ssr { lambda } => share("model.head.regressor.lambda", lambda),
            RegressorConfig::Expectation => Ok(()),
        }
    }

    fn check_encoder(&self) -> Result<(), ConfigErrorKind> {
        let model = &self.model;
        let architecture = model.architecture;
        require(
            architecture == Architecture::VitTiny || model.patch.is_none(),
            "model.patch",
            "none but beside architecture = \"vit-tiny\"",
            &model.patch,
        )?;
        if architecture.is_convolutional() {
            return require(
                self.train.precision == Precision::F32,
                "train.precision",
                "\"f32\" for a convolutional encoder",
                &self.train.precision,
            );
        }
        require(
            architecture != Architecture::Clip || model.init.is_some(),
            "model.init",
            "a CLIP checkpoint, from which architecture = \"clip\" takes its network",
            &"none",
        )?;
        let shape = (model.width, model.padding, model.norm, model.branches);
        require(
            shape == (1.0, Padding::default(), Norm::default(), None),
            "model",
            "no width, padding, norm or branches beside architecture = \"clip\" or \"vit-tiny\"",
            &shape,
        )?;
        match architecture {
            Architecture::VitTiny => self.check_patches(),
            _ => Ok(()),
        }
    }

    fn check_patches(&self) -> Result<(), ConfigErrorKind> {
        let (patch, size) = (self.model.patch(), self.preprocess.size as usize);
        require([16, 32].contains(&patch), "model.patch", "16 or 32", &patch)?;
        require(
            size.is_multiple_of(patch),
            "preprocess.size",
            &format!("a multiple of {patch}, the side of a patch"),
            &size,
        )
    }

    fn check_tuning(&self) -> Result<(), ConfigErrorKind> {
        let (text, tune) = (&self.text, &self.text.tune);
        require(
            text.weights.is_none() || text.embeddings.is_none(),
            "text",
            "weights or embeddings",
            &"both",
        )?;
        require(
            !(tune.embeddings && tune.tunes_prompt()),
            "text.tune",
            "embeddings, or ranks and context",
            tune,
        )?;
        require(
            text.embeddings.is_none() || !tune.tunes_prompt(),
            "text.tune",
            "embeddings = true where text.embeddings is given: there is no tower for a prompt",
            tune,
        )?;
        require(
            tune.ranks || tune.base_ranks.is_none(),
            "text.tune.base_ranks",
            "ranks = true beside it",
            &tune.ranks,
        )
    }

    fn check_protocol(&self) -> Result<(), ConfigErrorKind> {
        let protocol = &self.data.protocol;
        require(
            protocol
                .fold
                .is_none_or(|fold| fold.of >= 2 && (1..=fold.of).contains(&fold.number)),
            "data.protocol.fold",
            "a number from 1 to that of the folds, which is 2 or more",
            &protocol.fold,
        )?;
        require(
            protocol.fold.is_none() || protocol.leave_out.is_none(),
            "data.protocol",
            "fold or leave_out",
            &"both",
        )?;
        require(
            protocol.few_shot.is_none_or(|few| few.images > 0),
            "data.protocol.few_shot.images",
            "1 or more",
            &0,
        )?;
        require(
            protocol
                .shift
                .is_none_or(|shift| shift.keep > 0.0 && shift.keep < 1.0),
            "data.protocol.shift.keep",
            "above 0 and below 1",
            &protocol.shift,
        )
    }
}

pub(super) fn require(
    fits: bool,
    field: &'static str,
    expected: &str,
    got: &impl std::fmt::Debug,
) -> Result<(), ConfigErrorKind> {
    match fits {
        true => Ok(()),
        false => Err(ConfigErrorKind::Value {
            field,
            expected: expected.into(),
            got: format!("{got:?}"),
        }),
    }
}
