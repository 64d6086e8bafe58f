//! What is to be sent to a broker, and what has arrived there.
//!
//! Estimates wait in order until the broker has confirmed them; what was under
//! way when a connection broke is sent again. Of messages that describe a state
//! only the latest counts.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::Backlog;

/// Messages under way at the same time.
pub const WINDOW: usize = 32;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its text.
    pub payload: Arc<str>,
    /// The broker keeps it for those who come later.
    pub retain: bool,
}

/// One connection to a broker.
pub trait Wire: Send {
    /// Sends `message` some time soon, after those before it. The connection
    /// tells by [`Post::sent`] and [`Post::confirmed`] what becomes of it.
    fn send(&self, message: &Message);
}

/// The messages of one sink.
pub struct Post {
    wire: Option<Box<dyn Wire>>,
    /// Sent at the beginning of every connection.
    greeting: Vec<Message>,
    /// The latest state of each topic, and whether it is still to be sent.
    states: Vec<(Message, bool)>,
    urgent: VecDeque<Message>,
    waiting: VecDeque<Message>,
    under_way: VecDeque<UnderWay>,
    /// Room for estimates, in bytes, and how much of it is taken.
    limit: u64,
    taken: u64,
    dropped: u64,
}

/// A message that the broker has yet to confirm.
struct UnderWay {
    message: Message,
    /// The number under which it was sent.
    id: Option<u16>,
    is_estimate: bool,
}

impl Post {
    /// Keeps estimates of up to `limit` bytes while there is no broker.
    pub fn new(limit: u64) -> Self {
        Self {
            wire: None,
            greeting: Vec::new(),
            states: Vec::new(),
            urgent: VecDeque::new(),
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            limit,
            taken: 0,
            dropped: 0,
        }
    }

    /// Sends `messages` now and at the beginning of every connection.
    pub fn greet(&mut self, messages: Vec<Message>) {
        if self.wire.is_some() {
            self.urgent.extend(messages.iter().cloned());
        }
        self.greeting = messages;
        self.pump();
    }

    /// Sends an estimate, which waits for the broker if need be. Where there is
    /// no room, the oldest goes.
    pub fn estimate(&mut self, message: Message) {
        self.taken += message.size();
        self.waiting.push_back(message);
        while self.taken > self.limit {
            let Some(oldest) = self.waiting.pop_front() else {
                break;
            };
            self.taken -= oldest.size();
            self.dropped += 1;
        }
        self.pump();
    }

    /// Sends a state in place of the one before.
    pub fn state(&mut self, message: Message) {
        let known = self
            .states
            .iter_mut()
            .find(|(state, _)| state.topic == message.topic);
        match known {
            Some(state) => *state = (message, true),
            None => self.states.push((message, true)),
        }
        self.pump();
    }

    /// There is a connection.
    pub fn connected(&mut self, wire: Box<dyn Wire>) {
        self.lost();
        self.wire = Some(wire);
        self.urgent.extend(self.greeting.iter().cloned());
        for (_, unsent) in &mut self.states {
            *unsent = true;
        }
        self.pump();
    }

    /// The first message without a number was sent with this one.
    pub fn sent(&mut self, id: u16) {
        if let Some(first) = self.under_way.iter_mut().find(|one| one.id.is_none()) {
            first.id = Some(id);
        }
    }

    /// The broker has the message of this number.
    pub fn confirmed(&mut self, id: u16) {
        let found = self.under_way.iter().position(|one| one.id == Some(id));
        if let Some(one) = found.and_then(|index| self.under_way.remove(index))
            && one.is_estimate
        {
            self.taken -= one.message.size();
        }
        self.pump();
    }

    /// The connection has broken: what was under way waits again.
    pub fn lost(&mut self) {
        self.wire = None;
        self.urgent.clear();
        while let Some(one) = self.under_way.pop_back() {
            if one.is_estimate {
                self.waiting.push_front(one.message);
            }
        }
    }

    /// Says `message` and nothing after it.
    pub fn farewell(&mut self, message: &Message) {
        if let Some(wire) = self.wire.take() {
            wire.send(message);
        }
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.wire.is_some()
    }

    /// Whether the broker has everything.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// Estimates that the broker has not confirmed, and those given up.
    pub fn backlog(&self) -> Backlog {
        let under_way = self.under_way.iter().filter(|one| one.is_estimate).count();
        Backlog {
            waiting: (self.waiting.len() + under_way) as u64,
            dropped: self.dropped,
        }
    }

