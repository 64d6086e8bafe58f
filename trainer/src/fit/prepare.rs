//! What a run needs before its first step.

use burn::tensor::{Device, Tensor, TensorData};
use numclip::bins::Bins;
use numclip::estimate::{Calibration, Estimator};

use super::FitError;
use crate::config::Config;
use crate::data::fingerprint::{Fingerprint, fingerprints};
use crate::data::{DataError, Dataset, Leak, LeakPolicy, Splits, leak};
use crate::model::numclip::NumClip;
use crate::model::weights;
use crate::text::{
    BinEmbeddings, Prompt, TextTower, bin_embeddings, load_bin_embeddings, ordinality,
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
    /// The bins as the text side sees them.
    pub embeddings: BinEmbeddings,
    /// How well the embeddings follow the order of the bins, 0 to 1.
    pub ordinality: f64,
}

/// Opens the data set, divides it and embeds the bins.
///
/// # Errors
/// [`FitError`] names the file, and the line where there is one.
pub fn prepare(config: &Config, device: &Device) -> Result<Prepared, FitError> {
    let dataset = Dataset::open(&config.data.table, &config.data.columns, config.task.range)?;
    let prints = fingerprints(&dataset)?;
    let (splits, warnings) = splits(config, &dataset, &prints)?;
    let embeddings = embeddings(config, device)?;
    Ok(Prepared {
        ordinality: ordinality(&embeddings),
        digest: dataset.digest(&prints),
        dataset,
        splits,
        warnings,
        embeddings,
    })
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
    let embeddings = embeddings(config, device)?;
    let splits = Splits {
        test: (0..dataset.samples().len()).collect(),
        ..Splits::default()
    };
    Ok(Prepared {
        ordinality: ordinality(&embeddings),
        digest: String::new(),
        dataset,
        splits,
        warnings: Vec::new(),
        embeddings,
    })
}

/// The splits that the configuration asks for, and what is to be said of the
/// leaks between them.
fn splits(
    config: &Config,
    dataset: &Dataset,
    prints: &[Fingerprint],
) -> Result<(Splits, Vec<String>), DataError> {
    let data = &config.data;
    let mut splits = data
        .protocol
        .splits(dataset, &data.split, &config.bin, config.train.seed)?;
    let leaks = leak::find(dataset, &splits, prints);
    if leaks.is_empty() {
        return Ok((splits, Vec::new()));
    }
    let mendable = leaks.iter().all(Leak::is_copy);
    let what = match data.leaks {
        LeakPolicy::Drop if mendable => {
            leak::drop_copies(&mut splits, &leaks);
            "left out of training"
        }
        LeakPolicy::Allow => "allowed by data.leaks",
        LeakPolicy::Refuse | LeakPolicy::Drop => return Err(dataset.leaking(leaks)),
    };
    let mut warnings = vec![format!("leaks between the splits, {what}:")];
    warnings.extend(leak::summary(&leaks));
    Ok((splits, warnings))
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
    device.seed(config.train.seed);
    let mut encoder = config
        .encoder(prepared.embeddings.dim)
        .init(config.train.seed, device)?;
    if let Some(path) = &config.model.init {
        (encoder, _) = weights::load(encoder, path)?;
    }
    Ok(config.model.head.build(encoder, &config.bin, device))
}

fn embeddings(config: &Config, device: &Device) -> Result<BinEmbeddings, FitError> {
    let text = &config.text;
    let labels: Vec<String> = config.bin.iter().map(|bin| bin.label.clone()).collect();
    if let Some(path) = &text.embeddings {
        return Ok(load_bin_embeddings(path, &labels)?);
    }
    let tower = match &text.weights {
        Some(path) => TextTower::load(path, None, text.tower.activation, device)?,
        None => TextTower::random(&text.tower, device)?,
    };
    let prompt = Prompt {
        context: text.context.clone(),
        bins: labels,
        placement: text.placement,
    };
    Ok(bin_embeddings(&tower, &prompt)?)
}

impl Prepared {
    /// The bin embeddings as a tensor: `[M, D]`.
    pub fn bin_tensor(&self, device: &Device) -> Tensor<2> {
        let shape = [self.embeddings.labels.len(), self.embeddings.dim];
        Tensor::from_data(
            TensorData::new(self.embeddings.values.clone(), shape),
            device,
        )
    }

    /// The runtime's estimator for `model`, by which it is measured too.
    ///
    /// # Errors
    /// [`FitError::Estimator`] when a trained value is not finite.
    pub fn estimator(
        &self,
        config: &Config,
        model: &NumClip,
        calibration: Option<Calibration>,
    ) -> Result<Estimator, FitError> {
        let fail = |error: &dyn std::fmt::Display| FitError::Estimator(error.to_string());
        let bins =
            Bins::new(config.bin.clone(), self.embeddings.values.clone()).map_err(|e| fail(&e))?;
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
