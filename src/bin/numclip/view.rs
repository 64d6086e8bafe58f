//! Flags of `numclip run` that say what of the pictures is looked at, and how
//! often.

use std::path::PathBuf;

use numclip::live::{Budget, Smoothing};
use numclip::settings::{LEVELS, MARGIN, PAUSE, SCORE, SUBJECTS, Settings};
use numclip::view::{Flip, Roi, Rotation};

use crate::settings_args::within;

/// What is looked at, how often, and what is made of it.
#[derive(Clone, clap::Args)]
#[command(next_help_heading = "What is looked at")]
pub struct ViewArgs {
    /// Degrees by which pictures are turned clockwise: 0, 90, 180 or 270.
    #[arg(long, value_name = "DEGREES")]
    rotate: Option<Rotation>,
    /// Mirror pictures, after turning them: horizontal or vertical.
    #[arg(long, value_name = "WAY")]
    flip: Option<Flip>,
    /// Only this part of the upright picture: LEFT,TOP,WIDTH,HEIGHT in pixels
    /// (120), fractions (0.25) or percent (25%).
    #[arg(long, value_name = "X,Y,W,H")]
    roi: Option<Roi>,
    /// Pass over pictures in which no part changed by this many levels of 255
    /// since the last estimate; 6 is a good start.
    #[arg(long, value_name = "LEVELS", value_parser = within(LEVELS))]
    motion: Option<f32>,
    /// Seconds after which there is an estimate even if nothing moves [default: 60].
    #[arg(long, value_name = "S", value_parser = within(PAUSE))]
    motion_pause: Option<f32>,
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
    /// How sure the detector must be, 0 to 1 [default: 0.6].
    #[arg(long, value_name = "SCORE", value_parser = within(SCORE))]
    detector_score: Option<f32>,
    /// Margin around a subject, as a share of its longer side [default: 0.2].
    #[arg(long, value_name = "SHARE", value_parser = within(MARGIN))]
    margin: Option<f32>,
    /// How many subjects of a picture are estimated [default: 8].
    #[arg(long, value_name = "N", value_parser = within(SUBJECTS))]
    max_subjects: Option<usize>,
}

impl ViewArgs {
    /// Writes what was asked for over `settings`.
    pub fn apply(&self, settings: &mut Settings) {
        let Settings {
            pace,
            view,
            motion,
            filter,
            detector,
            ..
        } = settings;
        view.rotate = self.rotate.or(view.rotate);
        view.flip = self.flip.or(view.flip);
        view.roi = self.roi.or(view.roi);
        motion.threshold = self.motion.or(motion.threshold);
        motion.pause = self.motion_pause.unwrap_or(motion.pause);
        filter.smooth = self.smooth.or(filter.smooth);
        pace.budget = self.budget.or(pace.budget);
        if let Some(file) = &self.detector {
            detector.path = Some(file.clone());
        }
        detector.score = self.detector_score.unwrap_or(detector.score);
        detector.margin = self.margin.unwrap_or(detector.margin);
        detector.subjects = self.max_subjects.unwrap_or(detector.subjects);
    }
}
