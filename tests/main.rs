//! Everything that is tested from outside: one binary, so that it links once.

mod bundle;
mod cli;
mod common;
mod decode;
mod golden;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "http")]
mod page;
#[cfg(feature = "http")]
mod serve;
