//! One model onto many devices: registries that keep packages, what a device
//! does about an order, and a roll-out that gives orders in stages.
//!
//! ```text
//! push → registry ── package ──→ agent → store (crate::flash)
//!                                  ↑ ↓
//!                            order   report     MQTT, retained
//!                                  ↑ ↓
//!                   plan ────→ roll-out
//! ```
//!
//! What a device decides and what a roll-out decides are plain functions:
//! [`simulate`](simulate()) runs the same on thousands of devices that do not
//! exist.

mod web;
pub mod registry;
pub mod message;
mod policy;
mod origin;
mod agent;
pub mod plan;
pub mod rollout;
mod simulate;
mod tower;
pub mod rauc;

pub use agent::{Agent, AgentError, AgentSettings};
pub use origin::{Found, ORDER_FILE, OriginError, Place};
pub use simulate::{Summary, World, simulate};
pub use tower::{Hearing, Tower};
pub use web::Transport;
