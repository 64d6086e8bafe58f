//! How much of the machine estimates may take.

use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A limit for the worker, whatever the camera gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Frames in a second at most.
    Fps(f32),
    /// The share of one core, 0 to 1: the CPU time that each frame took is
    /// measured, and the next one waits accordingly.
    Share(f32),
}

/// One frame under a budget.
pub struct Outlay {
    start: Instant,
    cpu: Duration,
}

impl Outlay {
    /// The frame begins, on this thread.
    pub fn begin() -> Self {
        Self {
            start: Instant::now(),
            cpu: cpu_time(),
        }
    }

    /// How long to rest now that the frame is done.
    pub fn rest(&self, budget: Budget) -> Duration {
        let spent = cpu_time().saturating_sub(self.cpu);
        rest(budget, spent, self.start.elapsed())
    }
}

fn rest(budget: Budget, spent: Duration, elapsed: Duration) -> Duration {
    let whole = match budget {
        Budget::Fps(fps) => Duration::from_secs_f32(1.0 / fps),
        Budget::Share(share) => spent.div_f32(share),
    };
    whole.saturating_sub(elapsed)
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str, range: [f32; 2]| {
            let number: Option<f32> = text.parse().ok();
            number.filter(|number| (range[0]..=range[1]).contains(number))
        };
        match text.strip_suffix('%') {
            Some(percent) => {
                number(percent, [0.1, 100.0]).map(|percent| Self::Share(percent / 100.0))
            }
            None => number(text, [0.001, 1000.0]).map(Self::Fps),
        }
        .ok_or_else(|| "expected frames in a second (5) or a share of a core (20%)".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_followed_by_the_rest_that_it_costs() {
        let ms = Duration::from_millis;
        let fifth = "20%".parse().unwrap();
        assert_eq!(fifth, Budget::Share(0.2));
        let near = |rest: Duration, expected: Duration| rest.abs_diff(expected) < ms(1);
        assert!(near(rest(fifth, ms(10), ms(12)), ms(38)));
        assert!(near(rest(fifth, ms(10), ms(80)), ms(0)));
        let twice = "2".parse().unwrap();
        assert!(near(rest(twice, ms(10), ms(100)), ms(400)));
        for text in ["0", "0%", "120%", "x", "-3"] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
    }

    #[test]
    fn work_costs_and_sleep_does_not() {
        let outlay = Outlay::begin();
        std::thread::sleep(Duration::from_millis(30));
        let asleep = cpu_time() - outlay.cpu;
        let mut state = 1_u64;
        while cpu_time() - outlay.cpu < Duration::from_millis(30) {
            state = std::hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005) + 1);
        }
        assert!(asleep < Duration::from_millis(25), "{asleep:?}");
        assert!(outlay.rest(Budget::Share(0.01)) > Duration::from_millis(2000));
    }
}
