//! Estimates to an MQTT broker, ready for Home Assistant.
//!
//! | topic | message |
//! |---|---|
//! | `PREFIX/estimate` | every estimate as JSON, confirmed by the broker (QoS 1) |
//! | `PREFIX/state` | the latest estimate, retained, once a second at most |
//! | `PREFIX/health` | frames per second, losses, temperature, model, every ten seconds, retained |
//! | `PREFIX/status` | `online`, or `offline` by last will, retained |
//! | `homeassistant/…/config` | what entities there are, retained |
//!
//! While there is no broker, estimates wait in a bounded memory. A break makes
//! some arrive twice, never in another order; `frame` tells them apart.

mod discovery;
pub(crate) mod link;
pub(crate) mod post;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rumqttc::{LastWill, MqttOptions, QoS, Transport};
use serde::Deserialize;

use super::units::Bytes;
use super::{Answer, Backlog, Sink, SinkError};
use crate::bundle::Bundle;
use crate::device;
use crate::status::Board;
use link::Link;
use post::{Message, Post};

const PORT: u16 = 1883;
const TLS_PORT: u16 = 8883;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Longest message.
const MAX_PACKET: usize = 1 << 20;
/// How often the health is told.
const HEALTH: Duration = Duration::from_secs(10);
/// How long the last estimates may take at the end.
const GRACE: Duration = Duration::from_millis(600);
/// Where Linux distributions keep the certificates they trust.
#[cfg(feature = "tls")]
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A broker and how to use it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttSettings {
    /// `mqtt://HOST[:PORT][/PREFIX]`, or `mqtts://` for an encrypted
    /// connection. The prefix begins every topic; `numclip/ID` without one.
    pub url: String,
    /// Name of this device, the same for ever and nobody else's; from host name
    /// and machine identity without one. Two pipelines on one machine need two.
    pub id: Option<String>,
    /// Name of the user.
    pub user: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// Environment variable that holds the password.
    pub password_env: Option<String>,
    /// Certificates that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Where Home Assistant looks for new entities; empty to leave it alone.
    #[serde(default = "default_discovery")]
    pub discovery: String,
    /// Room for estimates while there is no broker.
    #[serde(default = "default_buffer")]
    pub buffer: Bytes,
    /// Least seconds between two messages on the `state` topic.
    #[serde(default = "default_state_every")]
    pub state_every: f64,
}

/// Sends estimates to a broker.
pub struct Mqtt {
    link: Link,
    topics: Topics,
    discovery: String,
    board: Arc<Board>,
    bundle: Arc<Bundle>,
    state_every: Duration,
    state_due: Instant,
    /// The latest estimate, where the topic `state` has an older one.
    state: Option<Message>,
    health_due: Instant,
}

/// Who we are and where we write.
struct Topics {
    id: String,
    estimate: Arc<str>,
    state: Arc<str>,
    health: Arc<str>,
    status: Arc<str>,
}

/// The parts of a broker's URL.
#[derive(Debug, PartialEq)]
struct Address<'a> {
    encrypted: bool,
    host: &'a str,
    port: u16,
    prefix: Option<&'a str>,
}

fn default_discovery() -> String {
    "homeassistant".into()
}

fn default_buffer() -> Bytes {
    Bytes(8_000_000)
}

fn default_state_every() -> f64 {
    1.0
}

