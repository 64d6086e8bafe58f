//! Optimisers, schedules, gradient clipping, weight averaging.
