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

mod web;
pub mod registry;
pub mod message;
mod policy;
mod origin;
mod agent;

pub use agent::{Agent, AgentError, AgentSettings};
pub use origin::{Found, ORDER_FILE, OriginError, Place};
pub use web::Transport;
