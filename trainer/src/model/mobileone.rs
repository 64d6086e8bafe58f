//! MobileOne: re-parameterisable depthwise and pointwise blocks (Vasu et al., CVPR 2023).
//!
//! While training, a block sums several convolutions, a 1×1 scale branch (depthwise blocks and the
//! stem) and a normalised copy of its input, each with its own batch normalisation. All of them
//! are linear, so that for inference they collapse into one convolution.

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::layers::{ConvUnit, Geometry, Kernel, Norm, Padding, batch_norm, scaled, tensor};
use crate::graph::{Activation, ConvNet, Op, Value};
use crate::ops;

/// Output channels before scaling and number of block pairs of each stage.
const STAGES: [(usize, usize); 4] = [(64, 2), (128, 8), (256, 10), (512, 1)];

/// The size of a MobileOne.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// Width multiplier of each stage.
    pub widths: [f64; 4],
    /// Convolution branches of each block but the stem, which has one.
    pub branches: usize,
}

/// MobileOne-S0: narrow, four branches.
pub const S0: Variant = Variant {
    widths: [0.75, 1.0, 1.0, 2.0],
    branches: 4,
};

/// MobileOne-S1: wider, one branch.
pub const S1: Variant = Variant {
    widths: [1.5, 1.5, 2.0, 2.5],
    branches: 1,
};

/// The feature extractor of MobileOne: `[N, 3, H, W]` → `[N, 512·w, H/32, W/32]`.
#[derive(Module, Debug)]
pub struct MobileOne {
    stem: Block,
    blocks: Vec<Block>,
}

/// Parallel linear branches, summed and rectified.
#[derive(Module, Debug)]
pub(super) struct Block {
    /// Convolutions of the block's own kernel size.
    pub(super) branches: Vec<ConvUnit>,
    /// The 1×1 branch beside a larger kernel.
    pub(super) scale: Option<ConvUnit>,
    /// The normalised copy of the input, where shapes allow.
    pub(super) skip: Option<BatchNorm>,
}

impl MobileOne {
    /// A network with random kernels; `width` multiplies all widths of the variant.
    ///
    /// With [`Norm::Folded`] every block is a single convolution with bias: the inference form.
    pub fn new(
        variant: Variant,
        width: f64,
        norm: Norm,
        padding: Padding,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let channels = |base: usize, stage: usize| scaled(base, variant.widths[stage] * width);
        let mut inputs = channels(64, 0).min(scaled(64, width));
        let mut block =
            |geometry, branches| Block::new(geometry, branches, norm, &mut *rng, device);
        let stem = block(Geometry::dense(3, inputs, 2, padding), 1);
        let mut blocks = Vec::new();
        for (stage, (base, repeats)) in STAGES.into_iter().enumerate() {
            let outputs = channels(base, stage);
            for repeat in 0..repeats {
                let stride = if repeat == 0 { 2 } else { 1 };
                let depthwise = Geometry::depthwise(inputs, stride, padding);
                blocks.push(block(depthwise, variant.branches));
                blocks.push(block(
                    Geometry::pointwise(inputs, outputs),
                    variant.branches,
                ));
                inputs = outputs;
            }
        }
        Self { stem, blocks }
    }

    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.blocks.last().unwrap_or(&self.stem).geometry().outputs
    }

    /// The feature map of a batch.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.blocks
            .iter()
            .fold(self.stem.forward(x), |x, block| block.forward(x))
    }

    /// Appends the folded feature extractor to a network; returns its output.
    pub(super) fn fold(&self, net: &mut ConvNet) -> Value {
        let mut x = self.stem.fold("stem", net, Value::Image);
        for (index, block) in self.blocks.iter().enumerate() {
            let kind = if index % 2 == 0 {
                "depthwise"
            } else {
                "pointwise"
            };
            x = block.fold(&format!("block{}.{kind}", index / 2), net, x);
        }
        x
    }

    /// The stem and the blocks, with their names in timm's files.
    pub(super) fn blocks_mut(&mut self) -> Vec<(String, &mut Block)> {
        let mut blocks = vec![("stem".to_owned(), &mut self.stem)];
        let counts = STAGES.into_iter().enumerate();
        let names = counts.flat_map(|(stage, (_, repeats))| {
            (0..2 * repeats).map(move |index| format!("stages.{stage}.{index}"))
        });
        blocks.extend(names.zip(&mut self.blocks));
        blocks
    }
}

impl Block {
    fn new(
        geometry: Geometry,
        branches: usize,
        norm: Norm,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        if norm == Norm::Folded {
            let conv = ConvUnit::new(geometry, norm, Activation::Relu, rng, device);
            return Self {
                branches: vec![conv],
                scale: None,
                skip: None,
            };
        }
        let mut unit = |geometry| ConvUnit::new(geometry, norm, Activation::None, rng, device);
        let copies = geometry.inputs == geometry.outputs && geometry.stride == 1;
        Self {
            branches: (0..branches).map(|_| unit(geometry)).collect(),
            scale: (geometry.kernel > 1).then(|| {
                unit(Geometry {
                    kernel: 1,
                    ..geometry
                })
            }),
            skip: copies.then(|| batch_norm(geometry.outputs, device)),
        }
    }

    fn geometry(&self) -> &Geometry {
        self.branches[0].geometry()
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let device = x.device();
        if self.branches.len() > 1 && !device.is_autodiff() {
            return self.forward_merged(x, &device);
        }
        let branches = self
            .branches
            .iter()
            .chain(&self.scale)
            .map(|unit| unit.forward(x.clone()));
        let copy = |norm| ops::batch_norm(x.clone(), norm, Activation::None);
        let skip = self.skip.iter().map(copy);
        let sum = branches.chain(skip).reduce(|sum, y| sum + y);
        ops::activate(sum.unwrap_or(x), Activation::Relu)
    }

    /// The branches as one convolution: the same result in a fraction of the time, but without a
    /// path for gradients.
    fn forward_merged(&self, x: Tensor<4>, device: &Device) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let size = [height, width];
        let conv = self
            .kernel(size)
            .into_conv(self.geometry(), Activation::Relu, size);
        let weight = tensor(conv.weight, conv.shape, device);
        let bias = tensor(conv.bias, [conv.shape[0]], device);
        ops::conv2d(
            x,
            weight,
            Some(bias),
            self.geometry().window(size),
            Activation::Relu,
        )
    }

    fn fold(&self, name: &str, net: &mut ConvNet, input: Value) -> Value {
        let [_, height, width] = net.shape(input);
        let size = [height, width];
        let conv = self
            .kernel(size)
            .into_conv(self.geometry(), Activation::Relu, size);
        net.push(name, Op::Conv(conv), vec![input])
    }

    /// The sum of all branches as one kernel. A 1×1 branch sits at the tap that reads the pixel it
    /// reads: as many taps from the edge as there are zeros.
    fn kernel(&self, size: [usize; 2]) -> Kernel {
        let geometry = self.geometry();
        let [top, left, ..] = geometry.window(size).padding;
        let mut kernel = self.branches[0].kernel();
        self.branches[1..]
            .iter()
            .for_each(|branch| kernel.add(&branch.kernel()));
        let scale = self.scale.iter().map(ConvUnit::kernel);
        let skip = self.skip.iter().map(|norm| {
            let mut identity = Kernel::identity(geometry);
            identity.normalise(norm);
            identity
        });
        for point in scale.chain(skip) {
            kernel.add_point(&point, geometry.kernel, [top, left]);
        }
        kernel
    }
}
