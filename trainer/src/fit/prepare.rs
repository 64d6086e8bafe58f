//! What a run needs before its first step.

use std::collections::HashSet;

use burn::tensor::Device;
use numclip::bins::Bins;
use numclip::estimate::{Calibration, Estimator};

use super::FitError;
use super::start::{self, TeacherSource, WeightsSource};
use super::teacher::Teacher;
use crate::config::Config;
use crate::data::fingerprint::{Fingerprint, fingerprints};
use crate::data::{DataError, Dataset, LeakPolicy, Splits, digest, leak, unlabelled};
use crate::model::numclip::NumClip;
use crate::text::{
    BinEmbeddings, Ordinality, Prompt, TextSide, TextTower, bin_embeddings, load_bin_embeddings,
};

/// Data, splits and bin embeddings of a task.
pub struct Prepared {
    /// All labelled images.
    pub dataset: Dataset,
    /// Which of them are for what.
    pub splits: Splits,
    /// What was found wrong with the data and accepted all the same.
    pub warnings: Vec<String>,
    /// SHA-256 over paths, labels and images.
    pub digest: String,
    /// The bins as the text side sees them before training.
    pub embeddings: BinEmbeddings,
    /// How well these embeddings follow the order of the bins, 0 to 1.
    pub ordinality: f64,
    /// The weights that the encoder starts from; none if it starts from random ones.
    pub init: Option<WeightsSource>,
    /// The model to learn from, where the task has one.
    pub teacher: Option<TeacherSource>,
    /// SHA-256 of each image file, in the order of the data set.
    pub sha256: Vec<[u8; 32]>,
    /// The tower, where the task tunes its prompts.
    tower: Option<TextTower>,
}

/// Opens the data set, divides it and embeds the bins. What a student's task names of images
/// without labels stays out: [`prepare_student`] takes them, to train on.
///
/// # Errors
/// [`FitError`] names the file, and the line where there is one.
pub fn prepare(config: &Config, device: &Device) -> Result<Prepared, FitError> {
    let (embeddings, tower) = embeddings(config, device)?;
    let labelled = labelled(config)?;
    let prepared = prepare_with(config, embeddings, &labelled, labelled.clone())?;
    Ok(Prepared {
        tower: tower.filter(|_| config.text.tune.tunes_prompt()),
        ..prepared
    })
}

/// As [`prepare`] for training a student of `teacher`, whose bins it keeps.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_student(config: &Config, teacher: &Teacher) -> Result<Prepared, FitError> {
    let labelled = labelled(config)?;
    let dataset = with_unlabelled(config, &labelled)?;
    let mut prepared = prepare_with(config, teacher.bins().clone(), &labelled, dataset)?;
    let seen = |split: &str, images: &[usize]| {
        let seen = teacher.has_seen(images.iter().map(|&index| prepared.sha256[index]));
        (seen > 0).then(|| {
            format!(
                "the teacher was trained on {seen} of the {} {split} images: figures on them are \
                 favourable",
                images.len()
            )
        })
    };
    let splits = &prepared.splits;
    let warnings = [seen("validation", &splits.val), seen("test", &splits.test)];
    prepared.warnings.extend(warnings.into_iter().flatten());
    Ok(Prepared {
        teacher: Some(teacher.source().clone()),
        ..prepared
    })
}

/// `dataset` is `labelled`, with or without unlabelled images behind it.
fn prepare_with(
    config: &Config,
    embeddings: BinEmbeddings,
    labelled: &Dataset,
    dataset: Dataset,
) -> Result<Prepared, FitError> {
    let prints = fingerprints(&dataset)?;
    let (splits, warnings) = splits(config, labelled, &dataset, &prints)?;
    Ok(Prepared {
        ordinality: Ordinality::of(embeddings.labels.clone(), &embeddings.values).score,
        digest: dataset.digest(&prints),
        sha256: prints.into_iter().map(|print| print.sha256).collect(),
        init: start::source(config)?,
        teacher: None,
        dataset,
        splits,
        warnings,
        embeddings,
        tower: None,
    })
}

