//! Everything that is tested from outside: one binary, so that it links once.

#[cfg(feature = "mqtt")]
mod broker;
mod bundle;
#[cfg(feature = "live")]
mod chaos;
mod cli;
mod common;
mod decode;
#[cfg(feature = "live")]
mod doctor;
#[cfg(feature = "flash")]
mod flash;
#[cfg(feature = "flash")]
mod clock;
#[cfg(feature = "flash")]
mod failing;
#[cfg(feature = "fleet")]
mod fleet;
#[cfg(feature = "live")]
mod detect;
mod engines;
mod golden;
#[cfg(feature = "int8")]
mod import;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "flash")]
mod package;
#[cfg(feature = "live")]
mod reload;
#[cfg(feature = "fleet")]
mod rauc;
#[cfg(feature = "fleet")]
mod registry;
#[cfg(feature = "flash")]
mod medium;
#[cfg(feature = "flash")]
mod runtime;
#[cfg(feature = "flash")]
mod ssh;
#[cfg(feature = "http")]
mod page;
#[cfg(all(feature = "int8", feature = "synth"))]
mod prove;
#[cfg(feature = "http")]
mod serve;
