//! Addresses of sources: what stands behind `--source`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use super::command::{Command, Program, StreamFormat};
use super::folder::Folder;
use super::gauge::GaugeCamera;
#[cfg(feature = "http")]
use super::http::WebCamera;
use super::preset;
#[cfg(all(feature = "camera", target_os = "linux"))]
use super::{CameraSettings, camera::Camera};
use super::{Source, SourceError};
use crate::decode;
use crate::frame::PixelFormat;

/// Where frames come from.
///
/// | address | frames |
/// |---|---|
/// | `photo.jpg`, `folder/`, `dir:///folder?watch` | image files, in the order of their names; with `watch` also those yet to come |
/// | `cmd:COMMAND` | a shell command that writes JPEG pictures one after the other |
/// | `cmd:COMMAND?format=rgb&size=640x480` | … plain pixels: `rgb`, `bgr`, `grey`; or `ppm` pictures, which need no size |
/// | `file:///clip.mp4`, `rtsp://…` | ffmpeg |
/// | `http://user:password@host/stream` | a network camera: a stream of JPEG pictures, or one that is fetched again and again |
/// | `v4l2:///dev/video0?size=1280x720&fps=30&format=mjpeg` | a USB camera, by ffmpeg |
/// | `camera:0?size=1280x720&fps=30&format=mjpeg` | … in this program itself (feature `camera`); formats are `yuyv`, `uyvy`, `nv12`, `rgb`, `bgr`, `grey`, `mjpeg` |
/// | `csi://0`, `rpicam://0` | gst-launch-1.0 on a Jetson, rpicam-vid on a Raspberry Pi |
/// | `synth:gauge?seed=1&size=320&fps=30` | a rendered gauge whose reading is known |
#[derive(Clone, Debug, PartialEq)]
pub struct SourceAddress {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Folder {
        path: PathBuf,
        watch: bool,
    },
    Program(Program),
    Gauge(GaugeCamera),
    #[cfg(all(feature = "camera", target_os = "linux"))]
    Camera(CameraSettings),
    #[cfg(feature = "http")]
    Web(WebCamera),
}

/// An address that names no source.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("source {address:?}: {message}")]
pub struct AddressError {
    address: String,
    message: String,
}

impl SourceAddress {
    /// Opens the source.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot be reached.
    pub fn open(&self) -> Result<Box<dyn Source>, SourceError> {
        Ok(match &self.kind {
            Kind::Folder { path, watch } => Box::new(Folder::open(path, *watch)?),
            Kind::Program(program) => Box::new(Command::start(program)?),
            Kind::Gauge(camera) => Box::new(camera.switch_on()),
            #[cfg(all(feature = "camera", target_os = "linux"))]
            Kind::Camera(settings) => Box::new(Camera::open(settings)?),
            #[cfg(feature = "http")]
            Kind::Web(camera) => Box::new(camera.open()?),
        })
    }

    /// Whether frames that come too fast are lost: a camera does not wait, a
    /// folder does.
    pub fn is_live(&self) -> bool {
        match &self.kind {
            Kind::Folder { .. } => false,
            Kind::Program(program) => program.live,
            Kind::Gauge(_) => true,
            #[cfg(all(feature = "camera", target_os = "linux"))]
            Kind::Camera(_) => true,
            #[cfg(feature = "http")]
            Kind::Web(_) => true,
        }
    }
}

/// The address without its password.
impl fmt::Display for SourceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.text))
    }
}

impl FromStr for SourceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let kind = parse(text).map_err(|message| AddressError {
            address: without_password(text),
            message,
        })?;
        Ok(Self {
            text: text.into(),
            kind,
        })
    }
}

fn parse(text: &str) -> Result<Kind, String> {
    if let Some(command) = text.strip_prefix("cmd:") {
        return parse_command(command).map(Kind::Program);
    }
    if let Some(camera) = text.strip_prefix("camera:") {
        let (camera, query) = split(camera);
        return parse_camera(camera, &Query::parse(query)?);
    }
    if let Some(scene) = text.strip_prefix("synth:") {
        let (scene, query) = split(scene);
        return match scene {
            "gauge" => GaugeCamera::from_query(&Query::parse(query)?).map(Kind::Gauge),
            other => Err(format!("no scene {other:?}; there is: gauge")),
        };
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let path = PathBuf::from(text);
        return Ok(Kind::Folder { path, watch: false });
    };
    // The query of a network address belongs to the other side.
    if scheme == "rtsp" || scheme == "rtsps" {
        return Ok(Kind::Program(preset::rtsp(text)));
    }
    #[cfg(feature = "http")]
    if scheme == "http" {
        return WebCamera::parse(text).map(Kind::Web);
    }
    if scheme == "https" {
        return Err("encrypted cameras are not spoken to; use http:// or rtsps://".into());
    }
    let (rest, query) = split(rest);
    let query = Query::parse(query)?;
    Ok(match scheme {
        "dir" => Kind::Folder {
            path: rest.into(),
            watch: query.only(&["watch"])?.flag("watch")?,
        },
        "file" if decode::is_picture(Path::new(rest)) => Kind::Folder {
            path: rest.into(),
            watch: query.only(&[])?.flag("watch")?,
        },
        "file" => Kind::Program(preset::clip(rest, &query)?),
        "v4l2" => Kind::Program(preset::v4l2(rest, &query)?),
        "csi" => Kind::Program(preset::csi(rest, &query)?),
        "rpicam" => Kind::Program(preset::rpicam(rest, &query)?),
        other => {
            return Err(format!(
                "unknown scheme {other:?}; known are dir, file, v4l2, csi, rpicam, rtsp, http, camera:, cmd: and synth:"
            ));
        }
    })
}

