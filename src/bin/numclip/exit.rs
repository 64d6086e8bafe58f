//! Exit codes, and how errors are told.

use std::io;
use std::process::ExitCode;

use anyhow::Error;
use numclip::bundle::BundleError;
#[cfg(feature = "live")]
use numclip::detect::DetectError;
use numclip::encode::EncodeError;
#[cfg(feature = "live")]
use numclip::live::LiveError;
#[cfg(feature = "live")]
use numclip::settings::SettingsError;
use numclip::verify::ReplayError;

use crate::inputs::InputError;
use crate::labels::LabelsError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All done.
    Done = 0,
    /// Failed while running, or part of a batch failed.
    Failed = 1,
    /// Flags that contradict each other or the machine.
    Usage = 2,
    /// The bundle cannot be used.
    Bundle = 3,
    /// Nothing readable among the inputs.
    Input = 4,
}

/// Flags that only prove wrong once files have been looked at.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The exit code that `error` stands for.
pub fn of(error: &Error) -> Exit {
    if error.is::<UsageError>() || is_fault_of_settings(error) {
        Exit::Usage
    } else if error.is::<InputError>() || error.is::<LabelsError>() {
        Exit::Input
    } else if error.is::<BundleError>()
        || is_fault_of_package(error)
        || is_fault_of_import(error)
        || error.downcast_ref().is_some_and(is_fault_of_bundle)
        || error.downcast_ref().is_some_and(is_fault_of_golden)
    {
        Exit::Bundle
    } else {
        Exit::Failed
    }
}

/// Prints `error` with its causes on one line of stderr.
pub fn report(error: &Error) {
    anstream::eprintln!("\x1b[1;31merror:\x1b[0m {error:#}");
}

/// Whether the reader of stdout has gone, as `head` does.
pub fn is_broken_pipe(error: &Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A region that leaves the pictures, or a detector that is none.
#[cfg(feature = "live")]
fn is_fault_of_settings(error: &Error) -> bool {
    error.is::<SettingsError>()
        || error.is::<DetectError>()
        || matches!(error.downcast_ref(), Some(LiveError::Region(_)))
}

#[cfg(not(feature = "live"))]
fn is_fault_of_settings(_: &Error) -> bool {
    false
}

fn is_fault_of_bundle(error: &EncodeError) -> bool {
    !matches!(error, EncodeError::Run { .. })
}

#[cfg(feature = "flash")]
fn is_fault_of_package(error: &Error) -> bool {
    use numclip::package::PackageError;
    use numclip::signature::SignatureError;
    let is_fault = |error: &PackageError| !matches!(error, PackageError::Io { .. });
    error.downcast_ref().is_some_and(is_fault)
        || matches!(
            error.downcast_ref(),
            Some(
                SignatureError::Foreign { .. }
                    | SignatureError::Revoked { .. }
                    | SignatureError::Wrong { .. }
                    | SignatureError::OtherPackage { .. }
                    | SignatureError::Package(_)
            )
        )
}

#[cfg(not(feature = "flash"))]
fn is_fault_of_package(_: &Error) -> bool {
    false
}

#[cfg(feature = "tract")]
fn is_fault_of_import(error: &Error) -> bool {
    use numclip::import::ImportError;
    let is_fault = |error: &ImportError| match error {
        ImportError::Encode(error) => is_fault_of_bundle(error),
        ImportError::Replay(error) => is_fault_of_golden(error),
        _ => true,
    };
    error.downcast_ref().is_some_and(is_fault)
}

#[cfg(not(feature = "tract"))]
fn is_fault_of_import(_: &Error) -> bool {
    false
}

fn is_fault_of_golden(error: &ReplayError) -> bool {
    match error {
        ReplayError::Frame { .. } => true,
        ReplayError::Encode(error) => is_fault_of_bundle(error),
        ReplayError::Differs { .. } => false,
    }
}
