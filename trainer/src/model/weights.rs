//! Pretrained weights from files.
//!
//! The format is told from the tensor names. Everything but the classifier is loaded; the head
//! into the embedding stays as initialised. A file with batch normalisation also fits an encoder
//! with `norm = "folded"`: it is folded on the way in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::{Param, RunningState};
use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use thiserror::Error;

use super::conv::{Architecture, ConvEncoder, EncoderConfig, Features};
use super::layers::{self, ConvUnit, Norm, Padding};
use super::mobileone::Block;
pub use super::names::Format;
use super::names::mobilenet_names;
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointErrorKind};
use crate::graph::{Conv, Op};

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// How the file names its tensors.
    pub format: Format,
    /// Number of tensors that went into the encoder. Its head is not among them.
    pub tensors: usize,
    /// Tensors left out on purpose: the classifier and batch counters.
    pub skipped: Vec<String>,
    /// The file's own notes (source, licence, …).
    pub metadata: BTreeMap<String, String>,
}

/// A weight file that does not fit.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file cannot be read, or a tensor is missing, mis-shaped or damaged.
    #[error(
        "{0}; check architecture, width and branches in [model]: pretrained weights need the \
         network they were trained in"
    )]
    Checkpoint(#[from] CheckpointError),
    /// The tensor names belong to no known network.
    #[error(
        "{path}: unknown tensor names ({names}); expected MobileOne, MobileNetV2 or ViT-Tiny by \
         timm's or torchvision's names, or the batch-norm-folded MobileNetV2"
    )]
    Format {
        /// The weight file.
        path: PathBuf,
        /// The first few names.
        names: String,
    },
    /// The file holds something else than the encoder's configuration asks for.
    #[error("{path}: holds {format}, which needs {field} = {expected} in [model], not {got}")]
    Config {
        /// The weight file.
        path: PathBuf,
        /// How the file names its tensors.
        format: Format,
        /// The field of the configuration.
        field: &'static str,
        /// Values that fit.
        expected: String,
        /// The configured value.
        got: String,
    },
    /// Tensors are left over that the encoder has no place for.
    #[error(
        "{path}: {count} tensors have no place in the encoder (first: {name}); check architecture \
         and branches in [model]"
    )]
    Extra {
        /// The weight file.
        path: PathBuf,
        /// Number of such tensors.
        count: usize,
        /// The first of them.
        name: String,
    },
}

/// Initialises an encoder from a file.
///
/// # Errors
/// The file cannot be read, is of no known format, belongs to another configuration, or a tensor
/// is missing, left over, mis-shaped or damaged. The message names file and tensor.
pub fn load(mut encoder: ConvEncoder, path: &Path) -> Result<(ConvEncoder, Loaded), WeightsError> {
    let checkpoint = Checkpoint::open(path)?;
    let mut source = Source {
        left: checkpoint.tensors().keys().cloned().collect(),
        checkpoint,
        loaded: 0,
    };
    let format = source.format()?;
    check_config(path, format, encoder.config())?;
    if format.is_folded() || encoder.config().norm == Norm::Batch {
        source.fill(format, &mut encoder)?;
    } else {
        fill_folded(&mut source, format, &mut encoder)?;
    }
    let loaded = Loaded {
        format,
        tensors: source.loaded,
        skipped: source.leftovers(format)?,
        metadata: source.checkpoint.metadata().clone(),
    };
    Ok((encoder, loaded))
}

/// The tensors of a file, taken out one by one.
struct Source {
    checkpoint: Checkpoint,
    /// Names of those not taken yet.
    left: BTreeSet<String>,
    loaded: usize,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, skipped) = (self.tensors, self.skipped.len());
        write!(
            f,
            "{}: {tensors} tensors loaded, {skipped} skipped, head new",
            self.format
        )
    }
}

fn check_config(path: &Path, format: Format, config: &EncoderConfig) -> Result<(), WeightsError> {
    let mismatch = |field, expected: &str, got: String| WeightsError::Config {
        path: path.to_owned(),
        format,
        field,
        expected: expected.to_owned(),
        got,
    };
    if format == Format::TimmVit {
        let got = format!("{:?}", config.architecture);
        return Err(mismatch("architecture", "vit-tiny", got));
    }
    let is_mobileone = config.architecture != Architecture::MobileNetV2;
    if format.is_mobileone() != is_mobileone {
        let expected = if is_mobileone {
            "mobilenet-v2"
        } else {
            "mobileone-s0 or mobileone-s1"
        };
        return Err(mismatch(
            "architecture",
            expected,
            format!("{:?}", config.architecture),
        ));
    }
    if format.is_folded() && config.norm == Norm::Batch {
        return Err(mismatch("norm", "\"folded\"", "\"batch\"".to_owned()));
    }
    if format.padding() != config.padding {
        let name = |padding| {
            if padding == Padding::Same {
                "\"same\""
            } else {
                "\"symmetric\""
            }
        };
        return Err(mismatch(
            "padding",
            name(format.padding()),
            name(config.padding).to_owned(),
        ));
    }
    Ok(())
}

