//! Resampling of 8-bit RGB pictures.
//!
//! A convolution per axis in 16-bit fixed point, rows first, columns then,
//! with 8 bits between the two: the order in which PIL works. (The other one
//! clips overshoots elsewhere, which shows where contrast is high.) Weights are
//! worked out when the geometry changes, and memory is used again: frame after
//! frame of one size nothing is allocated.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::f64::consts::PI;

use super::Filter;
use crate::frame::Frame;
use crate::view::Region;

/// Pixels that a kernel takes at a time; all weights come in such groups.
const GROUP: usize = 4;
/// Rows that a kernel works on at once.
const ROWS: usize = 4;
/// Bytes beyond a row that a kernel may read: 32 are loaded for eight pixels' 24.
const SLACK: usize = 8;
/// Columns of bytes that are summed at a time.
const BLOCK: usize = 64;

/// One axis of a picture: `keep` pixels from `offset` on, of the `full` pixels
/// that `source` ones would become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub source: u32,
    pub full: u32,
    pub offset: u32,
    pub keep: u32,
}

/// How a pixel is made of those around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sampling {
    pub filter: Filter,
    /// Whether the filter widens with the reduction.
    pub antialias: bool,
}

impl From<Filter> for Sampling {
    fn from(filter: Filter) -> Self {
        Self {
            filter,
            antialias: true,
        }
    }
}

/// The instructions that pictures are resampled with; all give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Plain,
}

/// Resamples, keeping weights and memory from one picture to the next.
#[derive(Default)]
pub(super) struct Resampler {
    isa: Isa,
    x: Axis,
    y: Axis,
    /// Rows done, columns not: `[rows, x.keep, 3]`.
    between: Vec<u8>,
    /// A copy of a row after which there is nothing to read.
    edge: Vec<u8>,
}

/// The weights of one axis: pixel `i` of the result is the sum of `taps`
/// pixels from `starts[i]` on, each times its weight.
#[derive(Default)]
struct Axis {
    made_for: Option<(Span, Sampling)>,
    starts: Vec<u32>,
    /// `[keep, taps]`, in units of 2^-precision; `taps` is a multiple of [`GROUP`].
    weights: Vec<i16>,
    taps: usize,
    precision: u32,
    /// The weights as they were before rounding: `[keep, taps]`.
    exact: Vec<f64>,
}

impl Default for Isa {
    fn default() -> Self {
        Self::there()[0]
    }
}

impl Isa {
    /// What this machine has, the fastest first.
    #[cfg(target_arch = "x86_64")]
    fn there() -> &'static [Self] {
        let wide = is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni");
        match (is_x86_feature_detected!("avx2"), wide) {
            (true, true) => &[Self::Avx512, Self::Avx2, Self::Plain],
            (true, false) => &[Self::Avx2, Self::Plain],
            (false, _) => &[Self::Plain],
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn there() -> &'static [Self] {
        &[Self::Neon, Self::Plain]
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn there() -> &'static [Self] {
        &[Self::Plain]
    }
}

impl Resampler {
    /// Resamples `region` of `frame`, of which `x` and `y` say what is wanted,
    /// to `target`: RGB, interleaved, `y.keep` rows of `x.keep` pixels. Beyond
    /// the region there is nothing, as if it had been cut out.
    pub fn resample(
        &mut self,
        sampling: impl Into<Sampling>,
        (frame, region): (&Frame, Region),
        [x, y]: [Span; 2],
        target: &mut Vec<u8>,
    ) {
        debug_assert!((x.source, y.source) == (region.width, region.height));
        let sampling = sampling.into();
        self.x.prepare(x, sampling);
        self.y.prepare(y, sampling);
        let (first, rows) = self.y.reach();
        let line = 3 * x.keep as usize;
        self.between.resize(rows * line, 0);
        self.stretch_rows(frame, region, first);
        target.resize(y.keep as usize * line, 0);
        for (row, target) in target.chunks_exact_mut(line).enumerate() {
            let (start, weights) = self.y.pixel(row);
            let lines = &self.between[(start - first) * line..];
            sum_lines(self.isa, (weights, self.y.precision), lines, target);
        }
    }

