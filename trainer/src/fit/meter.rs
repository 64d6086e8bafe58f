//! How fast a run is, what it takes, and whether images hold it up.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use indicatif::BinaryBytes;
use serde::Serialize;

use crate::device::{Load, Opened};

/// How often the load of devices is asked for.
const SAMPLE: Duration = Duration::from_secs(1);

/// The clock of one epoch.
pub struct Meter<'a> {
    devices: &'a Opened,
    started: Instant,
    waited: Duration,
    images: usize,
    sampled: Instant,
    load: Load,
    /// Sum and number of the samples of how busy the GPUs are.
    busy: (f64, u32),
    machines: usize,
}

/// How fast an epoch was so far, as `speed.jsonl` holds it.
///
/// It has a file of its own: the measurements of a run are the same whenever it is repeated, its
/// speed is not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Epoch, from 1.
    pub epoch: usize,
    /// What computed: `cpu`, `cuda:0`.
    pub device: String,
    /// The most machines that computed a step together.
    pub machines: usize,
    /// Time since the epoch began or was resumed, in seconds.
    pub seconds: f64,
    /// Images in that time.
    pub images: usize,
    /// Images in a second.
    pub images_per_second: f64,
    /// Share of the time in which the devices waited for images, 0 to 1.
    pub waiting: f64,
    /// Memory of the process, in bytes.
    pub host_memory: Option<u64>,
    /// Memory that the GPUs hold for this process, in bytes.
    pub device_memory: Option<u64>,
    /// Share of the time in which the GPUs computed, 0 to 1.
    pub device_busy: Option<f64>,
}

impl<'a> Meter<'a> {
    /// Starts the clock.
    pub fn start(devices: &'a Opened) -> Self {
        let now = Instant::now();
        Self {
            devices,
            started: now,
            waited: Duration::ZERO,
            images: 0,
            sampled: now,
            load: devices.load(),
            busy: (0.0, 0),
            machines: 1,
        }
    }

    /// Counts the time that `images` takes to come as waiting.
    pub fn wait<T>(&mut self, images: impl FnOnce() -> T) -> T {
        let asked = Instant::now();
        let images = images();
        self.waited += asked.elapsed();
        images
    }

    /// So many machines compute a step together.
    pub fn note_machines(&mut self, machines: usize) {
        self.machines = self.machines.max(machines);
    }

    /// A step over so many images is done.
    pub fn add(&mut self, images: usize) {
        self.images += images;
        if self.sampled.elapsed() >= SAMPLE {
            self.sampled = Instant::now();
            self.load = self.devices.load();
            if let Some(busy) = self.load.busy {
                self.busy = (self.busy.0 + busy, self.busy.1 + 1);
            }
        }
    }

    /// What the clock says of epoch `epoch`, from 1.
    pub fn speed(&self, epoch: usize) -> Speed {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let (busy, samples) = self.busy;
        Speed {
            epoch,
            device: self.devices.name.clone(),
            machines: self.machines,
            seconds,
            images: self.images,
            images_per_second: self.images as f64 / seconds,
            waiting: self.waited.as_secs_f64() / seconds,
            host_memory: host_memory(),
            device_memory: self.load.memory,
            device_busy: (samples > 0).then(|| busy / f64::from(samples)),
        }
    }
}

/// A few words for the progress line.
impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, waiting) = (self.images_per_second, self.waiting * 100.0);
        write!(f, "{rate:.0} images/s")?;
        if self.machines > 1 {
            write!(f, " by {} machines", self.machines)?;
        }
        write!(f, ", {waiting:.0} % waiting for them")?;
        if let Some(bytes) = self.host_memory {
            write!(f, ", {}", BinaryBytes(bytes))?;
        }
        if let Some(bytes) = self.device_memory {
            write!(f, ", {}: {}", self.device, BinaryBytes(bytes))?;
        }
        match self.device_busy {
            Some(busy) => write!(f, ", {:.0} % busy", busy * 100.0),
            None => Ok(()),
        }
    }
}

/// Memory of this process that is in RAM, in bytes; none where the system does not say.
fn host_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Choice;

    #[test]
    fn waiting_is_told_from_computing() {
        let devices = Choice::Cpu.open().unwrap();
        let mut meter = Meter::start(&devices);
        let pause = Duration::from_millis(20);
        for _ in 0..3 {
            assert_eq!(meter.wait(|| std::thread::sleep(pause)), ());
            meter.add(4);
        }
        std::thread::sleep(4 * pause);
        let speed = meter.speed(7);
        assert_eq!((speed.epoch, speed.images), (7, 12));
        assert!(speed.seconds >= 0.14);
        let rate = speed.images as f64 / speed.seconds;
        assert!((speed.images_per_second - rate).abs() < 1e-9);
        // Sleeps may be longer than asked, in either part.
        assert!(speed.waiting * speed.seconds >= 0.06 && speed.waiting < 1.0);
    }

    #[test]
    fn the_words_leave_out_what_is_not_known() {
        let mut speed = Speed {
            epoch: 1,
            device: "cuda:0".into(),
            machines: 1,
            seconds: 2.0,
            images: 100,
            images_per_second: 50.0,
            waiting: 0.031,
            host_memory: None,
            device_memory: None,
            device_busy: None,
        };
        assert_eq!(speed.to_string(), "50 images/s, 3 % waiting for them");
        speed.machines = 3;
        assert_eq!(
            speed.to_string(),
            "50 images/s by 3 machines, 3 % waiting for them"
        );
        speed.machines = 1;
        speed.host_memory = Some(3 << 29);
        speed.device_memory = Some(5 << 31);
        speed.device_busy = Some(0.97);
        assert_eq!(
            speed.to_string(),
            "50 images/s, 3 % waiting for them, 1.50 GiB, cuda:0: 10.00 GiB, 97 % busy"
        );
    }
}
