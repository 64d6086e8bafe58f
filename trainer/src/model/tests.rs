use super::conv::tests::assert_close;
use super::*;
use crate::clip::transformer::Precision;
use crate::clip::{
    Activation, Hints, ResNetShape, TransformerShape, VitForm, VitShape, image_layout, random,
};
use burn::module::{ModuleVisitor, Param};
use burn::tensor::TensorData;
use safetensors::SafeTensors;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");

fn golden(name: &str) -> Option<ClipFile> {
    let (activation, image_heads) = match name {
        "vit-gelu" => (Activation::Gelu, Some(2)),
        "vit-quickgelu" => (Activation::QuickGelu, Some(2)),
        _ => (Activation::QuickGelu, Some(32)),
    };
    let hints = Hints {
        activation: Some(activation),
        image_heads,
        text_heads: Some(2),
    };
    let path = format!("{GOLDEN}/clip-tiny-{name}.safetensors");
    if !std::path::Path::new(&path).exists() {
        println!("skipped: {path} is absent");
        return None;
    }
    Some(ClipFile::open(path.as_ref(), &hints).unwrap())
}

fn values(file: &SafeTensors, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = file.tensor(name).unwrap();
    let (chunks, _) = tensor.data().as_chunks::<4>();
    let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes));
    (tensor.shape().to_vec(), values.collect())
}

#[test]
fn towers_equal_the_reference() {
    for name in ["vit-gelu", "vit-quickgelu", "resnet-quickgelu"] {
        let Some(file) = golden(name) else { return };
        let bytes = std::fs::read(format!("{GOLDEN}/clip-tiny-{name}.expected.safetensors"));
        let bytes = bytes.unwrap();
        let expected = SafeTensors::deserialize(&bytes).unwrap();
        let (shape, images) = values(&expected, "images");
        let (_, features) = values(&expected, "image_features");
        let device = Device::flex();
        let encoder = ImageEncoder::clip(&file, shape[2], &device).unwrap();
        let images = Tensor::<4>::from_data(TensorData::new(images, shape), &device);
        let got = encoder.forward(images);
        assert_eq!(got.dims()[1], encoder.dim());
        let got: Vec<f32> = got.into_data_as::<f32>().iter().collect();
        assert_close(&got, &features, 1e-4, name);
    }
}

#[test]
fn towers_take_images_of_other_sizes() {
    for (name, sizes, wrong) in [
        ("vit-gelu", [24, 64], 50),
        ("resnet-quickgelu", [32, 96], 48),
    ] {
        let Some(file) = golden(name) else { return };
        let device = Device::flex();
        for size in sizes {
            let encoder = ImageEncoder::clip(&file, size, &device).unwrap();
            let images = Tensor::ones([2, 3, size, size], &device);
            let embeddings: Vec<f32> = encoder
                .forward(images)
                .into_data_as::<f32>()
                .iter()
                .collect();
            assert!(embeddings.iter().all(|value| value.is_finite()));
            assert_close(&embeddings[..32], &embeddings[32..], 1e-5, name);
            assert_eq!(encoder.fold([size; 2]), Err(NotConvolutional));
        }
        let error = ImageEncoder::clip(&file, wrong, &device).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("{wrong} px do not fit")),
            "{error}"
        );
    }
}

/// The parameters that a gradient does not reach.
struct Unreached {
    grads: burn::tensor::Gradients,
    path: Vec<String>,
    found: Vec<String>,
}

impl ModuleVisitor for Unreached {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(&self.grads);
        let largest = gradient.map(|g| g.abs().max().into_scalar::<f32>());
        if !largest.is_some_and(|largest| largest > 0.0) {
            self.found.push(self.path.join("."));
        }
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
}

