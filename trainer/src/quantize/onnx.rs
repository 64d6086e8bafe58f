//! ONNX written from Rust: small builders over the protobuf types, and the
//! float form of a folded network.

use prost::Message as _;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto::Dimension, tensor_shape_proto::dimension,
    type_proto,
};

use crate::graph::{Activation, Conv, ConvNet, Op, Value};

/// Name of the network's input: f32 `[N, 3, size, size]`.
pub const INPUT: &str = "image";
/// Name of the network's output: f32 `[N, D]`.
pub const OUTPUT: &str = "embedding";

/// An ONNX graph under construction.
#[derive(Default)]
pub struct Builder {
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

/// An attribute of a node.
pub enum Attribute<'a> {
    /// One integer.
    Int(&'a str, i64),
    /// Several integers.
    Ints(&'a str, Vec<i64>),
}

impl Builder {
    /// Appends a node; its output bears its name.
    pub fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        attributes: &[Attribute<'_>],
    ) -> String {
        self.nodes.push(NodeProto {
            op_type: op.into(),
            name: name.into(),
            input: inputs.iter().map(|&input| input.into()).collect(),
            output: vec![name.into()],
            attribute: attributes.iter().map(Attribute::proto).collect(),
            ..NodeProto::default()
        });
        name.into()
    }

    /// A constant of 32-bit floats.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, dims, DataType::Float, bytes)
    }

    /// A constant of 32-bit signed integers.
    pub fn ints(&mut self, name: &str, dims: &[usize], values: &[i32]) -> String {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, dims, DataType::Int32, bytes)
    }

    /// A constant of 64-bit signed integers.
    pub fn longs(&mut self, name: &str, dims: &[usize], values: &[i64]) -> String {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, dims, DataType::Int64, bytes)
    }

    /// A constant of 8-bit unsigned integers.
    pub fn bytes(&mut self, name: &str, dims: &[usize], values: Vec<u8>) -> String {
        self.constant(name, dims, DataType::Uint8, values)
    }

    /// A constant of 8-bit signed integers.
    pub fn signed_bytes(&mut self, name: &str, dims: &[usize], values: &[i8]) -> String {
        self.constant(
            name,
            dims,
            DataType::Int8,
            values.iter().map(|value| value.cast_unsigned()).collect(),
        )
    }

    /// Ends the network at `last` (`[N, D, 1, 1]`), flattened to the output,
    /// and serialises it. `input` is `[C, H, W]`.
    pub fn finish(mut self, last: &str, input: [usize; 3], dim: usize) -> Vec<u8> {
        self.node("Flatten", OUTPUT, &[last], &[Attribute::Int("axis", 1)]);
        let outputs = vec![float_value(OUTPUT, &[dim])];
        self.model(input, outputs).encode_to_vec()
    }

    /// As [`Builder::finish`], with each of `taps` (`[N, C, H, W]`) as an output instead.
    pub fn finish_tapped(self, taps: &[(&str, [usize; 3])], input: [usize; 3]) -> Vec<u8> {
        let outputs = taps
            .iter()
            .map(|(name, shape)| float_value(name, shape))
            .collect();
        self.model(input, outputs).encode_to_vec()
    }

    fn constant(
        &mut self,
        name: &str,
        dims: &[usize],
        data_type: DataType,
        raw_data: Vec<u8>,
    ) -> String {
        self.initializers.push(TensorProto {
            name: name.into(),
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: data_type as i32,
            raw_data,
            ..TensorProto::default()
        });
        name.into()
    }

    fn model(self, input: [usize; 3], output: Vec<ValueInfoProto>) -> ModelProto {
        ModelProto {
            ir_version: 8,
            producer_name: "numclip-trainer".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: 13,
            }],
            graph: Some(GraphProto {
                name: "encoder".into(),
                node: self.nodes,
                initializer: self.initializers,
                input: vec![float_value(INPUT, &input)],
                output,
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }
}

