//! The settings of `numclip run`: one TOML file, and what follows from it.
//!
//! Every key has a default; [`TEMPLATE`] shows all of them. Unknown keys and
//! values out of range are refused with file, line and the nearest known key.

mod read;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::capture::SourceAddress;
use crate::detect::{DetectError, Detector};
use crate::encode::Engine;
use crate::keep::Keep;
use crate::live::{self, Budget, Motion, Pace, Smoothing, Subjects};
#[cfg(feature = "http")]
use crate::serve::Place;
use crate::sink::SinkSpec;
use crate::sink::file::FileSettings;
#[cfg(feature = "mqtt")]
use crate::sink::mqtt::MqttSettings;
use crate::sink::trigger::TriggerSettings;
use crate::view::{Flip, Framing, Roi, Rotation, Turn};
use read::text;

pub use read::{SettingsError, parse};

/// A settings file with every key, its meaning and its default.
pub const TEMPLATE: &str = include_str!("settings/template.toml");

/// Accepted frames per second.
pub const FPS: [f32; 2] = [0.001, 1000.0];
/// Accepted seconds without a frame.
pub const STALL: [f32; 2] = [0.1, 3600.0];
/// Accepted levels of change.
pub const LEVELS: [f32; 2] = [0.1, 255.0];
/// Accepted seconds between estimates of an unmoving scene.
pub const PAUSE: [f32; 2] = [0.1, 86_400.0];
/// Accepted certainty of a detector.
pub const SCORE: [f32; 2] = [0.0, 1.0];
/// Accepted margin around a subject, as a share of its longer side.
pub const MARGIN: [f32; 2] = [0.0, 5.0];
/// Accepted number of kept pictures.
pub const KEPT: [usize; 2] = [0, 256];
/// Accepted number of subjects.
pub const SUBJECTS: [usize; 2] = [1, 100];

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The model.
    pub model: ModelSettings,
    /// The source.
    pub source: SourceSettings,
    /// How fast.
    pub pace: PaceSettings,
    /// What of the pictures is looked at.
    pub view: ViewSettings,
    /// Pictures that show nothing new.
    pub motion: MotionSettings,
    /// What is made of estimates over time.
    pub filter: FilterSettings,
    /// Subjects within the pictures.
    pub detector: DetectorSettings,
    /// Pictures that are kept.
    pub keep: KeepSettings,
    /// Standard output.
    pub output: OutputSettings,
    /// Files and brokers.
    pub sink: SinkSettings,
    /// What happens when the value passes a threshold.
    pub trigger: Vec<TriggerSettings>,
    /// The page, the API, metrics.
    #[cfg(feature = "http")]
    pub http: HttpSettings,
}

/// `[model]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// Folder of the bundle.
    pub path: Option<PathBuf>,
    /// The engine; the best one that fits where there is none.
    #[serde(deserialize_with = "read::engine")]
    pub engine: Option<Engine>,
    /// Threads that share each picture; one where there is none.
    pub threads: Option<NonZero<usize>>,
}

/// `[source]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceSettings {
    /// Where frames come from.
    #[serde(deserialize_with = "text")]
    pub address: Option<SourceAddress>,
    /// Seconds without a frame after which a camera is opened again.
    #[serde(deserialize_with = "read::stall")]
    pub stall: f32,
}

/// `[pace]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaceSettings {
    /// Frames in a second at most.
    #[serde(deserialize_with = "read::fps")]
    pub fps: Option<f32>,
    /// The source waits, and no frame is dropped.
    pub every_frame: bool,
    /// The most that estimates may take of the machine.
    #[serde(deserialize_with = "text")]
    pub budget: Option<Budget>,
}

/// `[view]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ViewSettings {
    /// How pictures are turned.
    #[serde(deserialize_with = "text")]
    pub rotate: Option<Rotation>,
    /// How they are mirrored after that.
    #[serde(deserialize_with = "text")]
    pub flip: Option<Flip>,
    /// The part of the upright picture that counts.
    #[serde(deserialize_with = "text")]
    pub roi: Option<Roi>,
}

/// `[motion]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MotionSettings {
    /// Levels (of 255) of a change that counts; without it every picture does.
    #[serde(deserialize_with = "read::levels")]
    pub threshold: Option<f32>,
    /// Seconds after which there is an estimate even if nothing moves.
    #[serde(deserialize_with = "read::pause")]
    pub pause: f32,
}

/// `[filter]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilterSettings {
    /// The temporal filter.
    #[serde(deserialize_with = "text")]
    pub smooth: Option<Smoothing>,
}

/// `[detector]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectorSettings {
    /// The detector's network; without it the whole picture is estimated.
    pub path: Option<PathBuf>,
    /// How sure it must be, 0 to 1.
    #[serde(deserialize_with = "read::score")]
    pub score: f32,
    /// Margin around a subject, as a share of its longer side.
    #[serde(deserialize_with = "read::margin")]
    pub margin: f32,
    /// How many subjects of a picture are estimated.
    #[serde(deserialize_with = "read::subjects")]
    pub subjects: usize,
}

/// `[keep]`
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeepSettings {
    /// How many pictures; none with 0.
    #[serde(deserialize_with = "read::kept")]
    pub frames: usize,
    /// Seconds between two of them.
    #[serde(deserialize_with = "read::pause")]
    pub every: f32,
    /// Where they lie.
    pub folder: PathBuf,
}

/// `[output]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputSettings {
    /// What is printed.
    pub stdout: Stdout,
}

/// What standard output gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stdout {
    /// A table for a person.
    #[default]
    Table,
    /// A JSON object for each estimate.
    Json,
    /// Nothing.
    None,
}

