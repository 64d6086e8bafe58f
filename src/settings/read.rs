//! Reading a settings file, and saying where it is wrong.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::{FPS, KEPT, LEVELS, MARGIN, PAUSE, SCORE, STALL, SUBJECTS, Settings};
use crate::encode::Engine;

/// How much a known key must resemble an unknown one to be offered, 0 to 1.
const RESEMBLANCE: f64 = 0.6;

/// A settings file that cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{}{}: {message}", path.display(), place(*line))]
pub struct SettingsError {
    path: PathBuf,
    line: Option<usize>,
    message: String,
}

fn place(line: Option<usize>) -> String {
    line.map(|line| format!(":{line}")).unwrap_or_default()
}

impl SettingsError {
    pub(super) fn new(path: &Path, message: String) -> Self {
        Self {
            path: path.into(),
            line: None,
            message,
        }
    }
}

/// Reads the file at `path`, paths in it as they stand there.
pub fn load(path: &Path) -> Result<Settings, SettingsError> {
    let text =
        fs::read_to_string(path).map_err(|error| SettingsError::new(path, error.to_string()))?;
    parse(&text, path)
}

/// Reads settings from `text`, which came from `path`; relative paths stay as
/// they are.
///
/// # Errors
/// [`SettingsError`] names the line.
pub fn parse(text: &str, path: &Path) -> Result<Settings, SettingsError> {
    toml::from_str(text).map_err(|error| SettingsError {
        path: path.into(),
        line: error.span().map(|span| line_of(text, span.start)),
        message: explained(error.message()),
    })
}

fn line_of(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// serde names an unknown key first and the known ones after it, all in
/// backticks: offers the nearest.
fn explained(message: &str) -> String {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return message.trim().replace('\n', "; ");
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next().unwrap_or_default();
    let known: Vec<&str> = names.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(unknown, name), name))
        .filter(|(resemblance, _)| *resemblance >= RESEMBLANCE)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let what = match message.starts_with("unknown field") {
        true => "unknown key",
        false => "unknown value",
    };
    let advice = match (nearest, known.is_empty()) {
        (Some((_, name)), _) => format!("did you mean {name}?"),
        (None, false) => format!("known are {}", known.join(", ")),
        (None, true) => "nothing can be set here".into(),
    };
    format!("{what} {unknown}; {advice}")
}

/// What stands in the file for something that is written as text.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected text or a number")]
enum Written {
    Integer(i64),
    Number(f64),
    Text(String),
}

/// Anything that can be read from text, which may be a plain number.
pub fn text<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = match Written::deserialize(from)? {
        Written::Integer(number) => number.to_string(),
        Written::Number(number) => number.to_string(),
        Written::Text(text) => text,
    };
    text.parse().map(Some).map_err(D::Error::custom)
}

/// A number within `low..=high`.
pub fn number<'de, D, T>(from: D, [low, high]: [T; 2]) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + PartialOrd + Display,
{
    match T::deserialize(from)? {
        number if low <= number && number <= high => Ok(number),
        number => Err(D::Error::custom(format!(
            "expected a number from {low} to {high}, got {number}"
        ))),
    }
}

pub fn engine<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Engine>, D::Error> {
    match &*String::deserialize(from)? {
        "auto" => Ok(None),
        name => name.parse().map(Some).map_err(D::Error::custom),
    }
}

pub fn fps<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f32>, D::Error> {
    number(from, FPS).map(Some)
}

pub fn stall<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    number(from, STALL)
}

pub fn levels<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f32>, D::Error> {
    number(from, LEVELS).map(Some)
}

pub fn pause<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    number(from, PAUSE)
}

pub fn score<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    number(from, SCORE)
}

pub fn margin<'de, D: Deserializer<'de>>(from: D) -> Result<f32, D::Error> {
    number(from, MARGIN)
}

pub fn kept<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    number(from, KEPT)
}

pub fn subjects<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    number(from, SUBJECTS)
}

#[cfg(test)]
mod tests {
    use super::super::TEMPLATE;
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        parse(text, Path::new("a.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_template_states_the_defaults() {
        let mut expected = Settings::default();
        expected.view.rotate = Some(crate::view::Rotation::default());
        assert_eq!(read(TEMPLATE), Ok(expected));
    }

    #[test]
    fn every_example_of_the_template_works() {
        // A comment has a space after its mark, an example has none.
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(example) if !example.starts_with([' ', '#']) => format!("{example}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let settings = read(&uncommented).unwrap();
        assert_eq!(settings.trigger.len(), 2);
        assert_eq!(settings.sink.json[0].keep, 5);
        assert!(settings.sinks().is_ok());
        assert!(settings.source.address.unwrap().is_live());
        #[cfg(feature = "mqtt")]
        {
            let mqtt = &settings.sink.mqtt[0];
            let mut plain = crate::sink::mqtt::MqttSettings::new(&mqtt.url);
            plain.id.clone_from(&mqtt.id);
            plain.user.clone_from(&mqtt.user);
            plain.password_file.clone_from(&mqtt.password_file);
            plain.password_env.clone_from(&mqtt.password_env);
            plain.ca.clone_from(&mqtt.ca);
            assert_eq!(*mqtt, plain, "the examples that have defaults state them");
        }
    }

    #[test]
    fn faults_are_told_with_their_line_and_what_was_meant() {
        for (text, expected) in [
            (
                "[pace]\nfsp = 3",
                "a.toml:2: unknown key fsp; did you mean fps?",
            ),
            (
                "[modl]\npath = 'x'",
                "a.toml:1: unknown key modl; did you mean model?",
            ),
            (
                "[source]\n\nadress = 'x'",
                "a.toml:3: unknown key adress; did you mean address?",
            ),
            (
                "[[sink.json]]\npath = 'x'\ncompress = true",
                "a.toml:3: unknown key compress; known are path, rotate, daily, keep, sync",
            ),
            (
                "[output]\nstdout = 'tabel'",
                "a.toml:2: unknown value tabel; did you mean table?",
            ),
            (
                "[pace]\nfps = 0",
                "a.toml:2: expected a number from 0.001 to 1000, got 0",
            ),
            (
                "[source]\naddress = 'ftp://x'",
                "a.toml:2: source \"ftp://x\": unknown scheme",
            ),
            ("[view]\nrotate = 45", "a.toml:2: "),
            ("[model]\nengine = 'gpu'", "a.toml:2: no engine \"gpu\""),
            ("[pace\n", "a.toml:1: "),
            (
                "[[sink.json]]\nrotate = '1MB'",
                "a.toml:1: missing field `path`",
            ),
            (
                "[detector]\nsubjects = 0",
                "a.toml:2: expected a number from 1 to 100, got 0",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn relative_paths_begin_where_the_file_lies() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("numclip.toml");
        let text = "[model]\npath = 'm'\n[[sink.csv]]\npath = '-'\n[[sink.json]]\npath = '/a/b'";
        fs::write(&file, text).unwrap();
        let settings = Settings::load(&file).unwrap();
        assert_eq!(settings.model.path, Some(place.path().join("m")));
        assert_eq!(settings.sink.csv[0].path, Path::new("-"));
        assert_eq!(settings.sink.json[0].path, Path::new("/a/b"));
    }

    #[test]
    fn a_sink_that_cannot_work_is_named() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("numclip.toml");
        fs::write(&file, "[[trigger]]\ncommand = 'x'\nuntil = 3").unwrap();
        let error = Settings::load(&file).unwrap_err().to_string();
        assert!(
            error.ends_with("exec:x: until: needs above or below"),
            "{error}"
        );
        let missing = Settings::load(&place.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none: No such file"));
    }
}
