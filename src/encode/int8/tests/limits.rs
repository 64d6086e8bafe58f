//! What is refused because of its size, and what fails while running.

use std::sync::Arc;

use prost::Message as _;

use super::tensor;
use crate::encode::int8::plan::{Output, Plan, Shape, Tail, TensorId};
use crate::encode::int8::program::Program;
use crate::encode::int8::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, data_type,
};
use crate::encode::int8::run::Runner;
use crate::encode::int8::{Int8Session, kernels, program};
use crate::encode::{EncodeError, Session as _};

fn constant(name: &str, data_type: i32, dims: &[i64], raw: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type,
        raw_data: raw,
        ..TensorProto::default()
    }
}

fn scale(name: &str, scale: f32) -> TensorProto {
    constant(name, data_type::FLOAT, &[], scale.to_le_bytes().to_vec())
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        op_type: op.into(),
        attribute,
        ..NodeProto::default()
    }
}

/// Why a graph from "image" to "out" on images of this size is refused.
fn refusal(node: Vec<NodeProto>, initializer: Vec<TensorProto>, size: usize) -> String {
    use crate::encode::int8::proto::{Dimension, TensorShapeProto, TensorTypeProto, TypeProto};
    let dim = vec![Dimension { value: None }; 4];
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorTypeProto {
        elem_type: data_type::FLOAT,
        shape,
    });
    let image = ValueInfoProto {
        name: "image".into(),
        r#type: Some(TypeProto { tensor_type }),
    };
    let out = ValueInfoProto {
        name: "out".into(),
        r#type: None,
    };
    let (input, output) = (vec![image], vec![out]);
    let graph = Some(GraphProto {
        node,
        initializer,
        input,
        output,
    });
    let bytes = ModelProto { graph }.encode_to_vec();
    program(bytes, size, kernels::all()[0])
        .err()
        .unwrap()
        .to_string()
}

#[test]
fn tensors_that_are_too_large_together_are_refused() {
    let nodes = vec![
        node("QuantizeLinear", &["image", "one"], "levels", vec![]),
        node("DequantizeLinear", &["levels", "one"], "real", vec![]),
        node("QuantizeLinear", &["real", "two"], "others", vec![]),
        node("DequantizeLinear", &["others", "two"], "out", vec![]),
    ];
    let size = 8192;
    let error = refusal(nodes, vec![scale("one", 1.0), scale("two", 2.0)], size);
    let values = 2 * 3 * size * size;
    assert!(
        error.contains(&format!("{values} values together; at most")),
        "{error}"
    );
}

#[test]
fn padded_copies_count_as_well() {
    let kernel = 1 << 16;
    let pads = AttributeProto {
        name: "pads".into(),
        ints: vec![kernel - 1, 0, kernel - 1, 0],
        ..AttributeProto::default()
    };
    let strides = AttributeProto {
        name: "strides".into(),
        ints: vec![2, 1],
        ..AttributeProto::default()
    };
    let inputs = ["levels", "one", "zero", "weight", "one", "", "one", "zero"];
    let nodes = vec![
        node(
            "QuantizeLinear",
            &["image", "one", "zero"],
            "levels",
            vec![],
        ),
        node("QLinearConv", &inputs, "tall", vec![pads, strides]),
        node("DequantizeLinear", &["tall", "one", "zero"], "out", vec![]),
    ];
    let weight = constant(
        "weight",
        data_type::INT8,
        &[1, 3, kernel, 1],
        vec![0; 3 << 16],
    );
    let zero = constant("zero", data_type::UINT8, &[], vec![0]);
    let error = refusal(nodes, vec![scale("one", 1.0), zero, weight], 1024);
    assert!(error.contains("padded copies included"), "{error}");
}

#[test]
fn an_embedding_that_is_not_finite_is_an_error() {
    let shape = Shape {
        channels: 1,
        height: 1,
        width: 1,
    };
    let plan = Plan {
        tensors: vec![tensor(shape, 0)],
        reals: Vec::new(),
        constants: Vec::new(),
        steps: Vec::new(),
        names: Vec::new(),
        output: Output::Levels(
            TensorId(0),
            vec![Tail::Linear {
                weight: vec![f32::MAX],
                bias: vec![f32::MAX],
            }],
        ),
    };
    let program = Program::new(plan, kernels::all()[0]).unwrap();
    let runner = Runner::new(Arc::new(program));
    let mut session = Int8Session {
        file: "encoder.onnx".into(),
        runner,
        lookups: None,
    };
    let error = session.encode(&[100.0]).unwrap_err();
    assert!(matches!(error, EncodeError::Run { .. }), "{error}");
    assert!(error.to_string().contains("not finite"), "{error}");
}
