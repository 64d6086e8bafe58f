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
    let formats = camera.formats.as_deref().unwrap_or_default();
    for format in formats {
        if let Some(name) = format.name {
            text += &format!("   {name:6} {}\n", sizes(format));
        }
    }
    let others: Vec<&str> = formats
        .iter()
        .filter(|format| format.name.is_none())
        .map(|format| format.code.trim())
        .filter(|code| code.chars().all(|c| c.is_ascii_alphanumeric()) && !code.is_empty())
        .collect();
    if !others.is_empty() {
        text += &format!("   not understood: {}\n", others.join(", "));
    }
    text
}

/// Every size with the highest rate at that size.
fn sizes(format: &CameraFormat) -> String {
    let mut text = Vec::new();
    for (width, height, rates) in &format.sizes {
        let rate = rates
            .last()
            .map(|rate| format!(" ({} fps)", (10.0 * rate).round() / 10.0));
        text.push(format!("{width}x{height}{}", rate.unwrap_or_default()));
    }
    text.join(", ")
}
