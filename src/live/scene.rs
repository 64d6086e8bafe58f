//! Whether a picture shows anything new, told from a thumbnail of its luma.

use std::time::{Duration, Instant};

use crate::view::View;

const COLUMNS: u32 = 32;
const ROWS: u32 = 24;
/// Pixels along each side of a cell that are looked at, at most.
const SAMPLES: u32 = 8;

/// A cut: more than half of the thumbnail has changed by more than this.
const CUT: f32 = 40.0;

/// When a picture that shows nothing new is passed over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Motion {
    /// Levels (of 255) by which the luma of at least one of 32 × 24 cells must
    /// differ from the last picture that was estimated.
    pub threshold: f32,
    /// The longest time without an estimate, whatever moves.
    pub longest_pause: Duration,
}

/// What a picture is to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing moved.
    Still,
    /// Something moved.
    Moved,
    /// Another scene, or the first picture.
    Cut,
}

/// What was seen last.
pub struct Scene {
    motion: Option<Motion>,
    /// Luma of every cell now, before, and when last estimated.
    now: Vec<f32>,
    before: Vec<f32>,
    estimated: Vec<f32>,
    size: (u32, u32),
    at: Option<Instant>,
}

impl Scene {
    /// Nothing was seen yet.
    pub fn new(motion: Option<Motion>) -> Self {
        let cells = || vec![0.0; (COLUMNS * ROWS) as usize];
        Self {
            motion,
            now: cells(),
            before: cells(),
            estimated: cells(),
            size: (0, 0),
            at: None,
        }
    }

    /// Looks at a picture that was taken at `at`. Unless it is still, it is
    /// taken for estimated.
    pub fn look(&mut self, view: &View<'_>, at: Instant) -> Change {
        std::mem::swap(&mut self.before, &mut self.now);
        thumbnail(view, &mut self.now);
        let size = (view.width(), view.height());
        let is_cut = self.at.is_none() || self.size != size || self.is_cut();
        if !is_cut && self.is_still(at) {
            return Change::Still;
        }
        self.size = size;
        self.at = Some(at);
        self.estimated.copy_from_slice(&self.now);
        if is_cut { Change::Cut } else { Change::Moved }
    }

    fn is_cut(&self) -> bool {
        let changed = differences(&self.now, &self.before).filter(|levels| *levels > CUT);
        2 * changed.count() > self.now.len()
    }

    fn is_still(&self, at: Instant) -> bool {
        let (Some(motion), Some(last)) = (self.motion, self.at) else {
            return false;
        };
        at.saturating_duration_since(last) < motion.longest_pause
            && differences(&self.now, &self.estimated).all(|levels| levels < motion.threshold)
    }
}

fn differences<'a>(a: &'a [f32], b: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    a.iter().zip(b).map(|(a, b)| (a - b).abs())
}

/// Mean luma of a grid of cells over the view, from evenly spread pixels.
fn thumbnail(view: &View<'_>, cells: &mut [f32]) {
    let (region, frame) = (view.source_region(), view.frame());
    let stride = frame.width() as usize * 3;
    for (cell, luma) in (0..).zip(cells) {
        let (column, row) = (cell % COLUMNS, cell / COLUMNS);
        let mut sum = 0;
        let mut count = 0;
        for y in samples(region.top, region.height, row, ROWS) {
            let line = &frame.pixels()[y as usize * stride..][..stride];
            for x in samples(region.left, region.width, column, COLUMNS) {
                let pixel = &line[x as usize * 3..][..3];
                sum += weighted(pixel[0], pixel[1], pixel[2]);
                count += 1;
            }
        }
        *luma = sum as f32 / count as f32 / 256.0;
    }
}

