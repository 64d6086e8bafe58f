//! Keys that other keys leave without effect.
//!
//! A task file must not have them: whoever wrote them expects something of them. Changes to it by
//! flags may leave some behind, for a comparison switches things off. The files that runs keep are
//! read all the same.

use super::check::require;
use super::{Config, ConfigErrorKind, LossWeights};
use crate::data::Weighting;
use crate::model::Architecture;
use crate::text::{Placement, TextConfig};

impl Config {
    pub(super) fn check_unused(&self) -> Result<(), ConfigErrorKind> {
        self.check_unused_text()?;
        self.check_unused_lessons()?;
        let (loss, weighting) = (&self.train.loss, self.train.weighting);
        require(
            weighting == Weighting::None || loss.cross_entropy > 0.0 || loss.value > 0.0,
            "train.weighting",
            "\"none\", because it weighs train.loss.cross_entropy and value, which are both 0",
            &weighting,
        )
    }

    fn check_unused_text(&self) -> Result<(), ConfigErrorKind> {
        let text = &self.text;
        if text.embeddings.is_some() {
            let prompt = (&text.context, text.placement);
            require(
                prompt == (&String::new(), Placement::default()),
                "text",
                "no context or placement beside text.embeddings, which are made already",
                &prompt,
            )?;
        }
        let has_weights = text.weights.is_some() || self.model.architecture == Architecture::Clip;
        require(
            text.tower == TextConfig::default() || (text.embeddings.is_none() && !has_weights),
            "text.tower",
            "none beside text.embeddings, text.weights or a CLIP checkpoint in model.init: it is \
             the size of a tower with random weights",
            &text.tower,
        )
    }

    fn check_unused_lessons(&self) -> Result<(), ConfigErrorKind> {
        let Some(teacher) = &self.teacher else {
            return Ok(());
        };
        require(
            teacher.unlabelled.is_some() || teacher.unlabelled_batch.is_none(),
            "teacher.unlabelled_batch",
            "none without teacher.unlabelled",
            &teacher.unlabelled_batch,
        )?;
        let labels = (self.train.loss, self.train.weighting);
        require(
            teacher.supervised || labels == (LossWeights::default(), Weighting::None),
            "train",
            "no loss or weighting beside teacher.supervised = false: labels are not learned",
            &labels,
        )
    }
}
