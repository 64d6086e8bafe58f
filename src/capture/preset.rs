//! Command lines of the programs that read cameras, streams and clips.

use super::address::Query;
use super::command::{Program, StreamFormat};
use crate::frame::PixelFormat;

const CAMERA_KEYS: &[&str] = &["size", "fps"];
const FPS: [f32; 2] = [0.1, 1000.0];

/// A network camera. Its whole address goes to ffmpeg.
pub fn rtsp(address: &str) -> Program {
    let input = "-rtsp_transport tcp -fflags nobuffer -flags low_delay -i";
    Program {
        address: Some(address.into()),
        ..ffmpeg(input, address, true)
    }
}

/// A video file, every frame of it; `realtime` plays it at its own speed,
/// `loop` for ever.
pub fn clip(path: &str, query: &Query<'_>) -> Result<Program, String> {
    query.only(&["loop", "realtime"])?;
    let mut input = String::new();
    if query.flag("loop")? {
        input += "-stream_loop -1 ";
    }
    let live = query.flag("realtime")?;
    if live {
        input += "-re ";
    }
    Ok(ffmpeg(&(input + "-i"), path, live))
}

/// A camera of Video4Linux. JPEG pictures are passed on as they are.
pub fn v4l2(device: &str, query: &Query<'_>) -> Result<Program, String> {
    query.only(&["size", "fps", "format"])?;
    if device.is_empty() {
        return Err("no device; write v4l2:///dev/video0".into());
    }
    let mut input = String::from("-f v4l2");
    if let Some((width, height)) = query.size()? {
        input += &format!(" -video_size {width}x{height}");
    }
    if let Some(fps) = query.number("fps", FPS)? {
        input += &format!(" -framerate {fps}");
    }
    let format = query.get("format");
    if let Some(format) = format {
        if !format.chars().all(|c| c.is_ascii_alphanumeric()) || format.is_empty() {
            return Err(format!(
                "format={format}: expected a name as in mjpeg, yuyv422, nv12"
            ));
        }
        input += &format!(" -input_format {format}");
    }
    input += " -i";
    if format != Some("mjpeg") {
        return Ok(ffmpeg(&input, device, true));
    }
    let mut program = ffmpeg(&input, device, true);
    program.format = StreamFormat::Mjpeg;
    let pixels = ["-c:v", "ppm", "-f", "image2pipe", "-"].len();
    program.arguments.truncate(program.arguments.len() - pixels);
    program.arguments.extend(words("-c:v copy -f mjpeg -"));
    Ok(program)
}

/// A CSI camera of a Jetson.
pub fn csi(sensor: &str, query: &Query<'_>) -> Result<Program, String> {
    let sensor = index("sensor", sensor)?;
    let (width, height) = query.only(CAMERA_KEYS)?.size()?.unwrap_or((1280, 720));
    let fps = query.number("fps", [1, 240])?.unwrap_or(30);
    let pipeline = format!(
        "gst-launch-1.0 -q nvarguscamerasrc sensor-id={sensor} \
         ! video/x-raw(memory:NVMM),width={width},height={height},framerate={fps}/1 \
         ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=RGB \
         ! fdsink fd=1"
    );
    Ok(Program {
        arguments: words(&pipeline).collect(),
        format: StreamFormat::Pixels {
            size: (width, height),
            format: PixelFormat::Rgb,
        },
        live: true,
        address: None,
    })
}

/// A camera of a Raspberry Pi.
pub fn rpicam(camera: &str, query: &Query<'_>) -> Result<Program, String> {
    let camera = index("camera", camera)?;
    let (width, height) = query.only(CAMERA_KEYS)?.size()?.unwrap_or((1280, 720));
    let fps = query.number("fps", FPS)?.unwrap_or(30.0);
    let command = format!(
        "rpicam-vid --camera {camera} --timeout 0 --nopreview --codec mjpeg --flush \
         --width {width} --height {height} --framerate {fps} --output -"
    );
    Ok(Program {
        arguments: words(&command).collect(),
        format: StreamFormat::Mjpeg,
        live: true,
        address: None,
    })
}

/// ffmpeg that writes PPM pictures, which state their size.
fn ffmpeg(input: &str, address: &str, live: bool) -> Program {
    let start = words("ffmpeg -hide_banner -loglevel error -nostdin");
    let end = words("-an -c:v ppm -f image2pipe -");
    let address = std::iter::once(address.to_owned());
    Program {
        arguments: start
            .chain(words(input))
            .chain(address)
            .chain(end)
            .collect(),
        format: StreamFormat::Ppm,
        live,
        address: None,
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split_whitespace().map(String::from)
}

fn index(what: &str, text: &str) -> Result<u8, String> {
    match text {
        "" => Ok(0),
        text => text
            .parse()
            .map_err(|_| format!("{what} {text:?}: expected a number, as in 0")),
    }
}