fn labelled(config: &Config) -> Result<Dataset, DataError> {
    let data = &config.data;
    Dataset::open(&data.table, &data.columns, config.task.range)
}

/// The digest of all images of a task, those without labels among them.
pub(super) fn digest_of_all(config: &Config) -> Result<String, FitError> {
    let dataset = with_unlabelled(config, &labelled(config)?)?;
    Ok(dataset.digest(&fingerprints(&dataset)?))
}

/// The labelled images, and behind them those without labels that the task names beside them.
fn with_unlabelled(config: &Config, labelled: &Dataset) -> Result<Dataset, DataError> {
    let place = config.teacher.as_ref().and_then(|t| t.unlabelled.as_ref());
    let Some(place) = place else {
        return Ok(labelled.clone());
    };
    let known: HashSet<_> = labelled
        .samples()
        .iter()
        .map(|s| s.path.as_path())
        .collect();
    let mut paths = unlabelled::images(place, &config.data.columns)?;
    paths.retain(|path| !known.contains(path.as_path()));
    Ok(labelled.clone().with_unlabelled(paths))
}

/// Other images to measure a task's model on: all of them are the test split.
///
/// # Errors
/// [`FitError`] when there are no bin embeddings.
pub fn prepare_for(
    config: &Config,
    dataset: Dataset,
    device: &Device,
) -> Result<Prepared, FitError> {
    let (embeddings, tower) = embeddings(config, device)?;
    let splits = Splits {
        test: (0..dataset.samples().len()).collect(),
        ..Splits::default()
    };
    Ok(Prepared {
        ordinality: Ordinality::of(embeddings.labels.clone(), &embeddings.values).score,
        digest: String::new(),
        sha256: Vec::new(),
        init: start::source(config)?,
        teacher: None,
        dataset,
        splits,
        warnings: Vec::new(),
        embeddings,
        tower: tower.filter(|_| config.text.tune.tunes_prompt()),
    })
}

/// The splits that the configuration asks for, and what is to be said of the
/// leaks between them.
fn splits(
    config: &Config,
    labelled: &Dataset,
    dataset: &Dataset,
    prints: &[Fingerprint],
) -> Result<(Splits, Vec<String>), DataError> {
    let data = &config.data;
    let seed = config.train.seed;
    let mut splits = data
        .protocol
        .splits(labelled, &data.split, &config.bin, seed)?;
    splits.unlabelled = strangers(labelled.samples().len(), prints);
    let leaks = leak::find(dataset, &splits, prints);
    if leaks.is_empty() {
        return Ok((splits, Vec::new()));
    }
    let what = match data.leaks {
        LeakPolicy::Drop if leak::drop_copies(&mut splits, &leaks) => {
            "left out of training, and of validation where test has them"
        }
        LeakPolicy::Allow => "allowed by data.leaks",
        LeakPolicy::Refuse | LeakPolicy::Drop => return Err(dataset.leaking(leaks)),
    };
    let mut warnings = vec![format!("leaks between the splits, {what}:")];
    warnings.extend(leak::summary(&leaks));
    Ok((splits, warnings))
}

/// Positions of the images behind the first `labelled` that are copies of none of those.
fn strangers(labelled: usize, prints: &[Fingerprint]) -> Vec<usize> {
    let (known, others) = prints.split_at(labelled);
    let mut seen: HashSet<&[u8; 32]> = known.iter().map(|print| &print.sha256).collect();
    let others = (labelled..).zip(others);
    others
        .filter(|(_, print)| seen.insert(&print.sha256))
        .map(|(index, _)| index)
        .collect()
}

