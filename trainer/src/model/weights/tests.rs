use super::super::conv::tests::{assert_close, embed, picture, used};
use super::*;
use crate::checkpoint::samples::{self, Sample, Samples};
use crate::graph::Node;
use burn::tensor::{DType, Device, TensorData};
use safetensors::serialize_to_file;
use safetensors::tensor::{Dtype, TensorView};

const IMAGENET: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../shared/data/weights/mobilenet-v2-imagenet/encoder.safetensors"
);

const SIZE: [usize; 2] = [40, 33];

type File = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn config(architecture: Architecture, norm: Norm) -> EncoderConfig {
    EncoderConfig {
        architecture,
        width: 1.0,
        embedding: 4,
        padding: Padding::Symmetric,
        norm,
        branches: None,
    }
}

fn put<const D: usize>(file: &mut File, name: String, tensor: Tensor<D>) {
    let shape = tensor.dims().to_vec();
    file.insert(name, (shape, tensor.into_data().iter::<f32>().collect()));
}

fn put_norm(file: &mut File, prefix: &str, norm: &BatchNorm) {
    put(file, format!("{prefix}.weight"), norm.gamma.val());
    put(file, format!("{prefix}.bias"), norm.beta.val());
    put(
        file,
        format!("{prefix}.running_mean"),
        norm.running_mean.value_sync(),
    );
    put(
        file,
        format!("{prefix}.running_var"),
        norm.running_var.value_sync(),
    );
    file.insert(
        format!("{prefix}.num_batches_tracked"),
        (vec![1], vec![7.0]),
    );
}

fn put_unit(file: &mut File, conv: &str, norm: &str, unit: &ConvUnit) {
    put(file, format!("{conv}.weight"), unit.weight.val());
    unit.norm
        .iter()
        .for_each(|batch_norm| put_norm(file, norm, batch_norm));
}

/// The tensors of an encoder with batch normalisation under the names of a format.
fn export(encoder: &ConvEncoder, format: Format) -> File {
    let mut file = File::new();
    match encoder.clone().features {
        Features::MobileNetV2(mut net) => {
            for (unit, [conv, norm]) in net.units_mut().into_iter().zip(mobilenet_names(format)) {
                put_unit(&mut file, &conv, &norm, unit);
            }
        }
        Features::MobileOne(mut net) => {
            for (name, block) in net.blocks_mut() {
                for (i, unit) in block.branches.iter().enumerate() {
                    let branch = format!("{name}.conv_kxk.{i}");
                    put_unit(
                        &mut file,
                        &format!("{branch}.conv"),
                        &format!("{branch}.bn"),
                        unit,
                    );
                }
                if let Some(unit) = &block.scale {
                    let branch = format!("{name}.conv_scale");
                    put_unit(
                        &mut file,
                        &format!("{branch}.conv"),
                        &format!("{branch}.bn"),
                        unit,
                    );
                }
                block
                    .skip
                    .iter()
                    .for_each(|n| put_norm(&mut file, &format!("{name}.identity"), n));
            }
        }
    }
    file.insert(
        format!("{}weight", format.classifier()),
        (vec![2, 3], vec![0.5; 6]),
    );
    file
}

fn write(path: &Path, file: &File, dtype: DType) {
    let stored = match dtype {
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    let bytes = |(shape, values): &(Vec<usize>, Vec<f32>)| {
        let data = TensorData::new(values.clone(), shape.clone()).convert_dtype(dtype);
        (shape.clone(), data.as_bytes().to_vec())
    };
    let tensors: Vec<_> = file
        .iter()
        .map(|(name, tensor)| (name, bytes(tensor)))
        .collect();
    let view = |(shape, bytes)| TensorView::new(stored, shape, bytes).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name, view((shape.clone(), bytes))));
    serialize_to_file(views, None, path).unwrap();
}

/// A file of a format, written from an encoder that has seen some data.
fn exported(architecture: Architecture, format: Format) -> (ConvEncoder, File) {
    let encoder = used(&config(architecture, Norm::Batch));
    let file = export(&encoder, format);
    (encoder, file)
}

fn load_file(file: &File, config: &EncoderConfig) -> Result<(ConvEncoder, Loaded), WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    write(&path, file, DType::F32);
    load(config.init(1, &Device::flex()).unwrap(), &path)
}

/// Everything but the head.
fn features(encoder: &ConvEncoder) -> Vec<Node> {
    let mut net = encoder.fold(SIZE);
    net.nodes.pop();
    net.nodes
}

#[test]
fn files_with_batch_normalisation_fit_both_forms() {
    use Architecture::{MobileNetV2, MobileOneS0, MobileOneS1};
    for (architecture, format, sample, shape) in [
        (
            MobileNetV2,
            Format::TorchvisionMobileNetV2,
            "features.2.conv.1.0.weight",
            [96, 1, 3, 3],
        ),
        (
            MobileNetV2,
            Format::TimmMobileNetV2,
            "blocks.5.2.conv_pwl.weight",
            [160, 960, 1, 1],
        ),
        (
            MobileOneS0,
            Format::TimmMobileOne,
            "stages.1.2.conv_kxk.3.conv.weight",
            [128, 1, 3, 3],
        ),
        (
            MobileOneS1,
            Format::TimmMobileOne,
            "stages.3.1.conv_kxk.0.conv.weight",
            [1280, 512, 1, 1],
        ),
    ] {
        let (encoder, file) = exported(architecture, format);
        assert_eq!(file[sample].0, shape, "{sample}");
        let (same, loaded) = load_file(&file, &config(architecture, Norm::Batch)).unwrap();
        assert_eq!(
            (loaded.format, loaded.tensors + loaded.skipped.len()),
            (format, file.len())
        );
        let expected = features(&encoder);
        assert_eq!(features(&same), expected, "{format}");
        let (folded, _) = load_file(&file, &config(architecture, Norm::Folded)).unwrap();
        assert_eq!(features(&folded), expected, "{format}, folded");
    }
}

