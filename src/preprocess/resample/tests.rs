use fast_image_resize as fir;
use fir::{FilterType, PixelType, ResizeAlg};
use proptest::prelude::*;

use super::*;
use crate::frame::PixelFormat;

const FILTERS: [Filter; 4] = [
    Filter::Bicubic,
    Filter::Bilinear,
    Filter::Lanczos,
    Filter::Nearest,
];

fn noise(width: u32, height: u32, seed: u64) -> Frame {
    let mut state = seed | 1;
    let bytes = (0..width * height * 3)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    Frame::new(width, height, PixelFormat::Rgb, bytes).unwrap()
}

fn whole(source: u32, full: u32) -> Span {
    Span {
        source,
        full,
        offset: 0,
        keep: full,
    }
}

/// Another library's result, an axis at a time.
fn reference(frame: &Frame, width: u32, height: u32, algorithm: ResizeAlg) -> Vec<u8> {
    let options = fir::ResizeOptions::new().resize_alg(algorithm);
    let rgb = PixelType::U8x3;
    let source = fir::images::ImageRef::new(frame.width(), frame.height(), frame.pixels(), rgb);
    let mut rows = fir::images::Image::new(width, frame.height(), rgb);
    let mut all = fir::images::Image::new(width, height, rgb);
    let mut resizer = fir::Resizer::new();
    resizer
        .resize(&source.unwrap(), &mut rows, &options)
        .unwrap();
    resizer.resize(&rows, &mut all, &options).unwrap();
    all.into_vec()
}

fn resampled(frame: &Frame, filter: Filter, spans: [Span; 2]) -> Vec<u8> {
    let region = Region::whole(frame.width(), frame.height());
    let mut target = Vec::new();
    Resampler::default().resample(filter, (frame, region), spans, &mut target);
    target
}

proptest! {
    #[test]
    fn pictures_equal_those_of_another_library(
        (width, height) in (1_u32..90, 1_u32..60),
        (to_width, to_height) in (1_u32..70, 1_u32..70),
        seed: u64,
    ) {
        let frame = noise(width, height, seed);
        for (filter, kernel) in [
            (Filter::Bicubic, FilterType::CatmullRom),
            (Filter::Bilinear, FilterType::Bilinear),
            (Filter::Lanczos, FilterType::Lanczos3),
        ] {
            let algorithm = ResizeAlg::Convolution(kernel);
            let got = resampled(&frame, filter, [whole(width, to_width), whole(height, to_height)]);
            let expected = reference(&frame, to_width, to_height, algorithm);
            prop_assert!(got == expected, "{filter:?}");
        }
    }

    #[test]
    fn a_window_is_part_of_the_whole(
        (width, full) in (1_u32..400, 2_u32..90),
        (from, to) in (0_f64..1.0, 0_f64..1.0),
        seed: u64,
    ) {
        let frame = noise(width, 7, seed);
        let offset = (f64::from(full - 1) * from.min(to)) as u32;
        let keep = ((f64::from(full - offset) * from.max(to)) as u32).max(1);
        let part = Span { offset, keep, ..whole(width, full) };
        for filter in FILTERS {
            let all = resampled(&frame, filter, [whole(width, full), whole(7, 3)]);
            let got = resampled(&frame, filter, [part, whole(7, 3)]);
            for (row, got) in got.chunks_exact(3 * keep as usize).enumerate() {
                let start = 3 * (row as u32 * full + offset) as usize;
                // The weights are rounded by the largest of those wanted.
                let worst = got.iter().zip(&all[start..]).map(|(a, b)| a.abs_diff(*b)).max();
                prop_assert!(worst <= Some(1), "{filter:?}: {worst:?}");
            }
        }
    }

    #[test]
    fn a_region_is_read_as_if_it_were_cut_out(
        (left, top) in (0_u32..20, 0_u32..20),
        (width, height) in (1_u32..40, 1_u32..30),
        (right, below) in (0_u32..5, 0_u32..5),
        seed: u64,
    ) {
        let frame = noise(left + width + right, top + height + below, seed);
        let mut cut = Vec::new();
        for y in top..top + height {
            let start = 3 * (y * frame.width() + left) as usize;
            cut.extend_from_slice(&frame.pixels()[start..start + 3 * width as usize]);
        }
        let cut = Frame::new(width, height, PixelFormat::Rgb, cut).unwrap();
        let spans = [whole(width, 17), whole(height, 11)];
        let region = Region { left, top, width, height };
        for filter in FILTERS {
            let mut target = Vec::new();
            Resampler::default().resample(filter, (&frame, region), spans, &mut target);
            prop_assert!(target == resampled(&cut, filter, spans), "{filter:?}");
        }
    }

    #[test]
    fn kernels_equal_plain_rust(
        (source, full) in (1_u32..300, 1_u32..100),
        seed: u64,
    ) {
        let frame = noise(source + 40, 4, seed);
        let line = 3 * frame.width() as usize;
        for filter in FILTERS {
            let mut axis = Axis::default();
            axis.prepare(whole(source, full), filter.into());
            if 3 * axis.width() + SLACK > line {
                continue;
            }
            let rows = std::array::from_fn(|row| &frame.pixels()[row * line..][..line]);
            let mut got = vec![0; ROWS * 3 * full as usize];
            let mut expected = got.clone();
            stretch_plain::<ROWS>(&axis, rows, &mut expected);
            for isa in Isa::there() {
                got.fill(0);
                stretch::<ROWS>(*isa, &axis, rows, &mut got);
                prop_assert!(got == expected, "{filter:?} rows, {isa:?}");
            }
            let (_, weights) = axis.pixel(0);
            let lines = noise(50, weights.len() as u32, seed);
            let mut expected = [0; 150];
            sum_columns(weights, axis.precision, lines.pixels(), &mut expected, 0);
            for isa in Isa::there() {
                let mut got = [0; 150];
                sum_lines(*isa, (weights, axis.precision), lines.pixels(), &mut got);
                prop_assert!(got == expected, "{filter:?} columns, {isa:?}");
            }
        }
    }
}

#[test]
fn the_nearest_pixel_is_the_one_under_the_centre() {
    for (source, full) in [(8, 20), (20, 8), (3, 3), (1, 5), (300, 7)] {
        let frame = noise(source, 1, 5);
        let got = resampled(&frame, Filter::Nearest, [whole(source, full), whole(1, 1)]);
        for (pixel, got) in (0..full).zip(got.chunks_exact(3)) {
            let under = ((2 * pixel + 1) * source / (2 * full)) as usize;
            assert_eq!(got, &frame.pixels()[3 * under..][..3], "{source} to {full}");
        }
    }
}

#[test]
fn memory_and_weights_are_used_again() {
    let frame = noise(64, 48, 3);
    let region = Region::whole(64, 48);
    let spans = [whole(64, 20), whole(48, 15)];
    let (mut resampler, mut target) = (Resampler::default(), Vec::new());
    resampler.resample(Filter::Bicubic, (&frame, region), spans, &mut target);
    let first = target.clone();
    let before = (resampler.between.as_ptr(), resampler.x.weights.as_ptr());
    resampler.resample(Filter::Bicubic, (&frame, region), spans, &mut target);
    assert_eq!(target, first);
    let after = (resampler.between.as_ptr(), resampler.x.weights.as_ptr());
    assert_eq!(after, before);
    let other = [whole(64, 10), whole(48, 31)];
    resampler.resample(Filter::Bicubic, (&frame, region), other, &mut target);
    assert_eq!(target, resampled(&frame, Filter::Bicubic, other));
}
