//! Pretrained weights from safetensors files.
//!
//! The format is told from the tensor names. Everything but the classifier is loaded; the head
//! into the embedding stays as initialised. A file with batch normalisation also fits an encoder
//! with `norm = "folded"`: it is folded on the way in.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use burn::module::{Param, RunningState};
use burn::nn::BatchNorm;
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use thiserror::Error;

use super::layers::{self, ConvUnit, Norm, Padding};
use super::mobileone::Block;
use super::{Architecture, EncoderConfig, Features, ImageEncoder, mobilenet};
use crate::graph::{Conv, Op};

/// How a file names its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// timm's MobileOne with its branches (`stem.conv_kxk.0.conv.weight`).
    TimmMobileOne,
    /// timm's MobileOne after re-parameterisation (`stem.reparam_conv.weight`).
    TimmMobileOneFolded,
    /// timm's MobileNetV2 (`conv_stem.weight`).
    TimmMobileNetV2,
    /// torchvision's MobileNetV2 (`features.0.0.weight`).
    TorchvisionMobileNetV2,
    /// MobileNetV2 with folded batch normalisation and TensorFlow's padding: convolutions numbered
    /// in network order (`conv00.conv.weight`, `conv01.dw.weight`, …). Expects input
    /// `(x − 127.5) / 127.5`.
    FoldedMobileNetV2,
}

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
    /// The file could not be read.
    #[error("{path}: cannot read: {source}")]
    Read {
        /// The weight file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The file is not a safetensors file.
    #[error("{path}: not a valid safetensors file: {source}")]
    Parse {
        /// The weight file.
        path: PathBuf,
        /// What went wrong.
        source: safetensors::SafeTensorError,
    },
    /// The tensor names belong to no known network.
    #[error(
        "{path}: unknown tensor names ({names}); expected MobileOne or MobileNetV2 by timm's or \
         torchvision's names, or the batch-norm-folded MobileNetV2"
    )]
    Format {
        /// The weight file.
        path: PathBuf,
        /// The first few names.
        names: String,
    },
    /// The file holds something else than the encoder's configuration asks for.
    #[error("{path}: holds {format}, which needs {field} = {expected} in [encoder], not {got}")]
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
    /// A tensor is not there.
    #[error("{path}: tensor {name} is missing; check architecture and branches in [encoder]")]
    Missing {
        /// The weight file.
        path: PathBuf,
        /// The missing tensor.
        name: String,
    },
    /// A tensor has another shape than the encoder's.
    #[error(
        "{path}: tensor {name} has shape {got:?}, expected {expected:?}; pretrained weights need \
         the same architecture and width = 1"
    )]
    Shape {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Shape of the encoder's tensor.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A tensor is not of a floating-point type.
    #[error("{path}: tensor {name} is {got}, expected F32, F16, BF16 or F64")]
    Type {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        got: Dtype,
    },
    /// A tensor holds NaN or infinity.
    #[error("{path}: tensor {name} holds values that are not finite; the file is damaged")]
    NotFinite {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Tensors are left over that the encoder has no place for.
    #[error(
        "{path}: {count} tensors have no place in the encoder (first: {name}); check architecture \
         and branches in [encoder]"
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
pub fn load(
    mut encoder: ImageEncoder,
    path: &Path,
) -> Result<(ImageEncoder, Loaded), WeightsError> {
    let bytes = std::fs::read(path).map_err(|source| WeightsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let parse = |source| WeightsError::Parse {
        path: path.to_owned(),
        source,
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(parse)?;
    let file = SafeTensors::deserialize(&bytes).map_err(parse)?;
    let mut source = Source {
        path,
        tensors: file.iter().collect(),
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
        metadata: header
            .metadata()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    };
    Ok((encoder, loaded))
}

/// The tensors of a file, taken out one by one.
struct Source<'a> {
    path: &'a Path,
    tensors: BTreeMap<&'a str, TensorView<'a>>,
    loaded: usize,
}

impl Format {
    const ALL: [(Self, &'static str); 5] = [
        (Self::TimmMobileOne, "stem.conv_kxk.0.conv.weight"),
        (Self::TimmMobileOneFolded, "stem.reparam_conv.weight"),
        (Self::TimmMobileNetV2, "conv_stem.weight"),
        (Self::TorchvisionMobileNetV2, "features.0.0.weight"),
        (Self::FoldedMobileNetV2, "conv00.conv.weight"),
    ];

    fn is_folded(self) -> bool {
        matches!(self, Self::TimmMobileOneFolded | Self::FoldedMobileNetV2)
    }

    fn is_mobileone(self) -> bool {
        matches!(self, Self::TimmMobileOne | Self::TimmMobileOneFolded)
    }

    fn padding(self) -> Padding {
        if self == Self::FoldedMobileNetV2 {
            Padding::Same
        } else {
            Padding::Symmetric
        }
    }

    fn classifier(self) -> &'static str {
        match self {
            Self::TimmMobileOne | Self::TimmMobileOneFolded => "head.",
            Self::TimmMobileNetV2 | Self::TorchvisionMobileNetV2 => "classifier.",
            Self::FoldedMobileNetV2 => "conv52.",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TimmMobileOne => "timm's MobileOne",
            Self::TimmMobileOneFolded => "timm's re-parameterised MobileOne",
            Self::TimmMobileNetV2 => "timm's MobileNetV2",
            Self::TorchvisionMobileNetV2 => "torchvision's MobileNetV2",
            Self::FoldedMobileNetV2 => "MobileNetV2 with folded batch normalisation",
        })
    }
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
    source: &mut Source<'_>,
    format: Format,
    encoder: &mut ImageEncoder,
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

impl Source<'_> {
    fn format(&self) -> Result<Format, WeightsError> {
        let known = Format::ALL
            .iter()
            .find(|(_, name)| self.tensors.contains_key(name));
        known
            .map(|&(format, _)| format)
            .ok_or_else(|| WeightsError::Format {
                path: self.path.to_owned(),
                names: self
                    .tensors
                    .keys()
                    .take(3)
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// Moves all tensors of the feature extractor into an encoder of the format's own shape.
    fn fill(&mut self, format: Format, encoder: &mut ImageEncoder) -> Result<(), WeightsError> {
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
        let (path, name) = (self.path.to_owned(), name.to_owned());
        let Some(view) = self.tensors.remove(name.as_str()) else {
            return Err(WeightsError::Missing { path, name });
        };
        if view.shape() != expected {
            let (expected, got) = (expected.to_vec(), view.shape().to_vec());
            return Err(WeightsError::Shape {
                path,
                name,
                expected,
                got,
            });
        }
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            got => return Err(WeightsError::Type { path, name, got }),
        };
        let data = TensorData::from_bytes_vec(view.data().to_vec(), expected, dtype);
        let values: Vec<f32> = data.iter::<f32>().collect();
        if !values.iter().all(|value| value.is_finite()) {
            return Err(WeightsError::NotFinite { path, name });
        }
        self.loaded += 1;
        Ok(values)
    }

    /// The names that remain, all of which must be known to be of no use.
    fn leftovers(&self, format: Format) -> Result<Vec<String>, WeightsError> {
        let skipped = |name: &str| {
            name.starts_with(format.classifier()) || name.ends_with(".num_batches_tracked")
        };
        let extra: Vec<&str> = self
            .tensors
            .keys()
            .copied()
            .filter(|name| !skipped(name))
            .collect();
        match extra.first() {
            None => Ok(self.tensors.keys().map(|&name| name.to_owned()).collect()),
            Some(&name) => Err(WeightsError::Extra {
                path: self.path.to_owned(),
                count: extra.len(),
                name: name.to_owned(),
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

/// Names of convolution and batch normalisation of MobileNetV2's units, in network order.
fn mobilenet_names(format: Format) -> Vec<[String; 2]> {
    match format {
        Format::TorchvisionMobileNetV2 => torchvision_names(),
        Format::FoldedMobileNetV2 => folded_names(),
        _ => timm_names(),
    }
}

fn torchvision_names() -> Vec<[String; 2]> {
    let mut names = vec![["features.0.0".to_owned(), "features.0.1".to_owned()]];
    let expansions = mobilenet::STAGES
        .into_iter()
        .flat_map(|[e, _, n, _]| vec![e; n]);
    for (index, expansion) in (1..).zip(expansions) {
        let block = format!("features.{index}.conv");
        let filters = if expansion == 1 { 1 } else { 2 };
        for i in 0..filters {
            names.push([format!("{block}.{i}.0"), format!("{block}.{i}.1")]);
        }
        names.push([
            format!("{block}.{filters}"),
            format!("{block}.{}", filters + 1),
        ]);
    }
    names.push(["features.18.0".to_owned(), "features.18.1".to_owned()]);
    names
}

fn timm_names() -> Vec<[String; 2]> {
    let mut names = vec![["conv_stem".to_owned(), "bn1".to_owned()]];
    for (stage, [expansion, _, repeats, _]) in mobilenet::STAGES.into_iter().enumerate() {
        let convs: &[&str] = match expansion {
            1 => &["conv_dw", "conv_pw"],
            _ => &["conv_pw", "conv_dw", "conv_pwl"],
        };
        for repeat in 0..repeats {
            let block = format!("blocks.{stage}.{repeat}");
            for (number, conv) in (1..).zip(convs) {
                names.push([format!("{block}.{conv}"), format!("{block}.bn{number}")]);
            }
        }
    }
    names.push(["conv_head".to_owned(), "bn2".to_owned()]);
    names
}

/// The stem, then depthwise and pointwise in turn after the first block's pair, numbered through.
fn folded_names() -> Vec<[String; 2]> {
    timm_names()
        .into_iter()
        .enumerate()
        .map(|(index, [conv, _])| {
            let kind = if conv.ends_with("conv_dw") {
                "dw"
            } else {
                "conv"
            };
            [format!("conv{index:02}.{kind}"), String::new()]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    const IMAGENET: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/data/weights/mobilenet-v2-imagenet/encoder.safetensors"
    );

    fn encoder(architecture: Architecture, norm: Norm, padding: Padding) -> ImageEncoder {
        let config = EncoderConfig {
            architecture,
            width: 1.0,
            embedding: 8,
            padding,
            norm,
            branches: None,
        };
        config.init(1, &Device::flex()).unwrap()
    }

    #[test]
    fn the_imagenet_file_loads_and_folds_to_itself() {
        let path = Path::new(IMAGENET);
        if !path.exists() {
            eprintln!("skipped: {} is absent", path.display());
            return;
        }
        let fresh = encoder(Architecture::MobileNetV2, Norm::Folded, Padding::Same);
        let (loaded, report) = load(fresh, path).unwrap();
        assert_eq!(report.format, Format::FoldedMobileNetV2);
        assert_eq!((report.tensors, report.skipped.len()), (104, 2));
        let image: Vec<f32> = (0..3 * 64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
        let expected = loaded.fold([64, 64]).forward(&image);
        let input = layers::tensor(image, [1, 3, 64, 64], &Device::flex());
        let got: Vec<f32> = loaded.forward(input).into_data().iter::<f32>().collect();
        for (got, expected) in got.iter().zip(&expected) {
            assert!(
                (got - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                "{got} {expected}"
            );
        }
    }
}
