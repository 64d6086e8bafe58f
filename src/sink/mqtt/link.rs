//! The connection to a broker: made, kept, made again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rumqttc::{Client, Connection, Event, MqttOptions, Outgoing, Packet, QoS};

use super::post::{Message, Post, WINDOW, Wire};

/// The first wait before the next try; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Gets topic and message, on the connection's thread.
pub type Hear = Box<dyn Fn(&str, &[u8]) + Send>;

/// Who hears what others send.
pub struct Ear {
    /// Topics, which may have wildcards.
    pub topics: Vec<String>,
    /// Gets each message.
    pub hear: Hear,
}

/// A connection that is looked after by a thread.
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    inside: Mutex<Inside>,
    changed: Condvar,
}

struct Inside {
    post: Post,
    fault: Option<String>,
    client: Option<Client>,
    ended: bool,
}

/// Connects once and leaves.
///
/// # Errors
/// Why the broker does not let us in.
pub fn probe(options: MqttOptions) -> Result<(), String> {
    let (client, mut connection) = Client::new(options, WINDOW);
    for event in connection.iter() {
        match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                // It has let us in: how we leave does not matter.
                let _ = client.try_disconnect();
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => break,
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

impl Link {
    /// Starts the thread that connects by `options`.
    pub fn start(options: MqttOptions, post: Post) -> Self {
        Self::start_with(options, post, None)
    }

    /// The same with an ear for what others send.
    pub fn start_with(options: MqttOptions, post: Post, ear: Option<Ear>) -> Self {
        let shared = Arc::new(Shared {
            inside: Mutex::new(Inside {
                post,
                fault: None,
                client: None,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        let thread = Arc::clone(&shared);
        thread::spawn(move || thread.keep_connected(&options, ear.as_ref()));
        Self { shared }
    }

    /// Looks at the post or adds to it.
    pub fn with<T>(&self, work: impl FnOnce(&mut Post) -> T) -> T {
        work(&mut self.shared.lock().post)
    }

    /// Why there is no connection.
    pub fn fault(&self) -> Option<String> {
        self.shared.lock().fault.clone()
    }

    /// Waits until the broker has everything, but no longer than `limit`; then
    /// says `farewell` and leaves.
    pub fn leave(&self, farewell: &Message, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut inside = self.shared.lock();
        while inside.post.is_connected() && !inside.post.is_done() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(inside, left);
            inside = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        inside.post.farewell(farewell);
        inside.ended = true;
        if let Some(client) = inside.client.take() {
            // A connection that has just broken needs no farewell.
            let _ = client.try_disconnect();
        }
        self.shared.changed.notify_all();
        while inside.fault.is_none() && Instant::now() < deadline {
            let waited = self
                .shared
                .changed
                .wait_timeout(inside, deadline - Instant::now());
            inside = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    /// The thread. Every connection has a client of its own: what was under way
    /// on the one before is the post's to send again.
    fn keep_connected(&self, options: &MqttOptions, ear: Option<&Ear>) {
        let (host, port) = options.broker_address();
        let mut pause = FIRST_WAIT;
        while !self.lock().ended {
            let (client, mut connection) = Client::new(options.clone(), 2 * WINDOW);
            let (met, fault) = self.converse(&client, &mut connection, ear);
            if met {
                pause = FIRST_WAIT;
            }
            let mut inside = self.lock();
            inside.post.lost();
            inside.client = None;
            inside.fault = Some(format!("no connection to {host}:{port}: {fault}"));
            self.changed.notify_all();
            self.nap(inside, pause);
            pause = (2 * pause).min(LONGEST_WAIT);
        }
    }

    /// Sends and hears until the connection breaks. Says whether the broker let
    /// us in, and why it ended.
    fn converse(
        &self,
        client: &Client,
        connection: &mut Connection,
        ear: Option<&Ear>,
    ) -> (bool, String) {
        let mut met = false;
        for event in connection.iter() {
            if let (Ok(Event::Incoming(Packet::Publish(message))), Some(ear)) = (&event, ear) {
                (ear.hear)(&message.topic, &message.payload);
                continue;
            }
            let mut inside = self.lock();
            match event {
                // Nobody is to hear that we are online who have left.
                Ok(Event::Incoming(Packet::ConnAck(_))) if inside.ended => break,
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    met = true;
                    inside.fault = None;
                    inside.client = Some(client.clone());
                    for topic in ear.iter().flat_map(|ear| &ear.topics) {
                        // The connection is new: there is room, or it has broken.
                        let _ = client.try_subscribe(topic, QoS::AtLeastOnce);
                    }
                    let cable = Cable(client.clone());
                    inside.post.connected(Box::new(cable));
                }
                Ok(Event::Outgoing(Outgoing::Publish(id))) => inside.post.sent(id),
                Ok(Event::Incoming(Packet::PubAck(ack))) => inside.post.confirmed(ack.pkid),
                Ok(_) => {}
                Err(error) => return (met, error.to_string()),
            }
            self.changed.notify_all();
        }
        (met, "ended".into())
    }

    fn nap(&self, mut inside: MutexGuard<'_, Inside>, time: Duration) {
        let end = Instant::now() + time;
        while !inside.ended {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(inside, left);
            inside = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection of rumqttc.
struct Cable(Client);

impl Wire for Cable {
    fn send(&self, message: &Message) {
        // There is room for twice what may be under way; a connection that has
        // broken meanwhile gives back all of it.
        let _ = self.0.try_publish(
            &*message.topic,
            QoS::AtLeastOnce,
            message.retain,
            message.payload.as_bytes(),
        );
    }
}
