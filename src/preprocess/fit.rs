//! Resize and crop on 8-bit pixels.

use std::cell::RefCell;

use fast_image_resize as fir;
use fir::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fir::pixels::U8x3;

use super::{Filter, Plan, Resize};
use crate::frame::Frame;
use crate::view::{Region, Turn, View};

/// Resizes frames, keeping its buffers from one to the next: no allocation
/// once it has seen a frame of each size.
#[derive(Default)]
pub struct Preprocessor {
    resizer: fir::Resizer,
    stretched: Vec<u8>,
    resized: Vec<u8>,
    fitted: Vec<u8>,
}

impl Preprocessor {
    /// Brings `frame` to the plan's size: RGB, interleaved,
    /// [`Plan::pixel_len`] bytes. The plan must have passed [`Plan::check`].
    pub fn fit(&mut self, plan: &Plan, frame: &Frame) -> &[u8] {
        self.fit_view(plan, &View::whole(frame))
    }

    /// As [`Preprocessor::fit`], for a part of a frame. Only what remains of
    /// it is turned, so that looking at a part costs no copy of the frame.
    pub fn fit_view(&mut self, plan: &Plan, view: &View<'_>) -> &[u8] {
        let placement = plan.placement(view.width(), view.height());
        self.resize(plan.algorithm(), view, &placement.source(view.turn()));
        self.place(plan, &placement, view.turn());
        &self.fitted
    }

    /// Brings a part of a frame to `width × height`: RGB, interleaved.
    pub fn shrink(&mut self, view: &View<'_>, width: u32, height: u32) -> &[u8] {
        let placement = Placement::whole(view.width(), view.height(), width, height);
        let algorithm = fir::ResizeAlg::Convolution(fir::FilterType::Bilinear);
        self.resize(algorithm, view, &placement.source(view.turn()));
        let pixels = width as usize * height as usize * 3;
        self.fitted.resize(pixels, 0);
        self.copy_turned(&placement, (width, height), view.turn());
        &self.fitted
    }

    /// The picture last fitted or shrunk; empty before the first.
    pub fn fitted(&self) -> &[u8] {
        &self.fitted
    }

    /// Rows are resampled first, columns then, with 8 bits between the two:
    /// the order in which PIL works. The other one clips overshoots elsewhere,
    /// which shows where contrast is high.
    fn resize(&mut self, algorithm: fir::ResizeAlg, view: &View<'_>, placement: &Placement) {
        let (frame, region) = (view.frame(), view.source_region());
        let (left, crop_width) = placement.x.source_range();
        let (top, crop_height) = placement.y.source_range();
        let first = top.floor();
        let rows = (top + crop_height).ceil().min(f64::from(region.height)) - first;
        let (width, height) = (placement.x.drawn(), placement.y.drawn());
        resample(
            &mut self.resizer,
            algorithm,
            (frame.width(), frame.height(), frame.pixels()),
            region,
            [left, first, crop_width, rows],
            (width, rows as u32, &mut self.stretched),
        );
        resample(
            &mut self.resizer,
            algorithm,
            (width, rows as u32, &self.stretched),
            Region::whole(width, rows as u32),
            [0.0, top - first, f64::from(width), crop_height],
            (width, height, &mut self.resized),
        );
    }

    /// Copies the wanted window of the resized picture; what it does not
    /// cover (letterbox) is filled.
    fn place(&mut self, plan: &Plan, placement: &Placement, turn: Turn) {
        let fill = if let Resize::Letterbox { fill } = plan.resize {
            fill
        } else {
            0
        };
        self.fitted.clear();
        self.fitted.resize(plan.pixel_len(), fill);
        self.copy_turned(placement, (plan.size, plan.size), turn);
    }

    /// Copies the wanted window to its place in a `width × height` picture,
    /// upright; `placement` is that of the upright picture.
    fn copy_turned(&mut self, placement: &Placement, (width, height): (u32, u32), turn: Turn) {
        let (skip_x, at_x, wanted_x) = placement.x.window(width);
        let (skip_y, at_y, wanted_y) = placement.y.window(height);
        let (drawn_x, drawn_y) = turn.swapped(placement.x.drawn(), placement.y.drawn());
        for row in 0..wanted_y {
            let to = ((at_y + row) * width as usize + at_x) * 3;
            let target = &mut self.fitted[to..to + wanted_x * 3];
            let (x, y) = (skip_x as u32, (skip_y + row) as u32);
            if turn.is_none() {
                let from = (y as usize * drawn_x as usize + skip_x) * 3;
                target.copy_from_slice(&self.resized[from..from + wanted_x * 3]);
                continue;
            }
            for (pixel, x) in target.chunks_exact_mut(3).zip(x..) {
                let (x, y) = turn.source(x, y, drawn_x, drawn_y);
                let from = (y as usize * drawn_x as usize + x as usize) * 3;
                pixel.copy_from_slice(&self.resized[from..from + 3]);
            }
        }
    }

