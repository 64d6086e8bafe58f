//! What a weight file is: a CLIP model, an image encoder to start from, the weights of a run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Bytes, Device};
use burn_pack::Reader;
use serde::Serialize;

use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointErrorKind, Container, Dtype, Result,
};
use crate::clip::{ClipFile, Finding, Hints, ImageShape, Scheme, Side, TextShape};
use crate::fit::{Provenance, Run};
use crate::model::names::Format;
use crate::model::{Architecture, EncoderConfig, Norm, Padding, tiny, weights};

/// A weight file, described.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The file.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// The kind of file.
    pub container: Container,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values of each type.
    pub values: BTreeMap<String, u64>,
    /// What the tensors make up.
    pub model: Model,
}

/// What the tensors of a file make up.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Model {
    /// A CLIP model, or one side of it.
    Clip(Clip),
    /// An image encoder that `model.init` takes.
    Encoder(Encoder),
    /// What a run of the trainer learned.
    Run(RunWeights),
    /// Bin embeddings that `text.embeddings` takes.
    BinEmbeddings {
        /// Number of bins.
        bins: usize,
        /// Width of an embedding.
        width: usize,
    },
    /// Nothing the trainer can use.
    Unknown {
        /// The first few names.
        names: Vec<String>,
    },
}

/// A CLIP model.
#[derive(Clone, Debug, Serialize)]
pub struct Clip {
    /// How the file names its tensors.
    pub names: Scheme,
    /// The image side.
    pub image: Option<ImageShape>,
    /// The text side.
    pub text: Option<TextShape>,
    /// Scale of the cosines.
    pub logit_scale: Option<f32>,
    /// What is missing, left over or mis-shaped.
    pub findings: Vec<Finding>,
    /// Why the architecture of a side cannot be read.
    pub problems: Vec<String>,
}

/// An image encoder to start from.
#[derive(Clone, Debug, Serialize)]
pub struct Encoder {
    /// How the file names its tensors.
    pub format: String,
    /// The network; none if it is none of those that the trainer knows.
    pub architecture: Option<Architecture>,
    /// Where its strided convolutions put their zeros.
    pub padding: Padding,
    /// Whether it has batch normalisation.
    pub norm: Norm,
    /// Side of a patch in pixels, of a transformer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<usize>,
    /// Why it does not fit.
    pub problem: Option<String>,
}

/// What a run learned.
#[derive(Clone, Debug, Serialize)]
pub struct RunWeights {
    /// Name of the task, if the run's folder is there.
    pub task: Option<String>,
    /// The encoder, if the run's folder is there.
    pub architecture: Option<Architecture>,
    /// What the run was made from, if its folder is there.
    pub provenance: Option<Provenance>,
    /// Whether the file can be resumed from, rather than holding weights alone.
    pub resumable: bool,
    /// Number of values in each part of the model.
    pub parts: BTreeMap<String, u64>,
}

/// Says what a weight file is. Of a run's folder, its best weights are described.
///
/// # Errors
/// The file cannot be read, is of no known kind, or is damaged.
pub fn inspect(path: &Path, hints: &Hints) -> Result<Description, CheckpointError> {
    let file = run_file(path).unwrap_or_else(|| path.to_owned());
    let checkpoint = Checkpoint::open(&file)?;
    let fail = |kind| checkpoint.error(kind);
    let bytes = fs::metadata(&file)
        .map_err(|error| fail(error.into()))?
        .len();
    let tensors = checkpoint.tensors();
    let mut values = BTreeMap::new();
    for tensor in tensors.values() {
        *values.entry(name(tensor.dtype)).or_default() += tensor.count() as u64;
    }
    Ok(Description {
        bytes,
        sha256: checkpoint.sha256().map_err(fail)?,
        container: checkpoint.container(),
        tensors: tensors.len(),
        values,
        model: model(&checkpoint, hints)?,
        file,
    })
}

impl Description {
    /// Number of values of all types.
    pub fn parameters(&self) -> u64 {
        self.values.values().sum()
    }
}

/// Name of a type, as PyTorch users know it.
fn name(dtype: Dtype) -> String {
    format!("{dtype:?}").to_lowercase()
}