/// `[[sink.json]]`, `[[sink.csv]]`, `[[sink.mqtt]]`
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SinkSettings {
    /// Files of JSON lines.
    pub json: Vec<FileSettings>,
    /// Tables.
    pub csv: Vec<FileSettings>,
    /// Brokers.
    #[cfg(feature = "mqtt")]
    pub mqtt: Vec<MqttSettings>,
}

/// `[http]`
#[cfg(feature = "http")]
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// Where to serve; without it nothing is served.
    #[serde(deserialize_with = "text")]
    pub listen: Option<Place>,
    /// File with the token that lets people in.
    pub token_file: Option<PathBuf>,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            address: None,
            stall: 3.0,
        }
    }
}

impl Default for MotionSettings {
    fn default() -> Self {
        Self {
            threshold: None,
            pause: 60.0,
        }
    }
}

impl Default for KeepSettings {
    fn default() -> Self {
        Self {
            frames: 0,
            every: 10.0,
            folder: "/run/numclip/pictures".into(),
        }
    }
}

impl Default for DetectorSettings {
    fn default() -> Self {
        Self {
            path: None,
            score: 0.6,
            margin: 0.2,
            subjects: 8,
        }
    }
}

impl Settings {
    /// Reads the file at `path`. Relative paths in it begin where it lies.
    ///
    /// # Errors
    /// [`SettingsError`] names the line.
    pub fn load(path: &Path) -> Result<Self, SettingsError> {
        let mut settings = read::load(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        settings.begin_at(folder);
        settings
            .sinks()
            .map_err(|message| SettingsError::new(path, message))?;
        Ok(settings)
    }

    /// Every sink, with what can be checked of it checked.
    ///
    /// # Errors
    /// Which of them cannot work, and why.
    pub fn sinks(&self) -> Result<Vec<SinkSpec>, String> {
        let sink = &self.sink;
        let json = sink.json.iter().cloned().map(SinkSpec::Json);
        let csv = sink.csv.iter().cloned().map(SinkSpec::Csv);
        let trigger = self.trigger.iter().cloned().map(SinkSpec::Trigger);
        let sinks = json.chain(csv).chain(trigger);
        #[cfg(feature = "mqtt")]
        let sinks = sinks.chain(sink.mqtt.iter().cloned().map(SinkSpec::Mqtt));
        sinks
            .map(|sink| match sink.check() {
                Ok(()) => Ok(sink),
                Err(message) => Err(format!("{sink}: {message}")),
            })
            .collect()
    }

    /// Adds a sink.
    pub fn add(&mut self, sink: SinkSpec) {
        match sink {
            SinkSpec::Json(file) => self.sink.json.push(file),
            SinkSpec::Csv(file) => self.sink.csv.push(file),
            #[cfg(feature = "mqtt")]
            SinkSpec::Mqtt(mqtt) => self.sink.mqtt.push(mqtt),
            SinkSpec::Trigger(trigger) => self.trigger.push(trigger),
        }
    }

    /// What the live pipeline makes of it.
    ///
    /// # Errors
    /// [`DetectError`] when the detector cannot be loaded.
    pub fn live(&self) -> Result<live::Settings, DetectError> {
        let seconds = Duration::from_secs_f32;
        Ok(live::Settings {
            pace: Pace {
                interval: self.pace.fps.map(|fps| seconds(1.0 / fps)),
                every_frame: self.every_frame(),
            },
            stall: self.is_live().then(|| seconds(self.source.stall)),
            framing: Framing {
                turn: Turn::new(self.view.rotate.unwrap_or_default(), self.view.flip),
                roi: self.view.roi,
            },
            motion: self.motion.threshold.map(|threshold| Motion {
                threshold,
                longest_pause: seconds(self.motion.pause),
            }),
            smooth: self.filter.smooth,
            budget: self.pace.budget,
            subjects: self.detector.open()?,
            threads: self.model.threads,
        })
    }

    /// Whether no frame is passed over: asked for, or the source waits.
    pub fn every_frame(&self) -> bool {
        self.pace.every_frame || !self.is_live()
    }

    fn is_live(&self) -> bool {
        let address = self.source.address.as_ref();
        address.is_none_or(SourceAddress::is_live)
    }

    /// Has relative paths begin at `folder`.
    fn begin_at(&mut self, folder: &Path) {
        let files = self.sink.json.iter_mut().chain(&mut self.sink.csv);
        let files = files.filter(|file| !file.is_stdout());
        let paths = files.map(|file| &mut file.path);
        let single = [&mut self.model.path, &mut self.detector.path];
        let paths = paths.chain(single.into_iter().flatten());
        let paths = paths.chain([&mut self.keep.folder]);
        #[cfg(feature = "mqtt")]
        let paths = paths.chain(
            self.sink
                .mqtt
                .iter_mut()
                .flat_map(|mqtt| [&mut mqtt.password_file, &mut mqtt.ca])
                .flatten(),
        );
        #[cfg(feature = "http")]
        let paths = paths.chain(&mut self.http.token_file);
        for path in paths {
            *path = folder.join(&path);
        }
    }
}

impl KeepSettings {
    /// What is to be kept, if anything.
    pub fn keep(&self) -> Option<Keep> {
        (self.frames > 0).then(|| Keep {
            folder: self.folder.clone(),
            frames: self.frames,
            every: Duration::from_secs_f32(self.every),
        })
    }
}

impl DetectorSettings {
    fn open(&self) -> Result<Option<Subjects>, DetectError> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        Ok(Some(Subjects {
            detector: Arc::new(Detector::open(path, self.score)?),
            margin: self.margin,
            most: self.subjects,
        }))
    }
}
