//! What a detector takes and gives: the two kinds that are understood.

use super::{Detection, Place};

/// Steps of YuNet's grids, in pixels.
const STRIDES: [usize; 3] = [8, 16, 32];

/// Kinds of detectors, told apart by the shapes of their outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// YuNet as the OpenCV Zoo publishes it (Wu et al., *YuNet: A Tiny
    /// Millisecond-level Face Detector*, 2023). Takes blue, green, red, 0 to
    /// 255. For each grid of 8, 16 and 32 pixels, with N cells, it gives two
    /// scores `[1, N, 1]` (class and objectness, whose geometric mean counts),
    /// and `[1, N, 4]`: the centre's offset within its cell and the logarithms
    /// of the sides, all in steps of the grid. Landmarks are passed over.
    YuNet,
    /// UltraFace, the "ultra-light fast generic face detector" (Linzaer, 2019).
    /// Takes red, green, blue, scaled by (x − 127) / 128. It gives `[1, N, 2]`,
    /// the probabilities of background and face, and `[1, N, 4]`, the corners
    /// as shares of the input's sides.
    UltraFace,
}

/// One output: its shape and values.
pub struct Output {
    /// Lengths of its axes.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

impl Layout {
    /// The layout whose outputs have these shapes, for an input of `size`.
    pub(super) fn of(size: (u32, u32), outputs: &[Vec<usize>]) -> Result<Self, String> {
        let has = |shape: [usize; 3], times: usize| {
            outputs.iter().filter(|output| **output == shape).count() == times
        };
        let is_yunet = STRIDES.iter().all(|&stride| {
            let cells = cells(size, stride);
            has([1, cells, 1], 2) && has([1, cells, 4], 1)
        });
        if is_yunet {
            return Ok(Self::YuNet);
        }
        let is_ultra_face = |output: &Vec<usize>| {
            let [1, boxes, 2] = output[..] else {
                return false;
            };
            outputs.len() == 2 && has([1, boxes, 4], 1)
        };
        if outputs.iter().any(is_ultra_face) {
            return Ok(Self::UltraFace);
        }
        let grids = STRIDES.map(|stride| {
            let cells = cells(size, stride);
            format!("[1, {cells}, 1] twice and [1, {cells}, 4]")
        });
        let (width, height) = size;
        Err(format!(
            "outputs of unknown layout: expected, for its input of {width}×{height}, those of YuNet ({}) or of UltraFace ([1, N, 2] and [1, N, 4]); got {}",
            grids.join(", "),
            outputs
                .iter()
                .map(|shape| format!("{shape:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        ))
    }

    /// Writes the input tensor, planar `[3, height, width]`: the picture in the
    /// upper left corner, black beyond it. `pixels` are RGB, interleaved.
    pub(super) fn fill(
        self,
        pixels: &[u8],
        picture_width: u32,
        (width, height): (u32, u32),
        tensor: &mut Vec<f32>,
    ) {
        let (width, plane) = (width as usize, width as usize * height as usize);
        tensor.clear();
        tensor.resize(3 * plane, self.level(0));
        for (y, row) in pixels.chunks_exact(picture_width as usize * 3).enumerate() {
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                for channel in 0..3 {
                    let level = pixel[self.source(channel)];
                    tensor[channel * plane + y * width + x] = self.level(level);
                }
            }
        }
    }

    /// Adds what the outputs say of an input of `size`, in its pixels.
    pub(super) fn decode(
        self,
        outputs: &[Output],
        size: (u32, u32),
        least_score: f32,
        found: &mut Vec<Detection>,
    ) {
        match self {
            Self::YuNet => STRIDES
                .iter()
                .for_each(|&stride| decode_grid(outputs, size, stride, least_score, found)),
            Self::UltraFace => decode_corners(outputs, size, least_score, found),
        }
    }

    fn level(self, level: u8) -> f32 {
        match self {
            Self::YuNet => f32::from(level),
            Self::UltraFace => (f32::from(level) - 127.0) / 128.0,
        }
    }

    fn source(self, channel: usize) -> usize {
        match self {
            Self::YuNet => 2 - channel,
            Self::UltraFace => channel,
        }
    }
}

fn cells((width, height): (u32, u32), stride: usize) -> usize {
    (width as usize / stride) * (height as usize / stride)
}

fn decode_grid(
    outputs: &[Output],
    size: (u32, u32),
    stride: usize,
    least_score: f32,
    found: &mut Vec<Detection>,
) {
    let cells = cells(size, stride);
    let columns = size.0 as usize / stride;
    let mut scores = outputs
        .iter()
        .filter(|output| output.shape == [1, cells, 1]);
    let sides = outputs.iter().find(|output| output.shape == [1, cells, 4]);
    let (Some(class), Some(object), Some(sides)) = (scores.next(), scores.next(), sides) else {
        return;
    };
    let step = stride as f32;
    for (cell, sides) in sides.values.chunks_exact(4).enumerate() {
        let score = class.values[cell].clamp(0.0, 1.0) * object.values[cell].clamp(0.0, 1.0);
        let score = score.sqrt();
        let x = ((cell % columns) as f32 + sides[0]) * step;
        let y = ((cell / columns) as f32 + sides[1]) * step;
        let (half_width, half_height) = (sides[2].exp() * step / 2.0, sides[3].exp() * step / 2.0);
        let place = Place {
            left: x - half_width,
            top: y - half_height,
            right: x + half_width,
            bottom: y + half_height,
        };
        keep(place, score, least_score, found);
    }
}

fn decode_corners(
    outputs: &[Output],
    (width, height): (u32, u32),
    least_score: f32,
    found: &mut Vec<Detection>,
) {
    let ending = |last: usize| outputs.iter().find(|o| o.shape.last() == Some(&last));
    let (Some(scores), Some(corners)) = (ending(2), ending(4)) else {
        return;
    };
    let (width, height) = (width as f32, height as f32);
    let boxes = corners.values.chunks_exact(4);
    for (score, corners) in scores.values.chunks_exact(2).zip(boxes) {
        let place = Place {
            left: corners[0],
            top: corners[1],
            right: corners[2],
            bottom: corners[3],
        };
        keep(place.scaled(width, height), score[1], least_score, found);
    }
}

/// Whatever a network gives, only sound boxes get through.
fn keep(place: Place, score: f32, least_score: f32, found: &mut Vec<Detection>) {
    if score >= least_score && place.is_sound() {
        found.push(Detection { place, score });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(shapes: &[[usize; 3]]) -> Vec<Vec<usize>> {
        shapes.iter().map(|shape| shape.to_vec()).collect()
    }

    #[test]
    fn layouts_are_told_by_their_shapes() {
        let mut yunet = Vec::new();
        for cells in [6400, 1600, 400] {
            yunet.extend([[1, cells, 1], [1, cells, 1], [1, cells, 4], [1, cells, 10]]);
        }
        let size = (640, 640);
        assert_eq!(Layout::of(size, &shapes(&yunet)), Ok(Layout::YuNet));
        let ultra_face = shapes(&[[1, 4420, 2], [1, 4420, 4]]);
        assert_eq!(Layout::of((320, 240), &ultra_face), Ok(Layout::UltraFace));
        let swapped = shapes(&[[1, 4420, 4], [1, 4420, 2]]);
        assert_eq!(Layout::of((320, 240), &swapped), Ok(Layout::UltraFace));
    }

    #[test]
    fn other_layouts_are_refused_with_what_they_are() {
        let refused = |outputs: &[[usize; 3]]| Layout::of((64, 64), &shapes(outputs)).unwrap_err();
        let error = refused(&[[1, 8400, 84], [1, 3, 3]]);
        for part in [
            "[1, 64, 1] twice",
            "[1, N, 2]",
            "64×64",
            "got [1, 8400, 84], [1, 3, 3]",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(refused(&[[1, 30, 2], [1, 31, 4]]).contains("unknown layout"));
        assert!(refused(&[]).contains("unknown layout"));
    }

    #[test]
    fn the_input_is_as_each_of_them_was_taught() {
        let pixels = [10, 20, 30, 40, 50, 60];
        let mut tensor = Vec::new();
        Layout::YuNet.fill(&pixels, 2, (3, 2), &mut tensor);
        let blue = [30.0, 60.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(tensor[..6], blue);
        assert_eq!(tensor[12..14], [10.0, 40.0]);
        Layout::UltraFace.fill(&pixels, 2, (3, 2), &mut tensor);
        assert_eq!(tensor[0], -117.0 / 128.0);
        assert_eq!(tensor[5], -127.0 / 128.0);
        assert_eq!(tensor[13], -67.0 / 128.0);
    }

    #[test]
    fn boxes_that_are_none_are_left_out() {
        let output = |shape: [usize; 3], values: &[f32]| Output {
            shape: shape.to_vec(),
            values: values.to_vec(),
        };
        let scores = output(
            [1, 5, 2],
            &[0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.8, 0.2, 0.0, f32::NAN],
        );
        let nan = f32::NAN;
        let corners = [
            [0.25, 0.5, 0.75, 1.0],
            [0.5, 0.5, 0.4, 0.9],
            [0.0, nan, 0.5, 0.5],
            [0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, 1.0],
        ]
        .concat();
        let mut found = Vec::new();
        let outputs = [scores, output([1, 5, 4], &corners)];
        Layout::UltraFace.decode(&outputs, (320, 240), 0.6, &mut found);
        let place = Place {
            left: 80.0,
            top: 120.0,
            right: 240.0,
            bottom: 240.0,
        };
        assert_eq!(found, [Detection { place, score: 0.9 }]);
    }
}
