//! What a CLIP checkpoint settles about a task.

use numclip::preprocess::Plan;
use toml::Table;

use super::Config;
use crate::checkpoint::CheckpointError;
use crate::clip::ClipFile;
use crate::model::Architecture;

/// The published method's learning rate for the whole model.
const LEARNING_RATE: f64 = 1e-5;

impl Config {
    /// Fills in what the task file, parsed as `written`, leaves to the checkpoint of a CLIP
    /// encoder: preprocessing, logit scale, text tower. So the resolved file needs it no more.
    pub(super) fn follow_checkpoint(&mut self, written: &Table) -> Result<(), CheckpointError> {
        let (Architecture::Clip, Some(path)) = (self.model.architecture, &self.model.init) else {
            return Ok(());
        };
        let own_bins = self.text.weights.is_none() && self.text.embeddings.is_none();
        if own_bins && self.teacher.is_none() {
            self.text.weights = Some(path.clone());
        }
        if !is_set(written, &["train", "optimizer", "lr"]) {
            self.train.optimizer.lr = LEARNING_RATE;
        }
        let plan = is_set(written, &["preprocess"]);
        let scale = is_set(written, &["model", "head", "logit_scale"]);
        if plan && scale {
            return Ok(());
        }
        let file = ClipFile::open(path, &self.clip)?;
        if let Some(shape) = file.image()?
            && !plan
        {
            self.preprocess = Plan::clip(shape.image() as u32);
        }
        if let Some(factor) = file.logit_scale()?
            && !scale
        {
            self.model.head.logit_scale = factor.into();
        }
        Ok(())
    }
}

fn is_set(table: &Table, path: &[&str]) -> bool {
    match path {
        [] => true,
        [name] => table.contains_key(*name),
        [name, rest @ ..] => {
            let inner = table.get(*name).and_then(|value| value.as_table());
            inner.is_some_and(|inner| is_set(inner, rest))
        }
    }
}
