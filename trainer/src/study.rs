//! Studies: many runs of one task, each a process and a folder of its own.
//!
//! ```text
//! task file + Variant → run folder        (trainer fit)
//! task file + Plan    → Variants          (trainer plan)
//! run folders         → Study → one page  (trainer report)
//! ```

pub mod collect;
mod page;
pub mod statistics;
pub mod variant;

pub use collect::{Study, collect};
pub use page::write;
pub use variant::{Plan, Set, Variant};