/// Loads a file with batch normalisation into a twin that has it, then copies the folded kernels.
fn fill_folded(
    source: &mut Source,
    format: Format,
    encoder: &mut ConvEncoder,
) -> Result<(), WeightsError> {
    let config = EncoderConfig {
        norm: Norm::Batch,
        ..encoder.config().clone()
    };
    let mut twin = config.build(0, &encoder.head.weight.lazy_device());
    source.fill(format, &mut twin)?;
    // With symmetric padding the folded kernels are the same at every image size.
    let folded = twin
        .fold([32, 32])
        .nodes
        .into_iter()
        .filter_map(|node| match node.op {
            Op::Conv(conv) => Some(conv),
            Op::Add | Op::GlobalAveragePool => None,
        });
    encoder
        .units_mut()
        .into_iter()
        .zip(folded)
        .for_each(|(unit, conv)| set_conv(unit, conv));
    Ok(())
}

fn set_conv(unit: &mut ConvUnit, conv: Conv) {
    unit.weight = replaced(&unit.weight, conv.weight, conv.shape);
    unit.bias = unit
        .bias
        .as_ref()
        .map(|bias| replaced(bias, conv.bias, [conv.shape[0]]));
}

impl Source {
    fn format(&self) -> Result<Format, WeightsError> {
        Format::of(&self.checkpoint).ok_or_else(|| WeightsError::Format {
            path: self.checkpoint.path().into(),
            names: self
                .left
                .iter()
                .take(3)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// Moves all tensors of the feature extractor into an encoder of the format's own shape.
    fn fill(&mut self, format: Format, encoder: &mut ConvEncoder) -> Result<(), WeightsError> {
        match &mut encoder.features {
            Features::MobileOne(net) => net
                .blocks_mut()
                .into_iter()
                .try_for_each(|(name, block)| self.block(&name, block)),
            Features::MobileNetV2(net) => {
                let units = net.units_mut().into_iter().zip(mobilenet_names(format));
                units
                    .into_iter()
                    .try_for_each(|(unit, [conv, norm])| self.unit(unit, &conv, &norm))
            }
        }
    }

    fn block(&mut self, name: &str, block: &mut Block) -> Result<(), WeightsError> {
        for (index, unit) in block.branches.iter_mut().enumerate() {
            let conv = match unit.norm {
                Some(_) => format!("{name}.conv_kxk.{index}.conv"),
                None => format!("{name}.reparam_conv"),
            };
            self.unit(unit, &conv, &format!("{name}.conv_kxk.{index}.bn"))?;
        }
        if let Some(unit) = &mut block.scale {
            let branch = format!("{name}.conv_scale");
            self.unit(unit, &format!("{branch}.conv"), &format!("{branch}.bn"))?;
        }
        match &mut block.skip {
            Some(norm) => self.norm(norm, &format!("{name}.identity")),
            None => Ok(()),
        }
    }

    fn unit(&mut self, unit: &mut ConvUnit, conv: &str, norm: &str) -> Result<(), WeightsError> {
        self.param(&mut unit.weight, &format!("{conv}.weight"))?;
        if let Some(bias) = &mut unit.bias {
            self.param(bias, &format!("{conv}.bias"))?;
        }
        match &mut unit.norm {
            Some(batch_norm) => self.norm(batch_norm, norm),
            None => Ok(()),
        }
    }

    fn norm(&mut self, norm: &mut BatchNorm, prefix: &str) -> Result<(), WeightsError> {
        self.param(&mut norm.gamma, &format!("{prefix}.weight"))?;
        self.param(&mut norm.beta, &format!("{prefix}.bias"))?;
        for (state, name) in [
            (&mut norm.running_mean, "running_mean"),
            (&mut norm.running_var, "running_var"),
        ] {
            let old = state.value_sync();
            let values = self.take(&format!("{prefix}.{name}"), &old.dims())?;
            *state = RunningState::new(layers::tensor(values, old.dims(), &old.device()));
        }
        Ok(())
    }

    fn param<const D: usize>(
        &mut self,
        param: &mut Param<Tensor<D>>,
        name: &str,
    ) -> Result<(), WeightsError> {
        let shape = param.lazy_shape().dims();
        *param = replaced(param, self.take(name, &shape)?, shape);
        Ok(())
    }

    /// Takes the values of a tensor of the given shape, in single precision.
    fn take(&mut self, name: &str, expected: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let take = || {
            let values = self.checkpoint.values(name)?;
            let got = &self.checkpoint.tensors()[name].shape;
            match got == expected {
                true => Ok(values),
                false => Err(CheckpointErrorKind::Shape {
                    name: name.into(),
                    got: got.clone(),
                    expected: expected.into(),
                }),
            }
        };
        let values = take().map_err(|kind| self.checkpoint.error(kind))?;
        self.left.remove(name);
        self.loaded += 1;
        Ok(values)
    }

    /// The names that remain, all of which must be known to be of no use.
    fn leftovers(&self, format: Format) -> Result<Vec<String>, WeightsError> {
        let skipped = |name: &str| {
            name.starts_with(format.classifier()) || name.ends_with(".num_batches_tracked")
        };
        let extra: Vec<&String> = self.left.iter().filter(|name| !skipped(name)).collect();
        match extra.first() {
            None => Ok(self.left.iter().cloned().collect()),
            Some(name) => Err(WeightsError::Extra {
                path: self.checkpoint.path().into(),
                count: extra.len(),
                name: (*name).clone(),
            }),
        }
    }
}

/// A parameter with other values and everything else as it was.
fn replaced<const D: usize>(
    param: &Param<Tensor<D>>,
    values: Vec<f32>,
    shape: [usize; D],
) -> Param<Tensor<D>> {
    let tensor = layers::tensor(values, shape, &param.lazy_device());
    param.clone().transform_for_load(tensor, param.id)
}

#[cfg(test)]
mod tests;
