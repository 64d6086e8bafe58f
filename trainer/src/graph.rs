//! The folded network: plain values between the model and the export.
//!
//! After training, every branch and normalisation of an image encoder collapses into a chain of
//! convolutions with bias. [`ConvNet`] holds that chain with no tensor library in sight, so that
//! the export, the quantiser and the tests read one simple structure. [`ConvNet::forward`] is the
//! scalar reference they are compared with.

/// A convolutional network as a list of nodes in topological order.
///
/// The last node is the output, of shape `[D, 1, 1]` per image.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvNet {
    /// Channels, height and width of the input image tensor.
    pub input: [usize; 3],
    /// The nodes; each reads only the image or nodes before it.
    pub nodes: Vec<Node>,
}

/// One operation, its name and where its inputs come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique within the network, of letters, digits, dots and underscores.
    pub name: String,
    /// What the node computes.
    pub op: Op,
    /// One value for [`Op::Conv`] and [`Op::GlobalAveragePool`], two for [`Op::Add`].
    pub inputs: Vec<Value>,
}

/// Where a node reads from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The input image tensor.
    Image,
    /// The output of the node with this index.
    Node(usize),
}

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Convolution, bias, activation.
    Conv(Conv),
    /// Sum of two tensors of the same shape.
    Add,
    /// Mean over height and width, which both become 1.
    GlobalAveragePool,
}

/// A two-dimensional convolution with bias and a fused activation.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// Kernel values, laid out as `shape`.
    pub weight: Vec<f32>,
    /// Output channels, input channels per group, kernel height, kernel width.
    pub shape: [usize; 4],
    /// One value per output channel.
    pub bias: Vec<f32>,
    /// Vertical and horizontal step.
    pub stride: [usize; 2],
    /// Zeros added at the top, left, bottom and right (the order of ONNX `pads`).
    pub padding: [usize; 4],
    /// Number of groups the channels are divided into.
    pub groups: usize,
    /// Applied after the bias.
    pub activation: Activation,
}

/// Element-wise function after a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The identity.
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

impl ConvNet {
    /// The embedding of one image.
    ///
    /// `image` holds the values of one `[C, H, W]` tensor of shape [`ConvNet::input`]. Plain loops
    /// in the order of the definition, sums in double precision: meant for tests, not for speed.
    pub fn forward(&self, image: &[f32]) -> Vec<f32> {
        let shapes = self.output_shapes();
        let mut outputs: Vec<Vec<f32>> = Vec::with_capacity(self.nodes.len());
        for (node, &shape) in self.nodes.iter().zip(&shapes) {
            let read = |value: Value| match value {
                Value::Image => (image, self.input),
                Value::Node(index) => (outputs[index].as_slice(), shapes[index]),
            };
            let (x, x_shape) = read(node.inputs[0]);
            let output = match &node.op {
                Op::Conv(conv) => conv.forward(x, x_shape, shape),
                Op::Add => x
                    .iter()
                    .zip(read(node.inputs[1]).0)
                    .map(|(a, b)| a + b)
                    .collect(),
                Op::GlobalAveragePool => plane_means(x, x_shape),
            };
            outputs.push(output);
        }
        outputs.pop().unwrap_or_default()
    }

    /// Channels, height and width of every node's output.
    pub fn output_shapes(&self) -> Vec<[usize; 3]> {
        let mut shapes: Vec<[usize; 3]> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let input = self.shape_of(node.inputs[0], &shapes);
            shapes.push(match &node.op {
                Op::Conv(conv) => conv.output_shape(input),
                Op::Add => input,
                Op::GlobalAveragePool => [input[0], 1, 1],
            });
        }
        shapes
    }

    /// Multiply-accumulate operations of all convolutions for one image.
    pub fn macs(&self) -> u64 {
        let macs = |(node, shape): (&Node, &[usize; 3])| match &node.op {
            Op::Conv(conv) => (shape.iter().product::<usize>() * conv.fan_in()) as u64,
            Op::Add | Op::GlobalAveragePool => 0,
        };
        self.nodes.iter().zip(&self.output_shapes()).map(macs).sum()
    }

    /// Appends a node and returns its output.
    pub fn push(&mut self, name: impl Into<String>, op: Op, inputs: Vec<Value>) -> Value {
        self.nodes.push(Node {
            name: name.into(),
            op,
            inputs,
        });
        Value::Node(self.nodes.len() - 1)
    }

    /// Channels, height and width of a value.
    pub fn shape(&self, value: Value) -> [usize; 3] {
        self.shape_of(value, &self.output_shapes())
    }

    fn shape_of(&self, value: Value, shapes: &[[usize; 3]]) -> [usize; 3] {
        match value {
            Value::Image => self.input,
            Value::Node(index) => shapes[index],
        }
    }
}

impl Conv {
    /// Weights of one output channel.
    pub fn fan_in(&self) -> usize {
        self.shape[1..].iter().product::<usize>().max(1)
    }

