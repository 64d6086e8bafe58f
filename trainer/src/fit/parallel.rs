//! Several devices at work on one step: its batches are shared out among them.
//!
//! Each device holds a copy of the model; the gradients meet on the first one, which alone takes
//! the step. A step is the same whatever computes it, but for rounding (and batch statistics,
//! which follow the first device's batches).

use std::panic::resume_unwind;
use std::thread;

use burn::tensor::Device;

use super::FitError;
use super::feed::Taught;
use super::gradients::Pass;
use super::objective::Objective;
use crate::config::Config;
use crate::model::numclip::NumClip;

/// The devices of a run.
pub struct Crew<'a> {
    config: &'a Config,
    objective: Objective,
    /// Where the model is and learns.
    first: Device,
    others: Vec<Helper>,
}

/// A device beside the first.
struct Helper {
    device: Device,
    /// The model as it began: what does not learn stays on the device.
    model: NumClip,
}

impl<'a> Crew<'a> {
    /// Builds the untrained model on every device but the first.
    ///
    /// # Errors
    /// [`FitError::Idle`] when a step has fewer batches than there are devices; those of `build`.
    pub fn new(
        config: &'a Config,
        objective: Objective,
        devices: &[Device],
        build: impl Fn(&Device) -> Result<NumClip, FitError>,
    ) -> Result<Self, FitError> {
        let batches = config.train.accumulate;
        if batches < devices.len() {
            return Err(FitError::Idle {
                devices: devices.len(),
                batches,
            });
        }
        let mut devices = devices.iter().map(|device| config.training_device(device));
        let first = devices
            .next()
            .unwrap_or_else(|| config.training_device(&Device::flex()));
        let helper = |device| {
            let model = build(&device)?;
            Ok(Helper { device, model })
        };
        Ok(Self {
            config,
            objective,
            first,
            others: devices.map(helper).collect::<Result<_, FitError>>()?,
        })
    }

    /// A step without batches yet.
    pub fn begin(&self) -> Pass<'_> {
        self.pass(&self.first)
    }

    /// Adds batches of a step under the weights of `model`; so many at the same time as there are
    /// devices.
    ///
    /// # Errors
    /// Those of the batches.
    pub fn work(
        &self,
        pass: &mut Pass<'_>,
        model: &NumClip,
        mut batches: impl Iterator<Item = Result<Taught, FitError>>,
    ) -> Result<(), FitError> {
        let copies = self.copies(model);
        loop {
            let together = batches.by_ref().take(1 + self.others.len());
            let together: Vec<Taught> = together.collect::<Result<_, _>>()?;
            if together.is_empty() {
                return Ok(());
            }
            self.add(pass, model, &copies, &together);
        }
    }

    /// Copies of the model as it is now, one for each device but the first.
    fn copies(&self, model: &NumClip) -> Vec<NumClip> {
        let others = self.others.iter();
        others
            .map(|helper| model.copy_to(&helper.device, &helper.model))
            .collect()
    }

    /// Adds batches, at most one for each device, that are computed at the same time.
    fn add(&self, pass: &mut Pass<'_>, model: &NumClip, copies: &[NumClip], batches: &[Taught]) {
        let [first, rest @ ..] = batches else { return };
        thread::scope(|scope| {
            let helpers = self.others.iter().zip(copies).zip(rest);
            let parts: Vec<_> = helpers
                .map(|((helper, copy), (batch, lesson))| {
                    let copy = copy.clone();
                    scope.spawn(move || {
                        let mut part = self.pass(&helper.device);
                        part.add(&copy, batch, lesson.as_ref());
                        part
                    })
                })
                .collect();
            pass.add(model, &first.0, first.1.as_ref());
            for part in parts {
                match part.join() {
                    Ok(part) => pass.merge(model, part),
                    Err(panic) => resume_unwind(panic),
                }
            }
        });
    }

    fn pass<'b>(&'b self, device: &'b Device) -> Pass<'b> {
        Pass::new(self.config, &self.objective, device)
    }
}
