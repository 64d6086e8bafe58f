//! Rendered pictures with exact labels.
//!
//! A picture is drawn in two steps: a plain description is sampled from a
//! seeded generator, then rendered. The same description always gives the same
//! pixels, so a data set is fully named by its seed, count and size.

pub mod gauge;