/// Places within cell `index` of `count` along a side.
fn samples(start: u32, length: u32, index: u32, count: u32) -> impl Iterator<Item = u32> {
    let from = u64::from(index) * u64::from(length) / u64::from(count);
    let to = u64::from(index + 1) * u64::from(length) / u64::from(count);
    let (from, to) = (from as u32, (to as u32).max(from as u32 + 1));
    let step = (to - from).div_ceil(SAMPLES) as usize;
    (start + from..start + to).step_by(step)
}

/// Luma (ITU-R BT.601) in 256ths of a level.
fn weighted(red: u8, green: u8, blue: u8) -> u32 {
    77 * u32::from(red) + 150 * u32::from(green) + 29 * u32::from(blue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, PixelFormat};

    const SECOND: Duration = Duration::from_secs(1);

    fn grey(width: u32, height: u32, level: impl Fn(u32, u32) -> u8) -> Frame {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let bytes = places.map(|(x, y)| level(x, y)).collect();
        Frame::new(width, height, PixelFormat::Grey, bytes).unwrap()
    }

    fn gate() -> Scene {
        Scene::new(Some(Motion {
            threshold: 6.0,
            longest_pause: 5 * SECOND,
        }))
    }

    #[test]
    fn a_cell_is_the_mean_of_its_pixels() {
        // 64 × 48: each cell is two pixels by two, all of them looked at.
        let frame = grey(64, 48, |x, y| ((x % 2) * 10 + (y % 2) * 20 + x / 2) as u8);
        let mut cells = vec![0.0; 768];
        thumbnail(&View::whole(&frame), &mut cells);
        for (cell, luma) in (0_u32..).zip(cells) {
            let mean = 15.0 + (cell % 32) as f32;
            assert!((luma - mean).abs() < 1e-3, "cell {cell}: {luma}");
        }
    }

    #[test]
    fn small_changes_are_seen_and_noise_is_not() {
        let start = Instant::now();
        let mut scene = gate();
        let quiet = grey(320, 240, |_, _| 100);
        let noisy = grey(320, 240, |x, y| 95 + ((x * 7 + y * 13) % 11) as u8);
        let needle = grey(320, 240, |x, y| {
            if (150..158).contains(&x) && (60..100).contains(&y) {
                20
            } else {
                100
            }
        });
        let mut look = |frame: &Frame| scene.look(&View::whole(frame), start);
        assert_eq!(look(&quiet), Change::Cut);
        assert_eq!(look(&noisy), Change::Still);
        assert_eq!(look(&needle), Change::Moved);
        assert_eq!(look(&needle), Change::Still);
        assert_eq!(look(&quiet), Change::Moved);
    }

    #[test]
    fn what_creeps_is_seen_in_the_end_and_no_pause_lasts_too_long() {
        let start = Instant::now();
        let mut scene = gate();
        let changes: Vec<Change> = (0..8)
            .map(|level| {
                let frame = grey(40, 30, |_, _| 100 + level * 2);
                scene.look(&View::whole(&frame), start)
            })
            .collect();
        use Change::{Cut, Moved, Still};
        assert_eq!(
            changes,
            [Cut, Still, Still, Moved, Still, Still, Moved, Still]
        );
        let frame = grey(40, 30, |_, _| 114);
        assert_eq!(scene.look(&View::whole(&frame), start + 4 * SECOND), Still);
        assert_eq!(scene.look(&View::whole(&frame), start + 5 * SECOND), Moved);
    }

    #[test]
    fn another_scene_or_size_is_a_cut() {
        let at = Instant::now();
        let mut scene = Scene::new(None);
        let dark = grey(40, 30, |_, _| 20);
        let light = grey(40, 30, |_, _| 200);
        let tiny = grey(3, 1, |_, _| 200);
        let mut look = |frame: &Frame| scene.look(&View::whole(frame), at);
        assert_eq!(look(&dark), Change::Cut);
        assert_eq!(look(&dark), Change::Moved);
        assert_eq!(look(&light), Change::Cut);
        assert_eq!(look(&tiny), Change::Cut);
        assert_eq!(look(&tiny), Change::Moved);
    }
}