/// A `?` may well be part of the command: only known keys after the last one
/// are taken for a query.
fn parse_command(text: &str) -> Result<Program, String> {
    let parts = text.rsplit_once('?').and_then(|(command, query)| {
        let query = Query::parse(query).ok()?;
        Some((command, query.only(&["format", "size"]).ok()?.clone()))
    });
    let (command, query) = parts.unwrap_or((text, Query::default()));
    if command.trim().is_empty() {
        return Err("no command after cmd:".into());
    }
    let size = || {
        let missing = "plain pixels have no size of their own; add &size=WIDTHxHEIGHT";
        query.size()?.ok_or_else(|| missing.to_owned())
    };
    let pixels = |format| {
        Ok::<_, String>(StreamFormat::Pixels {
            size: size()?,
            format,
        })
    };
    let format = match query.get("format").unwrap_or("mjpeg") {
        "mjpeg" => StreamFormat::Mjpeg,
        "ppm" => StreamFormat::Ppm,
        "rgb" => pixels(PixelFormat::Rgb)?,
        "bgr" => pixels(PixelFormat::Bgr)?,
        "grey" => pixels(PixelFormat::Grey)?,
        other => {
            return Err(format!(
                "format {other:?}: expected mjpeg, ppm, rgb, bgr or grey"
            ));
        }
    };
    Ok(Program {
        arguments: ["sh", "-c", command].map(String::from).to_vec(),
        format,
        live: true,
        address: None,
    })
}

#[cfg(all(feature = "camera", target_os = "linux"))]
fn parse_camera(camera: &str, query: &Query<'_>) -> Result<Kind, String> {
    query.only(&["size", "fps", "format"])?;
    let device = match camera.parse::<u32>() {
        Ok(number) => format!("/dev/video{number}"),
        Err(_) if camera.starts_with('/') => camera.into(),
        Err(_) => {
            return Err(format!(
                "camera {camera:?}: expected a number, as in camera:0"
            ));
        }
    };
    let format = query.get("format");
    let known = super::camera::FORMATS.map(|(name, ..)| name);
    if let Some(format) = format.filter(|format| !known.contains(format)) {
        let known = known.join(", ");
        return Err(format!("format={format}: expected one of {known}"));
    }
    Ok(Kind::Camera(CameraSettings {
        device: device.into(),
        size: query.size()?,
        fps: query.number("fps", [1, 1000])?,
        format: format.map(String::from),
    }))
}

#[cfg(not(all(feature = "camera", target_os = "linux")))]
fn parse_camera(camera: &str, _: &Query<'_>) -> Result<Kind, String> {
    let device = match camera.parse::<u32>() {
        Ok(number) => format!("/dev/video{number}"),
        Err(_) => camera.into(),
    };
    Err(format!(
        "this build does not read cameras itself; write v4l2://{device} (by ffmpeg), or build numclip with --features camera"
    ))
}

fn split(text: &str) -> (&str, &str) {
    text.split_once('?').unwrap_or((text, ""))
}

