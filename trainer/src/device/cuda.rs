//! GPUs through CUDA: looked for, counted and tried before they are used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use burn::tensor::{Device, DeviceType, Tensor};
use cubecl_cuda::install::cuda_path;
use nvml_wrapper::{Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use super::DeviceError;

/// The CUDA version whose functions are called; `.cargo/config.toml` pins it.
const NEEDED: i32 = 13_000;

/// The GPUs of these numbers, each of which has run a kernel.
pub fn open(indices: &[usize]) -> Result<Vec<Device>, DeviceError> {
    check_driver()?;
    let devices = Device::enumerate(DeviceType::Cuda).into_vec();
    if devices.is_empty() {
        return Err(DeviceError::NoDevice("CUDA lists none".into()));
    }
    let count = devices.len();
    let device = |&index: &usize| {
        let device = devices.get(index).cloned();
        Ok((index, device.ok_or(DeviceError::Index { index, count })?))
    };
    let chosen: Vec<(usize, Device)> = indices.iter().map(device).collect::<Result<_, _>>()?;
    if !cuda_path().is_some_and(|path| path.join("include").is_dir()) {
        return Err(DeviceError::NoHeaders);
    }
    let tried = chosen.into_iter().map(|(index, device)| {
        try_out(index, &device)?;
        Ok(device)
    });
    tried.collect()
}

/// Share of time in which the GPUs computed lately, 0 to 1, the mean over them.
pub fn busy(indices: &[usize]) -> Option<f64> {
    let nvml = nvml().as_ref().ok()?;
    let share = |&index: &usize| -> Option<f64> {
        let device = nvml.device_by_index(index.try_into().ok()?).ok()?;
        Some(f64::from(device.utilization_rates().ok()?.gpu) / 100.0)
    };
    let shares: Vec<f64> = indices.iter().map(share).collect::<Option<_>>()?;
    Some(shares.iter().sum::<f64>() / shares.len() as f64)
}

/// Asks the driver's management library, which is there wherever the driver is (but not on
/// Jetson, where only the count of devices tells).
fn check_driver() -> Result<(), DeviceError> {
    let nvml = match nvml() {
        Ok(nvml) => nvml,
        Err(_) if cfg!(target_arch = "aarch64") => return Ok(()),
        Err(message) => return Err(DeviceError::NoDevice(message.clone())),
    };
    match nvml.sys_cuda_driver_version() {
        Ok(version) if version < NEEDED => Err(DeviceError::OldDriver {
            got: spelled(version),
            needed: spelled(NEEDED),
        }),
        _ => Ok(()),
    }
}

fn nvml() -> &'static Result<Nvml, String> {
    static NVML: OnceLock<Result<Nvml, String>> = OnceLock::new();
    NVML.get_or_init(|| Nvml::init().map_err(|error| error.to_string()))
}

fn spelled(version: i32) -> String {
    let (major, minor) = (
        cuda_driver_version_major(version),
        cuda_driver_version_minor(version),
    );
    format!("{major}.{minor}")
}

/// Compiles and runs a kernel. What is missing at this point (NVRTC, a working driver) makes the
/// libraries below panic.
fn try_out(index: usize, device: &Device) -> Result<(), DeviceError> {
    let broken = |message: String| DeviceError::Broken { index, message };
    let doubled = || {
        let ones = Tensor::<1>::ones([2], device);
        ones.mul_scalar(2.0).sum().into_scalar::<f32>()
    };
    match catch_unwind(AssertUnwindSafe(doubled)) {
        Ok(4.0) => Ok(()),
        Ok(sum) => Err(broken(format!("2 + 2 gives {sum}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
            Err(broken(text.unwrap_or_else(|| "the runtime gave up".into())))
        }
    }
}