/// Small towers of both kinds with random weights, for images of 64 px.
fn towers(device: &Device) -> [ImageEncoder; 2] {
    let vit = VitShape {
        image: 64,
        patch: 16,
        transformer: TransformerShape {
            width: 24,
            layers: 2,
            heads: 3,
            mlp: 40,
            activation: Activation::Gelu,
        },
        embedding: 6,
        form: VitForm::Clip,
    };
    let resnet = ResNetShape {
        image: 64,
        width: 4,
        stages: [1, 2, 1, 1],
        heads: 4,
        embedding: 6,
    };
    let draw = |shape: &ImageShape| random(image_layout(shape), 1);
    let vit_weights = &mut draw(&ImageShape::Vit(vit.clone()));
    let resnet_weights = &mut draw(&ImageShape::ResNet(resnet.clone()));
    [
        ImageEncoder::Vit(Vit::take(vit_weights, &vit, 64, device)),
        ImageEncoder::ResNet(ResNet::take(resnet_weights, &resnet, 64, device)),
    ]
}

/// Gradients of a loss over two images.
fn gradients(encoder: &ImageEncoder, device: &Device) -> burn::tensor::Gradients {
    let images: Vec<f32> = (0..2 * 3 * 64 * 64)
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    let images = Tensor::<4>::from_data(TensorData::new(images, [2, 3, 64, 64]), device);
    encoder.forward(images).powf_scalar(3.0).sum().backward()
}

#[test]
fn training_reaches_every_parameter() {
    let device = Device::flex().autodiff();
    for encoder in towers(&device) {
        let mut unreached = Unreached {
            grads: gradients(&encoder, &device),
            path: Vec::new(),
            found: Vec::new(),
        };
        encoder.visit(&mut unreached);
        unreached.found.retain(|path| !path.contains("running_"));
        assert_eq!(unreached.found, [""; 0]);
    }
}

/// The exact gradients of all parameters.
struct Bits {
    grads: burn::tensor::Gradients,
    bits: Vec<Vec<u8>>,
}

impl ModuleVisitor for Bits {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = param.val().grad(&self.grads);
        self.bits
            .extend(gradient.map(|g| g.into_data().as_bytes().to_vec()));
    }
}

/// The exact gradients of both towers.
fn gradient_bits(device: &Device) -> [Vec<Vec<u8>>; 2] {
    towers(device).map(|encoder| {
        let mut bits = Bits {
            grads: gradients(&encoder, device),
            bits: Vec::new(),
        };
        encoder.visit(&mut bits);
        bits.bits
    })
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let device = Device::flex().autodiff();
    let kept = gradient_bits(&device);
    assert!(kept.iter().all(|bits| bits.len() > 30));
    assert!(kept == gradient_bits(&device.gradient_checkpointing()));
}

#[test]
fn threads_change_no_bit() {
    let bits = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap()
            .install(|| gradient_bits(&Device::flex().autodiff()))
    };
    let one = bits(1);
    for round in 0..20 {
        assert!(one == bits(1 + round % 5));
    }
}

#[test]
fn half_precision_gives_about_the_same_gradients() {
    let device = Device::flex().autodiff();
    let [vit, _] = towers(&device);
    let ImageEncoder::Vit(vit) = vit else {
        panic!("a vision transformer");
    };
    let values = |encoder: ImageEncoder| {
        let mut bits = Bits {
            grads: gradients(&encoder, &device),
            bits: Vec::new(),
        };
        encoder.visit(&mut bits);
        let values = bits.bits.concat();
        let (chunks, _) = values.as_chunks::<4>();
        chunks
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect::<Vec<_>>()
    };
    let exact = values(vit.clone().into());
    let half = values(vit.clone().with_precision(Precision::Bf16).into());
    // Gradients are of single precision, as the weights are, but not the same.
    assert_eq!(half.len(), exact.len());
    assert_ne!(half, exact);
    let cosine = ::numclip::verify::cosine(&half, &exact);
    assert!(cosine > 0.999, "{cosine}");
    // Without gradients in sight, nothing is rounded.
    let plain = Device::flex();
    let images = || Tensor::ones([1, 3, 64, 64], &plain);
    let embed = |vit: Vit| vit.valid().forward(images()).into_data();
    assert_eq!(
        embed(vit.clone().with_precision(Precision::Bf16)),
        embed(vit)
    );
}