    /// The rows that the columns need, each brought to its width.
    fn stretch_rows(&mut self, frame: &Frame, region: Region, first: usize) {
        let line = 3 * self.x.starts.len();
        let (stride, pixels) = (3 * frame.width() as usize, frame.pixels());
        let (top, left) = (region.top as usize + first, 3 * region.left as usize);
        let needed = 3 * self.x.width() + SLACK;
        for (index, target) in self.between.chunks_mut(ROWS * line).enumerate() {
            let row = |row: usize| {
                let row = (index * ROWS + row).min(region.height as usize - first - 1);
                &pixels[(top + row) * stride + left..]
            };
            if target.len() == ROWS * line && row(ROWS - 1).len() >= needed {
                stretch(
                    self.isa,
                    &self.x,
                    std::array::from_fn::<_, ROWS, _>(row),
                    target,
                );
                continue;
            }
            for (at, target) in target.chunks_exact_mut(line).enumerate() {
                let row = row(at);
                let pixels = &row[..row.len().min(3 * region.width as usize)];
                self.edge.clear();
                self.edge.extend_from_slice(pixels);
                self.edge.resize(needed, 0);
                stretch(self.isa, &self.x, [&self.edge[..]], target);
            }
        }
    }
}

impl Axis {
    /// Works the weights out, unless they are at hand.
    fn prepare(&mut self, span: Span, sampling: Sampling) {
        if self.made_for == Some((span, sampling)) {
            return;
        }
        self.weigh(span, sampling);
        self.round();
        self.made_for = Some((span, sampling));
    }

    /// The weights as real numbers: those of each pixel sum to 1.
    fn weigh(&mut self, span: Span, Sampling { filter, antialias }: Sampling) {
        let scale = f64::from(span.source) / f64::from(span.full);
        let wide = if antialias && filter != Filter::Nearest {
            scale.max(1.0)
        } else {
            1.0
        };
        let reach = filter.reach() * wide;
        let source = span.source as usize;
        let most = (2 * reach.ceil() as usize + 1).min(source);
        self.taps = most.next_multiple_of(GROUP);
        self.starts.clear();
        self.exact.clear();
        for pixel in span.offset..span.offset + span.keep {
            let centre = (f64::from(pixel) + 0.5) * scale;
            let (from, to) = match filter {
                Filter::Nearest => {
                    // In whole numbers, as centres often fall on an edge.
                    let twice = (2 * u64::from(pixel) + 1) * u64::from(span.source);
                    let nearest = (twice / (2 * u64::from(span.full))) as usize;
                    (nearest, nearest + 1)
                }
                _ => (
                    (centre - reach).floor().max(0.0) as usize,
                    (centre + reach).ceil() as usize,
                ),
            };
            let (from, to) = (from.min(source - 1), to.min(source));
            // As far back as need be for whole groups to end within the row.
            let start = from.min(source.saturating_sub(self.taps));
            let begin = self.exact.len();
            self.exact.resize(begin + self.taps, 0.0);
            let weights = &mut self.exact[begin + from - start..begin + to - start];
            for (at, weight) in weights.iter_mut().enumerate() {
                *weight = filter.at(((from + at) as f64 - (centre - 0.5)) * (1.0 / wide));
            }
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            self.starts.push(start as u32);
        }
    }

    /// Rounds the weights to 16 bits, as finely as the largest allows.
    fn round(&mut self) {
        let largest = self.exact.iter().copied().fold(0.0, f64::max);
        let fits = |bits: &u32| (largest * f64::from(1 << bits)).round() < f64::from(1 << 15);
        self.precision = (1..22).take_while(fits).last().unwrap_or(1);
        let scale = f64::from(1 << self.precision);
        self.weights.clear();
        self.weights.extend(
            self.exact
                .iter()
                .map(|weight| (weight * scale).round() as i16),
        );
    }

    /// Where the pixels that make pixel `index` begin, and their weights.
    fn pixel(&self, index: usize) -> (usize, &[i16]) {
        let weights = &self.weights[index * self.taps..][..self.taps];
        (self.starts[index] as usize, weights)
    }

    /// The first pixel that is read, and how many there are.
    fn reach(&self) -> (usize, usize) {
        let first = self.starts.first().map_or(0, |start| *start as usize);
        (first, self.width() - first)
    }

    /// End of the last pixel that is read.
    fn width(&self) -> usize {
        self.starts.last().map_or(0, |start| *start as usize) + self.taps
    }
}

