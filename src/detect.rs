//! Where in a picture the subjects are: an ONNX detector that the user brings.
//!
//! Two published kinds of output are understood and told apart by their
//! shapes; see [`Layout`]. What comes out are boxes in pixels of the view, the
//! best first, without doubles.

mod layout;
mod network;

use std::fmt;
use std::path::Path;

use thiserror::Error;

pub use layout::Layout;

use crate::preprocess::{Filter, Preprocessor};
use crate::view::View;
use network::{Network, Runner};

/// Boxes that share more than this part of what they cover together show the
/// same subject.
const SAME: f32 = 0.3;
/// Boxes that are compared with each other, the best ones.
const MOST_BOXES: usize = 500;

/// A loaded detector; shared between threads.
pub struct Detector {
    network: Network,
    layout: Layout,
    least_score: f32,
}

/// A detector at work on one thread.
pub struct Finder<'a> {
    detector: &'a Detector,
    runner: Runner,
    preprocessor: Preprocessor,
    tensor: Vec<f32>,
    found: Vec<Detection>,
}

/// Something found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Where it is.
    pub place: Place,
    /// How sure the detector is, 0 to 1.
    pub score: f32,
}

/// A box, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Left edge.
    pub left: f32,
    /// Upper edge.
    pub top: f32,
    /// Right edge.
    pub right: f32,
    /// Lower edge.
    pub bottom: f32,
}

/// Why a detector cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("detector {file}: {message}")]
pub struct DetectError {
    file: String,
    message: String,
}

impl Detector {
    /// Loads the network at `path`; what it is less sure of than `least_score`
    /// is not reported.
    ///
    /// # Errors
    /// [`DetectError`] when the file cannot be loaded or its outputs are of no
    /// known layout.
    pub fn open(path: &Path, least_score: f32) -> Result<Self, DetectError> {
        let file = path.display().to_string();
        let fail = |message: String| DetectError {
            file: file.clone(),
            message,
        };
        let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        let network = Network::load(&file, &bytes).map_err(fail)?;
        let layout = Layout::of(network.size(), network.outputs()).map_err(fail)?;
        Ok(Self {
            network,
            layout,
            least_score,
        })
    }

    /// The layout of its outputs.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Width and height of its input.
    pub fn size(&self) -> (u32, u32) {
        self.network.size()
    }

    /// A finder for the calling thread.
    ///
    /// # Errors
    /// [`DetectError`] when the engine cannot set it up.
    pub fn finder(&self) -> Result<Finder<'_>, DetectError> {
        Ok(Finder {
            detector: self,
            runner: self.network.runner()?,
            preprocessor: Preprocessor::default(),
            tensor: Vec::new(),
            found: Vec::new(),
        })
    }
}

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (width, height) = self.size();
        write!(f, "{:?} of {width}×{height}", self.layout)
    }
}

impl Finder<'_> {
    /// What the view shows, the surest first, in pixels of the view.
    ///
    /// # Errors
    /// [`DetectError`] when the engine fails.
    pub fn find(&mut self, view: &View<'_>) -> Result<&[Detection], DetectError> {
        let (layout, (width, height)) = (self.detector.layout, self.detector.size());
        let (fitted_width, fitted_height) = fitted((view.width(), view.height()), (width, height));
        let pixels = self
            .preprocessor
            .scale(Filter::Bilinear, view, fitted_width, fitted_height);
        layout.fill(pixels, fitted_width, (width, height), &mut self.tensor);
        let outputs = self.runner.run(&self.tensor)?;
        self.found.clear();
        layout.decode(
            &outputs,
            (width, height),
            self.detector.least_score,
            &mut self.found,
        );
        suppress(&mut self.found);
        let across = view.width() as f32 / fitted_width as f32;
        let down = view.height() as f32 / fitted_height as f32;
        let scaled = |found: &Detection| Detection {
            place: found.place.scaled(across, down),
            ..*found
        };
        self.found
            .iter_mut()
            .for_each(|found| *found = scaled(found));
        Ok(&self.found)
    }
}

/// The largest size of the proportions of `from` that fits into `into`.
fn fitted(from: (u32, u32), into: (u32, u32)) -> (u32, u32) {
    let (width, height) = (f64::from(from.0), f64::from(from.1));
    let scale = (f64::from(into.0) / width).min(f64::from(into.1) / height);
    let side = |length: f64, most: u32| ((length * scale).round() as u32).clamp(1, most);
    (side(width, into.0), side(height, into.1))
}

/// Keeps the surest of the boxes that show the same subject.
fn suppress(found: &mut Vec<Detection>) {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(MOST_BOXES);
    let mut kept = 0;
    for index in 0..found.len() {
        let next = found[index];
        if found[..kept]
            .iter()
            .all(|better| better.place.overlap(&next.place) <= SAME)
        {
            found[kept] = next;
            kept += 1;
        }
    }
    found.truncate(kept);
}

impl Place {
    /// The share of what two boxes cover together that both cover
    /// (intersection over union), 0 to 1.
    pub fn overlap(&self, other: &Self) -> f32 {
        let shared = Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        }
        .area();
        let together = self.area() + other.area() - shared;
        if together > 0.0 {
            shared / together
        } else {
            0.0
        }
    }

    fn area(&self) -> f32 {
        (self.right - self.left).max(0.0) * (self.bottom - self.top).max(0.0)
    }

    fn scaled(&self, across: f32, down: f32) -> Self {
        Self {
            left: self.left * across,
            top: self.top * down,
            right: self.right * across,
            bottom: self.bottom * down,
        }
    }

    fn is_sound(&self) -> bool {
        let edges = [self.left, self.top, self.right, self.bottom];
        edges.iter().all(|edge| edge.is_finite()) && self.area() > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(left: f32, width: f32, score: f32) -> Detection {
        let place = Place {
            left,
            top: 0.0,
            right: left + width,
            bottom: 10.0,
        };
        Detection { place, score }
    }

    #[test]
    fn overlaps_are_those_of_rectangles() {
        let overlap = |a: f32, b: f32| {
            found(a, 10.0, 1.0)
                .place
                .overlap(&found(b, 10.0, 1.0).place)
        };
        for (offset, expected) in [(0.0, 1.0), (5.0, 1.0 / 3.0), (10.0, 0.0), (50.0, 0.0)] {
            assert!((overlap(0.0, offset) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn of_boxes_upon_each_other_the_surest_stays() {
        let mut boxes = vec![
            found(1.0, 10.0, 0.7),
            found(0.0, 10.0, 0.9),
            found(2.0, 10.0, 0.8),
            found(6.0, 10.0, 0.6),
        ];
        suppress(&mut boxes);
        assert_eq!(boxes, [found(0.0, 10.0, 0.9), found(6.0, 10.0, 0.6)]);
    }

    #[test]
    fn pictures_keep_their_proportions() {
        assert_eq!(fitted((1280, 720), (640, 640)), (640, 360));
        assert_eq!(fitted((100, 400), (320, 240)), (60, 240));
        assert_eq!(fitted((5000, 1), (320, 240)), (320, 1));
    }
}
