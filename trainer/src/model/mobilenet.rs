//! MobileNetV2: inverted residuals with linear bottlenecks (Sandler et al., CVPR 2018, table 2).

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::layers::{ConvUnit, Geometry, Norm, Padding, scaled};
use crate::graph::{Activation, ConvNet, Op, Value};

/// Expansion, output channels, repeats and first stride of each stage.
pub(super) const STAGES: [[usize; 4]; 7] = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
];

/// The feature extractor of MobileNetV2: `[N, 3, H, W]` → `[N, 1280, H/32, W/32]` (1280 grows with
/// a width multiplier above 1).
#[derive(Module, Debug)]
pub struct MobileNetV2 {
    stem: ConvUnit,
    blocks: Vec<InvertedResidual>,
    last: ConvUnit,
}

/// Expand, filter every channel on its own, project; the input is added where shapes allow.
#[derive(Module, Debug)]
struct InvertedResidual {
    expand: Option<ConvUnit>,
    depthwise: ConvUnit,
    project: ConvUnit,
    residual: bool,
}

impl MobileNetV2 {
    /// A network with random kernels.
    pub fn new(
        width: f64,
        norm: Norm,
        padding: Padding,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let first = scaled(32, width);
        let last = scaled(1280, width.max(1.0));
        let stem = Geometry::dense(3, first, 2, padding);
        let stem = ConvUnit::new(stem, norm, Activation::Relu6, rng, device);
        let mut blocks = Vec::new();
        let mut inputs = first;
        for [expansion, channels, repeats, stride] in STAGES {
            let outputs = scaled(channels, width);
            for repeat in 0..repeats {
                let stride = if repeat == 0 { stride } else { 1 };
                let shape = [inputs, inputs * expansion, outputs, stride];
                blocks.push(InvertedResidual::new(shape, norm, padding, rng, device));
                inputs = outputs;
            }
        }
        let geometry = Geometry::pointwise(inputs, last);
        let last = ConvUnit::new(geometry, norm, Activation::Relu6, rng, device);
        Self { stem, blocks, last }
    }

    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.last.geometry().outputs
    }

    /// The feature map of a batch.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self
            .blocks
            .iter()
            .fold(self.stem.forward(x), |x, block| block.forward(x));
        self.last.forward(x)
    }

    /// Appends the folded feature extractor to a network; returns its output.
    pub(super) fn fold(&self, net: &mut ConvNet) -> Value {
        let mut x = self.stem.fold("stem", net, Value::Image);
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.fold(&format!("block{index}"), net, x);
        }
        self.last.fold("last", net, x)
    }

    /// All units in network order.
    pub(super) fn units_mut(&mut self) -> Vec<&mut ConvUnit> {
        let mut units = vec![&mut self.stem];
        for block in &mut self.blocks {
            units.extend(block.expand.as_mut());
            units.extend([&mut block.depthwise, &mut block.project]);
        }
        units.push(&mut self.last);
        units
    }
}

impl InvertedResidual {
    fn new(
        [inputs, hidden, outputs, stride]: [usize; 4],
        norm: Norm,
        padding: Padding,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let mut unit =
            |geometry, activation| ConvUnit::new(geometry, norm, activation, rng, device);
        let expand = Geometry::pointwise(inputs, hidden);
        Self {
            expand: (inputs != hidden).then(|| unit(expand, Activation::Relu6)),
            depthwise: unit(
                Geometry::depthwise(hidden, stride, padding),
                Activation::Relu6,
            ),
            project: unit(Geometry::pointwise(hidden, outputs), Activation::None),
            residual: stride == 1 && inputs == outputs,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let hidden = match &self.expand {
            Some(expand) => expand.forward(x.clone()),
            None => x.clone(),
        };
        let y = self.project.forward(self.depthwise.forward(hidden));
        if self.residual { x + y } else { y }
    }

    fn fold(&self, name: &str, net: &mut ConvNet, input: Value) -> Value {
        let hidden = match &self.expand {
            Some(expand) => expand.fold(&format!("{name}.expand"), net, input),
            None => input,
        };
        let filtered = self
            .depthwise
            .fold(&format!("{name}.depthwise"), net, hidden);
        let y = self.project.fold(&format!("{name}.project"), net, filtered);
        if self.residual {
            net.push(format!("{name}.add"), Op::Add, vec![input, y])
        } else {
            y
        }
    }
}
