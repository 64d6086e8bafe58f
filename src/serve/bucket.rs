//! A limit on how many in a second.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A token bucket: so many at once, and so many more with every second.
pub struct Bucket {
    per_second: f64,
    most: f64,
    inside: Mutex<(f64, Instant)>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: f64, most: f64) -> Self {
        Self {
            per_second,
            most,
            inside: Mutex::new((most, Instant::now())),
        }
    }

    /// Takes one out; says whether there was one.
    pub fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = *inside;
        let elapsed = now.saturating_duration_since(since).as_secs_f64();
        let left = (left + self.per_second * elapsed).min(self.most);
        let taken = left >= 1.0;
        *inside = (left - f64::from(u8::from(taken)), now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_so_many_a_second() {
        let bucket = Bucket::new(2.0, 5.0);
        let start = Instant::now();
        let taken = |seconds: f64, tries: usize| {
            let now = start + Duration::from_secs_f64(seconds);
            (0..tries).filter(|_| bucket.take_at(now)).count()
        };
        assert_eq!(taken(0.0, 9), 5);
        assert_eq!(taken(1.0, 9), 2);
        assert_eq!(taken(1.6, 9), 1);
        assert_eq!(taken(100.0, 9), 5);
    }
}
