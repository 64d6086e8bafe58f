//! Pictures with their estimate drawn beside them.
//!
//! ```text
//! ┌────────────┬───────────────┐
//! │            │ freshness     │
//! │            │ 3.4 days      │
//! │  picture   │ ──┼━━●━━┼──── │  interval on the task's range
//! │            │ fresh ▇▇▇▇ 81%│  bin distribution
//! │            │ aged  ▇    12%│
//! └────────────┴───────────────┘
//! ```

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf, absolute};

use image::{ImageResult, RgbImage};
use numclip::bundle::Manifest;
use numclip::estimate::Estimate;
use numclip::frame::Frame;
use numclip::preprocess::{Filter, Preprocessor};
use numclip::view::View;

use crate::canvas::{Canvas, Color};
use crate::table::decimals;

/// Longest side of the drawn picture in pixels.
const PICTURE: u32 = 640;
/// Width of the panel in pixels.
const PANEL: u32 = 400;
/// Empty space around what is on the panel.
const MARGIN: f32 = 30.0;
/// Height of a bin's row, and the most rows that are drawn.
const ROW: f32 = 28.0;
const MAX_ROWS: usize = 14;
/// Where the axis and the first row of the panel lie.
const AXIS: f32 = 178.0;
const ROWS: f32 = 238.0;

const PAPER: Color = Color(255, 255, 255);
const BACKDROP: Color = Color(243, 244, 246);
const INK: Color = Color(17, 24, 39);
const FAINT: Color = Color(100, 108, 122);
const TRACK: Color = Color(229, 231, 235);
const ACCENT: Color = Color(37, 99, 235);
const SOFT: Color = Color(147, 180, 248);
const TRUTH: Color = Color(217, 119, 6);

/// Draws estimates of one task.
pub struct Painter<'a> {
    manifest: &'a Manifest,
}

impl<'a> Painter<'a> {
    /// A painter for estimates that `manifest` describes.
    pub fn new(manifest: &'a Manifest) -> Self {
        Self { manifest }
    }

    /// `frame` with a panel at its right: the value, its interval on the
    /// task's range, the true value where it is known, and the distribution
    /// over bins.
    pub fn paint(&self, frame: &Frame, estimate: &Estimate, label: Option<f32>) -> RgbImage {
        let picture = scaled(frame);
        let rows = self.manifest.bins.bin.len().min(MAX_ROWS);
        let height = (ROWS + ROW * rows as f32 + 2.0 * MARGIN) as u32;
        let height = height.max(picture.height());
        let mut canvas = Canvas::new(picture.width() + PANEL, height, BACKDROP);
        let left = picture.width() as f32;
        canvas.rect(left, 0.0, PANEL as f32, height as f32, PAPER);
        canvas.picture(0, (height - picture.height()) / 2, &picture);
        let panel = Panel {
            left: left + MARGIN,
            right: left + PANEL as f32 - MARGIN,
            manifest: self.manifest,
        };
        panel.headline(&mut canvas, estimate);
        panel.axis(&mut canvas, estimate, label);
        panel.distribution(&mut canvas, &estimate.probabilities, rows);
        panel.footer(&mut canvas, height as f32 - 22.0);
        canvas.into_image()
    }
}

/// Where each of `paths` goes below one folder: as they lie to each other,
/// with the extension `png`. Names that would meet are told apart.
pub fn names(paths: &[PathBuf]) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = paths.iter().map(|path| plain(path)).collect();
    let folders = paths.iter().filter_map(|path| path.parent());
    let common = folders.map(Path::to_path_buf).reduce(|a, b| shared(&a, &b));
    let common = common.unwrap_or_default();
    let mut taken = HashSet::new();
    paths
        .iter()
        .map(|path| {
            let path = path.strip_prefix(&common).unwrap_or(path);
            candidates(path).find(|name| taken.insert(name.clone()))
        })
        .map(Option::unwrap_or_default)
        .collect()
}

