//! Golden vectors: pictures with what a correct device makes of them.

use std::collections::HashMap;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors, serialize};

use crate::frame::{Frame, FrameError, PixelFormat};

/// One picture with its expected results.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenCase {
    /// Width of the picture in pixels.
    pub width: u32,
    /// Height of the picture in pixels.
    pub height: u32,
    /// The picture: RGB, interleaved, `height * width * 3` bytes.
    pub pixels: Vec<u8>,
    /// What preprocessing gives: planar `[3, side, side]`. Where `side` is less
    /// than the encoder's input, these are means over equal blocks of it.
    pub tensor: Vec<f32>,
    /// What the bundle's first encoder gives: `[dim]`, not normalised.
    pub embedding: Vec<f32>,
    /// The value estimated from that embedding, in the task's unit.
    pub value: f32,
}

impl GoldenCase {
    /// The picture.
    ///
    /// # Errors
    /// [`FrameError`] when the pixels are not those of its size.
    pub fn frame(&self) -> Result<Frame, FrameError> {
        Frame::new(
            self.width,
            self.height,
            PixelFormat::Rgb,
            self.pixels.clone(),
        )
    }
}

/// The golden vectors of a bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Golden {
    /// The cases, in file order.
    pub cases: Vec<GoldenCase>,
}

impl Golden {
    /// The file's bytes: for case `i` tensors `i.image` (u8, `[h, w, 3]`),
    /// `i.tensor` (f32, `[3, side, side]`), `i.embedding` (f32, `[dim]`) and
    /// `i.value` (f32, `[1]`).
    ///
    /// # Errors
    /// [`SafeTensorError`] when a case's pixels do not fit its size.
    pub fn to_bytes(&self) -> Result<Vec<u8>, SafeTensorError> {
        let mut tensors = Vec::new();
        for (index, case) in self.cases.iter().enumerate() {
            let side = (case.tensor.len() / 3).isqrt();
            let image = vec![case.height as usize, case.width as usize, 3];
            tensors.push((
                format!("{index}.image"),
                Dtype::U8,
                image,
                case.pixels.clone(),
            ));
            tensors.push((
                format!("{index}.tensor"),
                Dtype::F32,
                vec![3, side, side],
                bytes_of(&case.tensor),
            ));
            let dim = vec![case.embedding.len()];
            tensors.push((
                format!("{index}.embedding"),
                Dtype::F32,
                dim,
                bytes_of(&case.embedding),
            ));
            tensors.push((
                format!("{index}.value"),
                Dtype::F32,
                vec![1],
                bytes_of(&[case.value]),
            ));
        }
        let views: Result<Vec<_>, SafeTensorError> = tensors
            .iter()
            .map(|(name, dtype, shape, data)| {
                Ok((name, TensorView::new(*dtype, shape.clone(), data)?))
            })
            .collect();
        serialize(views?, None::<HashMap<String, String>>)
    }

    /// Reads what [`Golden::to_bytes`] wrote; `size` and `dim` are the
    /// bundle's. The error says which tensor does not fit.
    pub(super) fn from_bytes(bytes: &[u8], size: usize, dim: usize) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let count = file
            .names()
            .iter()
            .filter(|name| name.ends_with(".image"))
            .count();
        if count == 0 {
            return Err("no golden cases; expected tensors named 0.image, 0.tensor, …".into());
        }
        let cases: Result<_, _> = (0..count)
            .map(|index| read_case(&file, index, size, dim))
            .collect();
        Ok(Self { cases: cases? })
    }
}

fn read_case(
    file: &SafeTensors<'_>,
    index: usize,
    size: usize,
    dim: usize,
) -> Result<GoldenCase, String> {
    let image = file
        .tensor(&format!("{index}.image"))
        .map_err(|error| error.to_string())?;
    let &[height, width, 3] = image.shape() else {
        return Err(format!(
            "{index}.image: expected shape [height, width, 3], got {:?}",
            image.shape()
        ));
    };
    if image.dtype() != Dtype::U8 || width == 0 || height == 0 {
        return Err(format!(
            "{index}.image: expected u8 pixels, got {:?} {:?}",
            image.dtype(),
            image.shape()
        ));
    }
    let side =
        |length: usize| u32::try_from(length).map_err(|error| format!("{index}.image: {error}"));
    Ok(GoldenCase {
        width: side(width)?,
        height: side(height)?,
        pixels: image.data().to_vec(),
        tensor: read_tensor(file, &format!("{index}.tensor"), size)?,
        embedding: floats(file, &format!("{index}.embedding"), &[dim])?,
        value: floats(file, &format!("{index}.value"), &[1])?[0],
    })
}

/// The tensor `name`: `[3, size, size]`, or means over equal blocks of that.
fn read_tensor(file: &SafeTensors<'_>, name: &str, size: usize) -> Result<Vec<f32>, String> {
    let stated = file.tensor(name).map_err(|error| error.to_string())?;
    let side = match *stated.shape() {
        [_, side, _] if (1..size).contains(&side) && size.is_multiple_of(side) => side,
        _ => size,
    };
    floats(file, name, &[3, side, side])
}

/// Means of `tensor`, planar `[3, size, size]`, over `side · side` equal blocks
/// of each plane: planar `[3, side, side]`.
pub(crate) fn pooled(tensor: &[f32], side: usize) -> Vec<f32> {
    let size = (tensor.len() / 3).isqrt();
    let block = (size / side.max(1)).max(1);
    let mut means = vec![0.0; 3 * side * side];
    for (index, value) in tensor.iter().enumerate() {
        let (row, x) = (index / size, index % size);
        let (plane, y) = (row / size, row % size);
        means[(plane * side + y / block) * side + x / block] += value / (block * block) as f32;
    }
    means
}

/// The tensor `name`, f32 or f16, which must have `shape` and finite values.
pub(super) fn floats(
    file: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, String> {
    let tensor = file.tensor(name).map_err(|error| error.to_string())?;
    let data = tensor.data();
    let values: Vec<f32> = match (tensor.dtype(), tensor.shape() == shape) {
        (Dtype::F32, true) => data
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect(),
        (Dtype::F16, true) => data
            .chunks_exact(2)
            .map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32())
            .collect(),
        (dtype, _) => {
            return Err(format!(
                "{name}: expected F32 {shape:?} (or F16), got {dtype:?} {:?}",
                tensor.shape()
            ));
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(format!(
            "{name}[{at}]: expected a finite number, got {}",
            values[at]
        )),
        None => Ok(values),
    }
}

/// Little-endian bytes of `values`.
pub(super) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}
