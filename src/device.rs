//! The machine itself: heat, throttling, memory, disk.
//!
//! All of it is read from files of the Linux kernel; what a machine does not
//! have is `None`, never a guess.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Where the kernel shows its hardware.
const SYS: &str = "/sys";
/// Where it shows processes.
const PROC: &str = "/proc";
/// The Raspberry Pi's firmware says here what held it back.
const PI_THROTTLED: &str = "devices/platform/soc/soc:firmware/get_throttled";
/// Bits of it that speak of now: too little voltage, frequency capped,
/// throttled, too hot. The upper half of the word tells of the past.
const PI_NOW: u32 = 0xf;

/// State of the machine at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Device {
    /// Hottest sensor in °C.
    pub temperature: Option<f32>,
    /// Whether the processor is held back: by heat, or by too little voltage.
    pub throttled: Option<bool>,
    /// Memory that this process has in use, in bytes.
    pub memory: Option<u64>,
    /// The most it ever had, in bytes.
    pub memory_peak: Option<u64>,
    /// Memory that the machine has left, in bytes.
    pub memory_free: Option<u64>,
}

impl Device {
    /// Reads the state of this machine.
    pub fn read() -> Self {
        Self::read_from(Path::new(SYS), Path::new(PROC))
    }

    fn read_from(sys: &Path, proc: &Path) -> Self {
        let process = fs::read_to_string(proc.join("self/status")).unwrap_or_default();
        let machine = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
        Self {
            temperature: temperature(sys),
            throttled: throttled(sys),
            memory: kilobytes(&process, "VmRSS:"),
            memory_peak: kilobytes(&process, "VmHWM:"),
            memory_free: kilobytes(&machine, "MemAvailable:"),
        }
    }
}

/// A name for this machine that stays: its host name, and where the system has
/// an identity, eight digits of it, as machines of one kind share their name.
pub fn identity() -> String {
    let line = |path| fs::read_to_string(path).unwrap_or_default();
    let host = line("/proc/sys/kernel/hostname");
    let machine = line("/etc/machine-id");
    let host: String = host.trim().chars().map(plain).collect();
    let machine: String = machine.trim().chars().take(8).collect();
    let parts = [host.as_str(), machine.as_str()];
    let known: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    match known.is_empty() {
        true => "device".into(),
        false => known.join("-"),
    }
}

/// Bytes left for us on the file system that holds `path`, or would.
pub fn disk_free(path: &Path) -> Option<u64> {
    let mut existing = path.to_path_buf();
    while !existing.exists() {
        existing = match existing.parent() {
            Some(parent) if parent.as_os_str().is_empty() => ".".into(),
            Some(parent) => parent.into(),
            None => return None,
        };
    }
    let disk = rustix::fs::statvfs(&existing).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn plain(letter: char) -> char {
    match letter.is_ascii_alphanumeric() {
        true => letter.to_ascii_lowercase(),
        false => '-',
    }
}

fn temperature(sys: &Path) -> Option<f32> {
    let zones = entries(&sys.join("class/thermal"), "thermal_zone");
    let degrees = zones
        .iter()
        .filter_map(|zone| number(&zone.join("temp")))
        .map(|thousandths| thousandths as f32 / 1e3)
        // Sensors that are not there give absurd values.
        .filter(|degrees| (-50.0..150.0).contains(degrees));
    degrees.reduce(f32::max)
}

fn throttled(sys: &Path) -> Option<bool> {
    if let Ok(text) = fs::read_to_string(sys.join(PI_THROTTLED)) {
        let bits = text.trim().trim_start_matches("0x");
        return u32::from_str_radix(bits, 16)
            .ok()
            .map(|bits| bits & PI_NOW != 0);
    }
    let devices = entries(&sys.join("class/thermal"), "cooling_device");
    let states = devices
        .iter()
        .filter(|device| cools_processor(device))
        .filter_map(|device| number(&device.join("cur_state")));
    states.map(|state| state > 0).reduce(|a, b| a || b)
}

/// Whether the kernel cools by slowing the processor here; fans do no harm.
fn cools_processor(device: &Path) -> bool {
    let kind = fs::read_to_string(device.join("type")).unwrap_or_default();
    let kind = kind.trim().to_lowercase();
    kind.contains("cpufreq") || kind.starts_with("processor")
}

fn entries(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(prefix))
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(named)
        .collect()
}

fn number(path: &Path) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value behind `key` in a list like `VmRSS:  1234 kB`, in bytes.
fn kilobytes(list: &str, key: &str) -> Option<u64> {
    let line = list.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        place
    }

    fn read(files: &[(&str, &str)]) -> Device {
        let place = machine(files);
        Device::read_from(place.path(), place.path())
    }

    #[test]
    fn the_hottest_sensor_counts_and_absurd_ones_do_not() {
        let device = read(&[
            ("class/thermal/thermal_zone0/temp", "41500\n"),
            ("class/thermal/thermal_zone1/temp", "62250\n"),
            ("class/thermal/thermal_zone2/temp", "-274000\n"),
        ]);
        assert_eq!((device.temperature, device.throttled), (Some(62.25), None));
    }

    #[test]
    fn a_slowed_processor_counts_and_a_fan_does_not() {
        let cooled = |kind, state| {
            read(&[
                ("class/thermal/cooling_device0/type", kind),
                ("class/thermal/cooling_device0/cur_state", state),
            ])
            .throttled
        };
        assert_eq!(cooled("thermal-cpufreq-0\n", "2\n"), Some(true));
        assert_eq!(cooled("Processor\n", "0\n"), Some(false));
        assert_eq!(cooled("pwm-fan\n", "3\n"), None);
    }

    #[test]
    fn a_raspberry_pi_tells_now_from_the_past() {
        let pi = |bits| read(&[(PI_THROTTLED, bits)]).throttled;
        assert_eq!(pi("0x0\n"), Some(false));
        assert_eq!(pi("50000\n"), Some(false));
        assert_eq!(pi("50005\n"), Some(true));
    }

    #[test]
    fn memory_is_in_bytes() {
        let device = read(&[
            (
                "self/status",
                "Name:\tnumclip\nVmHWM:\t   20 kB\nVmRSS:\t   12 kB\n",
            ),
            ("meminfo", "MemTotal: 99 kB\nMemAvailable:   1234567 kB\n"),
        ]);
        assert_eq!(device.memory, Some(12 << 10));
        assert_eq!(device.memory_peak, Some(20 << 10));
        assert_eq!(device.memory_free, Some(1_234_567 << 10));
        assert_eq!(read(&[]), Device::default());
    }

    #[test]
    fn this_machine_has_a_disk_and_a_name() {
        let place = tempfile::tempdir().unwrap();
        assert!(disk_free(&place.path().join("not/yet/there")).is_some());
        assert!(!identity().is_empty());
    }
}