fn run_file(path: &Path) -> Option<PathBuf> {
    let files = ["best.safetensors", "checkpoint.safetensors"].map(|name| path.join(name));
    files.into_iter().find(|file| file.is_file())
}

fn model(checkpoint: &Checkpoint, hints: &Hints) -> Result<Model, CheckpointError> {
    let tensors = checkpoint.tensors();
    if let Some(tensor) = tensors.get("model")
        && tensor.dtype == Dtype::U8
    {
        let run = run_weights(checkpoint).map_err(|kind| checkpoint.error(kind))?;
        return Ok(Model::Run(run));
    }
    if let Some(format) = Format::of(checkpoint) {
        let describe = match format {
            Format::TimmVit => transformer,
            _ => encoder,
        };
        return Ok(Model::Encoder(describe(checkpoint.path(), format)));
    }
    if let Some(tensor) = tensors.get("embeddings")
        && let [bins, width] = tensor.shape[..]
    {
        return Ok(Model::BinEmbeddings { bins, width });
    }
    match ClipFile::open(checkpoint.path(), hints) {
        Ok(file) => Ok(Model::Clip(clip(&file)?)),
        Err(CheckpointError {
            kind: CheckpointErrorKind::Model(_),
            ..
        }) => Ok(Model::Unknown {
            names: tensors.keys().take(8).cloned().collect(),
        }),
        Err(error) => Err(error),
    }
}

fn clip(file: &ClipFile) -> Result<Clip, CheckpointError> {
    let mut problems = Vec::new();
    let mut note = |error: CheckpointError| problems.push(error.kind.to_string());
    let image = file.image().map_err(&mut note).ok().flatten();
    let text = file.text().map_err(&mut note).ok().flatten();
    let findings = [Side::Image, Side::Text].map(|side| file.findings(side).unwrap_or_default());
    Ok(Clip {
        names: file.scheme(),
        image,
        text,
        logit_scale: file.logit_scale()?,
        findings: findings.concat(),
        problems,
    })
}

/// Finds the network by loading the file into each that it may be.
fn encoder(path: &Path, format: Format) -> Encoder {
    let architectures: &[Architecture] = match format.is_mobileone() {
        true => &[Architecture::MobileOneS0, Architecture::MobileOneS1],
        false => &[Architecture::MobileNetV2],
    };
    let norm = match format.is_folded() {
        true => Norm::Folded,
        false => Norm::Batch,
    };
    let load = |architecture| {
        let config = EncoderConfig {
            architecture,
            width: 1.0,
            embedding: 1,
            padding: format.padding(),
            norm,
            branches: None,
        };
        let encoder = config
            .init(0, &Device::flex())
            .map_err(|error| error.to_string())?;
        weights::load(encoder, path).map_err(|error| error.to_string())?;
        Ok::<_, String>(architecture)
    };
    let mut results = architectures.iter().map(|architecture| load(*architecture));
    let first = results.next().unwrap_or(Err(String::new()));
    let found = first.or_else(|problem| results.find_map(Result::ok).ok_or(problem));
    Encoder {
        format: format.to_string(),
        architecture: found.as_ref().ok().copied(),
        padding: format.padding(),
        norm,
        patch: None,
        problem: found.err(),
    }
}

/// Finds the patch size by loading the file with each.
fn transformer(path: &Path, format: Format) -> Encoder {
    let load = |patch: usize| {
        let shape = tiny::shape(7 * patch, patch, 1);
        let net = tiny::load(&shape, 0, path, &Device::flex());
        net.map(|_| patch).map_err(|error| error.to_string())
    };
    let found = load(16).or_else(|problem| load(32).map_err(|_| problem));
    Encoder {
        format: format.to_string(),
        architecture: found.as_ref().ok().map(|_| Architecture::VitTiny),
        padding: Padding::default(),
        norm: Norm::default(),
        patch: found.as_ref().ok().copied(),
        problem: found.err(),
    }
}

