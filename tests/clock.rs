//! Clocks that are wrong, and keys and signatures that have ended, as a device
//! meets them: by its own side of the conversation, with a clock that is given.

use std::fs;

use assert_cmd::Command;
use jiff::Timestamp;
use numclip::flash::{Allow, Delivery};
use numclip::package::Package;
use numclip::signature::{Signature, Term, time};

use crate::flash::{Workshop, over_pipes_at};

const ANY_CLOCK: Allow = Allow {
    downgrade: false,
    any_clock: true,
};

fn at(text: &str) -> Timestamp {
    time(text).unwrap()
}

/// What the device says of the package, where its clock says `now`.
fn sent(
    now: &str,
    shop: &Workshop,
    package: &(Package, Signature),
    allow: Allow,
) -> Result<Delivery, String> {
    let (sent, _) = over_pipes_at(at(now), shop, package, allow, usize::MAX);
    sent.map_err(|error| {
        assert!(!error.may_be_repeated(), "{error}");
        error.to_string()
    })
}

#[test]
fn a_device_holds_times_against_its_clock_and_keeps_serving() {
    let shop = Workshop::new();
    let key = shop.device().join("trust.d/release.pub");
    let text = fs::read_to_string(&key).unwrap();
    let text = text.replacen('\n', " expires 2030-01-01T00:00:00Z\n", 1);
    fs::write(&key, text).unwrap();
    let package = |version: &str, signed: &str, expires: Option<&str>| {
        let (package, _) = shop.package(version);
        let term = Term {
            signed: at(signed),
            expires: expires.map(at),
        };
        let signature = shop.sign_for(&package, term);
        (package, signature)
    };
    let first = package("1.0.0", "2027-01-01", None);
    let installed = sent("2027-01-02", &shop, &first, Allow::default());
    assert_eq!(installed, Ok(Delivery::Installed));
    let next = package("1.1.0", "2027-03-01", Some("2027-06-01"));
    let late = package("1.2.0", "2030-02-01", None);
    for (now, package, words) in [
        (
            "1970-01-01",
            &next,
            ["1970-01-01T00:00:00Z", "set the clock"],
        ),
        (
            "2027-02-01",
            &next,
            ["2027-03-01T00:00:00Z", "set the clock"],
        ),
        (
            "2027-06-02",
            &next,
            ["expired on 2027-06-01", "sign the package again"],
        ),
        ("2030-01-02", &next, ["expired on 2030-01-01", "newer key"]),
        (
            "2030-02-01",
            &late,
            ["had expired on 2030-01-01", "newer key"],
        ),
    ] {
        let refused = sent(now, &shop, package, Allow::default()).unwrap_err();
        assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
        assert_eq!(shop.serving(), "1.0.0", "{now}");
    }
    // A key that was lost needs no end.
    let revoked = shop.device().join("trust.d/revoked");
    fs::write(&revoked, format!("{} # stolen\n", next.1.id())).unwrap();
    let refused = sent("2027-03-02", &shop, &next, Allow::default()).unwrap_err();
    assert!(refused.contains("revoked"), "{refused}");
    fs::remove_file(&revoked).unwrap();
    // No clock is asked to know that a key signed after its end.
    sent("1970-01-01", &shop, &late, ANY_CLOCK).unwrap_err();
    let installed = sent("1970-01-01", &shop, &next, ANY_CLOCK);
    assert_eq!(installed, Ok(Delivery::Installed));
    assert_eq!(shop.serving(), "1.1.0");
}

#[test]
fn what_minisign_signed_by_hand_has_no_times() {
    let shop = Workshop::new();
    let (package, signature) = shop.package("1.0.0");
    let comment = signature.trusted_comment();
    let (statement, term) = comment.split_once(" signed ").unwrap();
    assert!(at(term) <= Timestamp::now(), "{comment}");
    let signature = shop.sign_as(&package, statement);
    let installed = sent("1970-01-01", &shop, &(package, signature), Allow::default());
    assert_eq!(installed, Ok(Delivery::Installed));
}

#[test]
fn ends_are_given_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let numclip = |arguments: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
        let output = command.current_dir(&folder).args(arguments).output();
        let output = output.unwrap();
        let words = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(words).unwrap(),
        )
    };
    let keygen = |name: &str, expires: &str| {
        numclip(&["keygen", name, "--no-passphrase", "--expires", expires])
    };
    for (expires, words) in [
        ("2001-01-01", "is over already"),
        ("soon", "expected a day"),
        ("-2y", "expected"),
    ] {
        let (code, told) = keygen("key", expires);
        assert!(code == 2 && told.contains(words), "{expires}: {told}");
    }
    assert!(!folder.path().join("key.key").exists());
    let (code, told) = keygen("key", "2y");
    assert_eq!(code, 0, "{told}");
    let text = fs::read_to_string(folder.path().join("key.pub")).unwrap();
    let key: numclip::signature::PublicKey = text.parse().unwrap();
    let left = key.expires().unwrap().duration_since(Timestamp::now());
    assert!((729..732).contains(&(left.as_hours() / 24)), "{text}");
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gauge");
    assert_eq!(numclip(&["pack", model, "-o", "gauge"]).0, 0);
    let (code, told) = numclip(&[
        "sign",
        "gauge",
        "--key",
        "key.key",
        "--expires",
        "2100-01-01",
    ]);
    let ends = told.trim_end().ends_with("expires 2100-01-01T00:00:00Z");
    assert!(code == 0 && ends, "{told}");
    let (code, told) = numclip(&["verify", "gauge", "--trust", "key.pub"]);
    assert!(code == 0 && told.contains("expires"), "{told}");
}
