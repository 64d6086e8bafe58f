//! A network's values → the bytes of a file (FlatBuffers).

use flatbuffers::{
    FlatBufferBuilder, ForwardsUOffset, Push, PushAlignment, TableFinishedWIPOffset, Vector,
    WIPOffset,
};

use super::model::{Element, Kind, Model, Operator, Quantization, Step, Tensor};
use super::schema::{self, IDENTIFIER, VERSION};
use crate::quantize::onnx::{INPUT, OUTPUT};

type Builder<'a> = FlatBufferBuilder<'a>;
type Table = WIPOffset<TableFinishedWIPOffset>;
type Tables<'a> = WIPOffset<Vector<'a, ForwardsUOffset<TableFinishedWIPOffset>>>;

/// Writes `model` to bytes.
pub fn write(model: &Model) -> Vec<u8> {
    let b = &mut Builder::new();
    let buffers = buffers(b, model);
    let codes = codes(model);
    let written: Vec<Table> = codes.iter().map(|&code| write_code(b, code)).collect();
    let codes_vector = b.create_vector(&written);
    let graph = write_graph(b, model, &codes);
    let graphs = b.create_vector(&[graph]);
    let signature = write_signature(b, model);
    let signatures = b.create_vector(&[signature]);
    let description = b.create_string(concat!("numclip-trainer ", env!("CARGO_PKG_VERSION")));
    let start = b.start_table();
    b.push_slot_always(schema::model::VERSION, VERSION);
    b.push_slot_always(schema::model::OPERATOR_CODES, codes_vector);
    b.push_slot_always(schema::model::SUBGRAPHS, graphs);
    b.push_slot_always(schema::model::DESCRIPTION, description);
    b.push_slot_always(schema::model::BUFFERS, buffers);
    b.push_slot_always(schema::model::SIGNATURES, signatures);
    let root = b.end_table(start);
    b.finish(root, Some(IDENTIFIER));
    b.finished_data().to_vec()
}

/// A byte that begins at a multiple of 16, as the schema asks of constant
/// data. The builder asks no more of it than that.
struct Aligned;

impl Push for Aligned {
    type Output = u8;

    // SAFETY: nothing is written, so nothing can be written out of bounds.
    unsafe fn push(&self, _destination: &mut [u8], _written: usize) {}

    fn alignment() -> PushAlignment {
        PushAlignment::new(16)
    }
}

/// The data of all constants, behind an empty buffer for the activations.
fn buffers<'a>(b: &mut Builder<'a>, model: &Model) -> Tables<'a> {
    let constants = model.tensors.iter().filter(|tensor| is_constant(tensor));
    let mut tables = vec![table(b, |_| ())];
    for tensor in constants {
        b.start_vector::<Aligned>(tensor.data.len());
        for &byte in tensor.data.iter().rev() {
            b.push(byte);
        }
        let data = b.end_vector::<Aligned>(tensor.data.len());
        tables.push(table(b, |b| b.push_slot_always(schema::buffer::DATA, data)));
    }
    b.create_vector(&tables)
}

fn is_constant(tensor: &Tensor) -> bool {
    !tensor.data.is_empty()
}

fn table(b: &mut Builder<'_>, fields: impl FnOnce(&mut Builder<'_>)) -> Table {
    let start = b.start_table();
    fields(b);
    b.end_table(start)
}

/// Number and version of an operation.
type Code = (i32, i32);

fn code(model: &Model, operator: &Operator) -> Code {
    let inputs = operator.inputs.iter();
    let inputs: Vec<Element> = inputs.map(|&input| model.tensors[input].element).collect();
    (
        schema::code(operator.kind),
        schema::version(operator.kind, &inputs),
    )
}

/// The operations in use, each once.
fn codes(model: &Model) -> Vec<Code> {
    let mut codes: Vec<Code> = model.operators.iter().map(|o| code(model, o)).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

fn write_code(b: &mut Builder<'_>, (code, version): Code) -> Table {
    table(b, |b| {
        b.push_slot_always(schema::operator_code::SHORT, code.min(127) as i8);
        b.push_slot_always(schema::operator_code::VERSION, version);
        b.push_slot_always(schema::operator_code::CODE, code);
    })
}

fn write_graph(b: &mut Builder<'_>, model: &Model, codes: &[Code]) -> Table {
    let mut buffers = 0;
    let mut tensors = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        buffers += u32::from(is_constant(tensor));
        let buffer = if is_constant(tensor) { buffers } else { 0 };
        tensors.push(write_tensor(b, tensor, buffer));
    }
    let tensors = b.create_vector(&tensors);
    let mut operators = Vec::with_capacity(model.operators.len());
    for operator in &model.operators {
        let code = code(model, operator);
        let index = codes.iter().position(|&known| known == code);
        operators.push(write_operator(
            b,
            operator,
            index.unwrap_or_default() as u32,
        ));
    }
    let operators = b.create_vector(&operators);
    let inputs = b.create_vector(&[model.input as i32]);
    let outputs = b.create_vector(&[model.output as i32]);
    let name = b.create_string("encoder");
    table(b, |b| {
        b.push_slot_always(schema::subgraph::TENSORS, tensors);
        b.push_slot_always(schema::subgraph::INPUTS, inputs);
        b.push_slot_always(schema::subgraph::OUTPUTS, outputs);
        b.push_slot_always(schema::subgraph::OPERATORS, operators);
        b.push_slot_always(schema::subgraph::NAME, name);
    })
}

