//! The place between camera and network: holds one shot, the freshest.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::capture::Shot;

/// Buffers that are kept for the next shots.
const SPARES: usize = 4;

/// Room for one shot, and the memory of those that are done with.
#[derive(Default)]
pub struct Slot {
    inside: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Default)]
struct Inside {
    shot: Option<Shot>,
    closed: bool,
    spares: Vec<Vec<u8>>,
}

/// What became of a shot that was offered.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer {
    /// It waits in the slot.
    Kept,
    /// It waits in the slot; an older one was dropped for it.
    Replaced,
    /// Nobody takes shots any more.
    Closed,
}

impl Slot {
    /// Puts `shot` into the slot. Where one is waiting there, `patient` waits
    /// until it has been taken; otherwise it is replaced.
    pub fn offer(&self, shot: Shot, patient: bool) -> Offer {
        let mut inside = self.lock();
        while patient && inside.shot.is_some() && !inside.closed {
            inside = self.wait(inside);
        }
        if inside.closed {
            return Offer::Closed;
        }
        let older = inside.shot.replace(shot);
        self.changed.notify_all();
        match older {
            None => Offer::Kept,
            Some(older) => {
                inside.keep(older.bytes);
                Offer::Replaced
            }
        }
    }

    /// Waits for a shot; `None` once the slot is closed and empty.
    pub fn take(&self) -> Option<Shot> {
        let mut inside = self.lock();
        while inside.shot.is_none() && !inside.closed {
            inside = self.wait(inside);
        }
        self.changed.notify_all();
        inside.shot.take()
    }

    /// Waits for `time`, or until the slot is closed.
    pub fn rest(&self, time: Duration) {
        let inside = self.lock();
        let is_open = |inside: &mut Inside| !inside.closed;
        let rested = self.changed.wait_timeout_while(inside, time, is_open);
        drop(rested.unwrap_or_else(PoisonError::into_inner));
    }

    /// No more shots: what is waiting may still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Memory for a shot.
    pub fn spare(&self) -> Vec<u8> {
        self.lock().spares.pop().unwrap_or_default()
    }

    /// Gives memory back.
    pub fn recycle(&self, spare: Vec<u8>) {
        self.lock().keep(spare);
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, inside: MutexGuard<'a, Inside>) -> MutexGuard<'a, Inside> {
        let waited = self.changed.wait(inside);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn keep(&mut self, spare: Vec<u8>) {
        if self.spares.len() < SPARES && spare.capacity() > 0 {
            self.spares.push(spare);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::capture::Encoding;

    fn shot(byte: u8) -> Shot {
        Shot::now(vec![byte], Encoding::Jpeg)
    }

    #[test]
    fn the_freshest_shot_wins_and_the_memory_comes_back() {
        let slot = Slot::default();
        assert_eq!(slot.offer(shot(1), false), Offer::Kept);
        assert_eq!(slot.offer(shot(2), false), Offer::Replaced);
        assert_eq!(slot.spare(), [1]);
        assert_eq!(slot.take().unwrap().bytes, [2]);
    }

    #[test]
    fn a_patient_offer_loses_nothing() {
        let slot = Slot::default();
        thread::scope(|scope| {
            scope.spawn(|| {
                for byte in 0..50 {
                    assert_eq!(slot.offer(shot(byte), true), Offer::Kept);
                }
                slot.close();
            });
            let taken: Vec<u8> = std::iter::from_fn(|| slot.take())
                .map(|shot| shot.bytes[0])
                .collect();
            assert_eq!(taken, (0..50).collect::<Vec<u8>>());
        });
        assert_eq!(slot.offer(shot(1), true), Offer::Closed);
    }
}
