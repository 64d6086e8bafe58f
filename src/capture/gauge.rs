//! A rendered gauge as a camera: its reading wanders over the scale and is
//! known.

use std::f64::consts::TAU;
use std::thread;
use std::time::{Duration, Instant};

use super::address::Query;
use super::{Encoding, Shot, Source, SourceError};
use crate::frame::PixelFormat;
use crate::synth::gauge::{GaugeSpec, render};

/// What the camera looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaugeCamera {
    /// Names the gauge and the way it is photographed.
    pub seed: u64,
    /// Side of the square picture in pixels.
    pub size: u32,
    /// Frames in a second.
    pub fps: f32,
}

/// The camera at work.
pub struct Gauge {
    spec: GaugeSpec,
    size: u32,
    interval: Duration,
    due: Instant,
    frame: u64,
}

impl GaugeCamera {
    pub(super) fn from_query(query: &Query<'_>) -> Result<Self, String> {
        query.only(&["seed", "size", "fps"])?;
        Ok(Self {
            seed: query.number("seed", [0, u64::MAX])?.unwrap_or(1),
            size: query.number("size", [16, 2048])?.unwrap_or(320),
            fps: query.number("fps", [0.1, 1000.0])?.unwrap_or(10.0),
        })
    }

    /// Starts to photograph.
    pub fn switch_on(&self) -> Gauge {
        Gauge {
            spec: GaugeSpec::nth(self.seed, 0),
            size: self.size,
            interval: Duration::from_secs_f32(1.0 / self.fps),
            due: Instant::now(),
            frame: 0,
        }
    }
}

impl Source for Gauge {
    fn next(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        thread::sleep(self.due.saturating_duration_since(Instant::now()));
        self.due = (self.due + self.interval).max(Instant::now());
        let seconds = self.frame as f64 * self.interval.as_secs_f64();
        self.spec.value = reading(seconds);
        self.spec.photo.noise_seed = self.frame;
        self.frame += 1;
        let picture = render(&self.spec, self.size);
        let (width, height) = picture.dimensions();
        buffer.clear();
        buffer.extend_from_slice(&picture);
        let format = PixelFormat::Rgb;
        let mut shot = Shot::now(
            buffer,
            Encoding::Pixels {
                width,
                height,
                format,
            },
        );
        shot.truth = Some(self.spec.value);
        Ok(shot)
    }
}

/// A slow swing with a faster one on top, 0 to 100 % of the scale.
fn reading(seconds: f64) -> f32 {
    let slow = (TAU * seconds / 60.0).sin();
    let fast = (TAU * seconds / 7.0).sin();
    (50.0 + 42.0 * slow + 6.0 * fast) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_shows_its_truth() {
        let camera = GaugeCamera {
            seed: 5,
            size: 48,
            fps: 500.0,
        };
        let mut source = camera.switch_on();
        let shots: Vec<_> = (0..3).map(|_| source.next(Vec::new()).unwrap()).collect();
        for (frame, shot) in shots.iter().enumerate() {
            let mut spec = GaugeSpec::nth(5, 0);
            spec.value = shot.truth.unwrap();
            spec.photo.noise_seed = frame as u64;
            assert_eq!(shot.bytes, render(&spec, 48).into_raw());
        }
        assert!(shots[0].at < shots[2].at && shots[0].truth != shots[2].truth);
    }

    #[test]
    fn readings_stay_on_the_scale() {
        assert!((0..1200).all(|tenth| (0.0..=100.0).contains(&reading(f64::from(tenth) / 10.0))));
    }
}
