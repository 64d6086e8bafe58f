//! What an ONNX file says of its network, and what has to be changed for the
//! engines: one input `[1, 3, size, size]`, one output.

use prost::Message as _;
use tract_onnx::pb::tensor_shape_proto::Dimension;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Size;
use tract_onnx::pb::type_proto::Value as Kind;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto, attribute_proto,
};

use super::ImportError;
use crate::bundle::Precision;

/// A network with one input and one output.
pub struct Network {
    /// Side of the input in pixels, where the file fixes it.
    pub size: Option<u32>,
    /// Whether its weights or activations are integers.
    pub precision: Precision,
    /// Number of nodes.
    pub nodes: usize,
    /// What was done to it, for a person to read.
    pub notes: Vec<String>,
    bytes: Vec<u8>,
    model: ModelProto,
    layout: Layout,
    /// The file as it was will not do.
    changed: bool,
}

/// Order of the input's dimensions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Batch, channel, row, column.
    Planar,
    /// Batch, row, column, channel.
    Interleaved,
}

/// Name of the input that is put ahead of an interleaved one.
const PLANAR: &str = "numclip_planar_image";
const FLOAT: i32 = 1;
/// Operators whose presence makes a network int8.
const INTEGER: [&str; 6] = [
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "DequantizeLinear",
    "ConvInteger",
    "MatMulInteger",
];

impl Network {
    /// Reads a file; `output` names the embedding where there are several outputs.
    pub fn read(file: &str, bytes: Vec<u8>, output: Option<&str>) -> Result<Self, ImportError> {
        let unreadable = |message: String| ImportError::File {
            file: file.into(),
            message,
        };
        let mut model = ModelProto::decode(&*bytes)
            .map_err(|error| unreadable(format!("not an ONNX model: {error}")))?;
        let graph = model.graph.as_mut();
        let graph = graph.ok_or_else(|| unreadable("the model has no graph".into()))?;
        check_constants(file, graph)?;
        check_softmax(file, graph)?;
        let mut notes = Vec::new();
        let dropped = choose_output(file, graph, output)?;
        if !dropped.is_empty() {
            notes.push(format!("outputs left out: {}", dropped.join(", ")));
        }
        let input = image_input(file, graph)?;
        let (layout, size) = layout(file, input)?;
        if layout == Layout::Interleaved {
            notes.push(
                "input is [batch, height, width, 3]: a Transpose stands in front of it".into(),
            );
        }
        let is_integer = |node: &NodeProto| INTEGER.contains(&node.op_type.as_str());
        let precision = match graph.node.iter().any(is_integer) {
            true => Precision::Int8,
            false => Precision::F32,
        };
        Ok(Self {
            size,
            precision,
            nodes: graph.node.len(),
            changed: layout == Layout::Interleaved || !dropped.is_empty() || !is_fixed(input),
            notes,
            layout,
            bytes,
            model,
        })
    }

    /// The file with an input of `[1, 3, size, size]`; as it was, if it has that.
    pub fn sized(&self, size: u32) -> Vec<u8> {
        let mut model = self.model.clone();
        match model.graph.as_mut() {
            Some(graph) if self.changed => resize_input(graph, self.layout, size),
            _ => return self.bytes.clone(),
        }
        model.encode_to_vec()
    }
}

/// Every constant's values must lie in the file.
fn check_constants(file: &str, graph: &GraphProto) -> Result<(), ImportError> {
    let mut constants = graph.initializer.iter();
    match constants.find(|constant| constant.data_location.is_some_and(|place| place != 0)) {
        None => Ok(()),
        Some(constant) => Err(ImportError::mismatch(
            file,
            format!("constant {}", constant.name),
            "values in the file (save the model without external data)",
            "values in another file",
        )),
    }
}

/// The general engine makes a table of a Softmax between integers, and the
/// table is wrong, without a word.
fn check_softmax(file: &str, graph: &GraphProto) -> Result<(), ImportError> {
    let made_by = |name: &str, kind: &str| {
        let mut nodes = graph.node.iter();
        nodes.any(|node| node.op_type == kind && node.output.iter().any(|output| output == name))
    };
    let read_by = |name: &str, kind: &str| {
        let mut nodes = graph.node.iter();
        nodes.any(|node| node.op_type == kind && node.input.first().is_some_and(|i| i == name))
    };
    let between_integers = |node: &&NodeProto| {
        let (from, to) = (node.input.first(), node.output.first());
        node.op_type == "Softmax"
            && from.is_some_and(|name| made_by(name, "DequantizeLinear"))
            && to.is_some_and(|name| read_by(name, "QuantizeLinear"))
    };
    match graph.node.iter().find(between_integers) {
        None => Ok(()),
        Some(node) => Err(ImportError::mismatch(
            file,
            format!("node {} (Softmax)", node.name),
            "floats around it (leave Softmax out when quantising: no engine here is exact on it)",
            "DequantizeLinear before and QuantizeLinear behind it",
        )),
    }
}

