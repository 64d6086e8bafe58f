//! The cameras of this machine.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Where the kernel lists its video devices.
const SYSTEM: &str = "/sys/class/video4linux";

/// A camera, as `numclip cameras` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CameraInfo {
    /// Its number, as in `camera:0`.
    pub number: u32,
    /// What its driver calls it.
    pub name: String,
    /// Its device file.
    pub device: PathBuf,
    /// Its pixel formats; `None` where this build cannot ask, or was refused.
    pub formats: Option<Vec<CameraFormat>>,
}

/// A pixel format of a camera.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CameraFormat {
    /// Four letters of V4L2.
    pub code: String,
    /// Name in a `camera:` address; `None` for those that are not understood.
    pub name: Option<&'static str>,
    /// Width, height, and the rates at this size in frames a second.
    pub sizes: Vec<(u32, u32, Vec<f32>)>,
}

/// The cameras of this machine, by number. Devices that only write, or give
/// anything else than pictures, are left out where this build can tell.
pub fn cameras() -> Vec<CameraInfo> {
    let entries = fs::read_dir(SYSTEM).into_iter().flatten().flatten();
    let mut cameras: Vec<CameraInfo> = entries.filter_map(|entry| camera(&entry.path())).collect();
    cameras.sort_by_key(|camera| camera.number);
    cameras
}

fn camera(entry: &Path) -> Option<CameraInfo> {
    let file = entry.file_name()?.to_str()?;
    let number = file.strip_prefix("video")?.parse().ok()?;
    let device = Path::new("/dev").join(file);
    let name = fs::read_to_string(entry.join("name")).unwrap_or_default();
    let formats = formats(&device);
    // A device that can be asked and has none is no camera.
    (formats.as_deref() != Some(&[])).then(|| CameraInfo {
        number,
        name: name.trim().into(),
        device,
        formats,
    })
}

#[cfg(not(all(feature = "camera", target_os = "linux")))]
fn formats(_: &Path) -> Option<Vec<CameraFormat>> {
    None
}

#[cfg(all(feature = "camera", target_os = "linux"))]
fn formats(device: &Path) -> Option<Vec<CameraFormat>> {
    // The library panics on answers that it does not know.
    std::panic::catch_unwind(|| driver::formats(device)).ok()?
}

#[cfg(all(feature = "camera", target_os = "linux"))]
mod driver {
    use std::path::Path;

    use v4l::frameinterval::FrameIntervalEnum;
    use v4l::framesize::FrameSizeEnum;
    use v4l::video::Capture as _;
    use v4l::{Device, FourCC, Fraction};

    use super::CameraFormat;
    use crate::capture::camera::FORMATS;

    pub fn formats(device: &Path) -> Option<Vec<CameraFormat>> {
        let device = Device::with_path(device).ok()?;
        // What cannot list formats for capturing captures nothing.
        let formats = device.enum_formats().unwrap_or_default();
        let format = |code: FourCC| CameraFormat {
            code: code.to_string(),
            name: FORMATS
                .iter()
                .find(|(_, known, _)| *known == code.repr)
                .map(|(name, ..)| *name),
            sizes: sizes(&device, code),
        };
        Some(
            formats
                .into_iter()
                .map(|described| format(described.fourcc))
                .collect(),
        )
    }

    fn sizes(device: &Device, code: FourCC) -> Vec<(u32, u32, Vec<f32>)> {
        let mut sizes = Vec::new();
        for size in device.enum_framesizes(code).unwrap_or_default() {
            match size.size {
                FrameSizeEnum::Discrete(size) => sizes.push((size.width, size.height)),
                FrameSizeEnum::Stepwise(steps) => {
                    sizes.push((steps.min_width, steps.min_height));
                    sizes.push((steps.max_width, steps.max_height));
                }
            }
        }
        let with_rates = |(width, height)| (width, height, rates(device, code, width, height));
        sizes.into_iter().map(with_rates).collect()
    }

    fn rates(device: &Device, code: FourCC, width: u32, height: u32) -> Vec<f32> {
        let rate = |interval: &Fraction| interval.denominator as f32 / interval.numerator as f32;
        let intervals = device.enum_frameintervals(code, width, height);
        let mut rates: Vec<f32> = intervals
            .unwrap_or_default()
            .iter()
            .flat_map(|interval| match &interval.interval {
                FrameIntervalEnum::Discrete(interval) => vec![rate(interval)],
                FrameIntervalEnum::Stepwise(steps) => vec![rate(&steps.max), rate(&steps.min)],
            })
            .filter(|rate| rate.is_finite())
            .collect();
        rates.sort_by(f32::total_cmp);
        rates
    }
}
