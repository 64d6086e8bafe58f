//! Resize and crop on 8-bit pixels.

use std::cell::RefCell;

use super::resample::{Resampler, Sampling, Span};
use super::{Filter, Plan, Resize};
use crate::frame::Frame;
use crate::view::{Turn, View};

/// Resizes frames, keeping its buffers from one to the next: no allocation
/// once it has seen a frame of each size.
#[derive(Default)]
pub struct Preprocessor {
    resampler: Resampler,
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
        self.resize(plan.sampling(), view, &placement.source(view.turn()));
        self.place(plan, &placement, view.turn());
        &self.fitted
    }

    /// Brings a part of a frame to `width × height`, neither of them 0: RGB,
    /// interleaved.
    pub fn scale(&mut self, filter: Filter, view: &View<'_>, width: u32, height: u32) -> &[u8] {
        let placement = Placement::whole(view.width(), view.height(), width, height);
        self.resize(filter.into(), view, &placement.source(view.turn()));
        let pixels = width as usize * height as usize * 3;
        self.fitted.resize(pixels, 0);
        self.copy_turned(&placement, (width, height), view.turn());
        &self.fitted
    }

    /// The picture last fitted or scaled; empty before the first.
    pub fn fitted(&self) -> &[u8] {
        &self.fitted
    }

    /// Only the wanted window of the resized picture is made.
    fn resize(&mut self, sampling: Sampling, view: &View<'_>, placement: &Placement) {
        let source = (view.frame(), view.source_region());
        let spans = [placement.x, placement.y];
        self.resampler
            .resample(sampling, source, spans, &mut self.resized);
    }

    /// Puts the resized picture where it belongs; what it does not cover
    /// (letterbox) is filled.
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

    /// Copies the resized picture to its place in a `width × height` one,
    /// upright; `placement` is that of the upright picture.
    fn copy_turned(&mut self, placement: &Placement, (width, height): (u32, u32), turn: Turn) {
        let (keep_x, keep_y) = (placement.x.keep, placement.y.keep);
        let (at_x, at_y) = ((width - keep_x) / 2, (height - keep_y) / 2);
        let (drawn_x, drawn_y) = turn.swapped(keep_x, keep_y);
        for y in 0..keep_y {
            let to = ((at_y + y) as usize * width as usize + at_x as usize) * 3;
            let target = &mut self.fitted[to..to + keep_x as usize * 3];
            if turn.is_none() {
                let from = (y * keep_x) as usize * 3;
                target.copy_from_slice(&self.resized[from..from + target.len()]);
                continue;
            }
            for (pixel, x) in target.chunks_exact_mut(3).zip(0..) {
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

    fn sampling(&self) -> Sampling {
        Sampling {
            filter: self.filter,
            antialias: self.antialias,
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

impl Span {
    fn whole(source: u32, full: u32) -> Self {
        Self {
            source,
            full,
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
        Self {
            source,
            full,
            offset,
            keep: size.min(full),
        }
    }

    /// The same from the other end.
    fn reversed(self) -> Self {
        Self {
            offset: self.full - self.offset - self.keep,
            ..self
        }
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
    use crate::view::{Flip, Region};
    use fast_image_resize as fir;

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
        let bicubic = fir::ResizeAlg::Convolution(fir::FilterType::CatmullRom);
        let options = fir::ResizeOptions::new().resize_alg(bicubic);
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
