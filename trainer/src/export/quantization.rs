//! From the float network to int8, with the evidence for it.

use numclip::bundle::Precision;
use numclip::estimate::Estimator;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::aware::Lessons;
use super::judge::{Judge, Latency, Score, latencies, latency, open};
use super::layers::{self, Costs, layer_costs};
use super::measure::{Encoded, tensors};
use super::search::{Budget, Candidate, Found, Tried, leave_floats, search};
use super::{ExportError, Options};
use crate::config::Config;
use crate::fit::Prepared;
use crate::graph::{ConvNet, Op};
use crate::model::numclip::NumClip;
use crate::quantize::affine::Affine;
use crate::quantize::int8::int8;
use crate::quantize::quantized::Quantized;
use crate::quantize::recipe::{Calibrated, Changes, Recipe};

/// Images that layers are ranked on, at most.
pub const RANKING_IMAGES: usize = 32;

/// How int8 is to be found, and what is to be told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Choices that take the place of the task file's.
    pub changes: Changes,
    /// Tries other methods too, until one is within the budget.
    pub search: bool,
    /// Epochs of fine-tuning with the rounding inside, where the methods before it are not within
    /// the budget.
    pub aware_epochs: usize,
    /// Layers that stay in floats, the most sensitive ones; as few as the budget lets where absent.
    pub float_layers: Option<usize>,
    /// What the model may cost.
    pub budget: Budget,
    /// Writes the bundle even if the budget is broken.
    pub force: bool,
    /// Measures every layer on its own, and every engine.
    pub details: bool,
}

impl Wanted {
    /// Whether layers are to stay in floats, beside a network without any of this score.
    pub fn leaves_floats(&self, score: &Score) -> bool {
        let asked = self.float_layers.is_some_and(|layers| layers > 0);
        asked || self.search && self.budget.mae.is_some() && !self.budget.is_met(score)
    }
}

/// What speaks for the encoder that was exported.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evidence {
    /// How the network was quantised, in words; empty for floats.
    pub method: String,
    /// Images that the ranges come from.
    pub calibration_images: usize,
    /// What the model may cost.
    pub budget: Budget,
    /// In which way it costs more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<String>,
    /// All ways tried, compared on validation images.
    pub tried: Vec<Tried>,
    /// Engines of this machine: the one that a device would take first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<Latency>,
    /// What each layer costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
}

impl Evidence {
    /// How the encoder was quantised, in one line; empty for floats.
    pub fn summary(&self) -> String {
        let (method, images) = (&self.method, self.calibration_images);
        match (method.as_str(), self.tried.len()) {
            ("", _) => String::new(),
            (_, 0 | 1) => format!("{method}; {images} images"),
            (_, tried) => format!("{method}; {images} images; chosen of {tried}"),
        }
    }
}

/// An int8 network and what speaks for it.
pub struct Quantization {
    /// ONNX.
    pub bytes: Vec<u8>,
    /// What speaks for it.
    pub evidence: Evidence,
}

/// What the search starts from.
pub struct Source<'a> {
    /// Task of the run.
    pub config: &'a Config,
    /// Its data.
    pub prepared: &'a Prepared,
    /// The trained model.
    pub model: &'a NumClip,
    /// What that makes of the images.
    pub float: &'a Encoded,
    /// From embeddings to values.
    pub estimator: &'a Estimator,
}