impl Attribute<'_> {
    fn proto(&self) -> AttributeProto {
        match self {
            Self::Int(name, i) => AttributeProto {
                name: (*name).into(),
                r#type: AttributeType::Int as i32,
                i: *i,
                ..AttributeProto::default()
            },
            Self::Ints(name, ints) => AttributeProto {
                name: (*name).into(),
                r#type: AttributeType::Ints as i32,
                ints: ints.clone(),
                ..AttributeProto::default()
            },
        }
    }
}

/// The float form of `net`.
pub fn float(net: &ConvNet) -> Vec<u8> {
    let mut builder = Builder::default();
    let last = float_nodes(&mut builder, net, INPUT);
    builder.finish(&last, net.input, output_dim(net))
}

/// The float form of `net` with the output of every node as an output of the
/// network, in node order.
pub fn float_tapped(net: &ConvNet) -> Vec<u8> {
    let mut builder = Builder::default();
    float_nodes(&mut builder, net, INPUT);
    let shapes = net.output_shapes();
    let taps: Vec<_> = net
        .nodes
        .iter()
        .zip(shapes)
        .map(|(node, shape)| (node.name.as_str(), shape))
        .collect();
    builder.finish_tapped(&taps, net.input)
}

/// Channels of the network's output.
pub fn output_dim(net: &ConvNet) -> usize {
    net.output_shapes().last().map_or(0, |shape| shape[0])
}

/// The attributes that place a convolution.
pub fn conv_attributes(conv: &Conv) -> [Attribute<'static>; 4] {
    let ints = |values: &[usize]| values.iter().map(|&value| value as i64).collect();
    [
        Attribute::Ints("kernel_shape", ints(&conv.shape[2..])),
        Attribute::Ints("strides", ints(&conv.stride)),
        Attribute::Ints("pads", ints(&conv.padding)),
        Attribute::Int("group", conv.groups as i64),
    ]
}

/// Appends the float form of `net`, which reads from the value `input`; returns its output.
pub fn float_nodes(builder: &mut Builder, net: &ConvNet, input: &str) -> String {
    let mut last = input.to_owned();
    for node in &net.nodes {
        let inputs: Vec<&str> = node
            .inputs
            .iter()
            .map(|&value| value_name(net, value, input))
            .collect();
        last = match &node.op {
            Op::Conv(conv) => float_conv(builder, &node.name, inputs[0], conv),
            Op::Add => builder.node("Add", &node.name, &inputs, &[]),
            Op::GlobalAveragePool => builder.node("GlobalAveragePool", &node.name, &inputs, &[]),
        };
    }
    last
}

fn value_name<'a>(net: &'a ConvNet, value: Value, input: &'a str) -> &'a str {
    match value {
        Value::Image => input,
        Value::Node(index) => &net.nodes[index].name,
    }
}

/// Appends the float form of `conv`; returns its output, `name`.
pub fn float_conv(builder: &mut Builder, name: &str, input: &str, conv: &Conv) -> String {
    let weight = builder.floats(&format!("{name}.weight"), &conv.shape, &conv.weight);
    let bias = builder.floats(&format!("{name}.bias"), &conv.shape[..1], &conv.bias);
    let inputs = [input, &weight, &bias];
    let linear = format!("{name}.linear");
    match conv.activation {
        Activation::None => builder.node("Conv", name, &inputs, &conv_attributes(conv)),
        Activation::Relu => {
            builder.node("Conv", &linear, &inputs, &conv_attributes(conv));
            builder.node("Relu", name, &[&linear], &[])
        }
        Activation::Relu6 => {
            builder.node("Conv", &linear, &inputs, &conv_attributes(conv));
            let low = builder.floats(&format!("{name}.low"), &[], &[0.0]);
            let high = builder.floats(&format!("{name}.high"), &[], &[6.0]);
            builder.node("Clip", name, &[&linear, &low, &high], &[])
        }
    }
}

fn float_value(name: &str, shape: &[usize]) -> ValueInfoProto {
    let batch = Dimension {
        value: Some(dimension::Value::DimParam("N".into())),
        ..Dimension::default()
    };
    let sizes = shape.iter().map(|&size| Dimension {
        value: Some(dimension::Value::DimValue(size as i64)),
        ..Dimension::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto {
            dim: std::iter::once(batch).chain(sizes).collect(),
        }),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