    /// Channels, height and width of the output for an input of shape `[C, H, W]`.
    pub fn output_shape(&self, input: [usize; 3]) -> [usize; 3] {
        let [top, left, bottom, right] = self.padding;
        let [outputs, _, kernel_height, kernel_width] = self.shape;
        [
            outputs,
            (input[1] + top + bottom - kernel_height) / self.stride[0] + 1,
            (input[2] + left + right - kernel_width) / self.stride[1] + 1,
        ]
    }

    fn forward(&self, x: &[f32], input: [usize; 3], output: [usize; 3]) -> Vec<f32> {
        let mut y = Vec::with_capacity(output.iter().product());
        for channel in 0..output[0] {
            for row in 0..output[1] {
                for column in 0..output[2] {
                    let sum = self.window(x, input, [channel, row, column]);
                    y.push(self.activation.apply(sum as f32));
                }
            }
        }
        y
    }

    /// Bias plus the product of one output channel's kernel with the window at an output position.
    fn window(&self, x: &[f32], input: [usize; 3], [channel, row, column]: [usize; 3]) -> f64 {
        let [outputs, depth, kernel_height, kernel_width] = self.shape;
        let first = channel / (outputs / self.groups) * depth;
        let mut sum = f64::from(self.bias[channel]);
        for c in 0..depth {
            for ky in 0..kernel_height {
                let y = (row * self.stride[0] + ky).wrapping_sub(self.padding[0]);
                for kx in 0..kernel_width {
                    let x_at = (column * self.stride[1] + kx).wrapping_sub(self.padding[1]);
                    if y < input[1] && x_at < input[2] {
                        let w = ((channel * depth + c) * kernel_height + ky) * kernel_width + kx;
                        let i = ((first + c) * input[1] + y) * input[2] + x_at;
                        sum += f64::from(self.weight[w]) * f64::from(x[i]);
                    }
                }
            }
        }
        sum
    }
}

impl Activation {
    /// The function itself.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            Self::Relu => x.max(0.0),
            Self::Relu6 => x.clamp(0.0, 6.0),
        }
    }
}

fn plane_means(x: &[f32], [_, height, width]: [usize; 3]) -> Vec<f32> {
    let area = height * width;
    x.chunks_exact(area)
        .map(|plane| plane.iter().sum::<f32>() / area as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(shape: [usize; 4], stride: usize, padding: [usize; 4], groups: usize) -> Conv {
        let weight = (0..shape.iter().product::<usize>())
            .map(|i| i as f32 + 1.0)
            .collect();
        Conv {
            weight,
            shape,
            bias: vec![0.0; shape[0]],
            stride: [stride; 2],
            padding,
            groups,
            activation: Activation::None,
        }
    }

    fn net(input: [usize; 3], ops: Vec<(Op, Vec<Value>)>) -> ConvNet {
        let node = |(i, (op, inputs)): (usize, (Op, Vec<Value>))| Node {
            name: format!("n{i}"),
            op,
            inputs,
        };
        ConvNet {
            input,
            nodes: ops.into_iter().enumerate().map(node).collect(),
        }
    }

    #[test]
    fn a_padded_strided_convolution_matches_hand_arithmetic() {
        // One channel, 3×3 kernel 1..9 on the 4×4 image 0..15, one zero row and column at the
        // bottom and right: the window at (1, 1) sees rows 2–3 and columns 2–3 only.
        let conv = conv([1, 1, 3, 3], 2, [0, 0, 1, 1], 1);
        let net = net([1, 4, 4], vec![(Op::Conv(conv), vec![Value::Image])]);
        let image: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let y = net.forward(&image);
        assert_eq!(net.output_shapes(), [[1, 2, 2]]);
        assert_eq!(
            y[0],
            1. * 0. + 2. + 3. * 2. + 4. * 4. + 5. * 5. + 6. * 6. + 7. * 8. + 8. * 9. + 9. * 10.
        );
        assert_eq!(y[3], 1. * 10. + 2. * 11. + 4. * 14. + 5. * 15.);
        assert_eq!(net.macs(), 36);
    }

    #[test]
    fn groups_see_their_own_channels_and_pooling_averages() {
        let depthwise = conv([2, 1, 1, 1], 1, [0; 4], 2);
        let net = net(
            [2, 1, 2],
            vec![
                (Op::Conv(depthwise), vec![Value::Image]),
                (Op::Add, vec![Value::Node(0), Value::Image]),
                (Op::GlobalAveragePool, vec![Value::Node(1)]),
            ],
        );
        assert_eq!(net.forward(&[1.0, 3.0, 10.0, 20.0]), [4.0, 45.0]);
    }

    #[test]
    fn activations_clamp() {
        let at = |a: Activation| [-1.0, 3.0, 7.0].map(|x| a.apply(x));
        assert_eq!(at(Activation::None), [-1.0, 3.0, 7.0]);
        assert_eq!(at(Activation::Relu), [0.0, 3.0, 7.0]);
        assert_eq!(at(Activation::Relu6), [0.0, 3.0, 6.0]);
    }
}
