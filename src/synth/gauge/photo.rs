//! What happens between the scene and the file: light, lens, sensor,
//! compression.

use image::{RgbImage, codecs::jpeg::JpegEncoder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    scene::direction,
    spec::{GaugeSpec, Light, Photo},
};

/// Turns a clean drawing into a photograph of the same size.
pub(super) fn develop(drawing: &RgbImage, spec: &GaugeSpec) -> RgbImage {
    let side = drawing.width() as usize;
    let mut pixels: Vec<[f32; 3]> = drawing.pixels().map(|p| p.0.map(f32::from)).collect();
    illuminate(&mut pixels, side, &spec.light, spec.photo.vignette);
    grade(&mut pixels, &spec.photo);
    blur(&mut pixels, side, spec.photo.blur * side as f32);
    smear(&mut pixels, side, &spec.photo);
    add_noise(&mut pixels, &spec.photo);
    let bytes = pixels
        .iter()
        .flatten()
        .map(|c| c.round().clamp(0.0, 255.0) as u8)
        .collect();
    let photo = RgbImage::from_raw(drawing.width(), drawing.height(), bytes)
        .expect("as many pixels as the drawing");
    match spec.photo.jpeg {
        Some(quality) => compress(&photo, quality).unwrap_or(photo),
        None => photo,
    }
}

/// Falloff of the lamp, a shade with a soft edge, and the lens's vignette.
fn illuminate(pixels: &mut [[f32; 3]], side: usize, light: &Light, vignette: f32) {
    let [lx, ly] = direction(light.from);
    let [sx, sy] = direction(light.shade_from);
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let x = (i % side) as f32 / side as f32 * 2.0 - 1.0;
        let y = (i / side) as f32 / side as f32 * 2.0 - 1.0;
        let lamp = 1.0 + light.falloff * 0.6 * (x * lx + y * ly);
        let covered = ((x * sx + y * sy - light.shade_edge) / 0.12).clamp(0.0, 1.0);
        let corner = 1.0 - vignette * 0.5 * (x * x + y * y);
        let gain = lamp * (1.0 - light.shade * covered) * corner;
        *pixel = pixel.map(|c| c * gain);
    }
}

/// Exposure, white balance, contrast and saturation.
fn grade(pixels: &mut [[f32; 3]], photo: &Photo) {
    for pixel in pixels {
        for (c, balance) in pixel.iter_mut().zip(photo.white_balance) {
            *c = (*c * photo.exposure * balance - 128.0) * photo.contrast + 128.0;
        }
        let [r, g, b] = *pixel;
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        *pixel = pixel.map(|c| (grey + (c - grey) * photo.saturation).clamp(0.0, 255.0));
    }
}

/// Gaussian blur; `sigma` in pixels, nothing below 0.2.
fn blur(pixels: &mut Vec<[f32; 3]>, side: usize, sigma: f32) {
    if sigma < 0.2 {
        return;
    }
    let reach = (3.0 * sigma).ceil() as isize;
    let weight = |d: isize| (-((d * d) as f32) / (2.0 * sigma * sigma)).exp();
    let level: Vec<_> = (-reach..=reach)
        .map(|d| ([d as f32, 0.0], weight(d)))
        .collect();
    let upright: Vec<_> = (-reach..=reach)
        .map(|d| ([0.0, d as f32], weight(d)))
        .collect();
    convolve(pixels, side, &level);
    convolve(pixels, side, &upright);
}

/// Mean along the way the camera moved while the shutter was open.
fn smear(pixels: &mut Vec<[f32; 3]>, side: usize, photo: &Photo) {
    let length = photo.motion * side as f32;
    if length < 0.5 {
        return;
    }
    let steps = length.ceil() as usize * 2 + 1;
    let [dx, dy] = direction(photo.motion_angle);
    let taps: Vec<_> = (0..steps)
        .map(|i| length * (i as f32 / (steps - 1) as f32 - 0.5))
        .map(|d| ([dx * d, dy * d], 1.0))
        .collect();
    convolve(pixels, side, &taps);
}

/// Weighted mean of shifted copies; shifts are rounded to whole pixels and the
/// picture's edge is repeated.
fn convolve(pixels: &mut Vec<[f32; 3]>, side: usize, taps: &[([f32; 2], f32)]) {
    let total: f32 = taps.iter().map(|(_, w)| w).sum();
    let last = side as isize - 1;
    let mut result = vec![[0.0; 3]; pixels.len()];
    for &([dx, dy], weight) in taps {
        let (dx, dy, weight) = (dx.round() as isize, dy.round() as isize, weight / total);
        for y in 0..side {
            let from = (y as isize + dy).clamp(0, last) as usize * side;
            for x in 0..side {
                let source = pixels[from + (x as isize + dx).clamp(0, last) as usize];
                let target = &mut result[y * side + x];
                for c in 0..3 {
                    target[c] += weight * source[c];
                }
            }
        }
    }
    *pixels = result;
}

/// Shot noise that grows with the brightness's root, on top of read noise.
fn add_noise(pixels: &mut [[f32; 3]], photo: &Photo) {
    let mut rng = ChaCha8Rng::seed_from_u64(photo.noise_seed);
    for pixel in pixels {
        // Most of a camera's noise is shared by the channels once demosaiced.
        let common = gaussian(&mut rng);
        for c in pixel {
            let strength = photo.noise * (0.3 + 0.7 * (*c / 128.0).sqrt());
            *c += strength * (0.8 * common + 0.6 * gaussian(&mut rng));
        }
    }
}

/// About standard normal: the sum of eight uniform bytes, scaled.
fn gaussian(rng: &mut impl Rng) -> f32 {
    const MEAN: f32 = 8.0 * 127.5;
    const DEVIATION: f32 = 209.02;
    let sum: u32 = rng.next_u64().to_le_bytes().map(u32::from).iter().sum();
    (sum as f32 - MEAN) / DEVIATION
}

/// Encodes and decodes once; `None` if the encoder refuses.
fn compress(photo: &RgbImage, quality: u8) -> Option<RgbImage> {
    let mut file = Vec::new();
    photo
        .write_with_encoder(JpegEncoder::new_with_quality(&mut file, quality))
        .ok()?;
    let decoded = image::load_from_memory_with_format(&file, image::ImageFormat::Jpeg).ok()?;
    Some(decoded.into_rgb8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_zero_mean_and_unit_deviation() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws: Vec<f32> = (0..20_000).map(|_| gaussian(&mut rng)).collect();
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        let variance = draws.iter().map(|d| (d - mean).powi(2)).sum::<f32>() / draws.len() as f32;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.05, "variance {variance}");
    }

    #[test]
    fn blur_keeps_flat_areas_and_spreads_a_dot() {
        let side = 21;
        let mut flat = vec![[50.0; 3]; side * side];
        blur(&mut flat, side, 1.5);
        assert!(flat.iter().flatten().all(|c| (c - 50.0).abs() < 1e-3));

        let mut dot = vec![[0.0; 3]; side * side];
        dot[10 * side + 10] = [100.0; 3];
        blur(&mut dot, side, 1.5);
        let peak = dot[10 * side + 10][0];
        // Peak of a two-dimensional Gaussian: 1 / (2 pi sigma^2).
        assert!(
            (peak - 100.0 / (std::f32::consts::TAU * 2.25)).abs() < 0.1,
            "peak {peak}"
        );
    }
}
