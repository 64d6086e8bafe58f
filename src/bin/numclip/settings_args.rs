//! Flags that `numclip run` and `numclip doctor` share.

use std::fmt::Display;
use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use numclip::capture::SourceAddress;
use numclip::settings::{FPS, STALL, Settings};
use numclip::sink::SinkSpec;

use crate::EngineChoice;
use crate::view::ViewArgs;

/// A settings file, and flags that count more.
#[derive(Clone, clap::Args)]
pub struct SettingsArgs {
    /// Settings file; `numclip config init` writes one. Flags count more.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the model bundle.
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Where the frames come from.
    #[arg(short, long, value_name = "ADDRESS")]
    source: Option<SourceAddress>,
    /// Engine that runs the encoder: auto, int8 or tract [default: auto].
    #[arg(long)]
    engine: Option<EngineChoice>,
    /// Frames in a second at most.
    #[arg(long, value_name = "N", value_parser = within(FPS))]
    fps: Option<f32>,
    /// Seconds without a frame after which a camera is opened again [default: 3].
    #[arg(long, value_name = "S", value_parser = within(STALL))]
    stall: Option<f32>,
    /// Let the source wait rather than drop frames, as folders always do.
    #[arg(long)]
    every_frame: bool,
    /// Threads that share each picture: less delay, no less work [default: 1].
    #[arg(long, value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Where estimates go besides stdout; may be given several times.
    #[arg(long, value_name = "SINK")]
    sink: Vec<SinkSpec>,
    #[command(flatten)]
    view: ViewArgs,
}

impl SettingsArgs {
    /// The settings: those of the file, with the flags over them.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn settings(&self) -> Result<Settings> {
        let mut settings = match &self.config {
            Some(file) => Settings::load(file)?,
            None => Settings::default(),
        };
        if let Some(model) = &self.model {
            settings.model.path = Some(model.clone());
        }
        if let Some(source) = &self.source {
            settings.source.address = Some(source.clone());
        }
        if let Some(EngineChoice(engine)) = self.engine {
            settings.model.engine = engine;
        }
        settings.pace.fps = self.fps.or(settings.pace.fps);
        settings.pace.every_frame |= self.every_frame;
        settings.source.stall = self.stall.unwrap_or(settings.source.stall);
        settings.model.threads = self.threads.or(settings.model.threads);
        self.view.apply(&mut settings);
        self.sink.iter().for_each(|sink| settings.add(sink.clone()));
        Ok(settings)
    }
}

/// Reads a number within `low..=high`.
pub fn within<T>(
    [low, high]: [T; 2],
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Copy + Send + Sync + 'static,
{
    move |text| match text.parse() {
        Ok(number) if low <= number && number <= high => Ok(number),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}