    /// Sends as much as may be under way.
    fn pump(&mut self) {
        while self.wire.is_some()
            && self.under_way.len() < WINDOW
            && let Some((message, is_estimate)) = self.next()
        {
            if let Some(wire) = &self.wire {
                wire.send(&message);
            }
            self.under_way.push_back(UnderWay {
                message,
                id: None,
                is_estimate,
            });
        }
    }

    /// The message whose turn it is, and whether it is an estimate.
    fn next(&mut self) -> Option<(Message, bool)> {
        if let Some(message) = self.urgent.pop_front() {
            return Some((message, false));
        }
        if let Some((state, unsent)) = self.states.iter_mut().find(|(_, unsent)| *unsent) {
            *unsent = false;
            return Some((state.clone(), false));
        }
        Some((self.waiting.pop_front()?, true))
    }
}

impl Message {
    /// What it takes in memory, about.
    fn size(&self) -> u64 {
        (size_of::<Self>() + self.payload.len()) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    /// A broker that counts, and what it was sent on this connection and has
    /// not confirmed.
    #[derive(Default)]
    struct Broker {
        unread: VecDeque<Message>,
        got: Vec<String>,
        next: u16,
    }

    struct Cable(Arc<Mutex<Broker>>);

    impl Wire for Cable {
        fn send(&self, message: &Message) {
            self.0.lock().unwrap().unread.push_back(message.clone());
        }
    }

    fn message(topic: &str, payload: &str, retain: bool) -> Message {
        Message {
            topic: topic.into(),
            payload: payload.into(),
            retain,
        }
    }

    fn estimate(number: usize) -> Message {
        message("estimate", &number.to_string(), false)
    }

    /// The broker reads one message; it may be lost before it is confirmed.
    fn read(post: &mut Post, broker: &Mutex<Broker>, confirm: bool) -> Option<()> {
        let (message, id) = {
            let mut broker = broker.lock().unwrap();
            broker.next = broker.next % WINDOW as u16 + 1;
            (broker.unread.pop_front()?, broker.next)
        };
        post.sent(id);
        let text = format!("{}={}", message.topic, message.payload);
        broker.lock().unwrap().got.push(text);
        if confirm {
            post.confirmed(id);
        }
        Some(())
    }

    fn connect(post: &mut Post, broker: &Arc<Mutex<Broker>>) {
        broker.lock().unwrap().unread.clear();
        post.connected(Box::new(Cable(Arc::clone(broker))));
    }

    #[test]
    fn greeting_first_then_the_latest_state_then_the_estimates() {
        let broker = Arc::<Mutex<Broker>>::default();
        let mut post = Post::new(1 << 20);
        post.greet(vec![message("status", "online", true)]);
        for number in 0..3 {
            post.estimate(estimate(number));
            post.state(message("state", &number.to_string(), true));
        }
        connect(&mut post, &broker);
        while read(&mut post, &broker, true).is_some() {}
        let expected = "status=online state=2 estimate=0 estimate=1 estimate=2";
        assert_eq!(broker.lock().unwrap().got.join(" "), expected);
        assert!(post.is_done() && post.taken == 0);
    }

    #[test]
    fn without_room_the_oldest_goes() {
        let size = estimate(10).size();
        let mut post = Post::new(3 * size);
        (10..20).for_each(|number| post.estimate(estimate(number)));
        let backlog = post.backlog();
        assert_eq!((backlog.waiting, backlog.dropped), (3, 7));
        assert_eq!(&*post.waiting[0].payload, "17");
    }

    proptest! {
        /// Connections break anywhere, confirmations included: every estimate
        /// arrives, for the first time in order.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec(0..4_u8, 1..400)) {
            let broker = Arc::<Mutex<Broker>>::default();
            let mut post = Post::new(1 << 20);
            post.greet(vec![message("status", "online", true)]);
            let mut made = 0;
            for step in steps {
                match step {
                    0 => {
                        post.estimate(estimate(made));
                        made += 1;
                    }
                    1 => connect(&mut post, &broker),
                    2 => post.lost(),
                    _ => _ = read(&mut post, &broker, made % 3 > 0),
                }
                prop_assert!(post.under_way.len() <= WINDOW);
            }
            connect(&mut post, &broker);
            while read(&mut post, &broker, true).is_some() {}
            prop_assert!(post.is_done());
            prop_assert_eq!(post.taken, 0);
            let broker = broker.lock().unwrap();
            let mut seen = BTreeSet::new();
            let first: Vec<&String> = broker
                .got
                .iter()
                .filter(|text| text.starts_with("estimate") && seen.insert(*text))
                .collect();
            let expected: Vec<String> = (0..made).map(|number| format!("estimate={number}")).collect();
            prop_assert_eq!(first, expected.iter().collect::<Vec<_>>());
        }
    }
}
