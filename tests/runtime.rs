//! The program itself onto systems: mounted ones, and behind ssh in `ssh`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use numclip::flash::{Delivery, Processor, RuntimeError, Site, install_runtime};
use tempfile::TempDir;

use crate::flash::{Workshop, place_on};

/// A folder with as much of a system in it as is looked at.
pub fn system(folder: &Path) -> PathBuf {
    for path in ["etc/systemd/system", "bin", "var/lib/numclip"] {
        fs::create_dir_all(folder.join(path)).unwrap();
    }
    fs::copy("/bin/sh", folder.join("bin/sh")).unwrap();
    folder.join("var/lib/numclip")
}

/// This build's program.
pub fn program() -> Vec<u8> {
    fs::read(assert_cmd::cargo::cargo_bin!("numclip")).unwrap()
}

/// Another program that does the same: what follows the end is not looked at.
fn other_program() -> Vec<u8> {
    [&program()[..], b"another build"].concat()
}

fn prepared() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let store = system(folder.path());
    (folder, store)
}

#[test]
fn one_command_makes_a_device_of_a_system() {
    let shop = Workshop::new();
    let root = shop.at("root");
    let store = system(&root);
    shop.package("1.0.0");
    let key = shop.device().join("trust.d/release.pub");
    let flash = || {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
            .arg("flash")
            .arg(shop.at("tiny-1.0.0"))
            .arg(format!("dir://{}", store.display()))
            .arg("--with-runtime")
            .arg(assert_cmd::cargo::cargo_bin!("numclip"))
            .arg("--trust")
            .arg(&key)
            .output()
            .unwrap();
        let words = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success(), "{words}");
        words
    };
    assert!(flash().contains("installed; program: installed"));
    let installed = root.join("usr/local/bin/numclip");
    assert_eq!(fs::read(&installed).unwrap(), program());
    let mode = fs::metadata(&installed).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    let unit = fs::read_to_string(root.join("etc/systemd/system/numclip.service")).unwrap();
    assert!(
        unit.contains("ExecStart=/usr/local/bin/numclip run"),
        "{unit}"
    );
    let wanted = root.join("etc/systemd/system/multi-user.target.wants/numclip.service");
    assert_eq!(fs::read_to_string(wanted).unwrap(), unit);
    let agent = root.join("etc/systemd/system/numclip-agent.service");
    let agent = fs::read_to_string(agent).unwrap();
    assert!(agent.contains("ExecStart=/usr/local/bin/numclip agent"));
    let watched = fs::read_to_string(store.join("device.toml")).unwrap();
    assert!(watched.contains("systemctl restart numclip"), "{watched}");
    assert_eq!(fs::read_dir(store.join("trust.d")).unwrap().count(), 1);
    // Whoever flashes a card does not run what the card says.
    let traitor = format!("health = 'touch {}'\n", shop.at("traitor").display());
    fs::write(store.join("device.toml"), traitor).unwrap();
    flash();
    numclip::flash::status_on(&store, Site::of(&store)).unwrap();
    assert!(!shop.at("traitor").exists());
    // What belongs to the owner stays as the owner wants it.
    fs::write(store.join("device.toml"), "").unwrap();
    let settings = root.join("etc/numclip/numclip.toml");
    fs::write(&settings, "# mine\n").unwrap();
    assert!(flash().contains("already there; program: skipped"));
    assert_eq!(fs::read_to_string(settings).unwrap(), "# mine\n");
    assert_eq!(fs::read_to_string(store.join("device.toml")).unwrap(), "");
}

#[test]
fn the_settings_that_are_installed_can_be_read() {
    let (folder, store) = prepared();
    install_runtime(&store, &program(), None, Site::Here).unwrap();
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .args(["config", "check"])
        .arg(folder.path().join("etc/numclip/numclip.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_program_with_which_the_service_is_not_well_goes_again() {
    let shop = Workshop::new();
    let root = shop.at("root");
    let store = system(&root);
    let (package, signature) = shop.package("1.0.0");
    let log = shop.at("restarts");
    let bin = root.join("usr/local/bin/numclip");
    let watched = format!(
        "restart = 'echo again >> {}'\nhealth = '! grep -q \"another build\" {}'\nwatch_seconds = 0\n",
        log.display(),
        bin.display()
    );
    fs::write(store.join("device.toml"), watched).unwrap();
    shop.trust(&store);
    assert_eq!(
        install_runtime(&store, &program(), None, Site::Here).unwrap(),
        Delivery::Installed
    );
    assert!(!log.exists(), "nothing serves yet");
    place_on(&store, (&package, &signature)).unwrap();
    let error = install_runtime(&store, &other_program(), None, Site::Here).unwrap_err();
    assert!(matches!(error, RuntimeError::Unhealthy { .. }), "{error}");
    assert!(error.to_string().contains("runs again"), "{error}");
    assert_eq!(fs::read(&bin).unwrap(), program());
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 2);
}

#[test]
fn what_is_no_program_for_the_device_is_refused_with_the_reason() {
    let (folder, store) = prepared();
    let refused = |store: &Path, program: &[u8]| {
        install_runtime(store, program, None, Site::Here)
            .unwrap_err()
            .to_string()
    };
    install_runtime(&store, &program(), None, Site::Here).unwrap();
    let installed = || fs::read(folder.path().join("usr/local/bin/numclip")).unwrap();
    assert!(refused(&store, b"#!/bin/sh\n").contains("not a program"));
    // Starts, but is another program.
    let other = fs::read("/bin/true").unwrap();
    assert!(refused(&store, &other).contains("does not run there"));
    // Cut short.
    assert!(refused(&store, &program()[..4096]).contains("does not run there"));
    let mut foreign = program();
    let other = match Processor::here() == Processor::named("x86_64") {
        true => 183,
        false => 62,
    };
    foreign[18] = other;
    let error = refused(&store, &foreign);
    assert!(
        error.contains("the program is for") && error.contains("the device is"),
        "{error}"
    );
    let error = refused(&folder.path().join("store"), &program());
    assert!(error.contains("no system around"), "{error}");
    assert_eq!(installed(), program());
    fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
    fs::write(folder.path().join("usr/bin/numclip"), "of a package").unwrap();
    assert!(refused(&store, &other_program()).contains("update that package"));
}

#[test]
fn the_units_are_such_that_systemd_takes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/flash/runtime");
    let Ok(output) = Command::new("systemd-analyze")
        .arg("verify")
        .args(["numclip.service", "numclip-agent.service"].map(|unit| folder.join(unit)))
        .output()
    else {
        return eprintln!("skipped: no systemd-analyze here");
    };
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    // Of old systemd, and of a machine without numclip and its pages.
    let known = ["notify-reload", "is not executable", "failed with code 16"];
    let strange = words
        .lines()
        .find(|line| !known.iter().any(|known| line.contains(known)));
    assert_eq!(strange, None, "{words}");
}
