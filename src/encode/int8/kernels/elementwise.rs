//! What is done value by value, in a form that compilers vectorise: every
//! instruction set inlines the same code, so that all give the same bytes.

use super::{Requant, Sum};

/// See [`Kernels::quantize`](super::Kernels::quantize).
#[inline(always)]
pub fn quantize(from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
    let requant = Requant {
        zero_point,
        range: [0, 255],
    };
    for (to, from) in to.iter_mut().zip(from) {
        *to = requant.level_of(from / scale);
    }
}

/// See [`Kernels::add`](super::Kernels::add).
#[inline(always)]
pub fn add(sum: &Sum, [a, b]: [&[u8]; 2], to: &mut [u8]) {
    let real = |level: u8, input: usize| {
        (f32::from(level) - f32::from(sum.zero_points[input])) * sum.ratio[input]
    };
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = sum.requant.level_of(real(*a, 0) + real(*b, 1));
    }
}

/// See [`Kernels::channel_sums`](super::Kernels::channel_sums).
#[inline(always)]
pub fn channel_sums(from: &[u8], sums: &mut [u32]) {
    sums.fill(0);
    for pixel in from.chunks_exact(sums.len()) {
        for (sum, &level) in sums.iter_mut().zip(pixel) {
            *sum += u32::from(level);
        }
    }
}
