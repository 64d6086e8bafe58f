//! Position embeddings at another image size.

use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use burn::tensor::TensorData;

/// Resamples a table `[1 + from², width]` of a class token and a square of positions to
/// `[1 + to², width]`.
///
/// Bicubic (a = −0.5), with the filter widened when shrinking: PyTorch's `interpolate` with
/// `mode="bicubic", antialias=True`, which OpenCLIP uses. Positions along the square are the middles
/// of equal parts, so a table of the same size is unchanged.
///
/// # Panics
/// When `table` is not of that shape.
pub fn resample(table: TensorData, to: usize) -> TensorData {
    let (rows, width) = (table.shape()[0], table.shape()[1]);
    let from = (rows - 1).isqrt();
    if from == to {
        return table;
    }
    let values: Vec<f32> = table.iter().collect();
    let (class, square) = values.split_at(width);
    let mut resampled = vec![0.0; to * to * width];
    for column in 0..width {
        let plane: Vec<f32> = square.iter().skip(column).step_by(width).copied().collect();
        let places = resampled.iter_mut().skip(column).step_by(width);
        places
            .zip(resize(&plane, from, to))
            .for_each(|(place, value)| *place = value);
    }
    TensorData::new([class, &resampled].concat(), [1 + to * to, width])
}

fn resize(plane: &[f32], from: usize, to: usize) -> Vec<f32> {
    let bytes = plane.iter().flat_map(|value| value.to_le_bytes()).collect();
    let source = Image::from_vec_u8(from as u32, from as u32, bytes, PixelType::F32);
    let source = source.expect("a square of values");
    let mut target = Image::new(to as u32, to as u32, PixelType::F32);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new()
        .resize(&source, &mut target, &options)
        .expect("planes of the same type");
    let (values, _) = target.buffer().as_chunks::<4>();
    values
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[1 + 4², 2]` and what PyTorch 2 and OpenCLIP's `resize_pos_embed` make of it.
    const REFERENCE: &str = include_str!("positions.json");

    #[test]
    fn equals_pytorch() {
        let reference: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
        let values = |value: &serde_json::Value| -> Vec<f32> {
            serde_json::from_value(value.clone()).unwrap()
        };
        let table = TensorData::new(values(&reference["table"]), [17, 2]);
        for (to, expected) in reference["resampled"].as_object().unwrap() {
            let to: usize = to.parse().unwrap();
            let resampled = resample(table.clone(), to);
            assert_eq!(resampled.shape()[..], [1 + to * to, 2]);
            let got: Vec<f32> = resampled.iter().collect();
            for (got, expected) in got.iter().zip(values(expected)) {
                assert!(
                    (got - expected).abs() < 1e-6,
                    "{to}: {got}, expected {expected}"
                );
            }
        }
        assert_eq!(resample(table.clone(), 4), table);
    }
}