#[test]
fn half_precision_is_widened() {
    let (encoder, file) = exported(Architecture::MobileNetV2, Format::TimmMobileNetV2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    write(&path, &file, DType::F16);
    let fresh = config(Architecture::MobileNetV2, Norm::Folded).init(1, &Device::flex());
    let (half, _) = load(fresh.unwrap(), &path).unwrap();
    let stem = |encoder: &ConvEncoder| match encoder.fold(SIZE).nodes.swap_remove(0).op {
        Op::Conv(conv) => conv.weight,
        other => panic!("{other:?}"),
    };
    assert_close(&stem(&half), &stem(&encoder), 2e-3, "half precision");
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let (_, file) = exported(Architecture::MobileNetV2, Format::TorchvisionMobileNetV2);
    let plain = config(Architecture::MobileNetV2, Norm::Batch);
    let without = |name: &str| {
        file.clone()
            .into_iter()
            .filter(|(n, _)| n != name)
            .collect()
    };
    let with = |name: &str, value| {
        let mut file = file.clone();
        file.insert(name.to_owned(), (vec![1], vec![value]));
        file
    };
    let folded: File = [("conv00.conv.weight".to_owned(), (vec![1], vec![0.0]))].into();
    for (file, config, message) in [
        (
            without("features.3.conv.2.weight"),
            plain.clone(),
            "missing features.3.conv.2.weight",
        ),
        (
            with("features.19.weight", 1.0),
            plain.clone(),
            "1 tensors have no place",
        ),
        (
            with("features.0.1.bias", 1.0),
            plain.clone(),
            "has shape [1], expected [32]",
        ),
        (
            file.clone(),
            EncoderConfig {
                width: 0.5,
                ..plain.clone()
            },
            "expected [16, 3, 3, 3]",
        ),
        (
            file.clone(),
            EncoderConfig {
                padding: Padding::Same,
                ..plain.clone()
            },
            "padding = \"symmetric\"",
        ),
        (
            file.clone(),
            config(Architecture::MobileOneS0, Norm::Batch),
            "architecture = mobilenet-v2",
        ),
        (folded, plain.clone(), "norm = \"folded\""),
        (File::new(), plain.clone(), "unknown tensor names"),
    ] {
        let error = load_file(&file, &config).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(error.contains("weights.safetensors"), "{error}");
    }
    let mut damaged = file.clone();
    damaged
        .values_mut()
        .for_each(|(_, values)| values[0] = f32::NAN);
    let error = load_file(&damaged, &plain).unwrap_err().to_string();
    assert!(error.contains("not finite; the file is damaged"), "{error}");
}

#[test]
fn files_that_are_no_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fresh = || {
        config(Architecture::MobileNetV2, Norm::Batch)
            .init(1, &Device::flex())
            .unwrap()
    };
    let path = folder.path().join("nothing");
    let refusal = |path: &Path| load(fresh(), path).unwrap_err().to_string();
    assert!(refusal(&path).contains("nothing: cannot read: "));
    for bytes in [&b""[..], b"12345678", &[0xff; 64]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(refusal(&path).contains("nothing: not a weight file"));
    }
}

#[test]
fn files_of_pytorch_fit_as_well() {
    let (encoder, file) = exported(Architecture::MobileNetV2, Format::TorchvisionMobileNetV2);
    let samples: Samples = file
        .iter()
        .map(|(name, (shape, values))| {
            let sample = Sample::new(Dtype::F32, shape, values.iter().copied());
            (name.clone(), sample)
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = samples::write(
        folder.path(),
        "mobilenet_v2.pth",
        &samples::legacy(&samples),
    );
    let fresh = config(Architecture::MobileNetV2, Norm::Batch).init(1, &Device::flex());
    let (same, _) = load(fresh.unwrap(), &path).unwrap();
    assert_eq!(features(&same), features(&encoder));
}

#[test]
fn the_imagenet_file_embeds_as_it_folds() {
    let path = Path::new(IMAGENET);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return;
    }
    let config = config(Architecture::MobileNetV2, Norm::Folded);
    let config = EncoderConfig {
        padding: Padding::Same,
        ..config
    };
    let (encoder, report) = load(config.init(1, &Device::flex()).unwrap(), path).unwrap();
    assert_eq!(report.format, Format::FoldedMobileNetV2);
    assert_eq!((report.tensors, report.skipped.len()), (104, 2));
    assert_eq!(report.metadata["license"], "Apache-2.0");
    let image = picture([64, 64]);
    let expected = encoder.fold([64, 64]).forward(&image);
    assert_close(
        &embed(&encoder, &image, [64, 64], &Device::flex()),
        &expected,
        1e-5,
        "ImageNet weights",
    );
}
