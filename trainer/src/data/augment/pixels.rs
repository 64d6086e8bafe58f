//! Changes to square pictures: RGB, eight bits, interleaved, `side * side * 3`
//! bytes.

use rand::Rng;

/// Swaps left and right.
pub(super) fn flip_rows(pixels: &mut [u8], side: usize) {
    for row in pixels.chunks_exact_mut(side * 3) {
        for x in 0..side / 2 {
            for c in 0..3 {
                row.swap(x * 3 + c, (side - 1 - x) * 3 + c);
            }
        }
    }
}

/// Swaps top and bottom.
pub(super) fn flip_columns(pixels: &mut [u8], side: usize) {
    let stride = side * 3;
    for y in 0..side / 2 {
        let (upper, lower) = pixels.split_at_mut((side - 1 - y) * stride);
        upper[y * stride..(y + 1) * stride].swap_with_slice(&mut lower[..stride]);
    }
}

/// Turns the picture about its middle, `degrees` clockwise, bilinearly; what
/// comes in from outside repeats the edge.
pub(super) fn rotate(pixels: &[u8], side: usize, degrees: f32) -> Vec<u8> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let middle = (side as f32 - 1.0) / 2.0;
    let last = side as f32 - 1.0;
    let mut turned = Vec::with_capacity(pixels.len());
    for y in 0..side {
        for x in 0..side {
            let (dx, dy) = (x as f32 - middle, y as f32 - middle);
            let from_x = (middle + dx * cos + dy * sin).clamp(0.0, last);
            let from_y = (middle - dx * sin + dy * cos).clamp(0.0, last);
            turned.extend(bilinear(pixels, side, from_x, from_y));
        }
    }
    turned
}

fn bilinear(pixels: &[u8], side: usize, x: f32, y: f32) -> [u8; 3] {
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(side - 1), (y0 + 1).min(side - 1));
    let (u, v) = (x - x0 as f32, y - y0 as f32);
    [0, 1, 2].map(|c| {
        let at = |x: usize, y: usize| f32::from(pixels[(y * side + x) * 3 + c]);
        let top = at(x0, y0) + (at(x1, y0) - at(x0, y0)) * u;
        let bottom = at(x0, y1) + (at(x1, y1) - at(x0, y1)) * u;
        (top + (bottom - top) * v).round() as u8
    })
}

/// Mean brightness, 0–255.
pub(super) fn mean_luma(pixels: &[u8]) -> f32 {
    let sum = pixels.chunks_exact(3).fold([0_u64; 3], |sum, pixel| {
        [0, 1, 2].map(|c| sum[c] + u64::from(pixel[c]))
    });
    let [r, g, b] = sum.map(|s| s as f32 * 3.0 / pixels.len().max(1) as f32);
    0.299 * r + 0.587 * g + 0.114 * b
}

/// Separable Gaussian of three standard deviations either way; the edge is
/// repeated.
pub(super) fn blur(pixels: &mut Vec<u8>, side: usize, sigma: f32) {
    let reach = (3.0 * sigma).ceil() as usize;
    let kernel: Vec<f32> = (0..=2 * reach)
        .map(|i| (i as f32 - reach as f32) / sigma)
        .map(|d| (-d * d / 2.0).exp())
        .collect();
    let total: f32 = kernel.iter().sum();
    let kernel: Vec<f32> = kernel.iter().map(|w| w / total).collect();
    for (step, across) in [(3, side * 3), (side * 3, 3)] {
        *pixels = blur_axis(pixels, side, &kernel, step, across);
    }
}

/// Blurs lines whose pixels are `step` bytes apart, the lines `across`.
fn blur_axis(pixels: &[u8], side: usize, kernel: &[f32], step: usize, across: usize) -> Vec<u8> {
    let reach = kernel.len() / 2;
    let mut result = vec![0; pixels.len()];
    for line in 0..side {
        for at in 0..side {
            let mut sum = [0.0; 3];
            for (k, weight) in kernel.iter().enumerate() {
                let from = line * across + (at + k).saturating_sub(reach).min(side - 1) * step;
                for c in 0..3 {
                    sum[c] += weight * f32::from(pixels[from + c]);
                }
            }
            let to = line * across + at * step;
            for c in 0..3 {
                result[to + c] = sum[c].round() as u8;
            }
        }
    }
    result
}

/// Noise of zero mean and about normal distribution.
pub(super) fn add_noise(pixels: &mut [u8], deviation: f32, rng: &mut impl Rng) {
    for value in pixels {
        // The sum of four uniform bytes, less its mean, over its deviation.
        let sum: u32 = rng.next_u32().to_le_bytes().map(u32::from).iter().sum();
        let normal = (sum as f32 - 510.0) / 147.8;
        *value = (f32::from(*value) + deviation * normal)
            .round()
            .clamp(0.0, 255.0) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flips_undo_themselves() {
        for side in [1, 2, 5, 8] {
            let original: Vec<u8> = (0..side * side * 3).map(|i| i as u8).collect();
            let mut pixels = original.clone();
            flip_rows(&mut pixels, side);
            assert_eq!(pixels[..3], original[(side - 1) * 3..side * 3]);
            flip_rows(&mut pixels, side);
            flip_columns(&mut pixels, side);
            assert_eq!(pixels[..3], original[(side - 1) * side * 3..][..3]);
            flip_columns(&mut pixels, side);
            assert_eq!(pixels, original);
        }
    }

    #[test]
    fn a_quarter_turn_moves_the_corners_on() {
        let side = 7;
        let pixels: Vec<u8> = (0..147).collect();
        let turned = rotate(&pixels, side, 90.0);
        // Top left goes to top right.
        assert_eq!(turned[(side - 1) * 3..side * 3], pixels[..3]);
        assert_eq!(rotate(&pixels, side, 0.0), pixels);
    }

    #[test]
    fn blur_keeps_the_mean_and_flattens() {
        let side = 16;
        let mut pixels: Vec<u8> = (0..side * side)
            .flat_map(|i| [if i % 2 == 0 { 0 } else { 200 }; 3])
            .collect();
        blur(&mut pixels, side, 1.5);
        let middle = pixels[(side * 8 + 8) * 3];
        assert!(middle.abs_diff(100) <= 2, "{middle}");
    }
}
