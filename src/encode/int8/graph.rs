//! An ONNX file as plain values: nodes in order, constants with checked sizes.

use std::collections::HashMap;

use prost::Message as _;
use thiserror::Error;

use super::proto::{
    AttributeProto, DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    data_type,
};

/// A graph that this engine does not run, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}{reason}", .node.as_ref().map(|node| format!("node {node}: ")).unwrap_or_default())]
pub struct GraphError {
    /// Name and operator of the node at fault, where there is one.
    pub node: Option<String>,
    /// What is wrong with it.
    pub reason: String,
}

/// A graph with everything looked up.
#[derive(Debug)]
pub struct Graph {
    /// Nodes in the order of the file, which ONNX wants to be that of the data.
    pub nodes: Vec<Node>,
    /// Initialisers and the outputs of `Constant` nodes by name.
    pub constants: HashMap<String, Constant>,
    /// The one input that is no constant.
    pub input: ValueInfo,
    /// The one output.
    pub output: String,
}

/// One operation.
#[derive(Debug)]
pub struct Node {
    /// Name, or the first output where it has none.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Names of the inputs; empty where an optional one is left out.
    pub inputs: Vec<String>,
    /// Names of the outputs.
    pub outputs: Vec<String>,
    attributes: Vec<AttributeProto>,
}

/// Name and shape of a graph's input; a dimension without a size is `None`.
#[derive(Debug)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Dimensions.
    pub dims: Vec<Option<usize>>,
}

/// Values known when the model is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Constant {
    /// Dimensions; none for a scalar.
    pub dims: Vec<usize>,
    /// As many values as the dimensions say.
    pub data: Data,
}

/// Values of a constant by type.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
}

impl GraphError {
    /// An error of the graph as a whole.
    pub fn of_graph(reason: impl Into<String>) -> Self {
        Self {
            node: None,
            reason: reason.into(),
        }
    }
}

impl Graph {
    /// Decodes an ONNX model.
    ///
    /// # Errors
    /// [`GraphError`] when the bytes are no model, a constant has not the
    /// values that it claims, or there is not one input and one output.
    pub fn read(bytes: &[u8]) -> Result<Self, GraphError> {
        let model = ModelProto::decode(bytes)
            .map_err(|error| GraphError::of_graph(format!("not an ONNX model: {error}")))?;
        let mut graph = model
            .graph
            .ok_or_else(|| GraphError::of_graph("the model has no graph"))?;
        let mut constants = HashMap::new();
        for mut tensor in std::mem::take(&mut graph.initializer) {
            let name = std::mem::take(&mut tensor.name);
            let constant = Constant::read(tensor)
                .map_err(|reason| GraphError::of_graph(format!("constant {name}: {reason}")))?;
            constants.insert(name, constant);
        }
        let (input, output) = ends(&graph, &constants)?;
        let mut nodes = Vec::with_capacity(graph.node.len());
        for node in graph.node.into_iter().map(Node::read) {
            match node.op.as_str() {
                "Constant" => constants.extend([node.constant()?]),
                _ => nodes.push(node),
            }
        }
        Ok(Self {
            nodes,
            constants,
            input,
            output,
        })
    }
}

/// The one input that has no initialiser, and the one output.
fn ends(
    graph: &GraphProto,
    constants: &HashMap<String, Constant>,
) -> Result<(ValueInfo, String), GraphError> {
    let inputs: Vec<_> = graph
        .input
        .iter()
        .filter(|input| !constants.contains_key(&input.name))
        .collect();
    match (inputs.as_slice(), graph.output.as_slice()) {
        ([input], [output]) => Ok((ValueInfo::read(input), output.name.clone())),
        (inputs, outputs) => Err(GraphError::of_graph(format!(
            "{} inputs and {} outputs, expected one of each",
            inputs.len(),
            outputs.len()
        ))),
    }
}

impl ValueInfo {
    fn read(info: &ValueInfoProto) -> Self {
        let tensor = info
            .r#type
            .as_ref()
            .and_then(|kind| kind.tensor_type.as_ref());
        let dims = tensor
            .and_then(|tensor| tensor.shape.as_ref())
            .map_or(&[][..], |shape| &shape.dim);
        let size = |value: &Option<DimensionValue>| match value {
            Some(DimensionValue::Size(size)) => {
                usize::try_from(*size).ok().filter(|&size| size > 0)
            }
            _ => None,
        };
        Self {
            name: info.name.clone(),
            dims: dims.iter().map(|dim| size(&dim.value)).collect(),
        }
    }
}

impl Node {
    fn read(node: NodeProto) -> Self {
        let unnamed = node.name.is_empty();
        let first = node.output.first().cloned().unwrap_or_default();
        Self {
            name: if unnamed { first } else { node.name },
            op: node.op_type,
            inputs: node.input,
            outputs: node.output,
            attributes: node.attribute,
        }
    }

    /// One node in place of a group that ends in `last`, with one float attribute.
    pub fn fused(op: &str, last: &Self, inputs: Vec<String>, (name, f): (&str, f32)) -> Self {
        let attribute = AttributeProto {
            name: name.into(),
            f,
            ..AttributeProto::default()
        };
        Self {
            name: last.name.clone(),
            op: op.into(),
            inputs,
            outputs: last.outputs.clone(),
            attributes: vec![attribute],
        }
    }