/// Keeps one output; the names of the others.
fn choose_output(
    file: &str,
    graph: &mut GraphProto,
    wanted: Option<&str>,
) -> Result<Vec<String>, ImportError> {
    let names: Vec<String> = graph
        .output
        .iter()
        .map(|output| output.name.clone())
        .collect();
    let place = match (wanted, names.len()) {
        (None, 1) => Some(0),
        (None, _) => None,
        (Some(wanted), _) => names.iter().position(|name| name == wanted),
    };
    let Some(place) = place else {
        let expected = match wanted {
            Some(wanted) => format!("one named {wanted}"),
            None => "one (name it with --output)".into(),
        };
        return Err(ImportError::mismatch(
            file,
            "outputs",
            expected,
            names.join(", "),
        ));
    };
    graph.output = vec![graph.output.swap_remove(place)];
    let mut dropped = names;
    dropped.remove(place);
    Ok(dropped)
}

/// The one input that is no constant.
fn image_input<'a>(file: &str, graph: &'a GraphProto) -> Result<&'a ValueInfoProto, ImportError> {
    let is_constant = |input: &&ValueInfoProto| {
        !graph
            .initializer
            .iter()
            .any(|constant| constant.name == input.name)
    };
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(is_constant).collect();
    match inputs[..] {
        [input] => Ok(input),
        _ => {
            let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            let got = format!("{} ({})", names.len(), names.join(", "));
            Err(ImportError::mismatch(
                file,
                "inputs",
                "one, the picture",
                got,
            ))
        }
    }
}

/// Order of the input's dimensions, and its side where the file fixes it.
fn layout(file: &str, input: &ValueInfoProto) -> Result<(Layout, Option<u32>), ImportError> {
    let place = || format!("input {}", input.name);
    let (elements, sizes) = sizes(input);
    if elements != FLOAT {
        let got = format!("element type {elements}");
        return Err(ImportError::mismatch(
            file,
            place(),
            "32-bit floats (element type 1)",
            got,
        ));
    }
    let shown = |size: &Option<i64>| size.map_or("?".into(), |size| size.to_string());
    let shape = || {
        format!(
            "[{}]",
            sizes.iter().map(shown).collect::<Vec<_>>().join(", ")
        )
    };
    let expected = "[1, 3, side, side] or [1, side, side, 3]";
    let (layout, sides) = match sizes[..] {
        [None | Some(1), Some(3), height, width] => (Layout::Planar, [height, width]),
        [None | Some(1), height, width, Some(3)] => (Layout::Interleaved, [height, width]),
        _ => return Err(ImportError::mismatch(file, place(), expected, shape())),
    };
    let is_square = match sides {
        [Some(height), Some(width)] => height == width,
        _ => true,
    };
    match is_square {
        true => Ok((
            layout,
            sides[0]
                .or(sides[1])
                .and_then(|side| u32::try_from(side).ok()),
        )),
        false => Err(ImportError::mismatch(file, place(), expected, shape())),
    }
}

/// Element type and sizes of an input; none where a dimension is free.
fn sizes(input: &ValueInfoProto) -> (i32, Vec<Option<i64>>) {
    let kind = input.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let Some(Kind::TensorType(tensor)) = kind else {
        return (0, Vec::new());
    };
    let size = |dimension: &Dimension| match dimension.value {
        Some(Size::DimValue(size)) if size > 0 => Some(size),
        _ => None,
    };
    let shape = tensor.shape.as_ref();
    let sizes = shape.map(|shape| shape.dim.iter().map(size).collect());
    (tensor.elem_type, sizes.unwrap_or_default())
}

fn is_fixed(input: &ValueInfoProto) -> bool {
    sizes(input).1.iter().all(Option::is_some)
}

/// Fixes the input to one picture of this size, planar: an interleaved one is
/// then made from it.
fn resize_input(graph: &mut GraphProto, layout: Layout, size: u32) {
    let constants: Vec<&str> = graph.initializer.iter().map(|c| c.name.as_str()).collect();
    let mut inputs = graph.input.iter_mut();
    let Some(input) = inputs.find(|input| !constants.contains(&input.name.as_str())) else {
        return;
    };
    if let Some(Kind::TensorType(tensor)) = input.r#type.as_mut().and_then(|t| t.value.as_mut())
        && let Some(shape) = tensor.shape.as_mut()
    {
        let side = i64::from(size);
        for (dimension, size) in shape.dim.iter_mut().zip([1, 3, side, side]) {
            dimension.value = Some(Size::DimValue(size));
        }
    }
    if layout == Layout::Interleaved {
        let interleaved = std::mem::replace(&mut input.name, PLANAR.into());
        graph.node.insert(0, transpose(interleaved));
    }
}

/// From `[1, 3, height, width]` to `[1, height, width, 3]`.
fn transpose(output: String) -> NodeProto {
    NodeProto {
        op_type: "Transpose".into(),
        name: "numclip_interleave".into(),
        input: vec![PLANAR.into()],
        output: vec![output],
        attribute: vec![AttributeProto {
            name: "perm".into(),
            r#type: attribute_proto::AttributeType::Ints.into(),
            ints: vec![0, 2, 3, 1],
            ..AttributeProto::default()
        }],
        ..NodeProto::default()
    }
}
