//! The text side of the trained model: bin embeddings that stay, or that learn with the images.
//!
//! ```text
//! nothing tuned     embeddings [M, D], computed once
//! embeddings tuned  learned [M, D] → unit rows
//! prompts tuned     context and rank tokens → sentences [M, L, width] → frozen tower → unit rows
//! ```
//!
//! Tuned prompts follow CoOp (Zhou et al., IJCV 2022) for the context and OrdinalCLIP (Li et al.,
//! NeurIPS 2022, section 3.3) for ranks that are interpolated between a few learned ones.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use std::fmt;

use super::prompt::PromptTokens;
use super::{BinEmbeddings, Prompt, TextError, TextTower};

/// Keeps the length of an embedding of zeros away from 0.
const TINY: f64 = 1e-24;

/// Keeps an inverse distance finite.
const DISTANCE_FLOOR: f32 = 1e-5;

/// What of the text side is trained; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tuning {
    /// The bin embeddings themselves, wherever they come from: M·D numbers, no tower needed while
    /// training.
    pub embeddings: bool,
    /// The token embeddings of the bins' names, through the frozen tower.
    pub ranks: bool,
    /// The token embeddings of the context, through the frozen tower; frozen if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextTuning>,
    /// A few learned ranks with the others in between, instead of one for each bin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ranks: Option<BaseRanks>,
}

/// Which bins a tuned context serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContextTuning {
    /// One for all of them.
    Shared,
    /// One for each: "rank-specific context".
    PerBin,
}

/// Learned ranks at even distances, from which those of all bins are interpolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRanks {
    /// How many, from 1 to the number of bins. A single one stands in the middle.
    pub count: usize,
    /// What a distance weighs.
    #[serde(default)]
    pub interpolation: Interpolation,
}

/// The weight of a base rank for a bin at distance d, before the weights of a bin are divided by
/// their sum; distances are counted in bins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// `1 − d / (M − 1)`.
    #[default]
    Linear,
    /// `1 / (d + 1e-5)`: a bin at the place of a base rank takes all but its whole from it.
    InverseProportional,
}

/// The text side as part of the model: `bins` is what images are matched against.
///
/// The parameters are `embeddings` `[M, D]`, `context` (`[1, C, width]`, or `[M, C, width]` with
/// one for each bin) and `ranks` `[M or base ranks, T, width]`, each there only if it is tuned.
#[derive(Module, Debug)]
pub struct TextSide {
    embeddings: Option<Param<Tensor<2>>>,
    context: Option<Param<Tensor<3>>>,
    ranks: Option<Param<Tensor<3>>>,
    #[module(skip)]
    source: Source,
}

/// What stays as it is.
#[derive(Clone, Debug)]
enum Source {
    /// `[M, D]`, unit rows.
    Ready(Tensor<2>),
    Prompt(Box<Template>),
}

/// Sentences with room for context and ranks, and the tower that reads them.
#[derive(Clone, Debug)]
struct Template {
    tower: TextTower,
    /// Embeddings of start, full stop and end: `[3, width]`.
    marks: Tensor<2>,
    /// `[1, C, width]`.
    context: Tensor<3>,
    /// `[M, T, width]`, T being the longest name.
    ranks: Tensor<3>,
    /// Weights of the base ranks: `[M, K]`.
    mix: Option<Tensor<2>>,
    /// The sentences of length L as positions among marks, context and ranks, all in one column.
    rows: Tensor<1, Int>,
    /// Length L of the sentences.
    length: usize,
    /// Position of each sentence's end.
    ends: Vec<usize>,
}

impl Tuning {
    /// Whether anything is tuned.
    pub fn is_some(&self) -> bool {
        self.embeddings || self.tunes_prompt()
    }

    /// Whether the tower takes part in every step.
    pub fn tunes_prompt(&self) -> bool {
        self.ranks || self.context.is_some()
    }
}

/// What is tuned, in words.
impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks = match self.base_ranks {
            Some(BaseRanks { count, .. }) => format!("{count} base ranks"),
            None => "ranks".to_owned(),
        };
        let context = match self.context {
            Some(ContextTuning::PerBin) => "a context for each bin",
            _ => "context",
        };
        let parts = [
            (self.embeddings, "embeddings"),
            (self.ranks, &ranks),
            (self.context.is_some(), context),
        ];
        let tuned = parts.into_iter().filter(|(is_tuned, _)| *is_tuned);
        let tuned: Vec<&str> = tuned.map(|(_, name)| name).collect();
        f.write_str(&tuned.join(" and "))
    }
}

impl TextSide {
    /// Bin embeddings that stay as they are.
    pub fn frozen(embeddings: &BinEmbeddings, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        Self {
            embeddings: None,
            context: None,
            ranks: None,
            source: Source::Ready(embeddings.tensor(&device)),
        }
    }

    /// Bin embeddings that learn, starting from these.
    pub fn tuned_embeddings(embeddings: &BinEmbeddings, device: &Device) -> Self {
        Self {
            embeddings: Some(Param::from_tensor(embeddings.tensor(device))),
            ..Self::frozen(embeddings, device)
        }
    }

