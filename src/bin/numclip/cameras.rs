//! `numclip cameras`: what can be written behind `camera:` and `v4l2://`.

use std::io::Write as _;

use anyhow::Result;
use numclip::capture::{CameraFormat, CameraInfo, cameras};

use crate::exit::Exit;

/// List the cameras of this machine, with formats, sizes and rates.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object for each camera.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(args: &Args) -> Result<Exit> {
    let cameras = cameras();
    let mut stdout = anstream::stdout().lock();
    for camera in &cameras {
        match args.json {
            true => writeln!(stdout, "{}", serde_json::to_string(camera)?)?,
            false => write!(stdout, "{}", text(camera))?,
        }
    }
    if cameras.is_empty() {
        anstream::eprintln!("no cameras here; without one, try numclip run --source synth:gauge");
    } else if cameras.iter().all(|camera| camera.formats.is_none()) {
        anstream::eprintln!(
            "formats: v4l2-ctl --device {} --list-formats-ext, or build numclip with --features camera",
            cameras[0].device.display()
        );
    }
    Ok(Exit::Done)
}

fn text(camera: &CameraInfo) -> String {
    let (number, device) = (camera.number, camera.device.display());
    let mut text = format!("\x1b[1m{number}\x1b[0m  {}  ({device})\n", camera.name);
    for format in camera.formats.iter().flatten() {
        text += &described(format);
    }
    text
}

fn described(format: &CameraFormat) -> String {
    let name = format.name.unwrap_or("not understood");
    let mut text = format!("   {} ({name})\n", format.code);
    for (width, height, rates) in &format.sizes {
        let rates: Vec<String> = rates.iter().map(|rate| format!("{rate:.4}")).collect();
        let rates = rates
            .iter()
            .map(|rate| rate.trim_end_matches('0').trim_end_matches('.'));
        let rates = rates.collect::<Vec<_>>().join(", ");
        text += &format!("      {width}x{height}  {rates} fps\n");
    }
    text
}