/// The model at the start of training.
///
/// # Errors
/// [`FitError`] when the configuration describes no network, or the weights
/// to start from do not fit it.
pub fn untrained(
    config: &Config,
    prepared: &Prepared,
    device: &Device,
) -> Result<NumClip, FitError> {
    let seed = config.train.seed;
    let encoder = start::encoder(config, prepared.embeddings.dim, device)?;
    let text = text_side(config, prepared, device)?;
    Ok(config
        .model
        .head
        .build(encoder, text, &config.bin, seed, device))
}

fn text_side(config: &Config, prepared: &Prepared, device: &Device) -> Result<TextSide, FitError> {
    let tune = &config.text.tune;
    let embeddings = &prepared.embeddings;
    match &prepared.tower {
        Some(tower) => Ok(TextSide::tuned_prompt(
            tower,
            &prompt(config),
            tune,
            device,
        )?),
        None if tune.embeddings => Ok(TextSide::tuned_embeddings(embeddings, device)),
        None => Ok(TextSide::frozen(embeddings, device)),
    }
}

pub(super) fn prompt(config: &Config) -> Prompt {
    Prompt {
        context: config.text.context.clone(),
        bins: config.bin.iter().map(|bin| bin.label.clone()).collect(),
        placement: config.text.placement,
    }
}

fn embeddings(
    config: &Config,
    device: &Device,
) -> Result<(BinEmbeddings, Option<TextTower>), FitError> {
    let text = &config.text;
    let prompt = prompt(config);
    if let Some(path) = &text.embeddings {
        return Ok((load_bin_embeddings(path, &prompt.bins)?, None));
    }
    if config.teacher.is_some() {
        return Err(FitError::NoBins);
    }
    let tower = match &text.weights {
        Some(path) => TextTower::load(path, &config.clip, device)?,
        None => TextTower::random(&text.tower, device)?,
    };
    Ok((bin_embeddings(&tower, &prompt)?, Some(tower)))
}

impl Prepared {
    /// SHA-256, in hexadecimal, over the images for training, validation and test in their order:
    /// names, labels and files. Which of them are held back, what is drawn of them and how they
    /// are batched hangs on that order.
    pub fn splits_digest(&self) -> String {
        let splits = &self.splits;
        self.digest_of(&[&splits.train, &splits.val, &splits.test])
    }

    /// The same over the unlabelled images; empty without any.
    pub fn unlabelled_digest(&self) -> String {
        match self.splits.unlabelled.as_slice() {
            [] => String::new(),
            unlabelled => self.digest_of(&[unlabelled]),
        }
    }

    fn digest_of(&self, lists: &[&[usize]]) -> String {
        digest::of_lists(self.dataset.samples(), &self.sha256, lists)
    }

    /// The bin embeddings that `model` matches images against.
    ///
    /// # Errors
    /// [`FitError::Text`] when a tuned embedding is zero or not finite.
    pub fn bin_embeddings(&self, model: &NumClip) -> Result<BinEmbeddings, FitError> {
        match model.text().is_tuned() {
            true => Ok(self.embeddings.tuned(model.text().bins())?),
            false => Ok(self.embeddings.clone()),
        }
    }

    /// The runtime's estimator for `model`, by which it is measured too.
    ///
    /// # Errors
    /// [`FitError`] when a trained value is not finite.
    pub fn estimator(
        &self,
        config: &Config,
        model: &NumClip,
        calibration: Option<Calibration>,
    ) -> Result<Estimator, FitError> {
        let fail = |error: &dyn std::fmt::Display| FitError::Estimator(error.to_string());
        let embeddings = self.bin_embeddings(model)?.values;
        let bins = Bins::new(config.bin.clone(), embeddings).map_err(|e| fail(&e))?;
        let scale = config.model.head.logit_scale as f32;
        Estimator::new(
            bins,
            model.plain_regressor(),
            scale,
            config.task.range,
            calibration,
        )
        .map_err(|e| fail(&e))
    }
}
