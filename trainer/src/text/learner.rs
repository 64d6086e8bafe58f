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
use std::sync::Arc;

use super::prompt::{PromptTokens, arrange};
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
    /// `1 / (d + 1e-5)`: a bin at the place of a base rank takes almost all from it.
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
    Ready(Box<Tensor<2>>),
    Prompt(Arc<Template>),
}

/// Sentences with room for context and ranks, and the tower that reads them.
#[derive(Clone, Debug)]
struct Template {
    tower: TextTower,
    /// Embeddings of start, full stop and end: `[1, 3, width]`.
    marks: Tensor<3>,
    /// `[1, C, width]`, if there are words.
    context: Option<Tensor<3>>,
    /// `[M or base ranks, T, width]`.
    ranks: Tensor<3>,
    /// Weights of the base ranks for each bin: `[M, base ranks]`.
    mix: Option<Tensor<2>>,
    sentences: Sentences,
}

/// Where the tokens of M sentences are found.
#[derive(Clone, Debug, PartialEq)]
struct Sentences {
    /// `[M, L]`, row-major: positions in a column of the marks, then all contexts, then the T
    /// rank tokens of each bin. What follows an end is arbitrary.
    positions: Vec<i32>,
    /// Position of each sentence's end, from 0.
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
            source: Source::Ready(Box::new(embeddings.tensor(&device))),
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
        let tokens = prompt.parts(tower.config().context_length)?;
        if tuning.context.is_some() && tokens.context.is_empty() {
            let problem = "the context has no words to start from".to_owned();
            return Err(TextError::Tuning(problem));
        }
        let tower = tower.on(&device.clone().without_autodiff());
        let template = Template::new(&tower, &tokens, tuning)?;
        let parameter = |start: Tensor<3>| {
            let data = start.into_data();
            Param::from_tensor(Tensor::from_data(data, device))
        };
        let context = tuning.context.and(template.context.clone());
        let copies = copies(tuning, prompt.bins.len());
        Ok(Self {
            embeddings: None,
            context: context.map(|context| parameter(context.repeat_dim(0, copies))),
            ranks: tuning.ranks.then(|| parameter(template.ranks.clone())),
            source: Source::Prompt(Arc::new(template)),
        })
    }

    /// The bin embeddings as they are now: `[M, D]`, unit rows; gradients reach what is tuned.
    pub fn bins(&self) -> Tensor<2> {
        match (&self.source, &self.embeddings) {
            (Source::Ready(fixed), None) => (**fixed).clone(),
            (Source::Ready(_), Some(tuned)) => unit_rows(tuned.val()),
            (Source::Prompt(template), _) => {
                let tuned = |part: &Option<Param<Tensor<3>>>| part.as_ref().map(Param::val);
                template.features(tuned(&self.context), tuned(&self.ranks))
            }
        }
    }

    /// What is tuned here, with all that stays fixed taken from `other`.
    pub fn beside(self, other: &Self) -> Self {
        Self {
            source: other.source.clone(),
            ..self
        }
    }

    /// Whether the embeddings change in training.
    pub fn is_tuned(&self) -> bool {
        self.embeddings.is_some() || self.context.is_some() || self.ranks.is_some()
    }
}

impl BaseRanks {
    /// The place of each base rank among the bins, from 0 to M − 1.
    fn places(&self, bins: usize) -> Result<Vec<f32>, TextError> {
        let last = bins as f32 - 1.0;
        match self.count {
            1 if bins > 0 => Ok(vec![last / 2.0]),
            count if (2..=bins).contains(&count) => {
                let step = last / (count as f32 - 1.0);
                Ok((0..count).map(|base| base as f32 * step).collect())
            }
            count => Err(TextError::Tuning(format!(
                "{count} base ranks for {bins} bins, expected 1 to {bins}"
            ))),
        }
    }

    /// What each base rank weighs for a bin; the sum is 1.
    fn weights(&self, bin: usize, bins: usize, places: &[f32]) -> Vec<f32> {
        let weight = |place: &f32| {
            let distance = (bin as f32 - place).abs();
            match self.interpolation {
                Interpolation::Linear => 1.0 - distance / (bins as f32 - 1.0).max(1.0),
                Interpolation::InverseProportional => (distance + DISTANCE_FLOOR).recip(),
            }
        };
        let weights: Vec<f32> = places.iter().map(weight).collect();
        let total: f32 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    }
}