    /// Runs `work` with this thread's preprocessor.
    pub fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        thread_local!(static PREPROCESSOR: RefCell<Preprocessor> = RefCell::default());
        PREPROCESSOR.with_borrow_mut(work)
    }
}

/// Resamples the part `[left, top, width, height]` of `region` of `source` to
/// `target` (each width, height, RGB pixels). Beyond the region there is
/// nothing, as if it had been cut out.
fn resample(
    resizer: &mut fir::Resizer,
    algorithm: fir::ResizeAlg,
    (source_width, source_height, source): (u32, u32, &[u8]),
    region: Region,
    [left, top, crop_width, crop_height]: [f64; 4],
    (width, height, target): (u32, u32, &mut Vec<u8>),
) {
    target.resize(width as usize * height as usize * 3, 0);
    let source = TypedImageRef::<U8x3>::from_buffer(source_width, source_height, source);
    let target = TypedImage::<U8x3>::from_buffer(width, height, target);
    let (Ok(source), Ok(mut target)) = (source, target) else {
        unreachable!("a frame has the bytes of its size, and so has the buffer");
    };
    let [x, y, wide, high] = region.to_array();
    let Ok(source) = TypedCroppedImage::new(source, x, y, wide, high) else {
        unreachable!("a view lies within its frame");
    };
    let options =
        fir::ResizeOptions::new()
            .resize_alg(algorithm)
            .crop(left, top, crop_width, crop_height);
    // Of a known pixel type: `resize` would bring in the code of all of them.
    let resized = resizer.resize_typed(&source, &mut target, &options);
    debug_assert!(
        resized.is_ok(),
        "the crop lies within the source: {resized:?}"
    );
}

impl Plan {
    /// The part of a `width × height` frame that reaches the encoder, and how
    /// large it becomes.
    fn placement(&self, width: u32, height: u32) -> Placement {
        match self.resize {
            Resize::Stretch => Placement::whole(width, height, self.size, self.size),
            Resize::Letterbox { .. } => {
                let longest = width.max(height);
                let side = |length| scaled(length, self.size, longest).max(1);
                Placement::whole(width, height, side(width), side(height))
            }
            Resize::ShorterSide { to } => self.shorter_side(width, height, to.unwrap_or(self.size)),
        }
    }

    fn algorithm(&self) -> fir::ResizeAlg {
        let filter = match self.filter {
            Filter::Bicubic => fir::FilterType::CatmullRom,
            Filter::Bilinear => fir::FilterType::Bilinear,
            Filter::Lanczos => fir::FilterType::Lanczos3,
            Filter::Nearest => return fir::ResizeAlg::Nearest,
        };
        match self.antialias {
            true => fir::ResizeAlg::Convolution(filter),
            false => fir::ResizeAlg::Interpolation(filter),
        }
    }

    fn shorter_side(&self, width: u32, height: u32, to: u32) -> Placement {
        let shortest = width.min(height);
        let side = |length| {
            if length == shortest {
                to
            } else {
                truncated(length, to, shortest)
            }
        };
        Placement {
            x: Span::centre(width, side(width), self.size),
            y: Span::centre(height, side(height), self.size),
        }
    }
}

/// Where a frame goes, per axis.
struct Placement {
    x: Span,
    y: Span,
}

impl Placement {
    fn whole(width: u32, height: u32, to_width: u32, to_height: u32) -> Self {
        Self {
            x: Span::whole(width, to_width),
            y: Span::whole(height, to_height),
        }
    }

    /// The same for the frame that `turn` makes upright.
    fn source(&self, turn: Turn) -> Self {
        let (x, y) = turn.swapped(self.x, self.y);
        let (reverse_x, reverse_y) = turn.reversed();
        Self {
            x: if reverse_x { x.reversed() } else { x },
            y: if reverse_y { y.reversed() } else { y },
        }
    }
}