/// `path` from the root on, without `.` and `..`.
pub fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in absolute(path).unwrap_or_else(|_| path.into()).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

/// Writes `picture` to `place`, making its folder.
///
/// # Errors
/// When the file cannot be written.
pub fn save(picture: &RgbImage, place: &Path) -> ImageResult<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    picture.save(place)
}

fn shared(a: &Path, b: &Path) -> PathBuf {
    let pairs = a.components().zip(b.components());
    pairs.take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

/// `a/b.png`, then `a/b.jpg.png`, `a/b.jpg-2.png`, ….
fn candidates(path: &Path) -> impl Iterator<Item = PathBuf> {
    let whole = path.to_path_buf();
    let numbered = move |suffix: String| {
        let mut name = whole.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let suffixes = (2..).map(|number| format!("-{number}.png"));
    std::iter::once(path.with_extension("png"))
        .chain(std::iter::once(".png".into()).chain(suffixes).map(numbered))
}

/// The picture with its longest side at [`PICTURE`] pixels.
fn scaled(frame: &Frame) -> RgbImage {
    let longest = f64::from(frame.width().max(frame.height()));
    let enlargement = f64::from(PICTURE) / longest;
    let side = |length: u32| ((f64::from(length) * enlargement).round() as u32).max(1);
    let (width, height) = (side(frame.width()), side(frame.height()));
    // The few pixels of a tiny picture are shown as they are.
    let filter = match enlargement > 4.0 {
        true => Filter::Nearest,
        false => Filter::Bicubic,
    };
    let scaled = |preprocessor: &mut Preprocessor| {
        let pixels = preprocessor.scale(filter, &View::whole(frame), width, height);
        RgbImage::from_raw(width, height, pixels.to_vec())
    };
    Preprocessor::with(scaled).unwrap_or_default()
}

/// The right side: what is said about the picture.
struct Panel<'a> {
    left: f32,
    right: f32,
    manifest: &'a Manifest,
}

impl Panel<'_> {
    fn headline(&self, canvas: &mut Canvas, estimate: &Estimate) {
        let task = &self.manifest.task;
        canvas.text(self.left, 48.0, 20.0, FAINT, &task.name);
        let end = canvas.text(self.left, 106.0, 64.0, INK, &self.number(estimate.value));
        canvas.text(end + 10.0, 106.0, 26.0, FAINT, &task.unit);
        if let (Some([low, high]), Some(calibration)) = (estimate.interval, &self.manifest.interval)
        {
            let percent = 100.0 * calibration.coverage;
            let (low, high) = (self.number(low), self.number(high));
            let text = format!("{low} – {high} with {percent:.0} % confidence");
            canvas.text(self.left, 136.0, 17.0, FAINT, &text);
        }
    }

    fn axis(&self, canvas: &mut Canvas, estimate: &Estimate, label: Option<f32>) {
        let [low, high] = self.manifest.task.range;
        canvas.bar(self.left, AXIS - 3.0, self.right - self.left, 6.0, TRACK);
        if let Some([from, to]) = estimate.interval {
            let (from, to) = (self.position(from), self.position(to));
            canvas.bar(from - 3.0, AXIS - 6.0, to - from + 6.0, 12.0, SOFT);
        }
        canvas.disc(self.position(estimate.value), AXIS, 9.0, PAPER);
        canvas.disc(self.position(estimate.value), AXIS, 7.0, ACCENT);
        canvas.text(self.left, AXIS + 28.0, 15.0, FAINT, &self.number(low));
        let high = self.number(high);
        let width = canvas.width_of(15.0, &high);
        canvas.text(self.right - width, AXIS + 28.0, 15.0, FAINT, &high);
        if let Some(label) = label {
            self.truth(canvas, label);
        }
    }

    /// The true value: a mark below the axis.
    fn truth(&self, canvas: &mut Canvas, label: f32) {
        let (at, text) = (
            self.position(label),
            format!("label {}", self.number(label)),
        );
        canvas.triangle(
            [
                (at, AXIS + 5.0),
                (at - 6.0, AXIS + 15.0),
                (at + 6.0, AXIS + 15.0),
            ],
            TRUTH,
        );
        let width = canvas.width_of(15.0, &text);
        // Between the two ends of the range, so that no text meets another.
        let room = (self.left + 45.0, self.right - 45.0 - width);
        let start = (at - width / 2.0).clamp(room.0, room.1.max(room.0));
        canvas.text(start, AXIS + 28.0, 15.0, TRUTH, &text);
    }

    fn distribution(&self, canvas: &mut Canvas, probabilities: &[f32], rows: usize) {
        let (first, winner) = (window(probabilities, rows), highest(probabilities));
        let bins = &self.manifest.bins.bin[first..first + rows];
        let widest = bins
            .iter()
            .map(|bin| canvas.width_of(17.0, &bin.label))
            .fold(0.0, f32::max);
        let label_width = widest.min(0.5 * (self.right - self.left));
        let start = self.left + label_width + 14.0;
        let full = self.right - 56.0 - start;
        for (row, bin) in bins.iter().enumerate() {
            let (probability, baseline) =
                (probabilities[first + row], ROWS + ROW * row as f32 + 20.0);
            let (ink, fill) = match first + row == winner {
                true => (INK, ACCENT),
                false => (FAINT, SOFT),
            };
            let label = canvas.fitted(17.0, &bin.label, label_width);
            canvas.text(self.left, baseline, 17.0, ink, &label);
            canvas.bar(start, baseline - 13.0, full, 14.0, TRACK);
            canvas.bar(start, baseline - 13.0, full * probability, 14.0, fill);
            let percent = format!("{:.0} %", 100.0 * probability);
            let width = canvas.width_of(17.0, &percent);
            canvas.text(self.right - width, baseline, 17.0, ink, &percent);
        }
    }

    fn footer(&self, canvas: &mut Canvas, baseline: f32) {
        let model = &self.manifest.model;
        let text = format!("{} {}", model.name, model.version);
        canvas.text(self.left, baseline, 14.0, FAINT, &text);
    }

    fn number(&self, value: f32) -> String {
        format!("{value:.*}", decimals(&self.manifest.task))
    }

    /// Where `value` lies on the axis.
    fn position(&self, value: f32) -> f32 {
        let [low, high] = self.manifest.task.range;
        let share = ((value - low) / (high - low)).clamp(0.0, 1.0);
        self.left + share * (self.right - self.left)
    }
}

