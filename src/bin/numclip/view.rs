//! Flags of `numclip run` that say what of the pictures is looked at, and how
//! often.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use numclip::detect::{DetectError, Detector};
use numclip::live::{Budget, Motion, Settings, Smoothing, Subjects};
use numclip::view::{Flip, Framing, Roi, Rotation, Turn};

/// What is looked at, how often, and what is made of it.
#[derive(clap::Args)]
#[command(next_help_heading = "What is looked at")]
pub struct ViewArgs {
    /// Degrees by which pictures are turned clockwise: 0, 90, 180 or 270.
    #[arg(long, value_name = "DEGREES", default_value = "0")]
    rotate: Rotation,
    /// Mirror pictures, after turning them: horizontal or vertical.
    #[arg(long, value_name = "WAY")]
    flip: Option<Flip>,
    /// Only this part of the upright picture: LEFT,TOP,WIDTH,HEIGHT in pixels
    /// (120), fractions (0.25) or percent (25%).
    #[arg(long, value_name = "X,Y,W,H")]
    roi: Option<Roi>,
    /// Pass over pictures in which no part changed by this many levels of 255
    /// since the last estimate; 6 is a good start.
    #[arg(long, value_name = "LEVELS", value_parser = parse_levels)]
    motion: Option<f32>,
    /// Seconds after which there is an estimate even if nothing moves.
    #[arg(long, value_name = "S", default_value = "60", value_parser = parse_pause, requires = "motion")]
    motion_pause: Duration,
    /// Temporal filter: median:N, kalman, or kalman:DRIFT (how much the
    /// quantity may change over a second).
    #[arg(long, value_name = "FILTER")]
    smooth: Option<Smoothing>,
    /// The most that estimates may take: frames in a second (5), or a share of
    /// one core (20%).
    #[arg(long, value_name = "N|N%")]
    budget: Option<Budget>,
    /// Estimate every subject that this ONNX detector finds (YuNet or
    /// UltraFace), rather than the picture as a whole.
    #[arg(long, value_name = "FILE")]
    detector: Option<PathBuf>,
    /// How sure the detector must be, 0 to 1.
    #[arg(long, value_name = "SCORE", default_value = "0.6", value_parser = parse_share, requires = "detector")]
    detector_score: f32,
    /// Margin around a subject, as a share of its longer side.
    #[arg(long, value_name = "SHARE", default_value = "0.2", value_parser = parse_margin, requires = "detector")]
    margin: f32,
    /// How many subjects of a picture are estimated.
    #[arg(long, value_name = "N", default_value = "8", value_parser = parse_count, requires = "detector")]
    max_subjects: usize,
}

impl ViewArgs {
    /// Writes what was asked for into `settings`.
    ///
    /// # Errors
    /// [`DetectError`] when the detector cannot be used.
    pub fn apply(&self, settings: &mut Settings) -> Result<(), DetectError> {
        settings.framing = Framing {
            turn: Turn::new(self.rotate, self.flip),
            roi: self.roi,
        };
        settings.motion = self.motion.map(|threshold| Motion {
            threshold,
            longest_pause: self.motion_pause,
        });
        settings.smooth = self.smooth;
        settings.budget = self.budget;
        let open = |file: &PathBuf| Detector::open(file, self.detector_score);
        let detector = self.detector.as_ref().map(open).transpose()?;
        settings.subjects = detector.map(|detector| Subjects {
            detector: Arc::new(detector),
            margin: self.margin,
            most: self.max_subjects,
        });
        Ok(())
    }
}

fn within(text: &str, [low, high]: [f32; 2]) -> Result<f32, String> {
    match text.parse() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}

fn parse_levels(text: &str) -> Result<f32, String> {
    within(text, [0.1, 255.0])
}

fn parse_pause(text: &str) -> Result<Duration, String> {
    within(text, [0.1, 86_400.0]).map(Duration::from_secs_f32)
}

fn parse_share(text: &str) -> Result<f32, String> {
    within(text, [0.0, 1.0])
}

fn parse_margin(text: &str) -> Result<f32, String> {
    within(text, [0.0, 5.0])
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=100) => Ok(count),
        _ => Err("expected a number from 1 to 100".into()),
    }
}
