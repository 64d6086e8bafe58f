//! What stands behind `--sink`, and opening it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::{Table, Value};

use super::file::FileSettings;
use super::lines::{Form, Lines};
#[cfg(feature = "mqtt")]
use super::mqtt::{Mqtt, MqttSettings};
use super::trigger::{Trigger, TriggerSettings};
use super::{Sink, SinkError, Tell};
use crate::bundle::Bundle;
use crate::capture::without_password;
use crate::status::Board;

/// A sink and its settings.
///
/// | written as | estimates go |
/// |---|---|
/// | `json:-`, `csv:-` | to standard output |
/// | `json:PATH?rotate=10MB&keep=5&daily&sync=5` | to a file, a JSON object a line |
/// | `csv:PATH?…` | to a file, a row a line |
/// | `mqtt://HOST:PORT/PREFIX?user=NAME&password_file=PATH` | to a broker |
/// | `exec:COMMAND?above=80&until=70&hold=5&every=60` | to a command, when the value passes a threshold |
/// | `webhook:URL?above=80…` | to a server, likewise |
///
/// The keys are those of [`FileSettings`], [`TriggerSettings`] and
/// `MqttSettings`.
#[derive(Clone, Debug, PartialEq)]
pub enum SinkSpec {
    /// JSON lines.
    Json(FileSettings),
    /// A table.
    Csv(FileSettings),
    /// A broker.
    #[cfg(feature = "mqtt")]
    Mqtt(MqttSettings),
    /// A command or a server.
    Trigger(TriggerSettings),
}

/// A text that names no sink.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("sink {text:?}: {message}")]
pub struct SpecError {
    text: String,
    message: String,
}

/// What sinks need to know of their surroundings.
#[derive(Clone)]
pub struct Surroundings {
    /// The bundle of the first estimates.
    pub bundle: Arc<Bundle>,
    /// Where the latest status hangs.
    pub board: Arc<Board>,
    /// Hears of what happens.
    pub tell: Tell,
}

/// The keys whose value is text, also where it looks like a number.
const TEXT_KEYS: [&str; 6] = [
    "ca",
    "discovery",
    "id",
    "password_env",
    "password_file",
    "user",
];
/// The keys that may follow a command or a URL.
const TRIGGER_KEYS: [&str; 6] = ["above", "below", "until", "hold", "every", "timeout"];

impl SinkSpec {
    /// Whether it writes to standard output.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Self::Json(file) | Self::Csv(file) if file.is_stdout())
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Json(file) | Self::Csv(file) => file.check(),
            #[cfg(feature = "mqtt")]
            Self::Mqtt(mqtt) => mqtt.check(),
            Self::Trigger(trigger) => trigger.check(),
        }
    }

    /// Opens the sink.
    ///
    /// # Errors
    /// [`SinkError`] when it cannot work on this machine. A server or broker
    /// that is away is no error.
    pub fn open(&self, around: &Surroundings) -> Result<Box<dyn Sink>, SinkError> {
        let lines = |form, settings| -> Result<Box<dyn Sink>, SinkError> {
            let (sink, torn) = Lines::open(form, settings)?;
            if torn > 0 {
                (around.tell)(format!("{self}: cut {torn} bytes of a torn line"));
            }
            Ok(Box::new(sink))
        };
        let away = |message| SinkError::Away(format!("{self}: {message}"));
        Ok(match self {
            Self::Json(file) => lines(Form::Json, file)?,
            Self::Csv(file) => lines(Form::Csv, file)?,
            #[cfg(feature = "mqtt")]
            Self::Mqtt(mqtt) => {
                let (bundle, board) = (Arc::clone(&around.bundle), Arc::clone(&around.board));
                Box::new(Mqtt::start(mqtt, bundle, board).map_err(away)?)
            }
            Self::Trigger(trigger) => Box::new(Trigger::new(trigger).map_err(away)?),
        })
    }
}

/// The sink without its settings, and without what may be a password.
impl fmt::Display for SinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(file) => write!(f, "json:{}", file.path.display()),
            Self::Csv(file) => write!(f, "csv:{}", file.path.display()),
            #[cfg(feature = "mqtt")]
            Self::Mqtt(mqtt) => f.write_str(&mqtt.url),
            Self::Trigger(trigger) => match (&trigger.command, &trigger.webhook) {
                (Some(command), _) => write!(f, "exec:{command}"),
                (_, url) => {
                    let url = without_password(url.as_deref().unwrap_or_default());
                    write!(f, "webhook:{url}")
                }
            },
        }
    }
}

impl FromStr for SinkSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let spec = parse(text).and_then(|spec| spec.check().map(|()| spec));
        spec.map_err(|message| SpecError {
            text: match text.strip_prefix("webhook:") {
                Some(url) => format!("webhook:{}", without_password(url)),
                None => text.into(),
            },
            message,
        })
    }
}

fn parse(text: &str) -> Result<SinkSpec, String> {
    let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
    Ok(match scheme {
        "json" => SinkSpec::Json(settings("path", rest, split(rest))?),
        "csv" => SinkSpec::Csv(settings("path", rest, split(rest))?),
        #[cfg(feature = "mqtt")]
        "mqtt" | "mqtts" => SinkSpec::Mqtt(settings("url", text, split(text))?),
        #[cfg(not(feature = "mqtt"))]
        "mqtt" | "mqtts" => {
            return Err("this build has no MQTT; build it with --features mqtt".into());
        }
        "exec" => SinkSpec::Trigger(settings("command", rest, split_known(rest))?),
        "webhook" => SinkSpec::Trigger(settings("webhook", rest, split_known(rest))?),
        other => {
            return Err(format!(
                "unknown kind {other:?}; known are json:, csv:, mqtt://, mqtts://, exec: and webhook:"
            ));
        }
    })
}