fn highest(probabilities: &[f32]) -> usize {
    let pairs = probabilities.iter().enumerate();
    pairs
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or(0, |(index, _)| index)
}

/// The first of `rows` bins in a row that together are the most probable.
fn window(probabilities: &[f32], rows: usize) -> usize {
    let sums = probabilities
        .windows(rows.max(1))
        .map(|window| window.iter().sum());
    highest(&sums.collect::<Vec<f32>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(paths: &[&str]) -> Vec<String> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let names = names(&paths);
        names
            .iter()
            .map(|name| name.display().to_string())
            .collect()
    }

    #[test]
    fn names_keep_folders_apart_and_never_meet() {
        assert_eq!(named(&["x/a.jpg"]), ["a.png"]);
        assert_eq!(named(&["x/a.jpg", "y/a.jpg"]), ["x/a.png", "y/a.png"]);
        assert_eq!(
            named(&["a.jpg", "a.webp", "a.jpg", "./a.jpg"]),
            ["a.png", "a.webp.png", "a.jpg.png", "a.jpg-2.png"]
        );
        assert_eq!(named(&["x/../y/a.b.jpg", "y/z/c"]), ["a.b.png", "z/c.png"]);
    }

    #[test]
    fn the_rows_shown_are_where_the_probability_is() {
        assert_eq!(window(&[0.1, 0.1, 0.5, 0.3], 2), 2);
        assert_eq!(window(&[0.6, 0.2, 0.2], 3), 0);
    }
}