impl MqttSettings {
    /// Settings for the broker at `url`, without a user.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            id: None,
            user: None,
            password_file: None,
            password_env: None,
            ca: None,
            discovery: default_discovery(),
            buffer: default_buffer(),
            state_every: default_state_every(),
        }
    }

    /// Checks everything that needs no network and no file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let address = Address::parse(&self.url)?;
        if address.encrypted && !cfg!(feature = "tls") {
            return Err(format!(
                "{}: this build cannot encrypt; build numclip with --features tls",
                self.url
            ));
        }
        if self.user.is_none() && (self.password_file.is_some() || self.password_env.is_some()) {
            return Err("a password without a user; set user as well".into());
        }
        let wildcard = |text: &&str| text.contains(['#', '+', '\0', ' ']);
        let parts = [address.prefix, self.id.as_deref(), Some(&*self.discovery)];
        match parts.into_iter().flatten().find(wildcard) {
            Some(text) => Err(format!("{text:?}: a topic holds no #, + or space")),
            None if !(0.0..=86_400.0).contains(&self.state_every) => {
                Err("state_every: expected seconds from 0 to 86400".into())
            }
            None => Ok(()),
        }
    }

    /// Host and port of the broker, where the URL has them.
    pub fn broker(&self) -> Option<(String, u16)> {
        let address = Address::parse(&self.url).ok()?;
        Some((address.host.into(), address.port))
    }

    /// Reads the password from where it is kept.
    ///
    /// # Errors
    /// What cannot be read, never what was read.
    pub fn password(&self) -> Result<Option<String>, String> {
        if let Some(path) = &self.password_file {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("password_file {}: {error}", path.display()))?;
            return Ok(Some(text.trim_end_matches(['\r', '\n']).into()));
        }
        let Some(name) = &self.password_env else {
            return Ok(None);
        };
        std::env::var(name)
            .map(Some)
            .map_err(|_| format!("password_env: the environment has no {name}"))
    }

    /// Connects to the broker and leaves at once.
    ///
    /// # Errors
    /// Why it does not let us in.
    pub fn probe(&self) -> Result<(), String> {
        self.check()?;
        let mut topics = Topics::new(self)?;
        // The pipeline at work must not be thrown out by its own name.
        topics.id += "-probe";
        let mut options = self.options(&topics)?;
        options.set_last_will(LastWill::new("numclip/probe", "", QoS::AtMostOnce, false));
        link::probe(options)
    }

    /// The prefix of the topics, where the URL has one.
    #[cfg(feature = "fleet")]
    pub(crate) fn prefix(&self) -> Option<String> {
        let address = Address::parse(&self.url).ok()?;
        address.prefix.map(String::from)
    }

    fn options(&self, topics: &Topics) -> Result<MqttOptions, String> {
        let mut options = self.connection(&topics.id)?;
        options.set_last_will(LastWill::new(
            &*topics.status,
            "offline",
            QoS::AtLeastOnce,
            true,
        ));
        Ok(options)
    }

    /// A connection under the name `id`, without a last will.
    pub(crate) fn connection(&self, id: &str) -> Result<MqttOptions, String> {
        let address = Address::parse(&self.url)?;
        let mut options = MqttOptions::new(id, address.host, address.port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_inflight(post::WINDOW as u16)
            .set_max_packet_size(MAX_PACKET, MAX_PACKET);
        if let Some(user) = &self.user {
            options.set_credentials(user, self.password()?.unwrap_or_default());
        }
        if address.encrypted {
            options.set_transport(encrypted(self.ca.as_deref())?);
        }
        Ok(options)
    }
}

#[cfg(feature = "tls")]
fn encrypted(ca: Option<&Path>) -> Result<Transport, String> {
    // Another part of the program may have chosen one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let path = ca.unwrap_or(Path::new(CERTIFICATES));
    let ca = fs::read(path).map_err(|error| {
        let path = path.display();
        format!("{path}: {error}; set ca to a file of trusted certificates")
    })?;
    Ok(Transport::tls(ca, None, None))
}

#[cfg(not(feature = "tls"))]
fn encrypted(_: Option<&Path>) -> Result<Transport, String> {
    Err("this build cannot encrypt; build numclip with --features tls".into())
}

impl Mqtt {
    /// Begins to connect. `bundle` is that of the first estimates, `board` has
    /// the health to tell.
    ///
    /// # Errors
    /// What about the settings or the files they name cannot be used. A broker
    /// that is away is no error.
    pub fn start(
        settings: &MqttSettings,
        bundle: Arc<Bundle>,
        board: Arc<Board>,
    ) -> Result<Self, String> {
        settings.check()?;
        let topics = Topics::new(settings)?;
        let mut post = Post::new(settings.buffer.0);
        post.greet(discovery::greeting(&settings.discovery, &topics, &bundle));
        let now = Instant::now();
        Ok(Self {
            link: Link::start(settings.options(&topics)?, post),
            topics,
            discovery: settings.discovery.clone(),
            board,
            bundle,
            state_every: Duration::from_secs_f64(settings.state_every),
            state_due: now,
            state: None,
            health_due: now + Duration::from_secs(1),
        })
    }

    fn send_state(&mut self) {
        if Instant::now() >= self.state_due
            && let Some(state) = self.state.take()
        {
            self.state_due = Instant::now() + self.state_every;
            self.link.with(|post| post.state(state));
        }
    }

    fn send_health(&mut self) {
        if Instant::now() < self.health_due {
            return;
        }
        self.health_due = Instant::now() + HEALTH;
        let health = Message {
            topic: Arc::clone(&self.topics.health),
            payload: discovery::health(&self.board.get()).into(),
            retain: true,
        };
        self.link.with(|post| post.state(health));
    }
}

impl Sink for Mqtt {
    fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
        if !Arc::ptr_eq(&self.bundle, &answer.reading.bundle) {
            self.bundle = Arc::clone(&answer.reading.bundle);
            let greeting = discovery::greeting(&self.discovery, &self.topics, &self.bundle);
            self.link.with(|post| post.greet(greeting));
        }
        let payload: Arc<str> = answer.to_json().into();
        self.state = Some(Message {
            topic: Arc::clone(&self.topics.state),
            payload: Arc::clone(&payload),
            retain: true,
        });
        self.link.with(|post| {
            post.estimate(Message {
                topic: Arc::clone(&self.topics.estimate),
                payload,
                retain: false,
            });
        });
        self.send_state();
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.send_state();
        self.send_health();
        self.link
            .fault()
            .map_or(Ok(()), |fault| Err(SinkError::Away(fault)))
    }

    fn backlog(&self) -> Backlog {
        self.link.with(|post| post.backlog())
    }
}