/// What stands before the `?` and after it.
fn split(text: &str) -> (&str, &str) {
    text.split_once('?').unwrap_or((text, ""))
}

/// The same for what may hold question marks of its own: only known keys after
/// the last one are taken for settings.
fn split_known(text: &str) -> (&str, &str) {
    let known = |query: &str| {
        let mut keys = query.split('&').map(|pair| pair.split('=').next());
        keys.all(|key| key.is_some_and(|key| TRIGGER_KEYS.contains(&key)))
    };
    match text.rsplit_once('?') {
        Some((main, query)) if known(query) => (main, query),
        _ => (text, ""),
    }
}

/// Settings whose field `main` has its value, and those of the query.
fn settings<T: DeserializeOwned>(
    main: &str,
    whole: &str,
    (value, query): (&str, &str),
) -> Result<T, String> {
    if value.is_empty() {
        return Err(format!("no {main} in {whole:?}"));
    }
    let mut table = Table::from_iter([(main.to_owned(), Value::String(value.into()))]);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
        let value = match TEXT_KEYS.contains(&key) {
            true => Value::String(value.into()),
            false => plain(value),
        };
        if table.insert(key.into(), value).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    let settings = T::deserialize(Value::Table(table));
    // "invalid type: …\nin `key`\n"
    let in_words = |text: String| text.trim_end().replace('\n', ", ").replace('`', "");
    settings.map_err(|error| in_words(error.to_string()))
}

/// A number or a truth value where it looks like one, text otherwise.
fn plain(text: &str) -> Value {
    let integer = text.parse().map(Value::Integer);
    let number = || text.parse().map(Value::Float);
    let truth = || text.parse().map(Value::Boolean);
    integer
        .or_else(|_| number())
        .or_else(|_| truth())
        .unwrap_or_else(|_| Value::String(text.into()))
}

#[cfg(test)]
mod tests {
    use super::super::units::Bytes;
    use super::*;

    #[test]
    fn files_take_their_rotation() {
        let mut file = FileSettings::new("a/b.jsonl");
        assert_eq!("json:a/b.jsonl".parse(), Ok(SinkSpec::Json(file.clone())));
        file.rotate = Some(Bytes(10_000_000));
        (file.keep, file.daily, file.sync) = (3, true, Some(5.0));
        let text = "csv:a/b.jsonl?rotate=10MB&keep=3&daily&sync=5";
        assert_eq!(text.parse(), Ok(SinkSpec::Csv(file)));
        assert!("json:-".parse::<SinkSpec>().unwrap().is_stdout());
    }

    #[test]
    fn question_marks_may_belong_to_commands_and_urls() {
        let trigger = |text: &str| match text.parse::<SinkSpec>() {
            Ok(SinkSpec::Trigger(trigger)) => trigger,
            other => panic!("{other:?}"),
        };
        let command = trigger("exec:echo 'what?' && x?above=80&until=70.5");
        assert_eq!(command.command.as_deref(), Some("echo 'what?' && x"));
        assert_eq!((command.above, command.until), (Some(80.0), Some(70.5)));
        assert_eq!(trigger("exec:a?b=c").command.as_deref(), Some("a?b=c"));
        let hook = trigger("webhook:http://host/x?id=1?below=3");
        assert_eq!(hook.webhook.as_deref(), Some("http://host/x?id=1"));
    }

    #[test]
    fn secrets_of_webhooks_are_not_shown() {
        let hook = "webhook:https://me:secret@host/x?token=secret?below=3";
        let hook: SinkSpec = hook.parse().unwrap();
        assert_eq!(hook.to_string(), "webhook:https://host/x");
    }

    #[cfg(feature = "mqtt")]
    #[test]
    fn brokers_take_their_settings() {
        let mut mqtt = MqttSettings::new("mqtt://host:99/plant/one");
        (mqtt.user, mqtt.password_env) = (Some("me".into()), Some("PASSWORD".into()));
        mqtt.buffer = Bytes(1000);
        let text = "mqtt://host:99/plant/one?user=me&password_env=PASSWORD&buffer=1kB";
        assert_eq!(text.parse(), Ok(SinkSpec::Mqtt(mqtt.clone())));
        mqtt.user = Some("1001".into());
        assert_eq!(
            text.replace("=me", "=1001").parse(),
            Ok(SinkSpec::Mqtt(mqtt))
        );
    }

    #[test]
    fn texts_that_name_no_sink_say_why() {
        for (text, reason) in [
            ("xml:a", "unknown kind"),
            ("json:", "no path"),
            ("json:a?rotate=big", "10MB"),
            ("json:a?rotat=1", "unknown field rotat"),
            ("json:a?keep=1&keep=2", "twice"),
            ("json:a?sync=-1", "sync"),
            ("csv:a?daily=maybe", "expected a boolean, in daily"),
            ("json:a?rotate", "expected a number of bytes, as 10MB"),
            ("exec:x?above=high", "in above"),
            ("exec:", "no command"),
            ("exec:x?above=1&below=2", "one of them"),
            ("webhook:host/x", "neither http"),
            (
                "webhook:ftp://me:secret@host/x?key=secret",
                "\"webhook:ftp://host/x\"",
            ),
        ] {
            let error = text.parse::<SinkSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