impl Template {
    fn new(tower: &TextTower, tokens: &PromptTokens, tuning: &Tuning) -> Result<Self, TextError> {
        let bins = tokens.names.len();
        let (mut names, mut mix) = (tokens.names.clone(), None);
        if let Some(base) = &tuning.base_ranks {
            let places = base.places(bins)?;
            let nearest = places
                .iter()
                .map(|place| &tokens.names[place.round() as usize]);
            names = same_length(nearest.cloned().collect());
            let weights = (0..bins).flat_map(|bin| base.weights(bin, bins, &places));
            mix = Some(TensorData::new(
                weights.collect::<Vec<f32>>(),
                [bins, base.count],
            ));
        }
        let lengths: Vec<usize> = match &mix {
            Some(_) => vec![names[0].len(); bins],
            None => names.iter().map(Vec::len).collect(),
        };
        let embed = |sequence: &[u16]| tower.embed(&[sequence.to_vec()]);
        let marks = embed(&tokens.marks);
        Ok(Self {
            sentences: Sentences::new(tokens, copies(tuning, bins), &lengths),
            context: (!tokens.context.is_empty()).then(|| embed(&tokens.context)),
            ranks: tower.embed(&names),
            mix: mix.map(|mix| Tensor::from_data(mix, &marks.device())),
            tower: tower.clone(),
            marks,
        })
    }

    /// The sentences' features with the given tokens in the place of their own: `[M, D]`, unit
    /// rows.
    fn features(&self, context: Option<Tensor<3>>, ranks: Option<Tensor<3>>) -> Tensor<2> {
        let context = context.or_else(|| self.context.clone());
        let ranks = ranks.unwrap_or_else(|| self.ranks.clone());
        let [_, length, width] = ranks.dims();
        let ranks = match &self.mix {
            Some(mix) => mix.clone().matmul(ranks.flatten(1, 2)),
            None => ranks.flatten(1, 2),
        };
        let bins = self.sentences.ends.len();
        let column = |tokens: Tensor<3>| tokens.flatten::<2>(0, 1);
        let column: Vec<Tensor<2>> = std::iter::once(self.marks.clone())
            .chain(context)
            .map(column)
            .chain([ranks.reshape([bins * length, width])])
            .collect();
        let column = Tensor::cat(column, 0);
        let positions = TensorData::from(&self.sentences.positions[..]);
        let positions = Tensor::<1, Int>::from_data(positions, &column.device());
        let embedded = column
            .select(0, positions)
            .reshape([bins as i32, -1, width as i32]);
        unit_rows(self.tower.features(embedded, &self.sentences.ends))
    }
}

impl Sentences {
    /// Sentences of one for each of `lengths`, the rank tokens of a bin; with `contexts` copies
    /// of the context, either 1 or one for each bin.
    fn new(tokens: &PromptTokens, contexts: usize, lengths: &[usize]) -> Self {
        let marks = tokens.marks.len();
        let words = tokens.context.len();
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let range = |start: usize, length: usize| (start..start + length).collect::<Vec<usize>>();
        let sentences = lengths.iter().enumerate().map(|(bin, &length)| {
            let context = range(marks + (bin % contexts) * words, words);
            let name = range(marks + contexts * words + bin * longest, length);
            arrange([0, 1, 2], &context, tokens.split, &name)
        });
        let mut sentences: Vec<Vec<usize>> = sentences.collect();
        let ends = sentences
            .iter()
            .map(|sentence| sentence.len() - 1)
            .collect();
        let length = sentences.iter().map(Vec::len).max().unwrap_or(0);
        sentences
            .iter_mut()
            .for_each(|sentence| sentence.resize(length, 0));
        let positions = sentences.concat();
        Self {
            positions: positions
                .into_iter()
                .map(|position| position as i32)
                .collect(),
            ends,
        }
    }
}

/// How many contexts there are.
fn copies(tuning: &Tuning, bins: usize) -> usize {
    match tuning.context {
        Some(ContextTuning::PerBin) => bins,
        _ => 1,
    }
}

/// The sequences, shorter ones filled with their last token.
fn same_length(mut names: Vec<Vec<u16>>) -> Vec<Vec<u16>> {
    let longest = names.iter().map(Vec::len).max().unwrap_or(0);
    for name in &mut names {
        let last = name.last().copied().unwrap_or_default();
        name.resize(longest, last);
    }
    names
}

/// Every row at length 1.
fn unit_rows(rows: Tensor<2>) -> Tensor<2> {
    let length = rows.clone().square().sum_dim(1).add_scalar(TINY).sqrt();
    rows / length
}

#[cfg(test)]
mod tests;
