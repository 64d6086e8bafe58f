//! Bin embeddings from a safetensors file.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

use super::{ImportError, name_of};

/// Name of the tensor, where the file holds several.
const NAME: &str = "embeddings";

/// The rows of the file, scaled to length 1, and their width.
pub fn read(path: &Path, bins: usize) -> Result<(Vec<f32>, usize), ImportError> {
    let bytes = super::read(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| ImportError::file(path, format!("not a safetensors file: {error}")))?;
    let names = file.names();
    let name = match names.as_slice() {
        [only] => *only,
        _ => NAME,
    };
    let Ok(tensor) = file.tensor(name) else {
        return Err(ImportError::mismatch(
            &name_of(path),
            "tensors",
            format!("one, or one named {NAME}"),
            format!("{names:?}"),
        ));
    };
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    if dtype != Dtype::F32 || shape.len() != 2 || shape[0] != bins || shape[1] == 0 {
        return Err(ImportError::mismatch(
            &name_of(path),
            format!("tensor {name}"),
            format!("F32 [{bins}, width], a row for each bin of the task"),
            format!("{dtype:?} {shape:?}"),
        ));
    }
    let bytes = tensor.data().as_chunks::<4>().0;
    let mut values: Vec<f32> = bytes.iter().map(|&b| f32::from_le_bytes(b)).collect();
    for (row, values) in values.chunks_exact_mut(shape[1]).enumerate() {
        let norm = values
            .iter()
            .map(|&v| f64::from(v).powi(2))
            .sum::<f64>()
            .sqrt();
        if !norm.is_normal() {
            return Err(ImportError::mismatch(
                &name_of(path),
                format!("tensor {name}, row {row}"),
                "a finite vector that is not zero",
                format!("length {norm}"),
            ));
        }
        values
            .iter_mut()
            .for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
    Ok((values, shape[1]))
}