    /// An error of this node.
    pub fn error(&self, reason: impl Into<String>) -> GraphError {
        GraphError {
            node: Some(format!("{} ({})", self.name, self.op)),
            reason: reason.into(),
        }
    }

    /// Name of the input at `index`; empty where it is left out.
    pub fn input(&self, index: usize) -> &str {
        self.inputs.get(index).map_or("", String::as_str)
    }

    /// Name of the first output.
    pub fn output(&self) -> &str {
        self.outputs.first().map_or("", String::as_str)
    }

    /// An integer attribute, or `default`.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name)
            .map_or(default, |attribute| attribute.i)
    }

    /// A float attribute, or `default`.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name)
            .map_or(default, |attribute| attribute.f)
    }

    /// A list of integers; none where the attribute is left out.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute(name)
            .map(|attribute| attribute.ints.as_slice())
    }

    /// A text attribute; empty where it is left out.
    pub fn text(&self, name: &str) -> &str {
        let bytes = self
            .attribute(name)
            .map_or(&[][..], |attribute| &attribute.s);
        str::from_utf8(bytes).unwrap_or("")
    }

    /// A list of `N` sizes, or `default` in every place.
    ///
    /// # Errors
    /// [`GraphError`] when the list has another length, or a number is negative or huge.
    pub fn sizes<const N: usize>(
        &self,
        name: &str,
        default: usize,
    ) -> Result<[usize; N], GraphError> {
        let Some(ints) = self.ints(name) else {
            return Ok([default; N]);
        };
        let sizes: Option<Vec<usize>> = ints
            .iter()
            .map(|&int| usize::try_from(int).ok().filter(|&size| size <= MAX_SIZE))
            .collect();
        sizes
            .and_then(|sizes| sizes.try_into().ok())
            .ok_or_else(|| self.error(format!("{name} is {ints:?}, expected {N} sizes")))
    }

    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name)
    }

    fn constant(&self) -> Result<(String, Constant), GraphError> {
        let value = self
            .attribute("value")
            .and_then(|attribute| attribute.t.as_ref());
        let tensor = value.ok_or_else(|| self.error("has no tensor"))?;
        let constant = Constant::read(tensor.clone()).map_err(|reason| self.error(reason))?;
        Ok((self.output().into(), constant))
    }
}

/// The largest extent of a kernel, stride, padding or tensor side.
pub const MAX_SIZE: usize = 1 << 16;
/// The most values that a tensor may have.
pub const MAX_VALUES: usize = 1 << 28;

impl Constant {
    fn read(tensor: TensorProto) -> Result<Self, String> {
        if tensor.data_location != 0 {
            return Err("its values lie in another file; keep them in the model".into());
        }
        let dims = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok());
        let dims: Option<Vec<usize>> = dims.collect();
        let dims = dims.ok_or_else(|| format!("dimensions {:?}", tensor.dims))?;
        let count = count(&dims).ok_or_else(|| format!("dimensions {dims:?} are too large"))?;
        let data = Data::read(tensor)?;
        match data.len() == count {
            true => Ok(Self { dims, data }),
            false => Err(format!("{} values for dimensions {dims:?}", data.len())),
        }
    }

    /// The floats, if it holds floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            _ => None,
        }
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.data.len()
    }

    /// The integers of 64 bits, if it holds such.
    pub fn longs(&self) -> Option<&[i64]> {
        match &self.data {
            Data::I64(values) => Some(values),
            _ => None,
        }
    }
}

/// Number of values in a tensor of these dimensions, within reason.
pub fn count(dims: &[usize]) -> Option<usize> {
    let product = dims
        .iter()
        .try_fold(1_usize, |product, &dim| product.checked_mul(dim));
    product.filter(|&count| count <= MAX_VALUES)
}

impl Data {
    /// Values are stored as little-endian bytes or in a field of their type.
    fn read(tensor: TensorProto) -> Result<Self, String> {
        let raw = tensor.raw_data;
        let bytes = || tensor.int32_data.iter().map(|&value| value as u8);
        Ok(match (tensor.data_type, raw.is_empty()) {
            (data_type::FLOAT, false) => Self::F32(words(&raw, f32::from_le_bytes)?),
            (data_type::FLOAT, true) => Self::F32(tensor.float_data),
            (data_type::INT32, false) => Self::I32(words(&raw, i32::from_le_bytes)?),
            (data_type::INT32, true) => Self::I32(tensor.int32_data),
            (data_type::INT64, false) => Self::I64(words(&raw, i64::from_le_bytes)?),
            (data_type::INT64, true) => Self::I64(tensor.int64_data),
            (data_type::UINT8, false) => Self::U8(raw),
            (data_type::UINT8, true) => Self::U8(bytes().collect()),
            (data_type::INT8, false) => Self::I8(raw.into_iter().map(u8::cast_signed).collect()),
            (data_type::INT8, true) => Self::I8(bytes().map(u8::cast_signed).collect()),
            (other, _) => {
                return Err(format!(
                    "element type {other}; expected float, int8, uint8, int32 or int64"
                ));
            }
        })
    }

    /// Number of values.
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
        }
    }
}

fn words<const N: usize, T>(raw: &[u8], word: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
    let (words, rest) = raw.as_chunks::<N>();
    match rest.is_empty() {
        true => Ok(words.iter().map(|&bytes| word(bytes)).collect()),
        false => Err(format!("{} bytes are no multiple of {N}", raw.len())),
    }
}