fn run_weights(checkpoint: &Checkpoint) -> Result<RunWeights> {
    let damaged = |error: burn_pack::Error| CheckpointErrorKind::Index {
        container: checkpoint.container(),
        problem: format!("the model: {error}"),
    };
    let record = Bytes::from_bytes_vec(checkpoint.raw("model")?);
    let record = Reader::from_bytes(record).map_err(damaged)?;
    let mut parts = BTreeMap::new();
    for tensor in record.into_tensors().map_err(damaged)? {
        let (path, _, shape, ..) = tensor.into_parts().map_err(damaged)?;
        let part = path.split('.').next().unwrap_or_default().to_owned();
        *parts.entry(part).or_default() += shape.num_elements() as u64;
    }
    let folder = checkpoint.path().parent().map(Run::read);
    let (config, provenance) = match folder {
        Some(Ok((_, config, provenance))) => (Some(config), Some(provenance)),
        _ => (None, None),
    };
    Ok(RunWeights {
        task: config.as_ref().map(|config| config.task.name.clone()),
        architecture: config.map(|config| config.model.architecture),
        provenance,
        resumable: checkpoint.tensors().contains_key("optimizer"),
        parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::samples::{self, Sample, Samples};
    use crate::clip::{Activation, TransformerShape, VitForm, VitShape, image_layout, random};

    fn describe(samples: &Samples) -> Description {
        let folder = tempfile::tempdir().unwrap();
        let path = samples::write(folder.path(), "model.pt", &samples::torchscript(samples));
        inspect(&path, &Hints::default()).unwrap()
    }

    fn tower() -> (ImageShape, Samples) {
        let shape = ImageShape::Vit(VitShape {
            image: 32,
            patch: 16,
            transformer: TransformerShape {
                width: 64,
                layers: 1,
                heads: 1,
                mlp: 80,
                activation: Activation::QuickGelu,
            },
            embedding: 8,
            form: VitForm::Clip,
        });
        let layout = image_layout(&shape);
        let mut weights = random(layout.clone(), 1);
        let samples = layout.into_iter().map(|entry| {
            let values = weights.data(&entry.name).iter::<f32>().collect::<Vec<_>>();
            (entry.name, Sample::new(Dtype::F16, &entry.shape, values))
        });
        (shape, samples.collect())
    }

    #[test]
    fn a_clip_model_says_what_it_is_and_what_it_lacks() {
        let (shape, mut samples) = tower();
        let whole = describe(&samples);
        assert_eq!(
            (whole.container, whole.tensors),
            (Container::TorchScript, samples.len())
        );
        let count: usize = samples.values().map(|sample| sample.values.len()).sum();
        assert_eq!(
            whole.values,
            BTreeMap::from([("f16".to_owned(), count as u64)])
        );
        let Model::Clip(clip) = whole.model else {
            panic!("{:?}", whole.model);
        };
        assert_eq!(
            (clip.image, clip.text, clip.logit_scale),
            (Some(shape), None, None)
        );
        assert_eq!((clip.findings.len(), clip.problems.len()), (0, 0));
        samples.remove("visual.ln_post.bias");
        samples.insert("visual.extra".into(), Sample::new(Dtype::F32, &[1], [0.0]));
        let Model::Clip(clip) = describe(&samples).model else {
            panic!("no CLIP model");
        };
        let json = serde_json::to_value(&clip.findings).unwrap();
        assert_eq!(json[0]["kind"], "missing");
        assert_eq!(json[0]["name"], "visual.ln_post.bias");
        assert_eq!(
            json[1],
            serde_json::json!({"kind": "extra", "name": "visual.extra"})
        );
        samples.remove("visual.proj");
        let Model::Clip(clip) = describe(&samples).model else {
            panic!("no CLIP model");
        };
        assert_eq!(clip.problems, ["missing visual.proj"]);
    }

    #[test]
    fn other_files_are_told_apart() {
        let one = |name: &str, shape: &[usize]| {
            let sample = Sample::new(Dtype::F32, shape, [0.5; 9]);
            describe(&Samples::from([(name.to_owned(), sample)])).model
        };
        assert!(matches!(
            one("embeddings", &[3, 2]),
            Model::BinEmbeddings { bins: 3, width: 2 }
        ));
        assert!(matches!(one("fc.weight", &[3, 2]), Model::Unknown { .. }));
        let Model::Encoder(encoder) = one("conv_stem.weight", &[3]) else {
            panic!("no encoder");
        };
        assert!(encoder.architecture.is_none());
        let problem = encoder.problem.unwrap();
        assert!(
            problem.contains("conv_stem.weight has shape [3]"),
            "{problem}"
        );
    }
}