impl Source<'_> {
    /// Quantises the folded network as `options` want it.
    ///
    /// # Errors
    /// [`ExportError`] when the network cannot be run, or there are no images to compare on.
    pub fn quantize(
        &self,
        net: &ConvNet,
        options: &Options<'_>,
    ) -> Result<Quantization, ExportError> {
        let wanted = &options.int8;
        (options.stage)("calibrating");
        let images = calibration_images(self.config, self.prepared)?;
        let input = Affine::of_input(&self.config.preprocess);
        let mut calibrated = Calibrated::new(net.clone(), input, &images).map_err(failed)?;
        let first = wanted.changes.apply(self.config.export.recipe());
        let mut evidence = Evidence {
            calibration_images: images.len(),
            budget: wanted.budget,
            ..Evidence::default()
        };
        let Some(judge) = self.judge(wanted)? else {
            let quantized = calibrated.quantize(&first, &[]).map_err(failed)?;
            evidence.method = first.to_string();
            let bytes = int8(&quantized);
            return Ok(Quantization { bytes, evidence });
        };
        let mut candidate = |recipe: &Recipe| {
            (options.stage)(&format!("trying {recipe}"));
            let quantized = calibrated.quantize(recipe, &[]).map_err(failed)?;
            self.candidate(&judge, &wanted.budget, recipe.to_string(), quantized)
        };
        let mut found = match wanted.search {
            true => search(&wanted.budget, first, &Recipe::CHOICES, candidate)?,
            false => Found::new(first, candidate(&first)?, &wanted.budget),
        };
        if wanted.aware_epochs > 0 && !wanted.budget.is_met(&found.best.score) {
            self.fine_tune(&judge, options, &mut found)?;
        }
        self.leave_floats(&judge, options, &mut calibrated, &mut found)?;
        if wanted.details {
            (options.stage)("measuring each layer");
            let quantized = &found.best.network;
            evidence.costs = Some(self.costs(&calibrated, quantized, &judge, layers::IMAGES));
        }
        Ok(Quantization {
            bytes: found.best.bytes,
            evidence: Evidence {
                method: found.best.method,
                tried: found.tried,
                ..evidence
            },
        })
    }

    /// None where nothing is to be compared.
    pub fn judge(&self, wanted: &Wanted) -> Result<Option<Judge<'_>>, ExportError> {
        let compares = wanted.search
            || wanted.details
            || wanted.aware_epochs > 0
            || wanted.float_layers.is_some();
        if !compares && wanted.budget.mae.is_none() {
            return Ok(None);
        }
        let judge = Judge::new(self.config, self.prepared, self.estimator, self.float)?;
        judge.map(Some).ok_or(ExportError::NoValidation)
    }

    fn candidate(
        &self,
        judge: &Judge<'_>,
        budget: &Budget,
        method: String,
        network: Quantized,
    ) -> Result<Candidate<Quantized>, ExportError> {
        let bytes = int8(&network);
        self.judged(judge, budget, method, network, bytes)
    }

    /// A network with its score, and its latency where the budget bounds that.
    pub fn judged<N>(
        &self,
        judge: &Judge<'_>,
        budget: &Budget,
        method: String,
        network: N,
        bytes: Vec<u8>,
    ) -> Result<Candidate<N>, ExportError> {
        let dim = self.prepared.embeddings.dim;
        let model = open(self.config, dim, Precision::Int8, &bytes)?;
        let milliseconds = match budget.milliseconds {
            Some(_) => {
                let image = vec![0.0; self.config.preprocess.pixel_len()];
                Some(latency(model.as_ref(), Precision::Int8, &image)?.milliseconds)
            }
            None => None,
        };
        Ok(Candidate {
            score: judge.score(model.as_ref())?,
            method,
            network,
            bytes,
            milliseconds,
        })
    }

    /// Leaves the most sensitive layers in floats: as many as are asked for, or as few as the
    /// budget lets where no way of quantising all of them is within it.
    fn leave_floats(
        &self,
        judge: &Judge<'_>,
        options: &Options<'_>,
        calibrated: &mut Calibrated<'_>,
        found: &mut Found<Recipe, Quantized>,
    ) -> Result<(), ExportError> {
        let wanted = &options.int8;
        let budget = &wanted.budget;
        if !wanted.leaves_floats(&found.best.score) {
            return Ok(());
        }
        (options.stage)("ranking the layers");
        let costs = self.costs(calibrated, &found.best.network, judge, RANKING_IMAGES);
        let ranked = most_sensitive(&found.best.network.net, &costs);
        let recipe = found.recipe;
        let names = found
            .best
            .network
            .net
            .nodes
            .iter()
            .map(|node| node.name.clone());
        let names: Vec<String> = names.collect();
        let quantize = |count: usize| {
            let floats = &ranked[..count];
            let names: Vec<&str> = floats.iter().map(|&node| names[node].as_str()).collect();
            let method = format!("{recipe}, {}", in_floats(&names));
            (options.stage)(&format!("trying {method}"));
            let quantized = calibrated.quantize(&recipe, floats).map_err(failed)?;
            self.candidate(judge, budget, method, quantized)
        };
        leave_floats(wanted.float_layers, budget, ranked.len(), found, quantize)
    }

    fn costs(
        &self,
        calibrated: &Calibrated<'_>,
        quantized: &Quantized,
        judge: &Judge<'_>,
        images: usize,
    ) -> Costs {
        let alone = calibrated.alone(quantized);
        let threshold = self.config.thresholds()[0];
        layer_costs([quantized, &alone], judge, images, threshold)
    }

    /// Offers the network after each epoch of fine-tuning.
    fn fine_tune(
        &self,
        judge: &Judge<'_>,
        options: &Options<'_>,
        found: &mut Found<Recipe, Quantized>,
    ) -> Result<(), ExportError> {
        let wanted = &options.int8;
        let (recipe, start) = (found.recipe, found.best.network.clone());
        let lessons = Lessons {
            config: self.config,
            prepared: self.prepared,
            teacher: self.model,
        };
        (options.stage)("fine-tuning with the rounding inside");
        lessons.fine_tune(start, wanted.aware_epochs, |epoch, quantized| {
            let plural = if epoch == 1 { "" } else { "s" };
            let method = format!("{recipe}, quantisation-aware for {epoch} epoch{plural}");
            let candidate = self.candidate(judge, &wanted.budget, method, quantized)?;
            let Score { drift, .. } = candidate.score;
            (options.stage)(&format!(
                "epoch {epoch}: values {drift:.4} from the float network's"
            ));
            found.offer(recipe, candidate, &wanted.budget);
            Ok(())
        })
    }
}

