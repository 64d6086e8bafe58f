//! ViT-Tiny, the small vision transformer (Touvron et al., "Training data-efficient image
//! transformers & distillation through attention", ICML 2021): random, or from timm's weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{Device, TensorData};

use super::names::Format;
use super::vit::Vit;
use super::weights::WeightsError;
use crate::checkpoint::{Checkpoint, CheckpointErrorKind};
use crate::clip::{
    Activation, Entry, ImageShape, TransformerShape, VitForm, VitShape, Weights, image_layout,
    random,
};

/// Side of a patch in pixels, where the task file names none.
pub const PATCH: usize = 16;

const WIDTH: usize = 192;

/// Ours, and timm's name for the same; blocks are below `visual.transformer.resblocks.N` and
/// `blocks.N`.
const NAMES: [(&str, &str); 4] = [
    ("visual.class_embedding", "cls_token"),
    ("visual.positional_embedding", "pos_embed"),
    ("visual.conv1", "patch_embed.proj"),
    ("visual.ln_post", "norm"),
];
const BLOCK_NAMES: [(&str, &str); 6] = [
    ("ln_1.", "norm1."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("ln_2.", "norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
];
/// The patches' bias: no parameter of ours, it is a part of their positions.
const PATCH_BIAS: &str = "patch_embed.proj.bias";
const PROJECTION: &str = "visual.proj";

/// The network for images of `image` height and width in patches of `patch`, embedding into
/// `embedding` values.
pub fn shape(image: usize, patch: usize, embedding: usize) -> VitShape {
    VitShape {
        image,
        patch,
        transformer: TransformerShape {
            width: WIDTH,
            layers: 12,
            heads: 3,
            mlp: 4 * WIDTH,
            activation: Activation::Gelu,
        },
        embedding,
        form: VitForm::Plain,
    }
}

/// The network with weights drawn from `seed`, with CLIP's deviations.
pub fn init(shape: &VitShape, seed: u64, device: &Device) -> Vit {
    let layout = image_layout(&ImageShape::Vit(shape.clone()));
    let mut weights = random(layout, seed).with_epsilon(shape.form.epsilon());
    Vit::take(&mut weights, shape, shape.image, device)
}

/// The network with timm's weights from a file; its positions are resampled for the image size of
/// `shape`, and the projection into the embedding is drawn from `seed`.
///
/// # Errors
/// The file cannot be read, or a tensor is missing, left over or mis-shaped.
pub fn load(
    shape: &VitShape,
    seed: u64,
    path: &Path,
    device: &Device,
) -> Result<Vit, WeightsError> {
    let file = Checkpoint::open(path)?;
    if Format::of(&file) != Some(Format::TimmVit) {
        let names = file.tensors().keys().take(3).cloned().collect::<Vec<_>>();
        return Err(WeightsError::Format {
            path: path.into(),
            names: names.join(", "),
        });
    }
    let mut weights = read(&file, shape).map_err(|kind| file.error(kind))?;
    let drawn = random(projection(shape), seed).data(PROJECTION);
    weights.insert(PROJECTION.into(), drawn);
    let mut weights = Weights::new(weights).with_epsilon(shape.form.epsilon());
    Ok(Vit::take(&mut weights, shape, shape.image, device))
}

fn projection(shape: &VitShape) -> Vec<Entry> {
    let mut layout = image_layout(&ImageShape::Vit(shape.clone()));
    layout.retain(|entry| entry.name == PROJECTION);
    layout
}

/// Everything but the projection, under our names.
fn read(
    file: &Checkpoint,
    shape: &VitShape,
) -> Result<BTreeMap<String, TensorData>, CheckpointErrorKind> {
    let trained = VitShape {
        image: shape.patch * grid(file)?,
        ..shape.clone()
    };
    let mut left: BTreeSet<&str> = file.tensors().keys().map(String::as_str).collect();
    left.retain(|name| !name.starts_with(Format::TimmVit.classifier()));
    let mut weights = BTreeMap::new();
    for entry in image_layout(&ImageShape::Vit(trained)) {
        if entry.name == PROJECTION {
            continue;
        }
        let name = timm_name(&entry.name);
        // timm keeps an axis of length 1 for the batch.
        let axes = match name.as_str() {
            "cls_token" => [&[1, 1], &entry.shape[..]].concat(),
            "pos_embed" => [&[1], &entry.shape[..]].concat(),
            _ => entry.shape.clone(),
        };
        let values = tensor(file, &name, &axes)?;
        left.remove(name.as_str());
        weights.insert(entry.name, TensorData::new(values, entry.shape));
    }
    let bias = tensor(file, PATCH_BIAS, &[WIDTH])?;
    left.remove(PATCH_BIAS);
    if !left.is_empty() {
        return Err(CheckpointErrorKind::Extra {
            what: "ViT-Tiny",
            names: left.into_iter().map(Into::into).collect(),
        });
    }
    if let Some(positions) = weights.get_mut("visual.positional_embedding") {
        *positions = shifted(positions, &bias);
    }
    Ok(weights)
}

/// `[1 + patches, width]` with `shift` added to the rows of the patches.
fn shifted(positions: &TensorData, shift: &[f32]) -> TensorData {
    let shape = positions.shape().clone();
    let values = positions.iter::<f32>().enumerate();
    let values = values.map(|(place, value)| match place.checked_sub(shift.len()) {
        Some(place) => value + shift[place % shift.len()],
        None => value,
    });
    TensorData::new(values.collect::<Vec<f32>>(), shape)
}

/// Patches along a side of the images that the file was trained on.
fn grid(file: &Checkpoint) -> Result<usize, CheckpointErrorKind> {
    let missing = || CheckpointErrorKind::Missing {
        names: vec!["pos_embed".into()],
    };
    let shape = &file.tensors().get("pos_embed").ok_or_else(missing)?.shape;
    let rows = shape.get(1).copied().unwrap_or(0);
    let side = rows.saturating_sub(1).isqrt();
    match side > 0 && side * side + 1 == rows {
        true => Ok(side),
        false => Err(CheckpointErrorKind::Model(format!(
            "pos_embed has shape {shape:?}, expected a class token and a square of patches"
        ))),
    }
}

fn tensor(
    file: &Checkpoint,
    name: &str,
    expected: &[usize],
) -> Result<Vec<f32>, CheckpointErrorKind> {
    let values = file.values(name)?;
    let got = &file.tensors()[name].shape;
    match got == expected {
        true => Ok(values),
        false => Err(CheckpointErrorKind::Shape {
            name: name.into(),
            got: got.clone(),
            expected: expected.into(),
        }),
    }
}

fn timm_name(name: &str) -> String {
    let block = name.strip_prefix("visual.transformer.resblocks.");
    if let Some((number, part)) = block.and_then(|rest| rest.split_once('.')) {
        let renamed = BLOCK_NAMES
            .iter()
            .find_map(|(ours, timm)| Some(format!("{timm}{}", part.strip_prefix(ours)?)));
        return format!("blocks.{number}.{}", renamed.as_deref().unwrap_or(part));
    }
    let renamed = NAMES
        .iter()
        .find_map(|(ours, timm)| Some(format!("{timm}{}", name.strip_prefix(ours)?)));
    renamed.unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use crate::checkpoint::samples::{self, Sample, Samples};
    use burn::module::Param;
    use burn::tensor::Tensor;

    /// What timm makes of an image (`tests/reference/vit_tiny.py`): by patch and image size.
    const REFERENCE: &str = include_str!("../../tests/reference/vit_tiny.json");

    /// Uniform within ±bound; element i depends on stream and i alone.
    fn numbers(stream: u64, count: usize, bound: f64) -> Vec<f32> {
        let mask = 0xFFFF_FFFF;
        let value = |i: u64| {
            let mut x = (i * 2_654_435_761 + stream * 40_503 + 12_345) & mask;
            x ^= x >> 15;
            x = (x * 2_246_822_519) & mask;
            x ^= x >> 13;
            ((x as f64 / 2f64.powi(32) * 2.0 - 1.0) * bound) as f32
        };
        (0..count as u64).map(value).collect()
    }

    /// A file as timm writes it, for images of two patches along a side.
    fn timm(patch: usize) -> Samples {
        let layout = image_layout(&ImageShape::Vit(shape(2 * patch, patch, 1)));
        let mut shapes: BTreeMap<String, Vec<usize>> = layout
            .into_iter()
            .filter(|entry| entry.name != PROJECTION)
            .map(|entry| (timm_name(&entry.name), entry.shape))
            .collect();
        for (name, axes) in [
            ("cls_token", vec![1, 1, WIDTH]),
            ("pos_embed", vec![1, 5, WIDTH]),
            (PATCH_BIAS, vec![WIDTH]),
            ("head.weight", vec![3, WIDTH]),
            ("head.bias", vec![3]),
        ] {
            shapes.insert(name.into(), axes);
        }
        let tensors = (0..).zip(shapes).map(|(stream, (name, axes))| {
            let norm = name.contains("norm") && name.ends_with("weight");
            let base = if norm { 1.0 } else { 0.0 };
            let values = numbers(stream, axes.iter().product(), 0.05);
            let values = values.into_iter().map(|value| base + value);
            (
                name,
                Sample::new(Dtype::F32, &axes, values.collect::<Vec<_>>()),
            )
        });
        tensors.collect()
    }

    fn load_samples(samples: &Samples, shape: &VitShape) -> Result<Vit, WeightsError> {
        let folder = tempfile::tempdir().unwrap();
        let bytes = samples::torchscript(samples);
        let path = samples::write(folder.path(), "vit.pt", &bytes);
        load(shape, 0, &path, &Device::flex())
    }

    #[test]
    fn equals_timm_at_every_size() {
        let reference: BTreeMap<String, Vec<f32>> = serde_json::from_str(REFERENCE).unwrap();
        assert_eq!(reference.len(), 3);
        let device = Device::flex();
        for (case, expected) in reference {
            let (patch, size) = case.split_once(' ').unwrap();
            let (patch, size): (usize, usize) = (patch.parse().unwrap(), size.parse().unwrap());
            let mut net = load_samples(&timm(patch), &shape(size, patch, WIDTH)).unwrap();
            net.projection = Param::from_tensor(Tensor::eye(WIDTH, &device));
            let image = numbers(1000, 3 * size * size, 1.0);
            let image = TensorData::new(image, [1, 3, size, size]);
            let features = net.forward(Tensor::from_data(image, &device));
            let got: Vec<f32> = features.into_data().iter().collect();
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 2e-5, "{case}: {got} {expected}");
            }
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let check = |change: &dyn Fn(&mut Samples), expected: &str| {
            let mut samples = timm(16);
            change(&mut samples);
            let error = load_samples(&samples, &shape(64, 16, 8)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        let extra = Sample::new(Dtype::F32, &[1], [0.0]);
        check(&|s| drop(s.remove("norm.bias")), "missing norm.bias");
        check(
            &|s| drop(s.insert("dist_token".into(), extra.clone())),
            "dist_token",
        );
        check(
            &|s| drop(s.insert("cls_token".into(), extra.clone())),
            "cls_token has shape [1]",
        );
        check(
            &|s| drop(s.insert("pos_embed".into(), extra.clone())),
            "a square of patches",
        );
        check(
            &|s| s.retain(|name, _| !name.contains("blocks.0")),
            "unknown tensor names",
        );
        let error = load_samples(&timm(32), &shape(64, 16, 8))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("[192, 3, 32, 32], expected [192, 3, 16, 16]"),
            "{error}"
        );
    }

    #[test]
    fn random_weights_hang_on_the_seed() {
        let embed = |seed| {
            let net = init(&shape(32, 16, 5), seed, &Device::flex());
            assert_eq!(net.dim(), 5);
            net.forward(Tensor::ones([1, 3, 32, 32], &Device::flex()))
                .into_data()
        };
        assert_eq!(embed(1), embed(1));
        assert_ne!(embed(1), embed(2));
    }
}