/// An address of the network without its password, and without its query, in
/// which cameras take passwords as well.
pub(crate) fn without_password(text: &str) -> String {
    let network = |scheme: &str| matches!(scheme, "http" | "https" | "rtsp" | "rtsps" | "ftp");
    let Some((scheme, rest)) = text.split_once("://").filter(|(s, _)| network(s)) else {
        return text.into();
    };
    // A password may hold any sign, the one before the host included.
    let (login, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let place = host.split(['?', '#']).next().unwrap_or_default();
    match login.split_once(':') {
        Some((user, _)) if scheme.starts_with("rtsp") => format!("{scheme}://{user}:…@{place}"),
        _ => format!("{scheme}://{place}"),
    }
}

/// `key=value&key`, each key at most once.
#[derive(Clone, Debug, Default)]
pub(super) struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(format!("{key} is given twice"));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// Refuses keys that are not in `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<&Self, String> {
        match self.0.iter().find(|(key, _)| !known.contains(key)) {
            None => Ok(self),
            Some((key, _)) if known.is_empty() => Err(format!("{key}: nothing can be set here")),
            Some((key, _)) => Err(format!("{key}: unknown; known are {}", known.join(", "))),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        let pair = self.0.iter().find(|(known, _)| *known == key);
        pair.map(|(_, value)| *value)
    }

    /// Whether `key` stands there, without a value.
    pub(super) fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some("") => Ok(true),
            Some(value) => Err(format!("{key}={value}: takes no value")),
        }
    }

    /// The number behind `key`, within `range`.
    pub(super) fn number<T: FromStr + PartialOrd + fmt::Display + Copy>(
        &self,
        key: &str,
        [low, high]: [T; 2],
    ) -> Result<Option<T>, String> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if low <= number && number <= high => Ok(Some(number)),
            _ => Err(format!(
                "{key}={text}: expected a number from {low} to {high}"
            )),
        }
    }

    /// `size=WIDTHxHEIGHT`, each 1 to [`crate::decode::MAX_SIDE`].
    pub(super) fn size(&self) -> Result<Option<(u32, u32)>, String> {
        let Some(text) = self.get("size") else {
            return Ok(None);
        };
        let sides = 1..=decode::MAX_SIDE;
        let side = |text: &str| text.parse().ok().filter(|side| sides.contains(side));
        text.split_once('x')
            .and_then(|(width, height)| Some((side(width)?, side(height)?)))
            .map(Some)
            .ok_or_else(|| format!("size={text}: expected WIDTHxHEIGHT, as in 640x480"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<SourceAddress>().unwrap_err().to_string()
    }

    #[test]
    fn a_question_mark_may_belong_to_the_command() {
        let plain = parse_command("echo 'what?' | x").unwrap();
        assert_eq!(plain.arguments[2], "echo 'what?' | x");
        let raw = parse_command("a?b?format=rgb&size=4x3").unwrap();
        let format = PixelFormat::Rgb;
        assert_eq!(raw.arguments[2], "a?b");
        assert_eq!(
            raw.format,
            StreamFormat::Pixels {
                size: (4, 3),
                format
            }
        );
    }

    #[test]
    fn addresses_that_name_no_source_say_why() {
        for (text, reason) in [
            ("ftp://x", "unknown scheme"),
            ("cmd:", "no command"),
            ("cmd:x?format=rgb", "add &size"),
            ("cmd:x?format=yuv&size=2x2", "expected mjpeg"),
            ("dir:///a?wach", "known are watch"),
            ("synth:clock", "there is: gauge"),
            ("synth:gauge?fps=0", "fps=0"),
            ("v4l2:///dev/video0?size=0x3", "WIDTHxHEIGHT"),
            ("csi://first", "sensor"),
            #[cfg(not(feature = "camera"))]
            ("camera:3", "v4l2:///dev/video3"),
            #[cfg(all(feature = "camera", target_os = "linux"))]
            ("camera:x", "camera:0"),
            #[cfg(all(feature = "camera", target_os = "linux"))]
            ("camera:0?format=h264", "yuyv"),
            ("rpicam://0?fps=1&fps=2", "twice"),
        ] {
            assert!(refused(text).contains(reason), "{}", refused(text));
        }
    }

    #[test]
    fn passwords_are_never_shown() {
        let address: SourceAddress = "rtsp://me:secret@cam/1?x=2".parse().unwrap();
        assert_eq!(address.to_string(), "rtsp://me:…@cam/1");
        let address: SourceAddress = "rtsp://me:p@s/s@cam/1".parse().unwrap();
        assert_eq!(address.to_string(), "rtsp://me:…@cam/1");
        let address: SourceAddress = "rtsp://cam/1?user=me&password=x".parse().unwrap();
        assert_eq!(address.to_string(), "rtsp://cam/1");
        assert!(!refused("ftp://me:secret@host").contains("secret"));
        assert!(!refused("https://me:sec/r@et@host/?a").contains("sec"));
        let address = format!("http://cam:81/x?user=me&pwd=secret#login={}", file!());
        let address: SourceAddress = address.parse().unwrap();
        assert_eq!(address.to_string(), "http://cam:81/x");
    }

    #[test]
    fn cameras_do_not_wait_and_files_do() {
        for (text, live) in [
            ("photos", false),
            ("dir:///photos?watch", false),
            ("file:///a.png", false),
            ("file:///a.mp4", false),
            ("cmd:x", true),
            ("v4l2:///dev/video0", true),
            ("synth:gauge", true),
        ] {
            assert_eq!(
                text.parse::<SourceAddress>().unwrap().is_live(),
                live,
                "{text}"
            );
        }
    }
}
