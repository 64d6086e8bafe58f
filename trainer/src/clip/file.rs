//! A CLIP model in a file: its architecture, what fits and what does not, its weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::TensorData;
use serde::Serialize;

use super::hints::{self, Hints};
use super::names::{self, Piece, Scheme};
use super::{
    Entry, ImageShape, RESNET_STEP, ResNetShape, TextShape, TransformerShape, VitForm, VitShape,
    Weights, image_layout, text_layout,
};
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointErrorKind, Result};

/// A checkpoint that holds a CLIP model, or one side of it.
#[derive(Debug)]
pub struct ClipFile {
    checkpoint: Checkpoint,
    scheme: Scheme,
    /// Names of the scheme to those of the file.
    names: BTreeMap<String, String>,
    hints: Hints,
}

/// One side of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Images to embeddings.
    Image,
    /// Texts to embeddings.
    Text,
}

/// Something about a file that is not as it should be; names are the file's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Finding {
    /// A tensor is not there.
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor belongs to nothing.
    Extra {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than the rest of the file calls for.
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
}

/// Blocks that a model may have; the largest published one has 48.
const MAX_LAYERS: usize = 512;

impl ClipFile {
    /// Opens a file; the architecture is read off the shapes of its tensors when it is asked for,
    /// so a side that is unknown does not stand in the other's way.
    ///
    /// # Errors
    /// The file cannot be read or holds no CLIP model.
    pub fn open(path: &Path, hints: &Hints) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(path)?;
        let tensors = checkpoint.tensors();
        let names = names::plain(tensors.keys());
        let Some(scheme) = Scheme::of(names.keys()) else {
            let first: Vec<_> = tensors.keys().take(3).map(String::as_str).collect();
            let problem = format!(
                "no CLIP model (its tensors: {}, …); expected the names of OpenAI, OpenCLIP, \
                 Hugging Face's CLIPModel or TinyCLIP",
                first.join(", ")
            );
            return Err(checkpoint.error(CheckpointErrorKind::Model(problem)));
        };
        let mut file = Self {
            checkpoint,
            scheme,
            names,
            hints: *hints,
        };
        let width = file.find("visual.conv1.weight").map(|shape| shape[0]);
        file.hints = hints.completed(path, width);
        Ok(file)
    }

    /// The file behind the model.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How the file names its tensors.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The image side, if the file has one.
    ///
    /// # Errors
    /// A tensor that the architecture is read off is missing or makes no sense.
    pub fn image(&self) -> Result<Option<ImageShape>, CheckpointError> {
        let shape = self.has(Side::Image).then(|| self.image_shape());
        shape
            .transpose()
            .map_err(|kind| self.checkpoint.error(kind))
    }

    /// The text side, if the file has one.
    ///
    /// # Errors
    /// A tensor that the architecture is read off is missing or makes no sense.
    pub fn text(&self) -> Result<Option<TextShape>, CheckpointError> {
        let shape = self.has(Side::Text).then(|| self.text_shape());
        shape
            .transpose()
            .map_err(|kind| self.checkpoint.error(kind))
    }

    /// Scale of the cosines, if the file has one: 100 in the published models, whose files hold its
    /// logarithm.
    ///
    /// # Errors
    /// The tensor is damaged.
    pub fn logit_scale(&self) -> Result<Option<f32>, CheckpointError> {
        let Piece::Whole(name) = self.scheme.piece("logit_scale") else {
            return Ok(None);
        };
        let Some(name) = self.names.get(&name) else {
            return Ok(None);
        };
        let values = self.checkpoint.values(name);
        let values = values.map_err(|kind| self.checkpoint.error(kind))?;
        Ok(values.first().map(|logarithm| logarithm.exp()))
    }

    /// The weights of the image side.
    ///
    /// # Errors
    /// The file has no image side, or [`findings`](Self::findings) of it, or cannot be read.
    pub fn image_weights(&self) -> Result<(ImageShape, Weights), CheckpointError> {
        let shape = self.image()?.ok_or_else(|| self.lacks("image"))?;
        let weights = self.weights(&image_layout(&shape), Side::Image)?;
        Ok((shape, weights))
    }

    /// The weights of the text side.
    ///
    /// # Errors
    /// The file has no text side, or [`findings`](Self::findings) of it, or cannot be read.
    pub fn text_weights(&self) -> Result<(TextShape, Weights), CheckpointError> {
        let shape = self.text()?.ok_or_else(|| self.lacks("text"))?;
        let weights = self.weights(&text_layout(&shape), Side::Text)?;
        Ok((shape, weights))
    }

    /// What is missing, left over or mis-shaped on one side.
    ///
    /// # Errors
    /// A tensor that the architecture is read off is missing or makes no sense.
    pub fn findings(&self, side: Side) -> Result<Vec<Finding>, CheckpointError> {
        let layout = match side {
            Side::Image => self.image()?.as_ref().map(image_layout),
            Side::Text => self.text()?.as_ref().map(text_layout),
        };
        Ok(self.compare(&layout.unwrap_or_default(), side))
    }

    fn lacks(&self, side: &str) -> CheckpointError {
        let problem = format!("the CLIP model has no {side} side");
        self.checkpoint.error(CheckpointErrorKind::Model(problem))
    }

    fn weights(&self, layout: &[Entry], side: Side) -> Result<Weights, CheckpointError> {
        let read = || {
            refuse(self.compare(layout, side), side)?;
            let tensors = layout.iter().map(|entry| {
                let values = self.values(&self.scheme.piece(&entry.name))?;
                let data = TensorData::new(values, entry.shape.clone());
                Ok((entry.name.clone(), data))
            });
            Ok(Weights::new(tensors.collect::<Result<_>>()?))
        };
        read().map_err(|kind| self.checkpoint.error(kind))
    }

    fn compare(&self, layout: &[Entry], side: Side) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut used = BTreeSet::new();
        for entry in layout {
            let piece = self.scheme.piece(&entry.name);
            for (name, expected) in shapes(&piece, &entry.shape) {
                used.insert(name.clone());
                let tensor = self
                    .names
                    .get(&name)
                    .map(|name| (name, &self.checkpoint.tensors()[name]));
                match tensor {
                    None => findings.push(Finding::Missing { name }),
                    Some((name, tensor)) if tensor.shape != expected => {
                        findings.push(Finding::Shape {
                            name: name.clone(),
                            got: tensor.shape.clone(),
                            expected,
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        let extra = self.names.iter().filter(|(plain, _)| {
            let here = self.scheme.is_image(plain) == (side == Side::Image);
            here && !used.contains(*plain) && !names::is_ignored(plain)
        });
        findings.extend(extra.map(|(_, name)| Finding::Extra { name: name.clone() }));
        findings
    }

    fn values(&self, piece: &Piece) -> Result<Vec<f32>> {
        let read = |name: &String| self.checkpoint.values(&self.names[name]);
        match piece {
            Piece::Whole(name) => read(name),
            Piece::Joined(names) => {
                Ok(names.iter().map(read).collect::<Result<Vec<_>>>()?.concat())
            }
            Piece::Transposed(name) => {
                let tensor = &self.checkpoint.tensors()[&self.names[name]];
                let [rows, columns] = tensor.shape[..] else {
                    return read(name);
                };
                let values = read(name)?;
                let column = |column| (0..rows).map(move |row| row * columns + column);
                Ok((0..columns)
                    .flat_map(column)
                    .map(|place| values[place])
                    .collect())
            }
        }
    }

    fn has(&self, side: Side) -> bool {
        let mut names = self.names.keys().filter(|name| !names::is_ignored(name));
        names.any(|name| self.scheme.is_image(name) == (side == Side::Image))
    }

    fn text_shape(&self) -> Result<TextShape> {
        let [vocabulary, width] = self.shape("token_embedding.weight")?;
        let [context_length, _] = self.shape("positional_embedding")?;
        let [_, embedding] = self.shape("text_projection")?;
        let heads = |_| self.hints.text_heads.unwrap_or((width / 64).max(1));
        Ok(TextShape {
            vocabulary,
            context_length,
            transformer: self.transformer("", width, heads)?,
            embedding,
        })
    }

    fn image_shape(&self) -> Result<ImageShape> {
        if self.find("visual.layer1.0.conv1.weight").is_some() {
            return Ok(ImageShape::ResNet(self.resnet()?));
        }
        let [width, _, patch, _] = self.shape("visual.conv1.weight")?;
        let [positions, _] = self.shape("visual.positional_embedding")?;
        let [_, embedding] = self.shape("visual.proj")?;
        let heads = |layers| {
            self.hints
                .image_heads
                .unwrap_or(hints::image_heads(width, layers))
        };
        Ok(ImageShape::Vit(VitShape {
            image: patch * self.grid("visual.positional_embedding", positions)?,
            patch,
            transformer: self.transformer("visual.", width, heads)?,
            embedding,
            form: VitForm::Clip,
        }))
    }

    fn resnet(&self) -> Result<ResNetShape> {
        let [width, ..] = self.shape::<4>("visual.layer1.0.conv1.weight")?;
        let [positions, _] = self.shape("visual.attnpool.positional_embedding")?;
        let [embedding, _] = self.shape("visual.attnpool.c_proj.weight")?;
        let mut stages = [0; 4];
        for (stage, blocks) in (1..).zip(&mut stages) {
            *blocks = self.count(&format!("visual.layer{stage}."))?;
        }
        let heads = self.hints.image_heads.unwrap_or((width / 2).max(1));
        divides(heads, width * 32)?;
        Ok(ResNetShape {
            image: RESNET_STEP * self.grid("visual.attnpool.positional_embedding", positions)?,
            width,
            stages,
            heads,
            embedding,
        })
    }

    fn transformer(
        &self,
        prefix: &str,
        width: usize,
        heads: impl FnOnce(usize) -> usize,
    ) -> Result<TransformerShape> {
        let blocks = format!("{prefix}transformer.resblocks.");
        let layers = self.count(&blocks)?;
        let mut mlp =
            (0..layers).filter_map(|layer| self.find(&format!("{blocks}{layer}.mlp.c_fc.bias")));
        let heads = heads(layers);
        divides(heads, width)?;
        Ok(TransformerShape {
            width,
            layers,
            heads,
            mlp: mlp.next().map_or(4 * width, |shape| shape[0]),
            activation: self.hints.activation(&self.checkpoint, self.scheme),
        })
    }

    /// Side of the square that position embeddings stand for, the class token's set aside.
    fn grid(&self, name: &str, positions: usize) -> Result<usize> {
        let grid = positions.saturating_sub(1).isqrt();
        match grid > 0 && grid * grid + 1 == positions {
            true => Ok(grid),
            false => Err(CheckpointErrorKind::Model(format!(
                "{name} has {positions} positions, expected those of a square and one more"
            ))),
        }
    }

    /// Number of blocks below a prefix: one more than the highest.
    fn count(&self, prefix: &str) -> Result<usize> {
        let sample = self.scheme.piece(&format!("{prefix}0.ln_1.weight"));
        let sample = &sample.names()[0];
        let start = sample.rfind(".0.").map_or(sample.len(), |at| at + 1);
        let numbers = self.names.keys().filter_map(|name| {
            let rest = name.strip_prefix(&sample[..start])?;
            rest.split('.').next()?.parse::<usize>().ok()
        });
        match numbers.max().map_or(0, |last| last.saturating_add(1)) {
            count if count <= MAX_LAYERS => Ok(count),
            count => Err(CheckpointErrorKind::Model(format!(
                "{count} blocks below {}, expected at most {MAX_LAYERS}",
                &sample[..start]
            ))),
        }
    }

    /// Shape of a tensor by OpenAI's name, if it is there and has any values.
    fn find(&self, name: &str) -> Option<Vec<usize>> {
        let piece = self.scheme.piece(name);
        let name = self.names.get(&piece.names()[0])?;
        let mut shape = self.checkpoint.tensors()[name].shape.clone();
        if matches!(piece, Piece::Transposed(_)) {
            shape.reverse();
        }
        (!shape.is_empty() && !shape.contains(&0)).then_some(shape)
    }

    fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D]> {
        let file_name = self.scheme.piece(name).names()[0].clone();
        let shape = self
            .find(name)
            .ok_or_else(|| CheckpointErrorKind::Missing {
                names: vec![file_name.clone()],
            })?;
        shape.try_into().map_err(|shape: Vec<usize>| {
            CheckpointErrorKind::Model(format!(
                "{file_name} has shape {shape:?}, expected {D} axes"
            ))
        })
    }
}

/// Names in the file and the shapes that they must have for a tensor of `shape`.
fn shapes(piece: &Piece, shape: &[usize]) -> Vec<(String, Vec<usize>)> {
    let shape = match piece {
        Piece::Whole(_) => shape.to_vec(),
        Piece::Transposed(_) => shape.iter().rev().copied().collect(),
        Piece::Joined(_) => [&[shape[0] / 3], &shape[1..]].concat(),
    };
    let names = piece.names().iter();
    names.map(|name| (name.clone(), shape.clone())).collect()
}

fn divides(heads: usize, width: usize) -> Result<()> {
    match heads > 0 && width.is_multiple_of(heads) {
        true => Ok(()),
        false => Err(CheckpointErrorKind::Model(format!(
            "{heads} attention heads do not divide a width of {width}; set [clip] image_heads and \
             text_heads"
        ))),
    }
}

/// The worst of the findings as an error.
fn refuse(findings: Vec<Finding>, side: Side) -> Result<()> {
    let (mut missing, mut extra) = (Vec::new(), Vec::new());
    for finding in findings {
        match finding {
            Finding::Missing { name } => missing.push(name),
            Finding::Extra { name } => extra.push(name),
            Finding::Shape {
                name,
                got,
                expected,
            } => {
                return Err(CheckpointErrorKind::Shape {
                    name,
                    got,
                    expected,
                });
            }
        }
    }
    let what = match side {
        Side::Image => "a CLIP image tower",
        Side::Text => "a CLIP text tower",
    };
    match (missing.is_empty(), extra.is_empty()) {
        (false, _) => Err(CheckpointErrorKind::Missing { names: missing }),
        (_, false) => Err(CheckpointErrorKind::Extra { what, names: extra }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
