//! A roll-out's connection to its fleet.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::message::{Heard, Topics};
use super::rollout::Rollout;
use crate::device;
use crate::sink::mqtt::MqttSettings;
use crate::sink::mqtt::link::{Ear, Link};
use crate::sink::mqtt::post::{Message, Post};

/// Silence after which all that the broker had kept has come.
const QUIET: Duration = Duration::from_secs(2);
/// Time after which it has, however much is said.
const ENOUGH: Duration = Duration::from_secs(10);
/// How long the last orders may take at the end.
const GRACE: Duration = Duration::from_secs(10);

/// Hears a fleet and gives it orders.
pub struct Tower {
    link: Link,
    topics: Topics,
    heard: Receiver<(String, Heard)>,
    present: BTreeMap<String, bool>,
    last_heard: Instant,
    /// Since when there is a connection.
    connected: Option<Instant>,
}

/// What was heard, and what follows from it.
#[derive(Debug, Default)]
pub struct Hearing {
    /// Messages that were heard.
    pub messages: usize,
    /// Devices whose order is another now.
    pub news: Vec<String>,
}

impl Tower {
    /// Begins to connect.
    ///
    /// # Errors
    /// What about the settings cannot be used. A broker that is away is no
    /// error.
    pub fn start(settings: &MqttSettings) -> Result<Self, String> {
        settings.check()?;
        let topics = Topics::new(settings.prefix());
        let name = format!(
            "numclip-rollout-{}-{}",
            device::identity(),
            std::process::id()
        );
        let options = settings.connection(&name)?;
        let (sender, heard) = channel();
        let reader = topics.clone();
        let ear = Ear {
            topics: vec![topics.report("+"), topics.presence("+")],
            hear: Box::new(move |topic, payload| {
                if let Some(news) = reader.read(topic, payload) {
                    // Without a receiver the roll-out is at its end.
                    let _ = sender.send(news);
                }
            }),
        };
        Ok(Self {
            link: Link::start_with(options, Post::new(0), Some(ear)),
            topics,
            heard,
            present: BTreeMap::new(),
            last_heard: Instant::now(),
            connected: None,
        })
    }

    /// Tells `rollout` what was heard, after waiting for something no longer
    /// than `wait`.
    pub fn hear(&mut self, rollout: &mut Rollout, wait: Duration) -> Hearing {
        let mut hearing = Hearing::default();
        let first = self.heard.recv_timeout(wait).ok();
        let mut next = first;
        while let Some((id, heard)) = next {
            hearing.messages += 1;
            if self.note(rollout, &id, heard) {
                hearing.news.push(id);
            }
            next = self.heard.try_recv().ok();
        }
        if hearing.messages > 0 {
            self.last_heard = Instant::now();
        }
        match self.link.with(|post| post.is_connected()) {
            true => _ = self.connected.get_or_insert_with(Instant::now),
            false => self.connected = None,
        }
        hearing
    }

    /// Whether there is a connection, and what the broker had kept has come.
    pub fn is_settled(&self) -> bool {
        self.connected.is_some_and(|since| {
            let quiet = since.elapsed().min(self.last_heard.elapsed());
            quiet >= QUIET || since.elapsed() >= ENOUGH
        })
    }

    /// Whether the broker has all that it was sent.
    pub fn is_done(&self) -> bool {
        self.link.with(|post| post.is_connected() && post.is_done())
    }

    /// Why there is no connection.
    pub fn fault(&self) -> Option<String> {
        self.link.fault()
    }

    /// Sends these devices their orders, which the broker keeps.
    pub fn send(&self, rollout: &Rollout, ids: &[String]) {
        for id in ids {
            let Some(order) = rollout.order(id) else {
                continue;
            };
            let payload = order.and_then(|order| serde_json::to_string(&order).ok());
            self.publish(self.topics.order(id), payload.unwrap_or_default());
        }
    }

    /// Tells everybody how far the roll-out is: on the topic `PREFIX/rollout`.
    pub fn announce(&self, progress: &str) {
        self.publish(self.topics.rollout(), progress.into());
    }

    /// Waits until the broker has every order, then leaves.
    pub fn leave(self, progress: &str) {
        let farewell = retained(self.topics.rollout(), progress.into());
        self.link.leave(&farewell, GRACE);
    }

    fn note(&mut self, rollout: &mut Rollout, id: &str, heard: Heard) -> bool {
        match heard {
            Heard::Presence(online) => {
                self.present.insert(id.into(), online);
                rollout.presence(id, online);
                false
            }
            Heard::Report(Some(report)) if report.id == id => {
                let is_news = rollout.hear(&report);
                let online = self.present.get(id).copied().unwrap_or(false);
                rollout.presence(id, online);
                is_news
            }
            Heard::Report(None) => {
                rollout.forget(id);
                false
            }
            _ => false,
        }
    }

    fn publish(&self, topic: String, payload: String) {
        self.link.with(|post| post.state(retained(topic, payload)));
    }
}

fn retained(topic: String, payload: String) -> Message {
    Message {
        topic: topic.into(),
        payload: payload.into(),
        retain: true,
    }
}
