//! Everything that is tested from outside: one binary, so that it links once.

#[cfg(feature = "mqtt")]
mod broker;
mod bundle;
mod cli;
mod common;
mod decode;
#[cfg(feature = "live")]
mod doctor;
mod golden;
#[cfg(feature = "live")]
mod live;
#[cfg(feature = "live")]
mod reload;
