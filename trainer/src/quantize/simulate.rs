//! The network as tensors, in floats or with the rounding of int8.
//!
//! Values stay real numbers: a quantised tensor holds the multiples of its scale. Sums run in
//! single precision, where the engines add integers, so that now and then a value exactly between
//! two levels rounds to the other one.

use burn::tensor::{Device, Tensor, TensorData};

use super::affine::Affine;
use super::quantized::Quantized;
use crate::graph::{Activation, Conv, ConvNet, Node, Op, Value};
use crate::ops::{self, Window};

/// A network to run on batches of images.
pub struct Network {
    image: Option<Affine>,
    layers: Vec<Layer>,
}

/// One node.
pub struct Layer {
    /// Where it reads from.
    pub inputs: Vec<Value>,
    kind: Kind,
    output: Option<Affine>,
}

enum Kind {
    Conv(Box<Kernel>),
    Add,
    Pool,
}

struct Kernel {
    weight: Tensor<4>,
    bias: Tensor<1>,
    window: Window,
    activation: Activation,
}

impl Network {
    /// `net` in floats.
    pub fn float(net: &ConvNet, device: &Device) -> Self {
        let layer = |node: &Node| Layer::float(node, device);
        Self {
            image: None,
            layers: net.nodes.iter().map(layer).collect(),
        }
    }

    /// `quantized` with the rounding of its weights and of every value.
    pub fn int8(quantized: &Quantized, device: &Device) -> Self {
        let nodes = 0..quantized.net.nodes.len();
        Self {
            image: Some(quantized.input),
            layers: nodes
                .map(|index| Layer::int8(quantized, index, device))
                .collect(),
        }
    }

    /// The nodes in their order.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What the network reads of a batch of tensors `[N, 3, size, size]`.
    pub fn image(&self, images: Tensor<4>) -> Tensor<4> {
        match self.image {
            Some(affine) => rounded(affine, images),
            None => images,
        }
    }

    /// The embeddings of a batch `[N, 3, size, size]`: `[N, D]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.run(Values::new(self.image(images))).embeddings()
    }

    /// Computes the nodes that `values` lacks.
    pub fn run(&self, mut values: Values) -> Values {
        for layer in &self.layers[values.nodes.len()..] {
            values.push(layer.forward(&values));
        }
        values
    }
}

impl Layer {
    /// A node in floats.
    pub fn float(node: &Node, device: &Device) -> Self {
        let kernel = |conv: &Conv| Kernel::new(conv, &conv.weight, &conv.bias, device);
        Self {
            inputs: node.inputs.clone(),
            kind: kind(&node.op, kernel),
            output: None,
        }
    }

    /// A node with the rounding of its weights and of its output.
    pub fn int8(quantized: &Quantized, index: usize, device: &Device) -> Self {
        let node = &quantized.net.nodes[index];
        let kernel = |conv: &Conv| match &quantized.convs[index] {
            Some(integers) => {
                let bias = integers.real_bias(quantized.affine(node.inputs[0]).scale);
                let kernel = Kernel::new(conv, &integers.real_weight(), &bias, device);
                let activation = Activation::None;
                Kernel {
                    activation,
                    ..kernel
                }
            }
            None => Kernel::new(conv, &conv.weight, &conv.bias, device),
        };
        Self {
            inputs: node.inputs.clone(),
            kind: kind(&node.op, kernel),
            output: quantized.rounding(index),
        }
    }

    /// The output for the values before it: `[N, C, H, W]`.
    pub fn forward(&self, values: &Values) -> Tensor<4> {
        self.finish(self.sums(values))
    }

    /// The output before activation and rounding.
    pub fn sums(&self, values: &Values) -> Tensor<4> {
        let x = values.get(self.inputs[0]);
        match &self.kind {
            Kind::Conv(kernel) => kernel.forward(x),
            Kind::Add => x + values.get(self.inputs[1]),
            Kind::Pool => x.mean_dim(3).mean_dim(2),
        }
    }

    /// Activation and rounding.
    pub fn finish(&self, sums: Tensor<4>) -> Tensor<4> {
        let active = match &self.kind {
            Kind::Conv(kernel) => ops::activate(sums, kernel.activation),
            Kind::Add | Kind::Pool => sums,
        };
        match self.output {
            Some(affine) => rounded(affine, active),
            None => active,
        }
    }
}

impl Kernel {
    fn new(conv: &Conv, weight: &[f32], bias: &[f32], device: &Device) -> Self {
        let weight = TensorData::new(weight.to_vec(), conv.shape);
        Self {
            weight: Tensor::from_data(weight, device),
            bias: Tensor::from_data(TensorData::new(bias.to_vec(), [bias.len()]), device),
            window: window(conv),
            activation: conv.activation,
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (weight, bias) = (self.weight.clone(), Some(self.bias.clone()));
        ops::conv2d(x, weight, bias, self.window, Activation::None)
    }
}

/// The values of a batch on its way through a network.
pub struct Values {
    image: Tensor<4>,
    nodes: Vec<Tensor<4>>,
}

impl Values {
    /// Those of the image alone.
    pub fn new(image: Tensor<4>) -> Self {
        Self {
            image,
            nodes: Vec::new(),
        }
    }

    /// Adds the output of the next node.
    pub fn push(&mut self, output: Tensor<4>) {
        self.nodes.push(output);
    }

    /// A value that is there already.
    pub fn get(&self, value: Value) -> Tensor<4> {
        match value {
            Value::Image => self.image.clone(),
            Value::Node(index) => self.nodes[index].clone(),
        }
    }

    /// The output of a node that is there already.
    pub fn node(&self, index: usize) -> Tensor<4> {
        self.get(Value::Node(index))
    }

    /// The image and the first `count` nodes.
    pub fn first(&self, count: usize) -> Self {
        Self {
            image: self.image.clone(),
            nodes: self.nodes[..count].to_vec(),
        }
    }

    /// Keeps the place of a value that no later node reads, but not its memory.
    pub fn forget(&mut self, index: usize) {
        self.nodes[index] = Tensor::zeros([1; 4], &self.image.device());
    }

    /// The last value as embeddings `[N, D]`.
    pub fn embeddings(&self) -> Tensor<2> {
        let last = self.nodes.last().unwrap_or(&self.image);
        last.clone().flatten(1, 3)
    }
}

/// A batch of image tensors, planar `[3, size, size]` each.
pub fn batch(
    images: &[Vec<f32>],
    [channels, height, width]: [usize; 3],
    device: &Device,
) -> Tensor<4> {
    let shape = [images.len(), channels, height, width];
    Tensor::from_data(TensorData::new(images.concat(), shape), device)
}

/// Step, zeros and groups of a convolution.
pub fn window(conv: &Conv) -> Window {
    Window {
        stride: conv.stride,
        padding: conv.padding,
        groups: conv.groups,
    }
}

fn kind(op: &Op, kernel: impl Fn(&Conv) -> Kernel) -> Kind {
    match op {
        Op::Conv(conv) => Kind::Conv(Box::new(kernel(conv))),
        Op::Add => Kind::Add,
        Op::GlobalAveragePool => Kind::Pool,
    }
}

/// `x` with the rounding and saturation of its levels.
pub fn rounded(affine: Affine, x: Tensor<4>) -> Tensor<4> {
    let step = Tensor::from_data(TensorData::new(vec![affine.scale], [1]), &x.device());
    ops::fake_quantize(x, step, affine.grid())
}
