//! Looking after a running pipeline, and telling how it is doing.

use std::io::{IsTerminal as _, stdin};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use numclip::device::Device;
use numclip::status::{ModelStatus, Rate, Status};
use sd_notify::NotifyState;

use super::reload::Reload;
use super::{Args, Running, Signals, tell};

/// How often the pipeline is looked after.
const CHECK: Duration = Duration::from_millis(50);
/// How often the service manager and the board hear of it.
const REPORT: Duration = Duration::from_secs(1);

impl Running {
    /// Looks after the pipeline until it ends, is told to, or nobody reads.
    pub fn watch(&mut self, args: &Args, signals: &Signals) -> Result<()> {
        let start = Instant::now();
        let (mut rate, mut reported) = (Rate::new(start), start);
        let mut reload = None;
        let had_terminal = stdin().is_terminal();
        self.around.board.set(self.status(start, 0.0));
        notify(&[NotifyState::Ready]);
        while self.live.check()? && !self.hub.is_finished() {
            if signals.ended.load(Ordering::SeqCst) {
                self.live.stop();
            }
            if reload.is_none() && signals.reload.swap(false, Ordering::SeqCst) {
                if had_terminal && !stdin().is_terminal() {
                    // The terminal was closed: nobody asked for a reload.
                    self.live.stop();
                } else {
                    reload = Some(Reload::begin(args, self));
                }
            }
            if let Some(reload) = reload.take_if(|reload| reload.is_ready()) {
                reload.finish(self);
            }
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                let fps = rate.update(self.live.counts().readings, reported);
                self.report(self.status(start, fps));
            }
            thread::sleep(CHECK);
        }
        Ok(())
    }

    fn report(&self, status: Status) {
        notify(&[NotifyState::Watchdog, NotifyState::Status(&status.line())]);
        self.around.board.set(status);
    }

    fn status(&self, start: Instant, fps: f32) -> Status {
        let engine = self.pipeline.engine().name();
        let address = self.settings.source.address.as_ref();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            source: address.map(ToString::to_string).unwrap_or_default(),
            model: ModelStatus::new(self.pipeline.bundle(), engine, self.swaps),
            uptime: start.elapsed().as_secs_f64(),
            fps,
            counts: self.live.counts(),
            sinks: self.hub.status(),
            device: Device::read(),
        }
    }
}

/// Tells the service manager; without one there is nobody to tell.
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tell(&format!("cannot reach the service manager: {error}"));
    }
}
