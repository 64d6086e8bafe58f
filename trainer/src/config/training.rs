//! What a task file may say of training and export.

use super::check::require;
use super::{Config, ConfigErrorKind};
use crate::data::Sampling;

impl Config {
    pub(super) fn check_train(&self) -> Result<(), ConfigErrorKind> {
        let train = &self.train;
        train
            .schedule
            .validate()
            .map_err(ConfigErrorKind::Schedule)?;
        train
            .optimizer
            .validate()
            .map_err(ConfigErrorKind::Optimizer)?;
        self.augment.check()?;
        self.check_counts()?;
        require(
            train.ema.is_none_or(|decay| (0.0..1.0).contains(&decay)),
            "train.ema",
            "0 to below 1",
            &train.ema,
        )?;
        require(
            train.clip_norm.is_none_or(|norm| norm > 0.0),
            "train.clip_norm",
            "a positive number",
            &train.clip_norm,
        )?;
        if let Sampling::Balanced { power } = train.sampling {
            let fits = (0.0..=1.0).contains(&power);
            require(fits, "train.sampling.power", "0 to 1", &power)?;
        }
        self.check_loss()
    }

    fn check_counts(&self) -> Result<(), ConfigErrorKind> {
        let train = &self.train;
        require(
            (1..=100_000).contains(&train.epochs),
            "train.epochs",
            "1 to 100000",
            &train.epochs,
        )?;
        require(
            (1..=4096).contains(&train.batch_size),
            "train.batch_size",
            "1 to 4096",
            &train.batch_size,
        )?;
        require(
            (1..=4096).contains(&train.accumulate),
            "train.accumulate",
            "1 to 4096",
            &train.accumulate,
        )?;
        require(
            train.checkpoint_steps > 0,
            "train.checkpoint_steps",
            "1 or more",
            &train.checkpoint_steps,
        )
    }

    fn check_loss(&self) -> Result<(), ConfigErrorKind> {
        let loss = &self.train.loss;
        let weights = [
            loss.image_to_text,
            loss.text_to_image,
            loss.cross_entropy,
            loss.kl,
            loss.value,
        ];
        let usable = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
        require(
            usable && weights.iter().sum::<f64>() > 0.0,
            "train.loss",
            "weights of 0 or more, not all 0",
            loss,
        )
    }

    pub(super) fn check_export(&self) -> Result<(), ConfigErrorKind> {
        let export = &self.export;
        require(
            (0.5..1.0).contains(&export.coverage),
            "export.coverage",
            "0.5 to below 1",
            &export.coverage,
        )?;
        require(
            export.range.is_valid(),
            "export.range",
            "a percentile that keeps 0.9 to 1, a moving average that keeps 0 to below 1",
            &export.range,
        )?;
        require(
            (0.0..=1.0).contains(&export.smoothing),
            "export.smoothing",
            "0 to 1",
            &export.smoothing,
        )?;
        require(
            export.calibration_images > 0,
            "export.calibration_images",
            "1 or more",
            &0,
        )
    }
}
