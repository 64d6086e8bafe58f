//! The arithmetic, once for each instruction set.
//!
//! A set of kernels packs weights in the order in which it reads them and
//! computes convolutions from them. All sets give the same bytes: sums are
//! integers, and the one rounding at the end is spelled out in [`Requant`].
//! [`scalar`] is the definition that the others are tested against.

#[cfg(target_arch = "aarch64")]
mod arm;
mod elementwise;
mod floats;
mod pack;
mod scalar;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use floats::{Attention, FloatWork, MAX_COLUMNS, MAX_KEYS, Product, Strided};
pub use pack::{Matrix, Taps};

use std::ops::Range;

use super::plan::{Add, Conv, LANES, Shape, Window};

/// Kernels of one instruction set; they exist only where it does.
pub trait Kernels: Send + Sync {
    /// Name, as `NUMCLIP_ISA` takes it.
    fn name(&self) -> &'static str;

    /// Packs a convolution of all channels with all, whose input has this zero point.
    fn pack_dense(&self, conv: &Conv, inputs: usize, zero_point: u8) -> Matrix;

    /// Computes such a convolution.
    ///
    /// # Panics
    /// When the windows of `dense` reach beyond its bytes, or `to` has not
    /// the length of the result.
    fn dense(&self, dense: &Dense<'_>, to: &mut [u8]);

    /// Packs a convolution of each channel on its own.
    fn pack_depthwise(&self, conv: &Conv, zero_point: u8) -> Taps;

    /// Computes such a convolution.
    ///
    /// # Panics
    /// As [`Kernels::dense`].
    fn depthwise(&self, depthwise: &Depthwise<'_>, to: &mut [u8]);

    /// `to[i] = affine.level(from[i])`, see [`Affine::level`](super::plan::Affine::level).
    fn quantize(&self, from: &[f32], scale: f32, zero_point: u8, to: &mut [u8]) {
        elementwise::quantize(from, scale, zero_point, to);
    }

    /// A residual sum, see [`Add`].
    fn add(&self, sum: &Sum, from: [&[u8]; 2], to: &mut [u8]) {
        elementwise::add(sum, from, to);
    }

    /// Sums of each channel over all pixels: `from` is `[pixels, channels]`.
    fn channel_sums(&self, from: &[u8], sums: &mut [u32]) {
        elementwise::channel_sums(from, sums);
    }

    /// Does what transformers do in floats.
    fn float(&self, work: FloatWork<'_>) {
        floats::run::<[f32; LANES], 1>(work);
    }
}

/// From a sum to a level:
/// `clamp(zero_point + round(multiplier · sum), range)`, halves to even, the
/// product in 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requant {
    /// Zero point of the output.
    pub zero_point: u8,
    /// Least and greatest level.
    pub range: [u8; 2],
}

/// A convolution as a matrix product. Each output pixel is the product of its
/// window with the weights; a window is a few segments (the kernel's rows),
/// each of consecutive bytes (its columns and channels).
pub struct Dense<'a> {
    /// Levels, from the first byte of the first window on.
    pub from: &'a [u8],
    /// Where the windows lie.
    pub windows: Windows,
    /// The packed weights.
    pub matrix: &'a Matrix,
    /// From sums to levels; `None` where real values are written, as the bytes of floats.
    pub requant: Option<Requant>,
}

/// Where windows begin: a grid of `rows × columns`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Rows of output pixels.
    pub rows: usize,
    /// Output pixels in a row.
    pub columns: usize,
    /// From a row to the next.
    pub row_step: usize,
    /// From a pixel to the next.
    pub column_step: usize,
    /// From a segment to the next.
    pub segment_step: usize,
}

/// A convolution of each channel on its own.
#[derive(Clone)]
pub struct Depthwise<'a> {
    /// Levels of the whole input: `[height, width, channels]`.
    pub from: &'a [u8],
    /// Shape of the input.
    pub shape: Shape,
    /// Where the kernel is laid.
    pub window: Window,
    /// Output rows to compute.
    pub rows: Range<usize>,
    /// Pixels of an output row.
    pub columns: usize,
    /// Stands for a row outside the input: `width · channels` times its zero point.
    pub outside: &'a [u8],
    /// The packed weights.
    pub taps: &'a Taps,
    /// From sums to levels.
    pub requant: Requant,
}

/// What a residual sum multiplies its inputs with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    /// For each input: its scale / output scale.
    pub ratio: [f32; 2],
    /// Zero points of the inputs.
    pub zero_points: [u8; 2],
    /// From the sum to a level.
    pub requant: Requant,
}

impl Requant {
    /// The level of a sum, times `multiplier`.
    #[inline(always)]
    pub fn level(self, sum: i32, multiplier: f32) -> u8 {
        self.level_of(sum as f32 * multiplier)
    }

