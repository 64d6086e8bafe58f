//! The capture thread: opens the source, keeps it open, fills the slot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::slot::{Offer, Slot};
use super::{Counters, Job, Open, Pace, Tap, locked};
use crate::capture::{Shot, SourceError, Stopper};

/// The first wait before a lost source is opened again; it doubles up to
/// [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// How long it takes at most to notice that the thread is to end.
const NAP: Duration = Duration::from_millis(50);

/// What the capture thread shares with those who watch it. A thread that hangs
/// is left behind: it ends by itself once it finds another number in `turn`.
#[derive(Default)]
pub struct Supply {
    pub slot: Slot,
    pub counters: Counters,
    pub tap: Arc<Tap>,
    /// What the worker is to do next.
    pub successor: Mutex<Option<Job>>,
    turn: AtomicU64,
    wait: Mutex<Wait>,
    /// Since when the worker has been at one picture.
    toil: Mutex<Option<Instant>>,
    fault: Mutex<Option<SourceError>>,
}

/// A wait for the source.
#[derive(Default)]
struct Wait {
    since: Option<Instant>,
    stopper: Option<Stopper>,
}

impl Supply {
    /// Starts a capture thread in place of the one before; `tell` hears of
    /// faults.
    pub fn start(self: &Arc<Self>, open: Open, pace: Pace, tell: impl Fn(String) + Send + 'static) {
        self.dismiss();
        let turn = self.turn.load(Ordering::SeqCst);
        let supply = Arc::clone(self);
        thread::spawn(move || supply.keep_open(turn, &open, pace, tell));
    }

    /// Sends the capture thread home, wherever it is.
    pub fn dismiss(&self) {
        self.turn.fetch_add(1, Ordering::SeqCst);
        let mut wait = self.wait();
        wait.since = None;
        if let Some(stop) = wait.stopper.take() {
            stop();
        }
    }

    /// How long the source has been waited for.
    pub fn waiting(&self) -> Duration {
        let since = self.wait().since;
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How long the worker has been at one picture.
    pub fn toiling(&self) -> Duration {
        let since = *locked(&self.toil);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The worker has been at a picture since then; or at none.
    pub fn toil_since(&self, since: Option<Instant>) {
        *locked(&self.toil) = since;
    }

    /// Why there will be no more shots.
    pub fn fault(&self) -> Option<SourceError> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.clone()
    }

    fn keep_open(&self, turn: u64, open: &Open, pace: Pace, tell: impl Fn(String)) {
        let mut pause = FIRST_WAIT;
        while self.is_on(turn) {
            let before = self.counters.captured.load(Ordering::Relaxed);
            let fault = match self.shoot(turn, open, pace, &tell) {
                Ok(()) => return,
                Err(fault) => fault,
            };
            if !self.is_on(turn) {
                return;
            }
            if matches!(fault, SourceError::End | SourceError::Setup(_)) {
                *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
                return self.slot.close();
            }
            if self.counters.captured.load(Ordering::Relaxed) > before {
                pause = FIRST_WAIT;
            }
            tell(format!(
                "{fault}; trying again in {:.2} s",
                pause.as_secs_f32()
            ));
            self.nap(turn, pause);
            self.counters.reconnects.fetch_add(1, Ordering::Relaxed);
            pause = (2 * pause).min(LONGEST_WAIT);
        }
    }

    /// Opens the source and hands its shots on, until one of the two ends.
    fn shoot(
        &self,
        turn: u64,
        open: &Open,
        pace: Pace,
        tell: &impl Fn(String),
    ) -> Result<(), SourceError> {
        let mut source = self.waited(turn, || open())?;
        self.register(turn, source.stopper());
        let mut due = Instant::now();
        loop {
            let shot = self.waited(turn, || source.next(self.slot.spare()));
            if !self.is_on(turn) {
                return Ok(());
            }
            match shot {
                Ok(shot) => {
                    self.counters.captured.fetch_add(1, Ordering::Relaxed);
                    if !self.hand_on(turn, shot, pace, &mut due) {
                        return Ok(());
                    }
                }
                Err(SourceError::Picture(message)) => {
                    self.counters.unusable.fetch_add(1, Ordering::Relaxed);
                    tell(message);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Puts a shot into the slot at the pace that was asked for; says whether
    /// to go on.
    fn hand_on(&self, turn: u64, shot: Shot, pace: Pace, due: &mut Instant) -> bool {
        if let Some(interval) = pace.interval {
            let early = due.saturating_duration_since(shot.at);
            if !early.is_zero() && !pace.every_frame {
                self.counters.skipped.fetch_add(1, Ordering::Relaxed);
                self.slot.recycle(shot.bytes);
                return true;
            }
            self.nap(turn, due.saturating_duration_since(Instant::now()));
            *due = (*due + interval).max(Instant::now());
        }
        match self.slot.offer(shot, pace.every_frame) {
            Offer::Kept => true,
            Offer::Closed => false,
            Offer::Replaced => {
                self.counters.dropped.fetch_add(1, Ordering::Relaxed);
                true
            }
        }
    }

    /// Runs `work`, which may take for ever, under the eye of the watchdog.
    fn waited<T>(&self, turn: u64, work: impl FnOnce() -> T) -> T {
        self.set_since(turn, Some(Instant::now()));
        let done = work();
        self.set_since(turn, None);
        done
    }

    fn set_since(&self, turn: u64, since: Option<Instant>) {
        let mut wait = self.wait();
        if self.is_on(turn) {
            wait.since = since;
        }
    }

    /// Keeps what stops the source; one whose turn is over stops at once.
    fn register(&self, turn: u64, stopper: Option<Stopper>) {
        let mut wait = self.wait();
        match (self.is_on(turn), stopper) {
            (true, stopper) => wait.stopper = stopper,
            (false, Some(stop)) => stop(),
            (false, None) => {}
        }
    }

    fn nap(&self, turn: u64, time: Duration) {
        let end = Instant::now() + time;
        while self.is_on(turn) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(NAP));
        }
    }

    fn is_on(&self, turn: u64) -> bool {
        self.turn.load(Ordering::SeqCst) == turn
    }

    fn wait(&self) -> MutexGuard<'_, Wait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