    /// A prompt whose tokens learn through the tower, starting from its words.
    ///
    /// A base rank starts from the name of the bin nearest to its place; a name shorter than the
    /// longest among them repeats its last token.
    ///
    /// # Errors
    ///
    /// A prompt that does not fit ([`Prompt::tokens`]); [`TextError::Tuning`] for base ranks that
    /// are none or more than the bins, or a context without words.
    pub fn tuned_prompt(
        tower: &TextTower,
        prompt: &Prompt,
        tuning: &Tuning,
        device: &Device,
    ) -> Result<Self, TextError> {
        let limit = tower.config().context_length;
        let mut tokens = prompt.parts(limit)?;
        let base = tuning.base_ranks.map(|base| base.places(tokens.names.len()));
        let base = base.transpose()?;
        if tuning.context.is_some() && tokens.context.is_empty() {
            let problem = "the context has no words to start from".to_owned();
            return Err(TextError::Tuning(problem));
        }
        if let Some((nearest, _)) = &base {
            let names = nearest.iter().map(|bin| tokens.names[*bin].clone()).collect();
            tokens = tokens.with_names(same_length(names), prompt.bins.len());
            tokens.fit(&prompt.bins, limit)?;
        }
        let template = Template::new(tower, &tokens, base.map(|(_, mix)| mix));
        let parameter = |start: &Tensor<3>| {
            let data = start.clone().into_data();
            Param::from_tensor(Tensor::from_data(data, device))
        };
        let context = tuning.context.map(|tuning| match tuning {
            ContextTuning::Shared => template.context.clone(),
            ContextTuning::PerBin => template.context.clone().repeat_dim(0, prompt.bins.len()),
        });
        Ok(Self {
            embeddings: None,
            context: context.as_ref().map(parameter),
            ranks: tuning.ranks.then(|| parameter(&template.ranks)),
            source: Source::Prompt(Box::new(template)),
        })
    }

    /// The bin embeddings as they are now: `[M, D]`, unit rows; gradients reach what is tuned.
    pub fn bins(&self) -> Tensor<2> {
        match (&self.source, &self.embeddings) {
            (Source::Ready(fixed), None) => fixed.clone(),
            (Source::Ready(_), Some(tuned)) => unit_rows(tuned.val()),
            (Source::Prompt(template), _) => {
                let tuned = |part: &Option<Param<Tensor<3>>>| part.as_ref().map(Param::val);
                template.features(tuned(&self.context), tuned(&self.ranks))
            }
        }
    }

    /// Whether the embeddings change in training.
    pub fn is_tuned(&self) -> bool {
        self.embeddings.is_some() || self.context.is_some() || self.ranks.is_some()
    }
}

impl BaseRanks {
    /// The bin nearest to each base rank, and the weights `[bins, count]`.
    fn places(&self, bins: usize) -> Result<(Vec<usize>, Tensor<2>), TextError> {
        let count = self.count;
        if count == 0 || count > bins {
            return Err(TextError::Tuning(format!(
                "{count} base ranks for {bins} bins, expected 1 to {bins}"
            )));
        }
        let last = (bins - 1) as f32;
        let places: Vec<f32> = match count {
            1 => vec![last / 2.0],
            _ => (0..count).map(|base| base as f32 * last / (count - 1) as f32).collect(),
        };
        let weights = (0..bins).flat_map(|bin| self.weights(bin as f32, &places, last));
        let weights = TensorData::new(weights.collect::<Vec<f32>>(), [bins, count]);
        let nearest = places.iter().map(|place| place.round() as usize).collect();
        Ok((nearest, Tensor::from_data(weights, &Device::flex())))
    }

    fn weights(&self, bin: f32, places: &[f32], last: f32) -> Vec<f32> {
        let weight = |place: &f32| {
            let distance = (bin - place).abs();
            match self.interpolation {
                Interpolation::Linear => 1.0 - distance / last.max(1.0),
                Interpolation::InverseProportional => (distance + DISTANCE_FLOOR).recip(),
            }
        };
        let weights: Vec<f32> = places.iter().map(weight).collect();
        let total: f32 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    }
}

impl Template {
    fn new(tower: &TextTower, tokens: &PromptTokens, mix: Option<Tensor<2>>) -> Self {
        let width = tower.config().width;
        let [start, stop, end] = tokens.marks;
        let embed = |sequences: &[Vec<u16>]| tower.embed(sequences).detach();
        let (context, marks) = (embed(&[tokens.context.clone()]), embed(&[vec![start, stop, end]]));
        let sentences = tokens.sentences();
        let ends: Vec<usize> = sentences.iter().map(|sentence| sentence.len() - 1).collect();
        Self {
            tower: tower.clone(),
            marks: marks.reshape([3, width]),
            context,
            ranks: embed(&tokens.names),
            mix,
            rows: Tensor::from_data([0], &Device::flex()),
            length: ends.iter().max().map_or(0, |last| last + 1),
            ends,
        }
    }
}
