//! A bounded queue that would rather drop its oldest than hold anybody up.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Things on their way from one thread to another.
pub struct Queue<T> {
    capacity: usize,
    inside: Mutex<Inside<T>>,
    changed: Condvar,
}

struct Inside<T> {
    waiting: VecDeque<T>,
    dropped: u64,
    closed: bool,
}

/// What a wait for the next thing gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// This.
    Item(T),
    /// Nothing in time.
    Timeout,
    /// Nothing, now and for ever.
    End,
}

impl<T> Queue<T> {
    /// A queue with room for `capacity` things.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            inside: Mutex::new(Inside {
                waiting: VecDeque::with_capacity(capacity),
                dropped: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Puts `item` at the end. Where there is no room, `patient` waits for it;
    /// otherwise the oldest goes. What comes after the end is dropped.
    pub fn push(&self, item: T, patient: bool) {
        let mut inside = self.lock();
        while patient && inside.waiting.len() == self.capacity && !inside.closed {
            let waited = self.changed.wait(inside);
            inside = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if inside.closed {
            inside.dropped += 1;
            return;
        }
        if inside.waiting.len() == self.capacity {
            inside.waiting.pop_front();
            inside.dropped += 1;
        }
        inside.waiting.push_back(item);
        self.changed.notify_all();
    }

    /// Waits for the first thing until `deadline`.
    pub fn pop(&self, deadline: Instant) -> Next<T> {
        let mut inside = self.lock();
        loop {
            if let Some(item) = inside.waiting.pop_front() {
                self.changed.notify_all();
                return Next::Item(item);
            }
            if inside.closed {
                return Next::End;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Next::Timeout;
            }
            let waited = self.changed.wait_timeout(inside, left);
            inside = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes nothing more; what waits may still be taken out.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// How many were dropped.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Inside<T>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn drained(queue: &Queue<u32>) -> Vec<u32> {
        let mut taken = Vec::new();
        while let Next::Item(item) = queue.pop(Instant::now()) {
            taken.push(item);
        }
        taken
    }

    #[test]
    fn the_oldest_goes_first_and_is_counted() {
        let queue = Queue::new(3);
        (0..5).for_each(|item| queue.push(item, false));
        assert_eq!((drained(&queue), queue.dropped()), (vec![2, 3, 4], 2));
        assert_eq!(queue.pop(Instant::now()), Next::Timeout);
        queue.close();
        assert_eq!(queue.pop(Instant::now()), Next::End);
        queue.push(9, true);
        assert_eq!(queue.dropped(), 3);
    }

    #[test]
    fn patience_loses_nothing() {
        let queue = Queue::new(2);
        let taken = thread::scope(|scope| {
            scope.spawn(|| {
                (0..200).for_each(|item| queue.push(item, true));
                queue.close();
            });
            let mut taken = Vec::new();
            while let Next::Item(item) = queue.pop(Instant::now() + Duration::from_secs(20)) {
                taken.push(item);
            }
            taken
        });
        assert_eq!((taken.len(), queue.dropped()), (200, 0));
        assert!(taken.is_sorted());
    }
}
