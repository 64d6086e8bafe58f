//! An ONNX file as nodes and constants.

use std::collections::HashMap;

use prost::Message as _;
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, tensor_proto::DataType,
    tensor_shape_proto::dimension::Value, type_proto,
};

use super::TfliteError;

/// The decoded file.
pub struct Graph(GraphProto);

/// What the conversion asks of a graph.
pub struct View<'a> {
    /// In an order in which they can run.
    pub nodes: &'a [NodeProto],
    /// Name of the image.
    pub input: &'a str,
    /// Channels, height, width of the image.
    pub image: [usize; 3],
    /// Name of the embedding.
    pub output: &'a str,
    constants: HashMap<&'a str, &'a TensorProto>,
}

/// Levels that are bytes with or without a sign.
pub struct Bytes {
    /// The levels.
    pub values: Vec<i32>,
    /// Whether they are signed.
    pub signed: bool,
}

impl Graph {
    /// Decodes `bytes`.
    ///
    /// # Errors
    /// When they are no ONNX file.
    pub fn read(bytes: &[u8]) -> Result<Self, TfliteError> {
        let model = ModelProto::decode(bytes).map_err(|e| TfliteError::Onnx(e.to_string()))?;
        let missing = || TfliteError::Onnx("the file holds no graph".into());
        Ok(Self(model.graph.ok_or_else(missing)?))
    }

    /// The graph with its input, its output and an index of its constants.
    ///
    /// # Errors
    /// When it does not map one picture of a fixed size to one output.
    pub fn view(&self) -> Result<View<'_>, TfliteError> {
        let constants: HashMap<&str, &TensorProto> = self
            .0
            .initializer
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        let inputs = self.0.input.iter();
        let mut inputs = inputs.filter(|input| !constants.contains_key(input.name.as_str()));
        let (Some(input), None, [output]) = (inputs.next(), inputs.next(), &*self.0.output) else {
            return Err(TfliteError::Onnx(
                "expected one input and one output".into(),
            ));
        };
        let image = image(input).ok_or_else(|| {
            TfliteError::Onnx(format!(
                "{}: expected [N, channels, height, width]",
                input.name
            ))
        })?;
        Ok(View {
            nodes: &self.0.node,
            input: &input.name,
            image,
            output: &output.name,
            constants,
        })
    }
}

fn image(input: &ValueInfoProto) -> Option<[usize; 3]> {
    let type_proto::Value::TensorType(tensor) = input.r#type.as_ref()?.value.as_ref()?;
    let sizes = &tensor.shape.as_ref()?.dim;
    let size = |index: usize| match sizes.get(index)?.value.as_ref()? {
        Value::DimValue(size) => usize::try_from(*size).ok().filter(|&size| size > 0),
        Value::DimParam(_) => None,
    };
    (sizes.len() == 4).then_some([size(1)?, size(2)?, size(3)?])
}

