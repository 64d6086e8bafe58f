//! A look at what the camera sees, for those who ask for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::locked;
use crate::frame::Frame;
use crate::view::Framing;

/// Where the worker leaves a frame that it is done with, if somebody asked.
/// A frame is handed over, never copied; while nobody asks, the worker looks
/// at one flag and that is all.
#[derive(Default)]
pub struct Tap {
    wanted: AtomicBool,
    glimpse: Mutex<Option<Glimpse>>,
    came: Condvar,
}

/// A frame and how it is looked at.
#[derive(Debug, PartialEq)]
pub struct Glimpse {
    /// As it came from the camera.
    pub frame: Frame,
    /// What makes it upright, and what part of it counts.
    pub framing: Framing,
}

impl Tap {
    /// Waits for the next frame; `None` when there is none within `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Glimpse> {
        let mut glimpse = locked(&self.glimpse);
        *glimpse = None;
        self.wanted.store(true, Ordering::Relaxed);
        let waited = self
            .came
            .wait_timeout_while(glimpse, timeout, |glimpse| glimpse.is_none());
        let (mut glimpse, _) = waited.unwrap_or_else(PoisonError::into_inner);
        self.wanted.store(false, Ordering::Relaxed);
        glimpse.take()
    }

    /// Gives `frame` to whoever waits for one, or back.
    pub(super) fn offer(&self, frame: Frame, framing: Framing) -> Option<Frame> {
        if !self.wanted.swap(false, Ordering::Relaxed) {
            return Some(frame);
        }
        let older = locked(&self.glimpse).replace(Glimpse { frame, framing });
        self.came.notify_all();
        older.map(|older| older.frame)
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
        assert_eq!(tap.offer(frame(1), Framing::default()), Some(frame(1)));
        assert_eq!(tap.next(Duration::from_millis(5)), None);
        assert_eq!(tap.offer(frame(2), Framing::default()), Some(frame(2)));
    }

    #[test]
    fn who_asks_gets_the_next_frame() {
        let tap = Tap::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| tap.next(Duration::from_secs(20)));
            while tap.offer(frame(3), Framing::default()).is_some() {
                thread::yield_now();
            }
            let glimpse = waiting.join().unwrap().unwrap();
            assert_eq!(glimpse.frame, frame(3));
        });
    }
}
