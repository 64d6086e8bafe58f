//! What a person sees of the training: a bar on a terminal, a line per epoch.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::EpochRecord;
use super::checkpoint::Sums;
use super::meter::Speed;
use crate::data::Batch;

/// The progress of one epoch.
pub struct Progress {
    bar: ProgressBar,
    epochs: usize,
}

impl Progress {
    /// Begins to show epoch `epoch` (from 1), of which `done` steps are done.
    pub fn start(epoch: usize, epochs: usize, steps: usize, done: usize) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
        let template = "{prefix} {bar:30} {pos}/{len} {msg} ({eta} left)";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(format!("epoch {epoch}/{epochs}"));
        bar.set_position(done as u64);
        bar.reset_eta();
        Self { bar, epochs }
    }

    /// One more step is done.
    pub fn advance(&self, sums: &Sums, speed: &Speed) {
        let (loss, error) = (sums.mean_loss(), sums.mean_error());
        self.bar
            .set_message(format!("loss {loss:.3} mae {error:.3}, {speed}"));
        self.bar.inc(1);
    }

    /// Names images that were left out, without disturbing the bar.
    pub fn skipped(&self, batch: &Batch) {
        for skipped in &batch.skipped {
            self.bar.suspend(|| eprintln!("warning: skipped {skipped}"));
        }
    }

    /// Replaces the bar by a line that says how fast an epoch was, for a machine that computes a
    /// share of it and does not know its measures.
    pub fn close(&self, speed: &Speed) {
        self.bar.finish_and_clear();
        let (epoch, epochs) = (speed.epoch, self.epochs);
        eprintln!(
            "epoch {epoch:>3}/{epochs}  {} images here  ({speed})",
            speed.images
        );
    }

    /// Replaces the bar by the epoch's line.
    pub fn finish(&self, record: &EpochRecord, better: bool, speed: &Speed) {
        self.bar.finish_and_clear();
        let mut line = format!(
            "epoch {:>3}/{}  loss {:.4}  train mae {:.4}",
            record.epoch, self.epochs, record.train_loss, record.train_mae
        );
        if let Some(metrics) = &record.validation {
            let mark = if better { "  best" } else { "" };
            line += &format!(
                "  val mae {:.4}  acc {:.3}{mark}",
                metrics.mae, metrics.accuracy_expectation
            );
        }
        eprintln!(
            "{line}  ({:.0} s, {speed})",
            self.bar.elapsed().as_secs_f64()
        );
    }
}
