//! Devices whose medium is full, small or read-only, and packages of which a
//! byte is wrong. Mounting takes root: without it some tests are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use numclip::bundle::Bundle;
use numclip::flash::{Allow, Delivery, DeviceError, place};
use numclip::package::{Package, cartridge, write};
use numclip::signature::Signature;

use crate::flash::{Workshop, place_on, serving};

/// A medium of its own, unmounted when dropped.
struct Medium(PathBuf);

impl Medium {
    /// A medium of so many KiB with a device's store on it; `None` without
    /// the right to mount.
    fn new(shop: &Workshop, kibibytes: u32) -> Option<Self> {
        let path = shop.at("medium");
        fs::create_dir(&path).unwrap();
        let size = format!("size={kibibytes}k");
        let mounted = mount(&["-t", "tmpfs", "-o", &size, "none"], &path);
        if !mounted {
            eprintln!("skipped: mounting takes root");
            return None;
        }
        let medium = Self(path);
        shop.trust(&medium.device());
        Some(medium)
    }

    fn device(&self) -> PathBuf {
        self.0.join("device")
    }

    fn place(&self, (package, signature): &(Package, Signature)) -> Result<Delivery, DeviceError> {
        place_on(&self.device(), (package, signature))
    }

    fn serving(&self) -> String {
        serving(&self.device())
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        // A folder that stays mounted cannot be removed, and that is told.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(options: &[&str], path: &Path) -> bool {
    let mut command = Command::new("mount");
    let status = command
        .args(options)
        .arg(path)
        .stderr(std::process::Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn no_room_for_two_slots_is_told_before_anything_is_written() {
    let shop = Workshop::new();
    // Room for one tiny model and what is left free, not for two.
    let Some(medium) = Medium::new(&shop, 120) else {
        return;
    };
    medium.place(&shop.package("1.0.0")).unwrap();
    fs::write(medium.0.join("ballast"), vec![0; 40 << 10]).unwrap();
    let next = shop.package("1.1.0");
    let error = medium.place(&next).unwrap_err().to_string();
    assert!(
        error.contains("bytes are needed") && error.contains("are free"),
        "{error}"
    );
    assert_eq!(medium.serving(), "1.0.0");
    fs::remove_file(medium.0.join("ballast")).unwrap();
    medium.place(&next).unwrap();
    assert_eq!(medium.serving(), "1.1.0");
}

#[test]
fn a_medium_that_fills_up_meanwhile_serves_what_it_did() {
    let shop = Workshop::new();
    let Some(medium) = Medium::new(&shop, 400) else {
        return;
    };
    medium.place(&shop.package("1.0.0")).unwrap();
    let next = shop.package("1.1.0");
    let ballast = medium.0.join("ballast");
    let mut fill = |_| {
        // Whatever fits, until nothing does.
        let _ = fs::write(&ballast, vec![0; 1 << 20]);
    };
    let placed = place(
        &medium.device(),
        &next.0,
        &next.1,
        None,
        Allow::default(),
        &mut fill,
    );
    let error = placed.unwrap_err().to_string();
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(medium.serving(), "1.0.0");
    fs::remove_file(&ballast).unwrap();
    medium.place(&next).unwrap();
    assert_eq!(medium.serving(), "1.1.0");
}

#[test]
fn a_medium_that_became_read_only_serves_what_it_did() {
    let shop = Workshop::new();
    let Some(medium) = Medium::new(&shop, 400) else {
        return;
    };
    medium.place(&shop.package("1.0.0")).unwrap();
    assert!(mount(&["-o", "remount,ro"], &medium.0));
    let error = medium
        .place(&shop.package("1.1.0"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("Read-only file system"), "{error}");
    assert_eq!(medium.serving(), "1.0.0");
    let status = numclip::flash::status(&medium.device()).unwrap();
    assert_eq!(status.serving.unwrap().fault, None);
}

#[test]
fn each_byte_of_a_package_flipped_in_turn_is_refused_by_the_device() {
    let shop = Workshop::new();
    shop.package("1.1.0");
    let bytes = cartridge(&shop.at("model-1.1.0")).unwrap().bytes;
    let path = shop.at("cartridge");
    let package = write(&path, &bytes).unwrap();
    let signature = shop.sign(&package);
    // Where syncing costs nothing, if there is such a place.
    let memory = Path::new("/dev/shm");
    let folder = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let folder = folder.unwrap();
    let device = folder.path();
    shop.trust(device);
    let (whole, its_signature) = shop.package("1.0.0");
    place_on(device, (&whole, &its_signature)).unwrap();
    let serving = fs::read(device.join("current")).unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, flipped).unwrap();
        let refused = match Package::open(&path) {
            Ok(package) => place_on(device, (&package, &signature))
                .unwrap_err()
                .to_string(),
            Err(error) => error.to_string(),
        };
        assert!(refused.len() > 10, "byte {at}: {refused}");
        assert_eq!(
            fs::read(device.join("current")).unwrap(),
            serving,
            "byte {at}"
        );
    }
    Bundle::open(device).unwrap();
    fs::write(&path, &bytes).unwrap();
    assert_eq!(
        place_on(device, (&Package::open(&path).unwrap(), &signature)).unwrap(),
        Delivery::Installed
    );
}
