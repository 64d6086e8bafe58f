//! The machine itself: processor, heat, memory, clock, cameras.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::thread::available_parallelism;
use std::time::{Duration, SystemTime};

use numclip::device::Device;
use numclip::record::rfc3339;

use super::Check;

/// From here on heat is worth a word, in °C.
const WARM: f32 = 75.0;
/// Less free memory than this is little, in bytes.
const LITTLE_MEMORY: u64 = 64 << 20;
/// Clocks before this moment were never set: 2025-01-01, in seconds.
const NEVER_SET: Duration = Duration::from_secs(1_735_689_600);

/// Everything about the machine.
pub fn checks() -> Vec<Check> {
    let device = Device::read();
    let mut checks = vec![processor()];
    checks.extend(device.temperature.map(temperature));
    checks.extend(device.throttled.map(throttling));
    checks.extend(device.memory_free.map(memory));
    checks.push(clock(SystemTime::now()));
    checks.extend(cameras());
    checks
}

fn processor() -> Check {
    let cores = available_parallelism().map_or(1, |cores| cores.get());
    let features = features().join(", ");
    let features = if features.is_empty() {
        "none"
    } else {
        &features
    };
    let found = format!("{cores} cores, int8 instructions: {features}");
    Check::ok("processor", found)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("AVX-VNNI", std::arch::is_x86_feature_detected!("avxvnni")),
        (
            "AVX-512 VNNI",
            std::arch::is_x86_feature_detected!("avx512vnni"),
        ),
    ];
    present(&known)
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    let known = [
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
        (
            "dotprod",
            std::arch::is_aarch64_feature_detected!("dotprod"),
        ),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
    ];
    present(&known)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn present(known: &[(&'static str, bool)]) -> Vec<&'static str> {
    let present = known.iter().filter(|(_, present)| *present);
    present.map(|(name, _)| *name).collect()
}

fn temperature(degrees: f32) -> Check {
    let found = format!("{degrees:.1} °C");
    match degrees < WARM {
        true => Check::ok("temperature", found),
        false => Check::warn(
            "temperature",
            found,
            "improve the cooling, or lower the load with --fps or --budget",
        ),
    }
}

fn throttling(throttled: bool) -> Check {
    match throttled {
        false => Check::ok("throttling", "none"),
        true => Check::warn(
            "throttling",
            "the processor is held back now",
            "check cooling and power supply (a Raspberry Pi wants its own)",
        ),
    }
}

fn memory(free: u64) -> Check {
    let found = format!("{} MiB free", free >> 20);
    match free >= LITTLE_MEMORY {
        true => Check::ok("memory", found),
        false => Check::warn("memory", found, "stop other programs, or add swap"),
    }
}

fn clock(now: SystemTime) -> Check {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let found = rfc3339(now);
    match since.is_ok_and(|since| since >= NEVER_SET) {
        true => Check::ok("clock", found),
        false => Check::warn(
            "clock",
            found,
            "it was never set, and times will be wrong: enable NTP (timedatectl set-ntp true)",
        ),
    }
}

/// Cameras of the kernel, where there are any.
fn cameras() -> Option<Check> {
    let entries = fs::read_dir("/dev").ok()?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("video"))
        .collect();
    names.sort();
    if names.is_empty() {
        return None;
    }
    let denied = |name: &&String| {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/dev/{name}"));
        opened.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    let denied: Vec<&str> = names.iter().filter(denied).map(String::as_str).collect();
    Some(match denied.is_empty() {
        true => Check::ok("cameras", names.join(", ")),
        false => Check::warn(
            "cameras",
            format!("no permission for {}", denied.join(", ")),
            "sudo usermod -aG video \"$USER\", then log in again",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_is_out_of_order_is_said() {
        let at = |seconds| clock(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).verdict;
        for (got, expected) in [
            (at(100), Verdict::Warn),
            (at(1_800_000_000), Verdict::Ok),
            (temperature(50.0).verdict, Verdict::Ok),
            (temperature(85.0).verdict, Verdict::Warn),
            (throttling(true).verdict, Verdict::Warn),
            (memory(10 << 20).verdict, Verdict::Warn),
            (memory(1 << 30).verdict, Verdict::Ok),
        ] {
            assert_eq!(got, expected);
        }
    }
}