impl Drop for Mqtt {
    fn drop(&mut self) {
        self.state_due = Instant::now();
        self.send_state();
        let offline = self.topics.status_message("offline");
        self.link.leave(&offline, GRACE);
    }
}

impl Topics {
    fn new(settings: &MqttSettings) -> Result<Self, String> {
        let address = Address::parse(&settings.url)?;
        let id = settings.id.clone();
        let id = id.unwrap_or_else(|| format!("numclip-{}", device::identity()));
        let prefix = match address.prefix {
            Some(prefix) => prefix.to_owned(),
            None => format!("numclip/{id}"),
        };
        let topic = |name| format!("{prefix}/{name}").into();
        Ok(Self {
            estimate: topic("estimate"),
            state: topic("state"),
            health: topic("health"),
            status: topic("status"),
            id,
        })
    }

    fn status_message(&self, text: &str) -> Message {
        Message {
            topic: Arc::clone(&self.status),
            payload: text.into(),
            retain: true,
        }
    }
}

impl<'a> Address<'a> {
    fn parse(url: &'a str) -> Result<Self, String> {
        let expected = "expected mqtt://HOST[:PORT][/PREFIX]";
        let (scheme, rest) = url.split_once("://").ok_or(expected)?;
        let (encrypted, port) = match scheme {
            "mqtt" => (false, PORT),
            "mqtts" => (true, TLS_PORT),
            _ => return Err(format!("{scheme}://: {expected} or mqtts://")),
        };
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err(
                "no user or password in the URL: set user, and password_file or password_env"
                    .into(),
            );
        }
        let (host, port) = match host.rsplit_once(':') {
            // The colons of an IPv6 address stand in brackets.
            Some((host, digits)) if !digits.ends_with(']') => {
                let port = digits
                    .parse()
                    .map_err(|_| format!("port {digits:?}: {expected}"))?;
                (host, port)
            }
            _ => (host, port),
        };
        if host.is_empty() {
            return Err(format!("no host: {expected}"));
        }
        let prefix = prefix.trim_end_matches('/');
        Ok(Self {
            encrypted,
            host,
            port,
            prefix: (!prefix.is_empty()).then_some(prefix),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_host_port_and_prefix() {
        for (url, host, port, prefix) in [
            ("mqtt://broker", "broker", 1883, None),
            ("mqtt://10.0.0.1:2000/", "10.0.0.1", 2000, None),
            ("mqtts://b/plant/hall 1", "b", 8883, Some("plant/hall 1")),
            ("mqtt://[::1]:99/a", "[::1]", 99, Some("a")),
            ("mqtt://[::1]", "[::1]", 1883, None),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                (address.host, address.port, address.prefix),
                (host, port, prefix)
            );
        }
    }

    #[test]
    fn settings_that_cannot_work_say_why() {
        let with = |url: &str, change: fn(&mut MqttSettings)| {
            let mut settings = MqttSettings::new(url);
            change(&mut settings);
            settings.check().unwrap_err()
        };
        for (error, reason) in [
            (with("http://x", |_| ()), "mqtt://HOST"),
            (with("mqtt://", |_| ()), "no host"),
            (with("mqtt://a:b:c", |_| ()), "port \"c\""),
            (with("mqtt://me:secret@host", |_| ()), "password_file"),
            (with("mqtt://a/b/#", |_| ()), "holds no #"),
            (
                with("mqtt://a", |s| s.password_env = Some("X".into())),
                "set user",
            ),
            (with("mqtt://a", |s| s.state_every = -1.0), "state_every"),
        ] {
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("secret"));
        }
    }

    #[test]
    fn passwords_come_from_files_and_the_environment() {
        let place = tempfile::tempdir().unwrap();
        let mut settings = MqttSettings::new("mqtt://a");
        assert_eq!(settings.password(), Ok(None));
        settings.password_env = Some("PATH".into());
        assert_eq!(settings.password().unwrap(), std::env::var("PATH").ok());
        settings.password_env = Some("NUMCLIP_NO_SUCH_VARIABLE".into());
        assert!(settings.password().unwrap_err().contains("NUMCLIP_NO_SUCH"));
        settings.password_file = Some(place.path().join("password"));
        assert!(settings.password().unwrap_err().contains("password"));
        fs::write(place.path().join("password"), "p w\n").unwrap();
        assert_eq!(settings.password(), Ok(Some("p w".into())));
    }
}
