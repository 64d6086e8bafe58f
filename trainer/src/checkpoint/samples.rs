//! Weight files of every kind, as the programs that own the formats write them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use burn::tensor::{bf16, f16};
use safetensors::tensor::{TensorView, serialize};

use super::Dtype;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors by name.
pub(crate) type Samples = BTreeMap<String, Sample>;

/// Makes the bytes of a file.
pub(crate) type Writer = fn(&Samples) -> Vec<u8>;

/// Every way to write a file, and the kind it is read as.
pub(crate) const WRITERS: [(&str, Writer); 5] = [
    ("safetensors", safetensors),
    ("PyTorch", |samples| torch(samples, "")),
    ("PyTorch", |samples| torch(samples, "state_dict.module.")),
    ("PyTorch (before 1.6)", legacy),
    ("TorchScript", torchscript),
];

impl Sample {
    pub fn new(dtype: Dtype, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Self {
        let count = shape.iter().product();
        Self {
            dtype,
            shape: shape.to_vec(),
            values: values.into_iter().take(count).collect(),
        }
    }

    /// The values as they stand in a file.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = |value: &f32| match self.dtype {
            Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::BF16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
            Dtype::I64 => (*value as i64).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        self.values.iter().flat_map(bytes).collect()
    }
}

/// Writes `bytes` into a folder of their own.
pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

pub(crate) fn safetensors(samples: &Samples) -> Vec<u8> {
    let bytes: Vec<_> = samples.values().map(Sample::bytes).collect();
    let views = samples.iter().zip(&bytes).map(|((name, sample), bytes)| {
        (
            name,
            TensorView::new(sample.dtype, sample.shape.clone(), bytes).unwrap(),
        )
    });
    serialize(views, None).unwrap()
}

/// A state dict below the keys in `prefix`, beside things that are no tensors.
pub(crate) fn torch(samples: &Samples, prefix: &str) -> Vec<u8> {
    let named = numbered(samples, prefix);
    let root = match prefix.is_empty() {
        true => dict(named),
        false => nested(&named, &|items| dict(items)),
    };
    zip(
        samples,
        "archive",
        &[
            ("data.pkl", pickle(&root)),
            ("byteorder", b"little".to_vec()),
        ],
    )
}

/// A module with submodules, one object each.
pub(crate) fn torchscript(samples: &Samples) -> Vec<u8> {
    let module = |items| {
        [
            global("__torch__.model", "Module"),
            b")\x81".to_vec(),
            dict(items),
            b"b".to_vec(),
        ]
        .concat()
    };
    let root = nested(&numbered(samples, ""), &module);
    zip(
        samples,
        "ViT",
        &[("data.pkl", pickle(&root)), ("constants.pkl", pickle(b")"))],
    )
}

/// The form of PyTorch before 1.6.
pub(crate) fn legacy(samples: &Samples) -> Vec<u8> {
    let keys = (0..samples.len()).flat_map(|key| text(&key.to_string()));
    let keys = [b"](".to_vec(), keys.collect(), b"e".to_vec()].concat();
    let mut bytes = super::torch::LEGACY_MAGIC.to_vec();
    for part in [
        vec![b'M', 0xe9, 0x03],
        dict(Vec::new()),
        dict(numbered(samples, "")),
        keys,
    ] {
        bytes.extend(pickle(&part));
    }
    for sample in samples.values() {
        bytes.extend((sample.values.len() as u64).to_le_bytes());
        bytes.extend(sample.bytes());
    }
    bytes
}

/// Pickled tensors by name; the storage of each has its position as key.
fn numbered(samples: &Samples, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let tensors = samples.iter().enumerate().map(|(key, (name, sample))| {
        (
            format!("{prefix}{name}"),
            tensor(key, sample, &super::index::row_major(&sample.shape), 0),
        )
    });
    tensors.collect()
}

/// Groups names by their first part, at every level.
fn nested(
    items: &[(String, Vec<u8>)],
    make: &dyn Fn(Vec<(String, Vec<u8>)>) -> Vec<u8>,
) -> Vec<u8> {
    let mut groups: BTreeMap<&str, Vec<(String, Vec<u8>)>> = BTreeMap::new();
    let mut leaves = vec![
        ("training".to_owned(), b"\x89".to_vec()),
        ("epoch".to_owned(), int(3)),
    ];
    for (name, value) in items {
        match name.split_once('.') {
            Some((first, rest)) => groups
                .entry(first)
                .or_default()
                .push((rest.into(), value.clone())),
            None => leaves.push((name.clone(), value.clone())),
        }
    }
    leaves.extend(
        groups
            .into_iter()
            .map(|(name, items)| (name.into(), nested(&items, make))),
    );
    make(leaves)
}

/// A pickled tensor over part of a storage.
pub(crate) fn tensor(key: usize, sample: &Sample, strides: &[usize], offset: usize) -> Vec<u8> {
    let class = match sample.dtype {
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::F64 => "DoubleStorage",
        Dtype::I64 => "LongStorage",
        _ => "FloatStorage",
    };
    let id = tuple(&[
        text("storage"),
        global("torch", class),
        text(&key.to_string()),
        text("cpu"),
        int(sample.values.len()),
    ]);
    let sizes = |sizes: &[usize]| tuple(&sizes.iter().map(|n| int(*n)).collect::<Vec<_>>());
    let arguments = tuple(&[
        [id, b"Q".to_vec()].concat(),
        int(offset),
        sizes(&sample.shape),
        sizes(strides),
        b"\x89".to_vec(),
        [global("collections", "OrderedDict"), b")R".to_vec()].concat(),
    ]);
    [
        global("torch._utils", "_rebuild_tensor_v2"),
        arguments,
        b"R".to_vec(),
    ]
    .concat()
}

pub(crate) fn zip(samples: &Samples, stem: &str, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut archive = rawzip::ZipArchiveWriter::new(&mut bytes);
    let storages = samples.values().enumerate();
    let storages = storages.map(|(key, sample)| (format!("{stem}/data/{key}"), sample.bytes()));
    let files = files
        .iter()
        .map(|(name, bytes)| (format!("{stem}/{name}"), bytes.clone()));
    for (name, content) in files.chain(storages) {
        let (mut entry, config) = archive.new_file(&name).start().unwrap();
        let mut writer = config.wrap(&mut entry);
        writer.write_all(&content).unwrap();
        let (_, descriptor) = writer.finish().unwrap();
        entry.finish(descriptor).unwrap();
    }
    archive.finish().unwrap();
    bytes
}

pub(crate) fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

pub(crate) fn dict(items: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    let items = items
        .into_iter()
        .flat_map(|(key, value)| [text(&key), value].concat());
    [b"}(".to_vec(), items.collect(), b"u".to_vec()].concat()
}

fn text(text: &str) -> Vec<u8> {
    [
        b"X",
        &(text.len() as u32).to_le_bytes()[..],
        text.as_bytes(),
    ]
    .concat()
}

fn int(number: usize) -> Vec<u8> {
    [b"J", &(number as u32).to_le_bytes()[..]].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".to_vec(), items.concat(), b"t".to_vec()].concat()
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}