impl View<'_> {
    /// The 32-bit floats of a constant.
    ///
    /// # Errors
    /// A message when `name` is no such constant.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>, String> {
        let tensor = self.constant(name)?;
        match tensor.data_type == DataType::Float as i32 {
            true if tensor.raw_data.is_empty() => Ok(tensor.float_data.clone()),
            true => Ok(words(&tensor.raw_data).map(f32::from_le_bytes).collect()),
            false => Err(format!("{name}: expected 32-bit floats")),
        }
    }

    /// The one float of a constant.
    ///
    /// # Errors
    /// A message when `name` is no such constant.
    pub fn float(&self, name: &str) -> Result<f32, String> {
        match *self.floats(name)? {
            [value] => Ok(value),
            ref values => Err(format!("{name}: expected one value, got {}", values.len())),
        }
    }

    /// The 32-bit integers of a constant.
    ///
    /// # Errors
    /// A message when `name` is no such constant.
    pub fn ints(&self, name: &str) -> Result<Vec<i32>, String> {
        let tensor = self.constant(name)?;
        match tensor.data_type == DataType::Int32 as i32 {
            true if tensor.raw_data.is_empty() => Ok(tensor.int32_data.clone()),
            true => Ok(words(&tensor.raw_data).map(i32::from_le_bytes).collect()),
            false => Err(format!("{name}: expected 32-bit integers")),
        }
    }

    /// The 64-bit integers of a constant.
    ///
    /// # Errors
    /// A message when `name` is no such constant.
    pub fn longs(&self, name: &str) -> Result<Vec<i64>, String> {
        let tensor = self.constant(name)?;
        match tensor.data_type == DataType::Int64 as i32 {
            true if tensor.raw_data.is_empty() => Ok(tensor.int64_data.clone()),
            true => Ok(words(&tensor.raw_data).map(i64::from_le_bytes).collect()),
            false => Err(format!("{name}: expected 64-bit integers")),
        }
    }

    /// Whether `name` is a constant.
    pub fn is_constant(&self, name: &str) -> bool {
        self.constants.contains_key(name)
    }

    /// The dimensions of a constant, none of them 0.
    ///
    /// # Errors
    /// A message when `name` is no such constant.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, String> {
        let sizes = self.constant(name)?.dims.iter();
        let sizes = sizes.map(|&size| usize::try_from(size).ok().filter(|&size| size > 0));
        let sizes: Option<Vec<usize>> = sizes.collect();
        let within = |sizes: &Vec<usize>| {
            let product = sizes
                .iter()
                .try_fold(1_usize, |all, &size| all.checked_mul(size));
            product.is_some()
        };
        sizes
            .filter(within)
            .ok_or_else(|| format!("{name}: dimensions out of bounds"))
    }

    /// The bytes of a constant.
    ///
    /// # Errors
    /// A message when `name` is no such constant.
    pub fn bytes(&self, name: &str) -> Result<Bytes, String> {
        let tensor = self.constant(name)?;
        let signed = tensor.data_type == DataType::Int8 as i32;
        if !signed && tensor.data_type != DataType::Uint8 as i32 {
            return Err(format!("{name}: expected bytes"));
        }
        let level = |&byte: &u8| match signed {
            true => i32::from(byte.cast_signed()),
            false => i32::from(byte),
        };
        let values = match tensor.raw_data.is_empty() {
            true => tensor.int32_data.clone(),
            false => tensor.raw_data.iter().map(level).collect(),
        };
        Ok(Bytes { values, signed })
    }

    /// The four sizes of a convolution's weights.
    ///
    /// # Errors
    /// A message when `name` is no constant with four sizes.
    pub fn weight_shape(&self, name: &str) -> Result<[usize; 4], String> {
        let sizes: Result<[usize; 4], _> = self.sizes(name)?.try_into();
        sizes.map_err(|sizes| {
            format!("{name}: expected [outputs, inputs, height, width], got {sizes:?}")
        })
    }

    fn constant(&self, name: &str) -> Result<&TensorProto, String> {
        let known = self.constants.get(name).copied();
        known.ok_or_else(|| format!("expected {name:?} to be a constant"))
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}

/// The integers of an attribute, or as many of `default`.
pub fn ints<const N: usize>(
    node: &NodeProto,
    name: &str,
    default: usize,
) -> Result<[usize; N], String> {
    let Some(attribute) = node.attribute.iter().find(|a| a.name == name) else {
        return Ok([default; N]);
    };
    let values = attribute.ints.iter();
    let values: Vec<usize> = values.filter_map(|&value| value.try_into().ok()).collect();
    let expected = || format!("{name}: expected {N} values, got {:?}", attribute.ints);
    values.try_into().map_err(|_| expected())
}

/// The integers of an attribute with their signs; nothing where it is absent.
pub fn signed<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    let attribute = node.attribute.iter().find(|a| a.name == name);
    attribute.map_or(&[], |attribute| &attribute.ints)
}

/// The integer of an attribute.
pub fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    let attribute = node.attribute.iter().find(|a| a.name == name);
    attribute.map_or(default, |attribute| attribute.i)
}
