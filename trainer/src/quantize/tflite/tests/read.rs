//! A reader of the written files that shares nothing with the writer but the
//! numbers of the schema: tables are found by hand.

use super::super::model::{Element, Kind, Padding, Quantization, Step};
use super::super::schema::{self, IDENTIFIER, VERSION};

/// What was read.
pub struct File {
    pub tensors: Vec<Tensor>,
    pub operators: Vec<Operator>,
    pub input: usize,
    pub output: usize,
    /// Name and tensor of what the signature binds.
    pub bindings: Vec<(String, usize)>,
}

pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub element: Element,
    pub quantization: Option<Quantization>,
    pub data: Vec<u8>,
}

pub struct Operator {
    pub kind: Kind,
    pub version: i32,
    pub inputs: Vec<usize>,
    pub output: usize,
}

#[derive(Clone, Copy)]
struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
}

pub fn read(bytes: &[u8]) -> File {
    assert_eq!(&bytes[4..8], IDENTIFIER.as_bytes());
    let root = Table {
        bytes,
        at: word(bytes, 0) as usize,
    };
    assert_eq!(root.u32(schema::model::VERSION), VERSION);
    let buffers = root.tables(schema::model::BUFFERS);
    assert!(buffers[0].bytes(schema::buffer::DATA).is_empty());
    let codes = root.tables(schema::model::OPERATOR_CODES);
    let graphs = root.tables(schema::model::SUBGRAPHS);
    let [graph] = graphs[..] else {
        panic!("{} graphs", graphs.len());
    };
    let tensors = graph.tables(schema::subgraph::TENSORS);
    let operators = graph.tables(schema::subgraph::OPERATORS);
    let signature = root.tables(schema::model::SIGNATURES)[0];
    let bindings = [schema::signature::INPUTS, schema::signature::OUTPUTS];
    let bindings = bindings.map(|field| signature.tables(field)[0]);
    File {
        tensors: tensors.iter().map(|t| tensor(*t, &buffers)).collect(),
        operators: operators.iter().map(|o| operator(*o, &codes)).collect(),
        input: graph.indices(schema::subgraph::INPUTS)[0],
        output: graph.indices(schema::subgraph::OUTPUTS)[0],
        bindings: bindings
            .map(|binding| {
                let tensor = binding.u32(schema::binding::TENSOR) as usize;
                (binding.text(schema::binding::NAME), tensor)
            })
            .to_vec(),
    }
}

fn tensor(table: Table<'_>, buffers: &[Table<'_>]) -> Tensor {
    let data = buffers[table.u32(schema::tensor::BUFFER) as usize].bytes(schema::buffer::DATA);
    let quantization = table.table(schema::tensor::QUANTIZATION).map(|table| {
        let zero_points = table.vector(schema::quantization::ZERO_POINT, 8);
        let zero_points = zero_points
            .iter()
            .map(|z| i64::from_le_bytes((*z).try_into().unwrap()));
        let zero_points: Vec<i64> = zero_points.collect();
        let scales = table.vector(schema::quantization::SCALE, 4);
        assert_eq!(scales.len(), zero_points.len());
        assert!(zero_points.iter().all(|zero| *zero == zero_points[0]));
        Quantization {
            scales: scales.iter().map(|s| f32::from_bits(word(s, 0))).collect(),
            zero_point: zero_points[0],
            axis: table.u32(schema::quantization::AXIS) as usize,
        }
    });
    Tensor {
        name: table.text(schema::tensor::NAME),
        shape: table.indices(schema::tensor::SHAPE),
        element: match table.byte(schema::tensor::TYPE) {
            0 => Element::F32,
            2 => Element::I32,
            9 => Element::I8,
            other => panic!("type {other}"),
        },
        quantization,
        data: data.to_vec(),
    }
}

