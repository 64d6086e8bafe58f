//! Whole graphs changed where an attacker or a broken exporter would change
//! them: each still decodes, and is then refused or run.

use proptest::prelude::*;
use proptest::sample::Index;
use prost::Message as _;

use super::models::{FORMS, SIZE, TRANSFORMERS, image};
use crate::encode::int8::graph::MAX_VALUES;
use crate::encode::int8::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, data_type,
};
use crate::encode::int8::run::Runner;
use crate::encode::int8::{kernels, program};
use std::sync::Arc;

/// One change, at places that are drawn before the graph is known.
#[derive(Clone, Debug)]
struct Change {
    kind: Kind,
    /// The node or tensor, a place within it, and where else it looks.
    at: [Index; 3],
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Nodes in another order.
    Swap,
    /// A node that is missing.
    Drop,
    /// A node that is there twice, under its name or another.
    Repeat,
    /// An input from elsewhere: a cycle, a constant, nothing.
    Rewire,
    /// A node of another kind.
    Operator,
    /// A parameter of a node beyond reason.
    Attribute,
    /// Dimensions that the values do not have.
    Dims,
    /// Fewer values, and the dimensions with them.
    Shorten,
    /// Values that end early.
    Truncate,
    /// The same bytes as another type.
    Type,
    /// Scales, weights, indices beyond reason.
    Values,
    /// A graph that begins or ends elsewhere.
    Ends,
}

const KINDS: [Kind; 12] = [
    Kind::Swap,
    Kind::Drop,
    Kind::Repeat,
    Kind::Rewire,
    Kind::Operator,
    Kind::Attribute,
    Kind::Dims,
    Kind::Shorten,
    Kind::Truncate,
    Kind::Type,
    Kind::Values,
    Kind::Ends,
];

const OPERATORS: [&str; 34] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "QLinearAdd",
    "QLinearGlobalAveragePool",
    "MatMulInteger",
    "ConvInteger",
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "GlobalAveragePool",
    "ReduceMean",
    "Relu",
    "Clip",
    "Identity",
    "Flatten",
    "Reshape",
    "Transpose",
    "Gather",
    "Slice",
    "Split",
    "Concat",
    "Pad",
    "Expand",
    "Mul",
    "Div",
    "Erf",
    "Softmax",
    "LayerNormalization",
    "FusedAttention",
    "Constant",
];

const INTEGERS: [i64; 14] = [
    0,
    1,
    -1,
    2,
    3,
    5,
    17,
    -2,
    1 << 16,
    1 << 31,
    (1 << 32) + 1,
    1 << 62,
    i64::MAX,
    i64::MIN,
];

const FLOATS: [f32; 10] = [
    0.0,
    -1.0,
    1.0,
    1e-45,
    1e-38,
    1e38,
    f32::MAX,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

fn one<'a, T>(from: &'a [T], at: &Index) -> &'a T {
    &from[at.index(from.len())]
}

/// Every name that is written in the graph, and one that is not.
fn names(graph: &GraphProto) -> Vec<String> {
    let outputs = graph.node.iter().flat_map(|node| node.output.clone());
    let constants = graph.initializer.iter().map(|tensor| tensor.name.clone());
    let image = graph.input.iter().map(|input| input.name.clone());
    let all = outputs.chain(constants).chain(image);
    all.chain(["nowhere".into(), String::new()]).collect()
}

fn change(graph: &mut GraphProto, Change { kind, at }: &Change) {
    let names = names(graph);
    let [first, second, third] = at;
    if graph.node.is_empty() || graph.initializer.is_empty() {
        return;
    }
    let (node, tensor) = (
        first.index(graph.node.len()),
        first.index(graph.initializer.len()),
    );
    match kind {
        Kind::Swap => {
            let other = second.index(graph.node.len());
            graph.node.swap(node, other);
        }
        Kind::Drop => drop(graph.node.remove(node)),
        Kind::Repeat => {
            let mut copy = graph.node[node].clone();
            if second.index(2) == 0 {
                copy.output.iter_mut().for_each(|name| name.push('\''));
            }
            graph.node.insert(node, copy);
        }
        Kind::Rewire => {
            let inputs = &mut graph.node[node].input;
            let place = second.index(inputs.len() + 1);
            let name = one(&names, third).clone();
            match inputs.get_mut(place) {
                Some(input) => *input = name,
                None => inputs.push(name),
            }
        }
        Kind::Operator => graph.node[node].op_type = (*one(&OPERATORS, second)).into(),
        Kind::Attribute => change_attribute(&mut graph.node[node], second, third),
        Kind::Dims => change_dims(&mut graph.initializer[tensor], second, third),
        Kind::Shorten => shorten(&mut graph.initializer[tensor], second),
        Kind::Truncate => {
            let raw = &mut graph.initializer[tensor].raw_data;
            raw.truncate(second.index(raw.len() + 1));
        }
        Kind::Type => {
            graph.initializer[tensor].data_type = [
                data_type::FLOAT,
                data_type::UINT8,
                data_type::INT8,
                data_type::INT32,
                data_type::INT64,
                99,
            ][second.index(6)];
        }
        Kind::Values => change_values(&mut graph.initializer[tensor], second, third),
        Kind::Ends => {
            let name = one(&names, third).clone();
            match second.index(2) {
                0 => graph.output[0].name = name,
                _ => graph.input[0].name = name,
            }
        }
    }
}