    /// The level of a real value in units of the output's scale.
    #[inline(always)]
    pub fn level_of(self, value: f32) -> u8 {
        // Beyond this, any zero point leaves it outside the range of a byte;
        // what is no number counts as small.
        let near = if value > -512.0 { value } else { -512.0 };
        let near = if near < 512.0 { near } else { 512.0 };
        // In this binade floats are whole numbers: the sum rounds, halves to
        // even, in one step that compilers vectorise.
        let rounded = (near + BINADE).to_bits() as i32 - BINADE.to_bits() as i32;
        let [low, high] = self.range.map(i32::from);
        (rounded + i32::from(self.zero_point)).max(low).min(high) as u8
    }
}

/// The middle of the floats that lie one apart.
const BINADE: f32 = 1.5 * (1 << 23) as f32;

impl<'a> Dense<'a> {
    /// Bytes of a value that is written.
    pub fn width(&self) -> usize {
        match self.requant {
            Some(_) => 1,
            None => size_of::<f32>(),
        }
    }

    /// Multiply-accumulates.
    pub fn macs(&self) -> usize {
        let outputs = self.windows.rows * self.windows.columns * self.matrix.outputs();
        outputs * self.matrix.segments() * self.matrix.segment_len()
    }

    /// Bands that can be computed apart: rows, or where the whole is one row,
    /// its columns.
    pub fn bands(&self) -> usize {
        match self.windows.rows {
            1 => self.windows.columns,
            rows => rows,
        }
    }

    /// The part of these bands.
    pub fn part(&self, bands: Range<usize>) -> Self {
        let (mut windows, step) = match self.windows {
            windows if windows.rows == 1 => (windows, windows.column_step),
            windows => (windows, windows.row_step),
        };
        match windows.rows {
            1 => windows.columns = bands.len(),
            _ => windows.rows = bands.len(),
        }
        Self {
            from: &self.from[bands.start * step..],
            windows,
            ..*self
        }
    }

    /// Checks what unsafe code relies on: every window lies within the bytes,
    /// the whole groups at their ends too, and the output has its length.
    fn check(&self, to: &[u8]) {
        let Windows {
            rows,
            columns,
            row_step,
            column_step,
            segment_step,
        } = self.windows;
        let (segments, segment) = (self.matrix.segments(), self.matrix.segment_len());
        if rows * columns > 0 {
            let last =
                (rows - 1) * row_step + (columns - 1) * column_step + (segments - 1) * segment_step;
            assert!(
                last + segment <= self.from.len(),
                "windows reach beyond the input"
            );
        }
        assert_eq!(
            to.len(),
            rows * columns * self.matrix.outputs() * self.width(),
            "length of the output"
        );
    }
}

impl Depthwise<'_> {
    /// Checks what unsafe code relies on, see [`Dense::check`].
    fn check(&self, to: &[u8]) {
        let row = self.shape.width * self.shape.channels;
        assert_eq!(
            self.from.len(),
            self.shape.height * row,
            "length of the input"
        );
        assert!(self.outside.len() >= row, "length of the row outside");
        assert_eq!(
            self.taps.channels(),
            self.shape.channels,
            "channels of the weights"
        );
        assert_eq!(
            self.taps.kernel(),
            self.window.kernel,
            "kernel of the weights"
        );
        assert_eq!(
            to.len(),
            self.rows.len() * self.columns * self.shape.channels,
            "length of the output"
        );
    }

    /// The input row that lies under row `ky` of the kernel at output row `y`.
    #[inline(always)]
    fn row(&self, y: usize, ky: usize) -> &[u8] {
        let row = self.shape.width * self.shape.channels;
        let index = (y * self.window.stride[0] + ky).wrapping_sub(self.window.padding[0]);
        match index < self.shape.height {
            true => &self.from[index * row..][..row],
            false => &self.outside[..row],
        }
    }
}

/// Writes the bytes of as many reals as `to` holds.
#[inline(always)]
fn put_reals(to: &mut [u8], reals: &[f32]) {
    let (to, _) = to.as_chunks_mut();
    for (to, real) in to.iter_mut().zip(reals) {
        *to = real.to_ne_bytes();
    }
}

/// The kernels of this name, where the machine has what they need.
pub fn by_name(name: &str) -> Option<&'static dyn Kernels> {
    all().into_iter().find(|kernels| kernels.name() == name)
}

/// All kernels that this machine can run, the fastest first.
pub fn all() -> Vec<&'static dyn Kernels> {
    let mut all: Vec<&'static dyn Kernels> = Vec::new();
    #[cfg(target_arch = "aarch64")]
    all.extend(arm::detected());
    #[cfg(target_arch = "x86_64")]
    all.extend(x86::detected());
    all.push(&scalar::Scalar);
    all
}

impl Sum {
    /// What `add` asks for, where its tensors have these zero points.
    pub fn new(add: &Add, zero_points: [u8; 2], zero_point: u8) -> Self {
        Self {
            ratio: add.ratio,
            zero_points,
            requant: Requant {
                zero_point,
                range: add.range,
            },
        }
    }
}