fn operator(table: Table<'_>, codes: &[Table<'_>]) -> Operator {
    let code = codes[table.u32(schema::operator::CODE_INDEX) as usize];
    let number = code.u32(schema::operator_code::CODE);
    assert_eq!(
        u32::from(code.byte(schema::operator_code::SHORT)),
        number.min(127)
    );
    let options = table.table(schema::operator::OPTIONS);
    let which = table.byte(schema::operator::OPTIONS_TYPE);
    let (kind, expected) = match (number, options) {
        (0, None) => (Kind::Add, 0),
        (3, Some(options)) => (Kind::Conv(step(options)), 1),
        (4, Some(options)) => {
            let multiplier = options.u32(schema::conv::DEPTH_MULTIPLIER) as usize;
            let step = step(options);
            (Kind::DepthwiseConv { step, multiplier }, 2)
        }
        (6, None) => (Kind::Dequantize, 0),
        (19, None) => (Kind::Relu, 0),
        (21, None) => (Kind::Relu6, 0),
        (22, None) => (Kind::Reshape, 0),
        (34, None) => (Kind::Pad, 0),
        (40, Some(options)) => {
            assert_eq!(options.byte(schema::reducer::KEEP_DIMS), 1);
            (Kind::Mean, 27)
        }
        (114, None) => (Kind::Quantize, 0),
        (9, Some(options)) => {
            let flags = [
                schema::fully_connected::KEEP_RANK,
                schema::fully_connected::ASYMMETRIC,
            ];
            assert_eq!(flags.map(|flag| options.byte(flag)), [1, 1]);
            (Kind::FullyConnected, 8)
        }
        (25, Some(options)) => {
            assert_eq!(options.u32(schema::softmax::BETA), 1.0_f32.to_bits());
            (Kind::Softmax, 9)
        }
        (14, None) => (Kind::Logistic, 0),
        (18, None) => (Kind::Mul, 0),
        (39, None) => (Kind::Transpose, 0),
        (41, None) => (Kind::Sub, 0),
        (42, None) => (Kind::Div, 0),
        (65, None) => (Kind::Slice, 0),
        (75, None) => (Kind::Sqrt, 0),
        (126, None) => (Kind::BatchMatMul, 0),
        (150, None) => (Kind::Gelu, 0),
        (other, _) => panic!("operation {other}"),
    };
    assert_eq!(which, expected);
    Operator {
        kind,
        version: code.u32(schema::operator_code::VERSION) as i32,
        inputs: table.indices(schema::operator::INPUTS),
        output: table.indices(schema::operator::OUTPUTS)[0],
    }
}

fn step(options: Table<'_>) -> Step {
    Step {
        padding: match options.byte(schema::conv::PADDING) {
            0 => Padding::Same,
            _ => Padding::Valid,
        },
        stride: [schema::conv::STRIDE_HEIGHT, schema::conv::STRIDE_WIDTH]
            .map(|field| options.u32(field) as usize),
    }
}

impl<'a> Table<'a> {
    /// Where a field lies; none where it has its default.
    fn field(self, field: u16) -> Option<usize> {
        let table = self.at - word(self.bytes, self.at) as i32 as usize;
        let half = |at: usize| u16::from_le_bytes(self.bytes[at..at + 2].try_into().unwrap());
        if field >= half(table) {
            return None;
        }
        match half(table + usize::from(field)) {
            0 => None,
            offset => Some(self.at + usize::from(offset)),
        }
    }

    fn byte(self, field: u16) -> u8 {
        self.field(field).map_or(0, |at| self.bytes[at])
    }

    fn u32(self, field: u16) -> u32 {
        self.field(field).map_or(0, |at| word(self.bytes, at))
    }

    /// Where an offset leads.
    fn reference(self, field: u16) -> Option<usize> {
        let at = self.field(field)?;
        Some(at + word(self.bytes, at) as usize)
    }

    fn table(self, field: u16) -> Option<Table<'a>> {
        let at = self.reference(field)?;
        Some(Table { at, ..self })
    }

    /// A vector's elements of `size` bytes each.
    fn vector(self, field: u16, size: usize) -> Vec<&'a [u8]> {
        let Some(at) = self.reference(field) else {
            return Vec::new();
        };
        let length = word(self.bytes, at) as usize * size;
        assert_eq!((at + 4) % size, 0, "elements are aligned");
        self.bytes[at + 4..at + 4 + length].chunks(size).collect()
    }

    fn bytes(self, field: u16) -> &'a [u8] {
        let Some(at) = self.reference(field) else {
            return &[];
        };
        assert_eq!((at + 4) % 16, 0, "constants are aligned");
        &self.bytes[at + 4..at + 4 + word(self.bytes, at) as usize]
    }

    fn indices(self, field: u16) -> Vec<usize> {
        let words = self.vector(field, 4);
        words.iter().map(|bytes| word(bytes, 0) as usize).collect()
    }

    fn text(self, field: u16) -> String {
        let bytes = self.vector(field, 1).concat();
        String::from_utf8(bytes).unwrap()
    }

    fn tables(self, field: u16) -> Vec<Table<'a>> {
        let Some(start) = self.reference(field) else {
            return Vec::new();
        };
        (0..word(self.bytes, start) as usize)
            .map(|index| start + 4 + 4 * index)
            .map(|at| Table {
                at: at + word(self.bytes, at) as usize,
                ..self
            })
            .collect()
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
