//! Subjects followed from shot to shot.

use std::time::{Duration, Instant};

use super::Subject;
use super::smooth::Smoother;
use crate::detect::{Detection, Place};
use crate::view::{Region, View};

/// The least overlap of two boxes, one shot apart, for the same subject.
const SAME: f32 = 0.3;
/// A subject that was not seen for this long, nor in as many shots, is gone.
const PATIENCE: Duration = Duration::from_secs(1);
const MISSES: u32 = 5;

/// Subjects in sight, or lost a moment ago.
#[derive(Default)]
pub struct Tracks {
    tracks: Vec<Track>,
    last_id: u64,
}

/// One subject.
pub struct Track {
    /// The same as long as it is not lost.
    pub id: u64,
    /// Where it was last seen, in pixels of the view.
    pub place: Place,
    /// Its temporal filter.
    pub smoother: Option<Smoother>,
    seen: Instant,
    misses: u32,
}

impl Tracks {
    /// Takes note of what a shot shows. Boxes are matched to the subjects that
    /// they overlap most; the rest are new, each with a filter of its own.
    pub fn update(
        &mut self,
        found: &[Detection],
        at: Instant,
        smoother: impl Fn() -> Option<Smoother>,
    ) {
        for track in &mut self.tracks {
            track.misses += 1;
        }
        let mut is_taken = vec![false; found.len()];
        for (_, track, index) in pairs(&self.tracks, found) {
            let track = &mut self.tracks[track];
            if track.misses > 0 && !is_taken[index] {
                is_taken[index] = true;
                track.place = found[index].place;
                track.seen = at;
                track.misses = 0;
            }
        }
        for (detection, _) in found.iter().zip(is_taken).filter(|(_, taken)| !taken) {
            self.last_id += 1;
            self.tracks.push(Track {
                id: self.last_id,
                place: detection.place,
                smoother: smoother(),
                seen: at,
                misses: 0,
            });
        }
        self.tracks.retain(|track| {
            track.misses < MISSES || at.saturating_duration_since(track.seen) < PATIENCE
        });
    }

    /// The subjects that the last shot showed.
    pub fn in_sight(&mut self) -> impl Iterator<Item = &mut Track> {
        self.tracks.iter_mut().filter(|track| track.misses == 0)
    }

    /// Forgets all subjects; their numbers are not given again.
    pub fn clear(&mut self) {
        self.tracks.clear();
    }
}

impl Track {
    /// The part of `view` to estimate: a square around the subject with a
    /// margin of that share of its longer side all around, moved and cut to
    /// lie within the view.
    pub fn crop(&self, view: &View<'_>, margin: f32) -> (Subject, Region) {
        let Place {
            left,
            top,
            right,
            bottom,
        } = self.place;
        let most = view.width().min(view.height());
        let side = (right - left).max(bottom - top) * (1.0 + 2.0 * margin);
        let side = (side.round() as u32).clamp(1, most);
        let start = |low: f32, high: f32, length: u32| {
            let start = f32::midpoint(low, high) - side as f32 / 2.0;
            (start.round().max(0.0) as u32).min(length - side)
        };
        let bounds = view.region();
        let region = Region {
            left: bounds.left + start(left, right, view.width()),
            top: bounds.top + start(top, bottom, view.height()),
            width: side,
            height: side,
        };
        let subject = Subject {
            id: self.id,
            region: region.to_array(),
        };
        (subject, region)
    }
}

/// Pairs of tracks and boxes that may be the same, by falling overlap.
fn pairs(tracks: &[Track], found: &[Detection]) -> Vec<(f32, usize, usize)> {
    let mut pairs = Vec::new();
    for (index, track) in tracks.iter().enumerate() {
        for (other, detection) in found.iter().enumerate() {
            let overlap = track.place.overlap(&detection.place);
            if overlap >= SAME {
                pairs.push((overlap, index, other));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, PixelFormat};

    fn at(left: f32, top: f32, side: f32) -> Detection {
        let place = Place {
            left,
            top,
            right: left + side,
            bottom: top + side,
        };
        Detection { place, score: 0.9 }
    }

    fn ids(tracks: &mut Tracks) -> Vec<u64> {
        tracks.in_sight().map(|track| track.id).collect()
    }

    #[test]
    fn subjects_keep_their_numbers_while_they_move_and_cross() {
        let start = Instant::now();
        let mut tracks = Tracks::default();
        for step in 0..20_u16 {
            let (right, left) = (f32::from(step) * 5.0, 95.0 - f32::from(step) * 5.0);
            // In any order, on lanes of their own.
            let found = match step % 2 {
                0 => [at(right, 0.0, 20.0), at(left, 30.0, 20.0)],
                _ => [at(left, 30.0, 20.0), at(right, 0.0, 20.0)],
            };
            let now = start + Duration::from_millis(u64::from(step) * 33);
            tracks.update(&found, now, || None);
            assert_eq!(ids(&mut tracks), [1, 2], "step {step}");
            let first = tracks.in_sight().next().unwrap().place;
            assert_eq!(first.left, right);
        }
    }

    #[test]
    fn who_is_hidden_for_a_moment_is_known_again_and_who_left_is_not() {
        let start = Instant::now();
        let mut tracks = Tracks::default();
        let mut shot = |tenths: u64, found: &[Detection]| {
            tracks.update(found, start + Duration::from_millis(100 * tenths), || None);
            ids(&mut tracks)
        };
        let face = [at(10.0, 10.0, 30.0)];
        assert_eq!(shot(0, &face), [1]);
        assert!(shot(1, &[]).is_empty());
        assert_eq!(shot(2, &face), [1]);
        for tenths in 3..13 {
            assert!(shot(tenths, &[]).is_empty());
        }
        assert_eq!(shot(13, &face), [2]);
        assert_eq!(shot(14, &[at(200.0, 10.0, 30.0)]), [3]);
    }

    #[test]
    fn crops_are_squares_inside_the_view() {
        let frame = Frame::new(100, 60, PixelFormat::Grey, vec![0; 6000]).unwrap();
        let whole = View::whole(&frame);
        let region = Region {
            left: 20,
            top: 10,
            width: 70,
            height: 50,
        };
        let part = whole.part(region).unwrap();
        let crop = |view: &View<'_>, found: Detection| {
            let mut tracks = Tracks::default();
            tracks.update(&[found], Instant::now(), || None);
            let track = tracks.in_sight().next().unwrap();
            track.crop(view, 0.25).1.to_array()
        };
        assert_eq!(crop(&whole, at(40.0, 20.0, 20.0)), [35, 15, 30, 30]);
        assert_eq!(crop(&part, at(20.0, 10.0, 20.0)), [35, 15, 30, 30]);
        assert_eq!(crop(&whole, at(-5.0, -5.0, 20.0)), [0, 0, 30, 30]);
        assert_eq!(crop(&whole, at(90.0, 50.0, 20.0)), [70, 30, 30, 30]);
        assert_eq!(crop(&part, at(0.0, 0.0, 400.0)), [40, 10, 50, 50]);
    }
}
