//! Numbers of the TensorFlow Lite file format (schema version 3).
//!
//! A table's field is known by its position; fields that are not written here
//! keep their defaults.

use flatbuffers::VOffsetT;

use super::model::{Element, Kind, Padding};

/// First bytes behind the root offset.
pub const IDENTIFIER: &str = "TFL3";
/// Version of the schema.
pub const VERSION: u32 = 3;

const fn field(position: VOffsetT) -> VOffsetT {
    4 + 2 * position
}

/// The root table.
pub mod model {
    use super::{VOffsetT, field};
    pub const VERSION: VOffsetT = field(0);
    pub const OPERATOR_CODES: VOffsetT = field(1);
    pub const SUBGRAPHS: VOffsetT = field(2);
    pub const DESCRIPTION: VOffsetT = field(3);
    pub const BUFFERS: VOffsetT = field(4);
    pub const SIGNATURES: VOffsetT = field(7);
}

/// An operation and the version of its definition.
pub mod operator_code {
    use super::{VOffsetT, field};
    /// The number where it fits a byte, else 127.
    pub const SHORT: VOffsetT = field(0);
    pub const VERSION: VOffsetT = field(2);
    pub const CODE: VOffsetT = field(3);
}

/// A graph.
pub mod subgraph {
    use super::{VOffsetT, field};
    pub const TENSORS: VOffsetT = field(0);
    pub const INPUTS: VOffsetT = field(1);
    pub const OUTPUTS: VOffsetT = field(2);
    pub const OPERATORS: VOffsetT = field(3);
    pub const NAME: VOffsetT = field(4);
}

/// A tensor.
pub mod tensor {
    use super::{VOffsetT, field};
    pub const SHAPE: VOffsetT = field(0);
    pub const TYPE: VOffsetT = field(1);
    /// 0 for an activation.
    pub const BUFFER: VOffsetT = field(2);
    pub const NAME: VOffsetT = field(3);
    pub const QUANTIZATION: VOffsetT = field(4);
    pub const HAS_RANK: VOffsetT = field(8);
}

/// What levels stand for.
pub mod quantization {
    use super::{VOffsetT, field};
    pub const SCALE: VOffsetT = field(2);
    pub const ZERO_POINT: VOffsetT = field(3);
    pub const AXIS: VOffsetT = field(6);
}

/// One step of a graph.
pub mod operator {
    use super::{VOffsetT, field};
    pub const CODE_INDEX: VOffsetT = field(0);
    pub const INPUTS: VOffsetT = field(1);
    pub const OUTPUTS: VOffsetT = field(2);
    pub const OPTIONS_TYPE: VOffsetT = field(3);
    pub const OPTIONS: VOffsetT = field(4);
}

/// Options of a convolution; those of a depthwise one have its multiplier too.
pub mod conv {
    use super::{VOffsetT, field};
    pub const PADDING: VOffsetT = field(0);
    pub const STRIDE_WIDTH: VOffsetT = field(1);
    pub const STRIDE_HEIGHT: VOffsetT = field(2);
    pub const DEPTH_MULTIPLIER: VOffsetT = field(3);
}

/// Options of a mean.
pub mod reducer {
    use super::{VOffsetT, field};
    pub const KEEP_DIMS: VOffsetT = field(0);
}

/// Options of a product of rows with weights.
pub mod fully_connected {
    use super::{VOffsetT, field};
    pub const KEEP_RANK: VOffsetT = field(2);
    /// Rounds floats to levels that need not lie around 0.
    pub const ASYMMETRIC: VOffsetT = field(3);
}

/// Options of a softmax.
pub mod softmax {
    use super::{VOffsetT, field};
    pub const BETA: VOffsetT = field(0);
}

/// Constant data.
pub mod buffer {
    use super::{VOffsetT, field};
    pub const DATA: VOffsetT = field(0);
}

/// Names of a graph's inputs and outputs.
pub mod signature {
    use super::{VOffsetT, field};
    pub const INPUTS: VOffsetT = field(0);
    pub const OUTPUTS: VOffsetT = field(1);
    pub const KEY: VOffsetT = field(2);
}

/// One name of a signature.
pub mod binding {
    use super::{VOffsetT, field};
    pub const NAME: VOffsetT = field(0);
    pub const TENSOR: VOffsetT = field(1);
}

/// Which table an operator's options are.
pub mod options {
    pub const CONV: u8 = 1;
    pub const DEPTHWISE_CONV: u8 = 2;
    pub const FULLY_CONNECTED: u8 = 8;
    pub const SOFTMAX: u8 = 9;
    pub const REDUCER: u8 = 27;
}

/// Number of an element type.
pub fn element(element: Element) -> i8 {
    match element {
        Element::F32 => 0,
        Element::I32 => 2,
        Element::I8 => 9,
    }
}

/// Number of a padding.
pub fn padding(padding: Padding) -> i8 {
    match padding {
        Padding::Same => 0,
        Padding::Valid => 1,
    }
}

/// Number of an operation.
pub fn code(kind: Kind) -> i32 {
    match kind {
        Kind::Add => 0,
        Kind::Conv(_) => 3,
        Kind::DepthwiseConv { .. } => 4,
        Kind::Dequantize => 6,
        Kind::Relu => 19,
        Kind::Relu6 => 21,
        Kind::Reshape => 22,
        Kind::Pad => 34,
        Kind::Mean => 40,
        Kind::Quantize => 114,
        Kind::FullyConnected => 9,
        Kind::Logistic => 14,
        Kind::Mul => 18,
        Kind::Softmax => 25,
        Kind::Transpose => 39,
        Kind::Sub => 41,
        Kind::Div => 42,
        Kind::Slice => 65,
        Kind::Sqrt => 75,
        Kind::BatchMatMul => 126,
        Kind::Gelu => 150,
    }
}

/// The first version of an operation that reads `inputs`.
pub fn version(kind: Kind, inputs: &[Element]) -> i32 {
    if inputs[0] != Element::I8 {
        return match (kind, inputs.get(1)) {
            (Kind::FullyConnected, Some(Element::I8)) => 9,
            // Weights of more than two dimensions' rows keep theirs since version 2.
            (Kind::FullyConnected, _) => 2,
            _ => 1,
        };
    }
    match kind {
        Kind::Conv(_) | Kind::DepthwiseConv { .. } => 3,
        Kind::Add | Kind::Dequantize | Kind::Mean | Kind::Pad | Kind::Quantize => 2,
        Kind::Relu | Kind::Relu6 => 2,
        _ => 1,
    }
}