/// One axis: `source` pixels scaled to `full`, of which `first..last` are
/// drawn and `keep` are wanted in the end.
///
/// Only the wanted part is resampled, with a margin as wide as the filter
/// reaches, so that the result is that of resizing the whole and cropping.
#[derive(Clone, Copy)]
struct Span {
    source: u32,
    full: u32,
    first: u32,
    last: u32,
    offset: u32,
    keep: u32,
}

impl Span {
    fn whole(source: u32, full: u32) -> Self {
        Self {
            source,
            full,
            first: 0,
            last: full,
            offset: 0,
            keep: full,
        }
    }

    fn centre(source: u32, full: u32, size: u32) -> Self {
        // Half a pixel goes to the even side, as Python's round does in torchvision.
        let surplus = full.saturating_sub(size);
        let half = surplus / 2;
        let offset = if surplus % 2 == 1 && half % 2 == 1 {
            half + 1
        } else {
            half
        };
        let enlargement = f64::from(full) / f64::from(source);
        let margin = (3.0 * enlargement.max(1.0)).ceil() as u32 + 1;
        let first = offset.saturating_sub(margin);
        let last = (offset + size + margin).min(full);
        Self {
            source,
            full,
            first,
            last,
            offset,
            keep: size.min(full),
        }
    }

    /// The same from the other end.
    fn reversed(self) -> Self {
        Self {
            first: self.full - self.last,
            last: self.full - self.first,
            ..self
        }
    }

    fn drawn(&self) -> u32 {
        self.last - self.first
    }

    /// Start and length of the drawn part in source pixels.
    fn source_range(&self) -> (f64, f64) {
        if self.drawn() == self.full {
            return (0.0, f64::from(self.source));
        }
        let scale = f64::from(self.source) / f64::from(self.full);
        let start = f64::from(self.first) * scale;
        let length = (f64::from(self.drawn()) * scale).min(f64::from(self.source) - start);
        (start, length)
    }

    /// Pixels to skip in the drawn part, where the rest goes, how many.
    fn window(&self, size: u32) -> (usize, usize, usize) {
        let skip = self.offset - self.first;
        let at = (size - self.keep) / 2;
        (skip as usize, at as usize, self.keep as usize)
    }
}

fn scaled(length: u32, to: u32, of: u32) -> u32 {
    (f64::from(length) * f64::from(to) / f64::from(of)).round() as u32
}

