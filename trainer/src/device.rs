//! What to compute on: the processor, or NVIDIA GPUs where the feature `cuda` is built in.
//!
//! GPUs are looked for and counted before anything of CUDA is called: without a driver, or with an
//! old one, there is an error that says what to do.

#[cfg(feature = "cuda")]
mod cuda;

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a run is to compute on: `auto`, `cpu`, `cuda`, `cuda:1` or `cuda:0,1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Choice {
    /// The first GPU that works, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// GPUs by their numbers, from 0; the batches of a step are shared out among them.
    Cuda(Vec<usize>),
}

/// Why there is no device of the kind asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The program was built without CUDA.
    #[error(
        "this trainer was built without CUDA; build it with `cargo build --release -p \
         numclip-trainer --features cuda`, or take --device cpu"
    )]
    NotBuilt,
    /// No GPU is to be seen.
    #[error(
        "no NVIDIA GPU found ({0}); install NVIDIA's driver, give the container its GPUs \
         (--gpus all), or take --device cpu"
    )]
    NoDevice(String),
    /// The driver is older than what the program was built for.
    #[error(
        "the NVIDIA driver speaks CUDA {got}, this trainer needs {needed} or newer; update the \
         driver, or take --device cpu"
    )]
    OldDriver {
        /// Version of CUDA that the driver speaks.
        got: String,
        /// Version needed.
        needed: String,
    },
    /// The compiler's headers are missing.
    #[error(
        "no CUDA headers found: kernels are compiled while training, with NVRTC; install the CUDA \
         toolkit (or its packages cuda-nvrtc and cuda-cudart-dev) and set CUDA_PATH to its folder, \
         or take --device cpu"
    )]
    NoHeaders,
    /// There are fewer GPUs.
    #[error("there is no cuda:{index}: this machine shows {count} GPUs, counted from 0")]
    Index {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A GPU does not compute.
    #[error(
        "cuda:{index} cannot run a kernel: {message}; check NVRTC (libnvrtc) and the driver with \
         nvidia-smi, or take --device cpu"
    )]
    Broken {
        /// Its number.
        index: usize,
        /// What happened.
        message: String,
    },
}

/// Devices that are ready to compute.
#[derive(Clone, Debug)]
pub struct Opened {
    /// At least one; the first holds the model.
    pub devices: Vec<Device>,
    /// `cpu`, `cuda:0` or `cuda:0,1`.
    pub name: String,
    /// What `auto` found wrong with the GPUs.
    pub note: Option<String>,
}

/// What devices hold and do at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Memory that the GPUs hold for this process, in bytes.
    pub memory: Option<u64>,
    /// Share of the last moment in which the GPUs computed, 0 to 1, the mean over them.
    pub busy: Option<f64>,
}

impl Choice {
    /// Makes the devices ready.
    ///
    /// # Errors
    /// [`DeviceError`] says what is missing; never for `auto` and `cpu`.
    pub fn open(&self) -> Result<Opened, DeviceError> {
        match self {
            Self::Cpu => Ok(Opened::cpu(None)),
            Self::Cuda(indices) => Ok(Opened {
                devices: gpus(indices)?,
                name: self.to_string(),
                note: None,
            }),
            Self::Auto => match Self::Cuda(vec![0]).open() {
                Ok(opened) => Ok(opened),
                Err(DeviceError::NotBuilt) => Ok(Opened::cpu(None)),
                Err(error) => Ok(Opened::cpu(Some(format!("computing on the CPU: {error}")))),
            },
        }
    }
}

impl Opened {
    fn cpu(note: Option<String>) -> Self {
        Self {
            devices: vec![Device::flex()],
            name: "cpu".into(),
            note,
        }
    }

    /// The device that holds the model.
    pub fn first(&self) -> &Device {
        &self.devices[0]
    }

    /// What the devices hold and do now; nothing for the processor.
    pub fn load(&self) -> Load {
        let usage = self.devices.iter().map(Device::memory_pool_usage);
        let memory: Option<Vec<u64>> = usage.map(|usage| Some(usage?.bytes_reserved)).collect();
        Load {
            memory: memory.map(|bytes| bytes.iter().sum()),
            busy: self.busy(),
        }
    }

    #[cfg(feature = "cuda")]
    fn busy(&self) -> Option<f64> {
        match self.name.parse() {
            Ok(Choice::Cuda(indices)) => cuda::busy(&indices),
            _ => None,
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn busy(&self) -> Option<f64> {
        None
    }
}

#[cfg(feature = "cuda")]
fn gpus(indices: &[usize]) -> Result<Vec<Device>, DeviceError> {
    cuda::open(indices)
}

#[cfg(not(feature = "cuda"))]
fn gpus(_: &[usize]) -> Result<Vec<Device>, DeviceError> {
    Err(DeviceError::NotBuilt)
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected auto, cpu, cuda, cuda:N or cuda:N,M,…, got `{text}`");
        match (text, text.strip_prefix("cuda:")) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(vec![0])),
            (_, None) => Err(wrong()),
            (_, Some(list)) => {
                let indices = list.split(',').map(|index| index.trim().parse().ok());
                let indices: Vec<usize> = indices.collect::<Option<_>>().ok_or_else(wrong)?;
                let repeated = |(n, index)| indices[..n].contains(index);
                match indices.iter().enumerate().any(repeated) {
                    true => Err(format!("`{text}` names a GPU twice")),
                    false => Ok(Self::Cuda(indices)),
                }
            }
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(indices) => {
                let indices: Vec<String> = indices.iter().map(usize::to_string).collect();
                write!(f, "cuda:{}", indices.join(","))
            }
        }
    }
}

impl TryFrom<String> for Choice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Choice> for String {
    fn from(choice: Choice) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written() {
        for (text, choice) in [
            ("auto", Choice::Auto),
            ("cpu", Choice::Cpu),
            ("cuda:0", Choice::Cuda(vec![0])),
            ("cuda:1,0", Choice::Cuda(vec![1, 0])),
        ] {
            assert_eq!(text.parse(), Ok(choice.clone()));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(vec![0])));
        for wrong in ["", "gpu", "cuda:", "cuda:a", "cuda:-1", "cuda:0,0", "cuda0"] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        for choice in [Choice::Auto, Choice::Cpu] {
            assert!(!choice.open().unwrap().devices.is_empty());
        }
        let cpu = Choice::Cpu.open().unwrap();
        assert_eq!((cpu.name.as_str(), cpu.load()), ("cpu", Load::default()));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_a_way_out() {
        // No machine has so many.
        let error = Choice::Cuda(vec![4000]).open().unwrap_err();
        let message = error.to_string();
        let helps = message.contains("--device cpu") || matches!(error, DeviceError::Index { .. });
        assert!(helps, "{message}");
    }
}
