//! RAUC bundles, looked at by RAUC itself. Skipped where it is not installed
//! (Debian: `apt install rauc squashfs-tools openssl`).

use std::fs;
use std::path::Path;
use std::process::{Command as Process, Output};

use assert_cmd::Command;

use crate::flash::Workshop;

/// Runs a program; `None` where there is none.
fn run(program: &str, arguments: &[&str], place: &Path) -> Option<Output> {
    let mut command = Process::new(program);
    match command.args(arguments).current_dir(place).output() {
        Ok(output) => Some(output),
        Err(_) => {
            eprintln!("skipped: no {program} on this machine");
            None
        }
    }
}

fn said(output: &Output) -> String {
    let words = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&words).into_owned()
}

/// A certificate and its key.
fn certify(place: &Path) -> Option<()> {
    let arguments = [
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem",
        "-days", "2", "-subj", "/CN=test",
    ];
    let made = run("openssl", &arguments, place)?;
    assert!(made.status.success(), "{}", said(&made));
    Some(())
}

fn export(place: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
    command.args(["export-rauc", "tiny-1.0.0", "--compatible", "test board"]);
    command.args(more).current_dir(place).output().unwrap()
}

#[test]
fn rauc_knows_and_trusts_what_was_exported() {
    let shop = Workshop::new();
    let place = shop.at("");
    if run("rauc", &["--version"], &place).is_none()
        || run("mksquashfs", &["-version"], &place).is_none()
        || certify(&place).is_none()
    {
        return;
    }
    let (package, _) = shop.package("1.0.0");
    let keys = ["--cert", "cert.pem", "--key", "key.pem"];
    for (out, more) in [
        ("handler.raucb", &[][..]),
        ("slot.raucb", &["--slot", "model"][..]),
    ] {
        let made = export(&place, &[&keys[..], &["-o", out], more].concat());
        assert!(made.status.success(), "{}", said(&made));
        let info = run("rauc", &["info", "--keyring=cert.pem", out], &place).unwrap();
        let words = said(&info);
        assert!(info.status.success(), "{words}");
        assert!(
            words.contains("test board") && words.contains("1.0.0"),
            "{words}"
        );
        let extract = ["extract", "--keyring=cert.pem", out, &format!("{out}.d")];
        let extracted = run("rauc", &extract, &place).unwrap();
        assert!(extracted.status.success(), "{}", said(&extracted));
    }

    // What RAUC would run on the device.
    let folder = shop.at("handler.raucb.d");
    let copy = fs::read(folder.join("tiny-1.0.0.numclip")).unwrap();
    assert_eq!(copy, fs::read(package.path()).unwrap());
    let script = fs::read_to_string(folder.join("install.sh")).unwrap();
    assert!(script.contains("dir:///var/lib/numclip"), "{script}");
    let image = shop.at("slot.raucb.d").join("tiny-1.0.0.squashfs");
    let image = image.to_str().unwrap();
    let listed = run("unsquashfs", &["-d", "model", image], &place).unwrap();
    assert!(listed.status.success(), "{}", said(&listed));
    numclip::bundle::Bundle::open(&shop.at("model")).unwrap();

    // Nothing under the final name, and nothing beside it, when RAUC fails.
    let before = fs::read_dir(&place).unwrap().count();
    let made = export(
        &place,
        &["--cert", "cert.pem", "--key", "none.pem", "-o", "bad.raucb"],
    );
    assert_eq!(made.status.code(), Some(1));
    assert!(said(&made).contains("rauc"), "{}", said(&made));
    assert_eq!(fs::read_dir(&place).unwrap().count(), before);
}

#[test]
fn a_handler_installs_in_the_store() {
    let shop = Workshop::new();
    let place = shop.at("");
    shop.package("1.0.0");
    let store = shop.device().display().to_string();
    let made = export(&place, &["--folder", "out", "--store", &store]);
    assert!(made.status.success(), "{}", said(&made));
    let program = assert_cmd::cargo::cargo_bin!("numclip");
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let installed = Process::new("/bin/sh")
        .arg(shop.at("out").join("install.sh"))
        .env("RAUC_BUNDLE_MOUNT_POINT", shop.at("out"))
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(installed.status.success(), "{}", said(&installed));
    numclip::bundle::Bundle::open(&shop.device()).unwrap();
}

#[test]
fn settings_that_would_break_the_manifest_are_refused() {
    let shop = Workshop::new();
    let place = shop.at("");
    shop.package("1.0.0");
    for more in [
        &["--slot", "model]\n[image.rootfs"][..],
        &["--store", "/a\nb"],
        &["--compatible", "a\nb"],
    ] {
        let made = export(&place, &[more, &["--folder", "out"]].concat());
        assert!(!made.status.success(), "{more:?}");
        assert!(!shop.at("out").exists());
    }
}