fn truncated(length: u32, to: u32, of: u32) -> u32 {
    (u64::from(length) * u64::from(to) / u64::from(of)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PixelFormat;
    use crate::view::Flip;

    fn noise(width: u32, height: u32) -> Frame {
        let mut state = 1_u32;
        let bytes = (0..width * height * 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        Frame::new(width, height, PixelFormat::Rgb, bytes).unwrap()
    }

    /// The whole frame resized, then the centre cut out: the plain way.
    fn whole_then_crop(frame: &Frame, size: u32, to: u32) -> Vec<u8> {
        let shortest = frame.width().min(frame.height());
        let width = (u64::from(frame.width()) * u64::from(to) / u64::from(shortest)) as u32;
        let height = (u64::from(frame.height()) * u64::from(to) / u64::from(shortest)) as u32;
        let rgb = fir::PixelType::U8x3;
        let options = fir::ResizeOptions::new().resize_alg(Plan::clip(1).algorithm());
        let source =
            fir::images::ImageRef::new(frame.width(), frame.height(), frame.pixels(), rgb).unwrap();
        let mut wide = fir::images::Image::new(width, frame.height(), rgb);
        let mut target = fir::images::Image::new(width, height, rgb);
        fir::Resizer::new()
            .resize(&source, &mut wide, &options)
            .unwrap();
        fir::Resizer::new()
            .resize(&wide, &mut target, &options)
            .unwrap();
        let round = |surplus: u32| (f64::from(surplus) / 2.0).round_ties_even() as u32;
        let (left, top) = (round(width - size), round(height - size));
        let mut out = Vec::new();
        for y in top..top + size {
            let start = ((y * width + left) * 3) as usize;
            out.extend_from_slice(&target.buffer()[start..start + size as usize * 3]);
        }
        out
    }

    #[test]
    fn cropping_before_resizing_changes_nothing() {
        for (width, height, size, to) in [
            (640, 360, 32, 32),
            (33, 97, 24, 31),
            (7, 50, 16, 16),
            (5, 5, 12, 17),
            (301, 64, 64, 64),
            (1, 40, 8, 8),
        ] {
            let frame = noise(width, height);
            let plan = Plan {
                resize: Resize::ShorterSide { to: Some(to) },
                ..Plan::clip(size)
            };
            let fitted = Preprocessor::default().fit(&plan, &frame).to_vec();
            let expected = whole_then_crop(&frame, size, to);
            let worst = fitted
                .iter()
                .zip(&expected)
                .map(|(a, b)| a.abs_diff(*b))
                .max()
                .unwrap();
            assert!(
                worst <= 1,
                "{width}x{height} to {to}, crop {size}: {worst} levels apart"
            );
        }
    }

    #[test]
    fn a_view_gives_what_its_pixels_cut_out_and_turned_would() {
        let frame = noise(61, 47);
        let plans = [
            Resize::default(),
            Resize::Stretch,
            Resize::Letterbox { fill: 9 },
        ]
        .map(|resize| Plan {
            resize,
            ..Plan::clip(24)
        });
        let region = Region {
            left: 7,
            top: 3,
            width: 30,
            height: 37,
        };
        for degrees in ["0", "90", "180", "270"] {
            for flip in [None, Some(Flip::Horizontal), Some(Flip::Vertical)] {
                let turn = Turn::new(degrees.parse().unwrap(), flip);
                let view = View::turned(&frame, turn).part(region).unwrap();
                for plan in &plans {
                    let mut preprocessor = Preprocessor::default();
                    let direct = preprocessor.fit_view(plan, &view).to_vec();
                    let copied = preprocessor.fit(plan, &view.to_frame());
                    let apart = direct.iter().zip(copied).map(|(a, b)| a.abs_diff(*b));
                    // A quarter turn lets the columns go first, which rounds and
                    // clips otherwise: pure noise shows it most.
                    let (worst, tolerance) = match degrees {
                        "0" | "180" => (apart.max().unwrap(), 1),
                        _ => {
                            let sum: u32 = apart.map(u32::from).sum();
                            ((sum / direct.len() as u32) as u8, 1)
                        }
                    };
                    assert!(worst <= tolerance, "{degrees} {flip:?}: {worst} levels");
                }
            }
        }
    }

    #[test]
    fn extreme_shapes_stay_small() {
        for (width, height) in [(1, 1), (1, 20_000), (20_000, 1), (3, 4000)] {
            for resize in [
                Resize::default(),
                Resize::Stretch,
                Resize::Letterbox { fill: 9 },
            ] {
                let plan = Plan {
                    resize,
                    ..Plan::clip(24)
                };
                let mut preprocessor = Preprocessor::default();
                assert_eq!(
                    preprocessor.fit(&plan, &noise(width, height)).len(),
                    plan.pixel_len()
                );
                assert!(preprocessor.resized.len() < 1 << 20);
            }
        }
    }

    #[test]
    fn letterbox_keeps_proportions_and_fills() {
        let frame = Frame::new(4, 2, PixelFormat::Grey, vec![200; 8]).unwrap();
        let plan = Plan {
            resize: Resize::Letterbox { fill: 7 },
            ..Plan::clip(8)
        };
        let mut preprocessor = Preprocessor::default();
        let rows: Vec<u8> = preprocessor
            .fit(&plan, &frame)
            .chunks(24)
            .map(|row| row[0])
            .collect();
        assert_eq!(rows, [7, 7, 200, 200, 200, 200, 7, 7]);
    }

    /// Half-pixel centres, two neighbours on each axis: what OpenCV and torch
    /// call linear.
    #[test]
    fn without_antialias_only_neighbours_count() {
        let (frame, size) = (noise(50, 40), 16);
        let plan = Plan {
            resize: Resize::Stretch,
            filter: Filter::Bilinear,
            antialias: false,
            ..Plan::clip(size)
        };
        let level = |x: u32, y: u32| f32::from(frame.pixels()[((y * 50 + x) * 3) as usize]);
        let between = |at: u32, length: u32| {
            let place = (at as f32 + 0.5) * length as f32 / size as f32 - 0.5;
            (
                place as u32,
                (place as u32 + 1).min(length - 1),
                place.fract(),
            )
        };
        let mut preprocessor = Preprocessor::default();
        let fitted = preprocessor.fit(&plan, &frame);
        for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
            let (left, right, wx) = between(x, 50);
            let (top, bottom, wy) = between(y, 40);
            let row = |y: u32| level(left, y) * (1.0 - wx) + level(right, y) * wx;
            let expected = row(top) * (1.0 - wy) + row(bottom) * wy;
            let got = f32::from(fitted[((y * size + x) * 3) as usize]);
            assert!((got - expected).abs() <= 1.5, "{x} {y}: {got} {expected}");
        }
    }
}