fn change_attribute(node: &mut NodeProto, second: &Index, third: &Index) {
    const NAMES: [&str; 9] = [
        "axis",
        "axes",
        "perm",
        "pads",
        "strides",
        "group",
        "kernel_shape",
        "epsilon",
        "split",
    ];
    if second.index(3) == 0 || node.attribute.is_empty() {
        node.attribute.push(AttributeProto {
            name: (*one(&NAMES, second)).into(),
            i: *one(&INTEGERS, third),
            ints: vec![*one(&INTEGERS, third); second.index(6)],
            f: *one(&FLOATS, third),
            ..AttributeProto::default()
        });
        return;
    }
    let at = second.index(node.attribute.len());
    let attribute = &mut node.attribute[at];
    attribute.i = *one(&INTEGERS, third);
    attribute.f = *one(&FLOATS, third);
    let place = second.index(attribute.ints.len() + 1);
    match attribute.ints.get_mut(place) {
        Some(value) => *value = *one(&INTEGERS, third),
        None => drop(attribute.ints.pop()),
    }
}

fn change_dims(tensor: &mut TensorProto, second: &Index, third: &Index) {
    let rank = tensor.dims.len();
    let place = second.index(rank + 2);
    match tensor.dims.get_mut(place) {
        Some(dim) => *dim = *one(&INTEGERS, third),
        None if place == rank => tensor.dims.push(*one(&INTEGERS, third)),
        None => tensor.dims.reverse(),
    }
}

/// One less along a dimension, values and all.
fn shorten(tensor: &mut TensorProto, second: &Index) {
    let count: i64 = tensor.dims.iter().product();
    let place = second.index(tensor.dims.len() + 1);
    if count < 1 || tensor.raw_data.is_empty() || place == tensor.dims.len() {
        return;
    }
    let each = tensor.raw_data.len() / count as usize;
    tensor.dims[place] -= 1;
    let count: i64 = tensor.dims.iter().product();
    tensor.raw_data.truncate(each * count as usize);
}

/// One value, or all of them.
fn change_values(tensor: &mut TensorProto, second: &Index, third: &Index) {
    let value: Vec<u8> = match tensor.data_type {
        data_type::FLOAT => one(&FLOATS, third).to_le_bytes().to_vec(),
        data_type::INT64 => one(&INTEGERS, third).to_le_bytes().to_vec(),
        data_type::INT32 => (*one(&INTEGERS, third) as i32).to_le_bytes().to_vec(),
        _ => vec![*one(&INTEGERS, third) as u8],
    };
    let count = tensor.raw_data.len() / value.len();
    let places = match second.index(count + 1) {
        place if place == count => 0..count,
        place => place..place + 1,
    };
    for place in places {
        tensor.raw_data[place * value.len()..][..value.len()].copy_from_slice(&value);
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let one = (prop::sample::select(&KINDS[..]), any::<[Index; 3]>());
    prop::collection::vec(one.prop_map(|(kind, at)| Change { kind, at }), 1..5)
}

/// What takes longer to run than a test may.
const LARGE: u64 = 1 << 26;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(2000)))]

    #[test]
    fn changed_graphs_are_refused_or_run(
        form in 0_usize..FORMS.len() + TRANSFORMERS.len(), changes in changes(),
    ) {
        let model = [&FORMS[..], &TRANSFORMERS].concat()[form].1;
        let mut model = ModelProto::decode(model).unwrap();
        let graph = model.graph.as_mut().unwrap();
        changes.iter().for_each(|one| change(graph, one));
        let Ok(program) = program(model.encode_to_vec(), SIZE, kernels::all()[0]) else {
            return Ok(());
        };
        prop_assert!(program.arena <= 2 * MAX_VALUES, "{} bytes", program.arena);
        if program.macs < LARGE && (program.arena as u64) < LARGE {
            let dim = program.dim();
            prop_assert_eq!(Runner::new(Arc::new(program)).run(&image()).len(), dim);
        }
    }
}
