//! The trainer from outside: a small task carried from rendered images to a
//! bundle, interrupted in every way, fed with bad input.

mod common;
mod bad_input;
mod clip;
mod distill;
mod export;
mod failures;
mod machines;
mod repro;
mod resume;
mod study;
