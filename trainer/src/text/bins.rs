//! The embeddings of the bins: what the image side is trained against.

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use super::{Prompt, TextError, TextTower};
use crate::checkpoint::{Checkpoint, CheckpointErrorKind};

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
    /// The embeddings as a tensor: `[M, D]`.
    pub fn tensor(&self, device: &Device) -> Tensor<2> {
        let shape = [self.labels.len(), self.dim];
        Tensor::from_data(TensorData::new(self.values.clone(), shape), device)
    }

    /// A safetensors file that [`load_bin_embeddings`] reads.
    ///
    /// # Errors
    ///
    /// Values that are not those of so many bins.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SafeTensorError> {
        let values: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![self.labels.len(), self.dim];
        let view = TensorView::new(Dtype::F32, shape, &values)?;
        let labels = serde_json::to_string(&self.labels).unwrap_or_default();
        let metadata = [("labels", labels), ("model", self.source.to_string())];
        let metadata = metadata.map(|(name, text)| (name.to_owned(), text));
        serialize([("embeddings", view)], Some(HashMap::from(metadata)))
    }

    /// The same bins with what training made of their embeddings.
    ///
    /// # Errors
    ///
    /// [`TextError::BadEmbedding`] for a row of `rows` (`[M, D]`) that is zero or not finite.
    pub fn tuned(&self, rows: Tensor<2>) -> Result<Self, TextError> {
        let values = rows.into_data_as::<f32>().iter().collect();
        Ok(Self {
            values: unit_rows(values, self.dim, "the tuned text side")?,
            ..self.clone()
        })
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

/// Reads embeddings that any text encoder made: a file with one `[M, D]` tensor `embeddings`, M
/// being the number of `labels`. Rows are normalised.
///
/// The metadata of a safetensors file may hold `labels`, a JSON array that must equal `labels`, and `model`, the
/// name of the encoder.
///
/// # Errors
///
/// A file that cannot be read, holds no such tensor or one for other bins; a row that is zero or
/// not finite.
pub fn load_bin_embeddings(path: &Path, labels: &[String]) -> Result<BinEmbeddings, TextError> {
    let file = Checkpoint::open(path)?;
    if let Some(stored) = file.metadata().get("labels") {
        compare_labels(path, stored, labels)?;
    }
    let values = file.values("embeddings").map_err(|kind| file.error(kind))?;
    let shape = &file.tensors()["embeddings"].shape;
    let dim = shape.last().copied().unwrap_or(0).max(1);
    let expected = vec![labels.len(), dim];
    if *shape != expected {
        return Err(TextError::from(file.error(CheckpointErrorKind::Shape {
            name: "embeddings".into(),
            got: shape.clone(),
            expected,
        })));
    }
    let (name, sha256) = file.identity()?;
    Ok(BinEmbeddings {
        labels: labels.to_vec(),
        dim,
        values: unit_rows(values, dim, &path.display().to_string())?,
        source: TextSource::Embeddings {
            file: name,
            sha256,
            model: file.metadata().get("model").cloned(),
        },
    })
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

/// How far a row of length 1 may be off by the rounding of its values.
const ROUNDING: f64 = 1e-6;

/// Scales every row to length 1, in f64; a row that has it stays as it is, bit for bit.
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
        if (length - 1.0).abs() < ROUNDING {
            continue;
        }
        for value in row {
            *value = (f64::from(*value) / length) as f32;
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn embeddings(rows: &[&[f32]]) -> BinEmbeddings {
        let dim = rows[0].len();
        BinEmbeddings {
            labels: (0..rows.len()).map(|index| index.to_string()).collect(),
            dim,
            values: unit_rows(rows.concat(), dim, "test").expect("good rows"),
            source: TextSource::Embeddings {
                file: String::new(),
                sha256: String::new(),
                model: None,
            },
        }
    }

    #[test]
    fn rows_leave_with_length_one() {
        let bins = embeddings(&[&[3.0, 4.0], &[1e-30, 0.0], &[1e30, 1e30]]);
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(bins.values, [0.6, 0.8, 1.0, 0.0, half, half]);
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() {
        let bins = embeddings(&[&[3.0, 4.0, 0.1], &[1.0, -7.0, 2.0]]);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bins.to_bytes().expect("bytes")).expect("written");
        let read = load_bin_embeddings(file.path(), &bins.labels).expect("embeddings");
        assert_eq!((read.values, read.dim), (bins.values, 3));
        assert!(load_bin_embeddings(file.path(), &["1".into(), "0".into()]).is_err());
    }

    /// Writes a file with one tensor and reads it as the embeddings of bins "a" and "b".
    fn load(
        name: &str,
        shape: [usize; 2],
        values: &[f32],
        metadata: &[(&str, &str)],
    ) -> Result<BinEmbeddings, TextError> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).expect("a view");
        let pairs = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        let metadata: HashMap<String, String> = pairs.collect();
        let file = serialize([(name, view)], Some(metadata)).expect("a file");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bins.safetensors");
        std::fs::write(&path, file).expect("written");
        load_bin_embeddings(&path, &["a".into(), "b".into()])
    }

    #[test]
    fn loads_normalises_and_says_where_from() {
        let metadata = [("labels", r#"["a", "b"]"#), ("model", "ViT-B-32")];
        let bins = load("embeddings", [2, 2], &[3.0, 4.0, 0.0, -2.0], &metadata);
        let bins = bins.expect("embeddings");
        assert_eq!(
            (bins.dim, &bins.labels[..]),
            (2, &["a", "b"].map(String::from)[..])
        );
        assert_eq!(bins.values, [0.6, 0.8, 0.0, -1.0]);
        let text = toml::to_string(&bins.source).expect("TOML");
        assert!(
            text.contains("kind = \"embeddings\"") && text.contains("ViT-B-32"),
            "{text}"
        );
        assert_eq!(
            toml::from_str::<TextSource>(&text).expect("TOML"),
            bins.source
        );
        assert!(load("embeddings", [2, 1], &[3.0, 4.0], &[]).is_ok());
    }

    #[test]
    fn bad_embedding_files_are_named() {
        let check = |result: Result<BinEmbeddings, TextError>, expected: &str| {
            let text = result.expect_err("an error").to_string();
            assert!(text.contains(expected), "{text}");
        };
        check(
            load("embedding", [2, 1], &[1.0, 1.0], &[]),
            "missing embeddings",
        );
        let three = load("embeddings", [3, 1], &[1.0; 3], &[]);
        check(three, "embeddings has shape [3, 1], expected [2, 1]");
        let nan = load("embeddings", [2, 1], &[1.0, f32::NAN], &[]);
        check(nan, "embeddings holds values that are not finite");
        check(
            load("embeddings", [2, 1], &[0.0, 1.0], &[]),
            "bin 0 is zero",
        );
        check(load("embeddings", [2, 0], &[], &[]), "expected [2, 1]");
        let other = [("labels", r#"["b", "a"]"#)];
        check(
            load("embeddings", [2, 1], &[1.0, 1.0], &other),
            r#"for ["b", "a"]"#,
        );
        let absent = PathBuf::from("absent.safetensors");
        check(load_bin_embeddings(&absent, &[]), "absent.safetensors: ");
    }
}
