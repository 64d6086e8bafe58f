//! Everything that is tested from outside: one binary, so that it links once.

mod bundle;
#[cfg(feature = "live")]
mod chaos;
mod cli;
mod common;
mod decode;
#[cfg(feature = "flash")]
mod flash;
#[cfg(feature = "live")]
mod detect;
mod golden;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "flash")]
mod package;
#[cfg(feature = "flash")]
mod ssh;
#[cfg(feature = "http")]
mod page;
#[cfg(feature = "http")]
mod serve;
