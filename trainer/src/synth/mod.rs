//! Rendered data sets with exact labels.
//!
//! The pictures themselves are drawn by [`numclip::synth`]; here they become
//! folders with a table of labels.

pub mod gauge;
