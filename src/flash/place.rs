//! A package into a folder of this machine, such as a mounted card.

use std::cell::RefCell;
use std::io::{self, Read};
use std::path::Path;

use jiff::Timestamp;

use super::device::{Allow, Device, DeviceError, Site, Stage};
use super::install::{Need, Source};
use super::wire::{Delivery, Progress};
use crate::package::{Entry, Package};
use crate::signature::{Signature, Trust};

/// Installs `package` in the store at `root`; `trust` stands in for the keys
/// that the store itself trusts. Golden vectors are replayed on this machine.
///
/// # Errors
/// [`DeviceError`].
pub fn place(
    root: &Path,
    package: &Package,
    signature: &Signature,
    trust: Option<&Trust>,
    allow: Allow,
    show: &mut dyn FnMut(Progress),
) -> Result<Delivery, DeviceError> {
    let mut device = Device::open_on(root, Site::of(root))?;
    let trust = match trust {
        Some(trust) => trust.clone(),
        None => device.trust(allow.clock(Timestamp::now()))?,
    };
    let show = RefCell::new(show);
    let mut source = Local {
        package,
        show: &mut |progress| (*show.borrow_mut())(progress),
    };
    let outcome = device.install(
        package.header(),
        signature,
        &trust,
        allow.downgrade,
        &mut source,
        &mut |stage: Stage| (*show.borrow_mut())(Progress::Stage(stage)),
    )?;
    Ok(Delivery::from(&outcome))
}

struct Local<'a> {
    package: &'a Package,
    show: &'a mut dyn FnMut(Progress),
}

impl Source for Local<'_> {
    fn announce(&mut self, needs: &[Need]) -> io::Result<()> {
        let files = &self.package.header().index().files;
        let sizes = needs
            .iter()
            .map(|need| files[need.position].packed_size - need.offset);
        (self.show)(Progress::Total(sizes.sum()));
        Ok(())
    }

    fn blob(&mut self, need: Need, _: &Entry) -> io::Result<Box<dyn Read + '_>> {
        let blob = self.package.blob(need.position, need.offset);
        let blob = blob.map_err(io::Error::other)?;
        Ok(Box::new(Counted {
            blob,
            show: self.show,
        }))
    }
}

/// Tells how much was read.
struct Counted<'a, R> {
    blob: R,
    show: &'a mut dyn FnMut(Progress),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.blob.read(buffer)?;
        (self.show)(Progress::Sent(length as u64));
        Ok(length)
    }
}
