//! The embeddings of the bins: what the image side is trained against.

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;

use super::{Prompt, TextError, TextTower, weights};

/// One unit-length embedding for each bin.
#[derive(Clone, Debug, PartialEq)]
pub struct BinEmbeddings {
    /// The bins' names, in order.
    pub labels: Vec<String>,
    /// Width D of an embedding.
    pub dim: usize,
    /// `[M, D]`, row-major, each row of length 1.
    pub values: Vec<f32>,
    /// Where they come from.
    pub source: TextSource,
}

/// Where bin embeddings come from; every artefact made with them repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TextSource {
    /// A text tower with random weights: distinct directions, no knowledge of language.
    Random {
        /// Seed of the weights.
        seed: u64,
        /// Width of the tower.
        width: usize,
        /// Number of blocks.
        layers: usize,
        /// Attention heads.
        heads: usize,
        /// Width of the embeddings.
        embedding: usize,
    },
    /// A text tower with trained weights.
    Weights {
        /// Name of the file, without its folder.
        file: String,
        /// SHA-256 of the file, in hexadecimal.
        sha256: String,
    },
    /// Embeddings computed elsewhere.
    Embeddings {
        /// Name of the file, without its folder.
        file: String,
        /// SHA-256 of the file, in hexadecimal.
        sha256: String,
        /// The model that made them, if the file says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<String>,
    },
}

impl fmt::Display for TextSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random {
                seed,
                width,
                layers,
                ..
            } => write!(
                f,
                "random text tower (seed {seed}, width {width}, {layers} layers; knows no language)"
            ),
            Self::Weights { file, .. } => write!(f, "text tower of {file}"),
            Self::Embeddings {
                file,
                model: Some(model),
                ..
            } => write!(f, "embeddings of {model} from {file}"),
            Self::Embeddings { file, .. } => write!(f, "embeddings from {file}"),
        }
    }
}

impl BinEmbeddings {
    /// Cosine similarity of two bins.
    pub fn similarity(&self, one: usize, other: usize) -> f64 {
        let row = |index: usize| &self.values[index * self.dim..(index + 1) * self.dim];
        let products = row(one).iter().zip(row(other));
        products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }
}

/// What the text tower makes of each bin's prompt.
///
/// # Errors
///
/// A prompt that does not fit ([`Prompt::tokens`]), or a tower whose features are not finite.
pub fn bin_embeddings(tower: &TextTower, prompt: &Prompt) -> Result<BinEmbeddings, TextError> {
    let sequences = prompt.tokens(tower.config().context_length)?;
    let ends: Vec<usize> = sequences.iter().map(|tokens| tokens.len() - 1).collect();
    let dim = tower.config().embedding;
    let features = match sequences.is_empty() {
        true => Vec::new(),
        false => {
            let features = tower.features(tower.embed(&sequences), &ends);
            features.into_data_as::<f32>().iter().collect()
        }
    };
    Ok(BinEmbeddings {
        labels: prompt.bins.clone(),
        dim,
        values: unit_rows(features, dim, &tower.source().to_string())?,
        source: tower.source().clone(),
    })
}

/// Reads embeddings that any text encoder made: a safetensors file with one `[M, D]` tensor
/// `embeddings` (f16, bf16 or f32), M being the number of `labels`. Rows are normalised.
///
/// The file's metadata may hold `labels`, a JSON array that must equal `labels`, and `model`, the
/// name of the encoder.
///
/// # Errors
///
/// A file that cannot be read, is no safetensors file, holds no such tensor or one for other
/// bins; a row that is zero or not finite.
pub fn load_bin_embeddings(path: &Path, labels: &[String]) -> Result<BinEmbeddings, TextError> {
    let bytes = read(path)?;
    let format_error = |source| TextError::Format {
        path: path.into(),
        source,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(format_error)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format_error)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    if let Some(stored) = metadata.get("labels") {
        compare_labels(path, stored, labels)?;
    }
    let view = file
        .tensor("embeddings")
        .map_err(|_| TextError::MissingTensors {
            path: path.into(),
            names: vec!["embeddings".into()],
        })?;
    let dim = view.shape().last().copied().unwrap_or(0).max(1);
    let values = weights::read(path, "embeddings", &[labels.len(), dim], &view)?;
    Ok(BinEmbeddings {
        labels: labels.to_vec(),
        dim,
        values: unit_rows(values, dim, &path.display().to_string())?,
        source: TextSource::Embeddings {
            file: file_name(path),
            sha256: sha256(&bytes),
            model: metadata.get("model").cloned(),
        },
    })
}

/// How well the similarities follow the order of the bins, 0 to 1.
///
/// Every i < j < k asks two questions: is i closer to j than to k, and k closer to j than to i?
/// The result is the share answered with yes (by cosine similarity; a tie is a no). Embeddings
/// along a curve give 1, embeddings without order about a half; fewer than three bins give 1.
pub fn ordinality(embeddings: &BinEmbeddings) -> f64 {
    let count = embeddings.labels.len();
    let (mut right, mut asked) = (0u32, 0u32);
    for i in 0..count {
        for j in i + 1..count {
            for k in j + 1..count {
                let ends = embeddings.similarity(i, k);
                right += u32::from(embeddings.similarity(i, j) > ends);
                right += u32::from(embeddings.similarity(j, k) > ends);
                asked += 2;
            }
        }
    }
    if asked == 0 {
        return 1.0;
    }
    f64::from(right) / f64::from(asked)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|source| TextError::Io {
        path: path.into(),
        source,
    })
}

pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn compare_labels(path: &Path, stored: &str, labels: &[String]) -> Result<(), TextError> {
    let same = serde_json::from_str::<Vec<String>>(stored).is_ok_and(|stored| stored == labels);
    match same {
        true => Ok(()),
        false => Err(TextError::OtherBins {
            path: path.into(),
            got: stored.into(),
            expected: format!("{labels:?}"),
        }),
    }
}

/// Scales every row to length 1, in f64.
fn unit_rows(mut values: Vec<f32>, dim: usize, origin: &str) -> Result<Vec<f32>, TextError> {
    for (index, row) in values.chunks_mut(dim).enumerate() {
        let squares = row.iter().map(|value| f64::from(*value).powi(2));
        let length = squares.sum::<f64>().sqrt();
        let problem = match length {
            0.0 => Some("zero"),
            length if !length.is_finite() => Some("not finite"),
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(TextError::BadEmbedding {
                origin: origin.into(),
                index,
                problem,
            });
        }
        for value in row {
            *value = (f64::from(*value) / length) as f32;
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests;
