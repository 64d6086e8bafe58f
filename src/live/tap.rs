//! A look at what the camera sees, for those who ask for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::frame::Frame;

/// Where the worker leaves a frame that it is done with, if somebody asked.
/// A frame is handed over, never copied; while nobody asks, the worker looks
/// at one flag and that is all.
#[derive(Default)]
pub struct Tap {
    wanted: AtomicBool,
    frame: Mutex<Option<Frame>>,
    came: Condvar,
}

impl Tap {
    /// Waits for the next upright frame; `None` when there is none within
    /// `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Frame> {
        let mut frame = self.lock();
        *frame = None;
        self.wanted.store(true, Ordering::Relaxed);
        let waited = self
            .came
            .wait_timeout_while(frame, timeout, |frame| frame.is_none());
        let (mut frame, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(false, Ordering::Relaxed);
        frame.take()
    }

    /// Gives `frame` to whoever waits for one, or back.
    pub(super) fn offer(&self, frame: Frame) -> Option<Frame> {
        if !self.wanted.swap(false, Ordering::Relaxed) {
            return Some(frame);
        }
        let older = self.lock().replace(frame);
        self.came.notify_all();
        older
    }

    fn lock(&self) -> MutexGuard<'_, Option<Frame>> {
        self.frame.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::frame::PixelFormat;

    fn frame(level: u8) -> Frame {
        Frame::new(1, 1, PixelFormat::Grey, vec![level]).unwrap()
    }

    #[test]
    fn frames_come_back_while_nobody_asks() {
        let tap = Tap::default();
        assert_eq!(tap.offer(frame(1)), Some(frame(1)));
        assert_eq!(tap.next(Duration::from_millis(5)), None);
        assert_eq!(tap.offer(frame(2)), Some(frame(2)));
    }

    #[test]
    fn who_asks_gets_the_next_frame() {
        let tap = Tap::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| tap.next(Duration::from_secs(20)));
            while tap.offer(frame(3)).is_some() {
                thread::yield_now();
            }
            assert_eq!(waiting.join().unwrap(), Some(frame(3)));
        });
    }
}
