//! Where the tensors of a file lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use safetensors::tensor::Metadata;

use super::{CheckpointErrorKind, Container, Dtype, Result, Tensor, torch};

/// Bytes that an index may have: that of the largest CLIP has under one million.
pub(super) const MAX_INDEX: u64 = 64 << 20;

/// What opening a file gives.
pub(super) struct Index {
    pub container: Container,
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
}

/// Reads the index of a file of any kind.
pub(super) fn read(file: &mut File) -> Result<Index> {
    let length = file.metadata()?.len();
    let mut start = Vec::new();
    file.take(16).read_to_end(&mut start)?;
    match &start[..] {
        [b'P', b'K', 3, 4, ..] => torch::archive(file, length),
        [0x80, 2..=5, ..] => torch::legacy(file, length),
        [a, b, c, d, e, f, g, h, b'{', ..] => {
            let header = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            safetensors(file, header, length)
        }
        _ => Err(CheckpointErrorKind::Unknown),
    }
}

/// Reads `length` bytes from `start` on.
pub(super) fn read_at(file: &mut File, start: u64, length: usize) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Steps between neighbours of a tensor whose values lie one after the other.
pub(super) fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    strides
}

fn safetensors(file: &mut File, header: u64, length: u64) -> Result<Index> {
    let damaged = |problem: String| CheckpointErrorKind::Index {
        container: Container::Safetensors,
        problem,
    };
    if header > MAX_INDEX || header.checked_add(8).is_none_or(|end| end > length) {
        return Err(damaged(format!("a header of {header} bytes")));
    }
    let json = read_at(file, 8, header as usize)?;
    let index: Metadata =
        serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
    let data = 8 + header;
    let expected = data.checked_add(index.data_len() as u64);
    if expected != Some(length) {
        let problem = format!(
            "{} bytes of values, the header tells of {}",
            length - data,
            index.data_len()
        );
        return Err(damaged(problem));
    }
    let tensors = index.tensors().into_iter().map(|(name, info)| {
        let tensor = Tensor {
            dtype: info.dtype,
            shape: info.shape.clone(),
            strides: row_major(&info.shape),
            start: data + info.data_offsets.0 as u64,
        };
        (name, tensor)
    });
    Ok(Index {
        container: Container::Safetensors,
        tensors: tensors.collect(),
        metadata: index
            .metadata()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
    })
}

/// Bytes of a value; none for types smaller than a byte.
pub(super) fn width(dtype: Dtype) -> u64 {
    (dtype.bitsize() / 8).max(1) as u64
}