/// In which way an encoder breaks the budget: `increase` is what its error grew by, in `unit`.
pub fn broken(
    budget: &Budget,
    increase: Option<f64>,
    latencies: &[Latency],
    unit: &str,
) -> Vec<String> {
    let mut broken = Vec::new();
    if let (Some(most), Some(increase)) = (budget.mae, increase)
        && increase > most
    {
        let unit = if unit.is_empty() {
            String::new()
        } else {
            format!(" {unit}")
        };
        broken.push(format!(
            "the mean absolute error grows by {increase:.4}{unit} on validation images, {most}{unit} is allowed"
        ));
    }
    if let (Some(most), Some(first)) = (budget.milliseconds, latencies.first())
        && first.milliseconds > most
    {
        broken.push(format!(
            "a picture takes {:.2} ms by {} on one thread, {most} ms are allowed",
            first.milliseconds, first.engine
        ));
    }
    broken
}

/// Times the engines where that is wanted.
pub fn timed(
    config: &Config,
    dim: usize,
    wanted: &Wanted,
    encoders: &[(Precision, &[u8])],
) -> Result<Vec<Latency>, ExportError> {
    match wanted.details || wanted.budget.milliseconds.is_some() {
        true => Ok(latencies(config, dim, encoders)?),
        false => Ok(Vec::new()),
    }
}

/// The convolutions, the one that alone moves the values most first.
fn most_sensitive(net: &ConvNet, costs: &Costs) -> Vec<usize> {
    let is_conv = |node: &usize| matches!(net.nodes[*node].op, Op::Conv(_));
    let mut ranked: Vec<usize> = (0..net.nodes.len()).filter(is_conv).collect();
    // The first entry is that of the image.
    let drift = |node: usize| costs.layers[node + 1].drift;
    ranked.sort_by(|&a, &b| drift(b).total_cmp(&drift(a)));
    ranked
}

/// Which layers are in floats, in words.
pub fn in_floats(names: &[&str]) -> String {
    match names {
        [] => "none in floats".into(),
        names if names.len() <= 3 => format!("{} in floats", names.join(", ")),
        names => format!("{} layers in floats", names.len()),
    }
}

pub fn failed(error: tract_onnx::prelude::TractError) -> ExportError {
    ExportError::Calibrate(format!("{error:#}"))
}

/// Training images from which ranges are taken; some may be unreadable, as in training.
pub fn calibration_images(
    config: &Config,
    prepared: &Prepared,
) -> Result<Vec<Vec<f32>>, ExportError> {
    let mut indices = prepared.splits.train.clone();
    indices.shuffle(&mut ChaCha8Rng::seed_from_u64(config.train.seed));
    indices.truncate(config.export.calibration_images);
    tensors(config, prepared, &indices, config.data.unreadable())
}
