//! When an estimate is not an answer.

use std::str::FromStr;

use numclip::bundle::Manifest;

use crate::exit::UsageError;

/// When an estimate is not an answer.
#[derive(Clone, Copy)]
pub enum Abstain {
    /// Where the bundle is in doubt.
    Auto,
    /// And where the interval is wider than this.
    Beyond(f32),
}

impl FromStr for Abstain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let width = text.parse().ok().filter(|width: &f32| *width >= 0.0);
        let width = width.ok_or("expected `auto`, or a width in the task's unit")?;
        Ok(Self::Beyond(width))
    }
}

/// Abstaining wants a bundle that has something to go by.
pub fn check(abstain: Option<Abstain>, manifest: &Manifest) -> Result<(), UsageError> {
    let interval = manifest.interval.as_ref();
    let message = match abstain {
        Some(Abstain::Beyond(_)) if interval.is_none() => "has no interval",
        Some(Abstain::Auto) if interval.is_none_or(|interval| interval.usual.is_none()) => {
            "does not know what is usual; name a width, or fit it with `numclip calibrate`"
        }
        _ => return Ok(()),
    };
    Err(UsageError(format!("--abstain: this bundle {message}")))
}
