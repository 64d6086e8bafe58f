//! What a fleet's devices are told and tell, and on which topics.
//!
//! | topic | who writes | message (all retained) |
//! |---|---|---|
//! | `PREFIX/ID/order` | a roll-out | [`Order`]; empty: none |
//! | `PREFIX/ID/report` | the device | [`Report`] |
//! | `PREFIX/ID/presence` | the device, or its last will | `online`, `offline` |
//! | `PREFIX/rollout` | a roll-out | [`Progress`](super::rollout::Progress) |
//!
//! Orders are not signed: all they can do is to name a package, whose own
//! signature the device checks, or to go back to what it served before.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bundle::is_digest;
use crate::flash::Status;

/// Begins the topics of a fleet unless told otherwise.
pub const PREFIX: &str = "numclip/fleet";
/// Presence of a device that is connected.
pub const ONLINE: &str = "online";
/// Presence of a device that is not.
pub const OFFLINE: &str = "offline";

/// What a device is to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Who wants it. Another word makes a device try again what it gave up.
    pub rollout: String,
    /// SHA-256 of the bundle's manifest.
    pub sha256: String,
    /// Where the package is; without it only the bundle that the device served
    /// before can serve again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub id: String,
    /// What it is, by name.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it does.
    pub phase: Phase,
    /// The order that it follows.
    pub order: Option<Order>,
    /// What went wrong with that, the last time.
    pub fault: Option<String>,
    /// What it serves and how it is.
    #[serde(flatten)]
    pub status: Status,
}

/// What a device does about its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// There is none, or it is fulfilled.
    Settled,
    /// It is tried again later.
    Waiting,
    /// It is being carried out.
    Updating,
    /// It failed too often.
    GivenUp,
}

/// The topics of one fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    prefix: String,
}

/// Something heard on a fleet's topics.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A device's report; `None` when it was removed.
    Report(Option<Box<Report>>),
    /// Whether a device is connected.
    Presence(bool),
    /// An order.
    Order(Option<Order>),
}

impl Order {
    /// Reads an order.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let order: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        match is_digest(&order.sha256) {
            true => Ok(order),
            false => Err(format!(
                "sha256: expected a SHA-256, got {:?}",
                order.sha256
            )),
        }
    }
}

impl Topics {
    /// Topics that begin with `prefix`.
    pub fn new(prefix: Option<String>) -> Self {
        let prefix = prefix.unwrap_or_else(|| PREFIX.into());
        Self { prefix }
    }

    /// Where the orders of the device `id` are.
    pub fn order(&self, id: &str) -> String {
        format!("{}/{id}/order", self.prefix)
    }

    /// Where the reports of the device `id` are.
    pub fn report(&self, id: &str) -> String {
        format!("{}/{id}/report", self.prefix)
    }

    /// Where the presence of the device `id` is.
    pub fn presence(&self, id: &str) -> String {
        format!("{}/{id}/presence", self.prefix)
    }

    /// Where a roll-out tells how far it is.
    pub fn rollout(&self) -> String {
        format!("{}/rollout", self.prefix)
    }

    /// The device that a message is about, and what it says; `None` for
    /// anything that is not of this fleet or cannot be read.
    pub fn read(&self, topic: &str, payload: &[u8]) -> Option<(String, Heard)> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let (id, kind) = rest.split_once('/').filter(|(id, _)| is_plain(id))?;
        let heard = match kind {
            "presence" => Heard::Presence(payload == ONLINE.as_bytes()),
            "report" if payload.is_empty() => Heard::Report(None),
            "report" => Heard::Report(Some(serde_json::from_slice(payload).ok()?)),
            "order" if payload.is_empty() => Heard::Order(None),
            "order" => Heard::Order(Some(Order::parse(payload).ok()?)),
            _ => return None,
        };
        Some((id.into(), heard))
    }
}

/// Whether `text` is a name for a device: letters, digits, `-`, `_` and `.`.
pub fn is_plain(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=128).contains(&text.len()) && text.chars().all(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_as_they_are_written() {
        let topics = Topics::new(Some("plant/devices".into()));
        let sha256 = "ab".repeat(32);
        let order = Order {
            rollout: "r".into(),
            sha256,
            package: None,
        };
        let json = serde_json::to_vec(&order).unwrap();
        let read = |topic: &str, payload: &[u8]| topics.read(topic, payload);
        let cam = |heard| Some(("cam-1".to_owned(), heard));
        assert_eq!(
            read(&topics.order("cam-1"), &json),
            cam(Heard::Order(Some(order)))
        );
        assert_eq!(read(&topics.order("cam-1"), b""), cam(Heard::Order(None)));
        assert_eq!(
            read(&topics.presence("cam-1"), b"online"),
            cam(Heard::Presence(true))
        );
        for (topic, payload) in [
            ("plant/devices/cam-1/order", &b"{}"[..]),
            (
                "plant/devices/cam-1/order",
                br#"{"rollout":"r","sha256":"../x"}"#,
            ),
            ("plant/devices/cam-1/other", b""),
            ("plant/devices/a b/presence", b"online"),
            ("plant/devicescam-1/presence", b"online"),
            ("plant/devices/cam-1/report", b"[1"),
        ] {
            assert_eq!(read(topic, payload), None, "{topic}");
        }
    }
}