fn write_tensor(b: &mut Builder<'_>, tensor: &Tensor, buffer: u32) -> Table {
    let shape: Vec<i32> = tensor.shape.iter().map(|&size| size as i32).collect();
    let shape = b.create_vector(&shape);
    let name = b.create_string(&tensor.name);
    let quantization = tensor.quantization.as_ref();
    let quantization = quantization.map(|quantization| write_quantization(b, quantization));
    table(b, |b| {
        b.push_slot_always(schema::tensor::SHAPE, shape);
        b.push_slot_always(schema::tensor::TYPE, schema::element(tensor.element));
        b.push_slot_always(schema::tensor::BUFFER, buffer);
        b.push_slot_always(schema::tensor::NAME, name);
        b.push_slot_always(schema::tensor::HAS_RANK, true);
        if let Some(quantization) = quantization {
            b.push_slot_always(schema::tensor::QUANTIZATION, quantization);
        }
    })
}

fn write_quantization(b: &mut Builder<'_>, quantization: &Quantization) -> Table {
    let scales = b.create_vector(&quantization.scales);
    let zero_points = vec![quantization.zero_point; quantization.scales.len()];
    let zero_points = b.create_vector(&zero_points);
    table(b, |b| {
        b.push_slot_always(schema::quantization::SCALE, scales);
        b.push_slot_always(schema::quantization::ZERO_POINT, zero_points);
        b.push_slot_always(schema::quantization::AXIS, quantization.axis as i32);
    })
}

fn write_operator(b: &mut Builder<'_>, operator: &Operator, code: u32) -> Table {
    let inputs: Vec<i32> = operator.inputs.iter().map(|&input| input as i32).collect();
    let inputs = b.create_vector(&inputs);
    let outputs = b.create_vector(&[operator.output as i32]);
    let options = write_options(b, operator.kind);
    table(b, |b| {
        b.push_slot_always(schema::operator::CODE_INDEX, code);
        b.push_slot_always(schema::operator::INPUTS, inputs);
        b.push_slot_always(schema::operator::OUTPUTS, outputs);
        if let Some((which, options)) = options {
            b.push_slot_always(schema::operator::OPTIONS_TYPE, which);
            b.push_slot_always(schema::operator::OPTIONS, options);
        }
    })
}

fn write_options(b: &mut Builder<'_>, kind: Kind) -> Option<(u8, Table)> {
    match kind {
        Kind::Conv(step) => Some((schema::options::CONV, table(b, |b| push_step(b, step)))),
        Kind::DepthwiseConv { step, multiplier } => {
            let options = table(b, |b| {
                push_step(b, step);
                b.push_slot_always(schema::conv::DEPTH_MULTIPLIER, multiplier as i32);
            });
            Some((schema::options::DEPTHWISE_CONV, options))
        }
        Kind::Mean => {
            let keep = |b: &mut Builder<'_>| b.push_slot_always(schema::reducer::KEEP_DIMS, true);
            Some((schema::options::REDUCER, table(b, keep)))
        }
        Kind::FullyConnected => {
            let options = table(b, |b| {
                b.push_slot_always(schema::fully_connected::KEEP_RANK, true);
                b.push_slot_always(schema::fully_connected::ASYMMETRIC, true);
            });
            Some((schema::options::FULLY_CONNECTED, options))
        }
        Kind::Softmax => {
            let beta = |b: &mut Builder<'_>| b.push_slot_always(schema::softmax::BETA, 1.0_f32);
            Some((schema::options::SOFTMAX, table(b, beta)))
        }
        _ => None,
    }
}

fn push_step(b: &mut Builder<'_>, step: Step) {
    b.push_slot_always(schema::conv::PADDING, schema::padding(step.padding));
    b.push_slot_always(schema::conv::STRIDE_WIDTH, step.stride[1] as i32);
    b.push_slot_always(schema::conv::STRIDE_HEIGHT, step.stride[0] as i32);
}

/// Names input and output, so that programs need not know their positions.
fn write_signature(b: &mut Builder<'_>, model: &Model) -> Table {
    let input = write_binding(b, INPUT, model.input);
    let inputs = b.create_vector(&[input]);
    let output = write_binding(b, OUTPUT, model.output);
    let outputs = b.create_vector(&[output]);
    let key = b.create_string("serving_default");
    table(b, |b| {
        b.push_slot_always(schema::signature::INPUTS, inputs);
        b.push_slot_always(schema::signature::OUTPUTS, outputs);
        b.push_slot_always(schema::signature::KEY, key);
    })
}

fn write_binding(b: &mut Builder<'_>, name: &str, tensor: usize) -> Table {
    let name = b.create_string(name);
    table(b, |b| {
        b.push_slot_always(schema::binding::NAME, name);
        b.push_slot_always(schema::binding::TENSOR, tensor as u32);
    })
}