impl Filter {
    /// Distance beyond which a pixel has no weight, in pixels of the coarser picture.
    fn reach(self) -> f64 {
        match self {
            Self::Nearest => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x`.
    fn at(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Nearest => 1.0,
            _ if x >= self.reach() => 0.0,
            Self::Bilinear => 1.0 - x,
            // Keys (1981), eq. 15, with a = -1/2.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Lanczos => sinc(x) * sinc(x / 3.0),
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        1.0
    } else {
        (x * PI).sin() / (x * PI)
    }
}

/// Brings `R` rows, each of at least `axis.width()` pixels and [`SLACK`] bytes,
/// to the width of `target`, where they stand one after the other.
fn stretch<const R: usize>(isa: Isa, axis: &Axis, rows: [&[u8]; R], target: &mut [u8]) {
    let needed = 3 * axis.width() + SLACK;
    assert!(
        rows.iter().all(|row| row.len() >= needed),
        "rows are long enough"
    );
    assert_eq!(
        target.len(),
        R * 3 * axis.starts.len(),
        "the target holds the rows"
    );
    match isa {
        // SAFETY: `there` has seen the instructions, and the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::stretch(axis, rows, target) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::stretch(axis, rows, target) },
        // SAFETY: NEON is part of the architecture, and the lengths were checked above.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => unsafe { neon::stretch(axis, rows, target) },
        Isa::Plain => stretch_plain(axis, rows, target),
    }
}

/// [`stretch`] in plain Rust: what the kernels must equal.
fn stretch_plain<const R: usize>(axis: &Axis, rows: [&[u8]; R], target: &mut [u8]) {
    let line = target.len() / R;
    for (row, target) in rows.into_iter().zip(target.chunks_exact_mut(line)) {
        for (pixel, target) in target.chunks_exact_mut(3).enumerate() {
            let (start, weights) = axis.pixel(pixel);
            let mut sums = [half(axis.precision); 3];
            for (source, weight) in row[3 * start..].chunks_exact(3).zip(weights) {
                for (sum, level) in sums.iter_mut().zip(source) {
                    *sum += i32::from(*level) * i32::from(*weight);
                }
            }
            for (level, sum) in target.iter_mut().zip(sums) {
                *level = to_level(sum, axis.precision);
            }
        }
    }
}

/// `target` = the sum of `lines`, one for each weight and as long as `target`,
/// times their weights, of which the precision is given.
fn sum_lines(isa: Isa, (weights, precision): (&[i16], u32), lines: &[u8], target: &mut [u8]) {
    assert!(
        lines.len() >= weights.len() * target.len(),
        "a line for each weight"
    );
    match isa {
        // SAFETY: `there` has seen the instructions, and the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::sum_lines(weights, precision, lines, target) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::sum_lines(weights, precision, lines, target) },
        _ => sum_columns(weights, precision, lines, target, 0),
    }
}

/// [`sum_lines`] in plain Rust, for the columns of bytes from `first` on.
fn sum_columns(weights: &[i16], precision: u32, lines: &[u8], target: &mut [u8], first: usize) {
    let line = target.len();
    for (block, target) in target[first..].chunks_mut(BLOCK).enumerate() {
        let mut sums = [half(precision); BLOCK];
        let sums = &mut sums[..target.len()];
        for (source, weight) in lines.chunks_exact(line).zip(weights) {
            let source = &source[first + block * BLOCK..][..target.len()];
            for (sum, level) in sums.iter_mut().zip(source) {
                *sum += i32::from(*level) * i32::from(*weight);
            }
        }
        for (level, sum) in target.iter_mut().zip(sums) {
            *level = to_level(*sum, precision);
        }
    }
}

/// The `R` lines that stand one after the other in `target`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn lines_of<const R: usize>(target: &mut [u8]) -> [&mut [u8]; R] {
    let mut lines = target.chunks_exact_mut(target.len() / R);
    std::array::from_fn(|_| lines.next().unwrap_or_default())
}

/// Puts a pixel's three levels into its line. A fourth byte goes along where
/// there is room, as four are quicker than three: the next pixel's own goes over it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn put(line: &mut [u8], pixel: usize, levels: [u8; 4]) {
    match line.get_mut(3 * pixel..3 * pixel + 4) {
        Some(target) => target.copy_from_slice(&levels),
        None => line[3 * pixel..].copy_from_slice(&levels[..3]),
    }
}

/// What rounds a sum to the nearest level.
fn half(precision: u32) -> i32 {
    1 << (precision - 1)
}

fn to_level(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests;
