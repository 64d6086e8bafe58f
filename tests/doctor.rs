//! `numclip config` and `numclip doctor` as a user meets them.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

use crate::reload::write_version;

/// Exit code, standard output and standard error.
fn numclip(place: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(place)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn settings_are_written_once_and_checked_with_their_line() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let file = place.join("a.toml");
    assert_eq!(numclip(place, &["config", "init", "a.toml"]).0, 0);
    let written = fs::read_to_string(&file).unwrap();
    assert_eq!(numclip(place, &["config", "init"]).1, written);
    let (code, _, stderr) = numclip(place, &["config", "init", "a.toml"]);
    assert!(code == 2 && stderr.contains("is there already"), "{stderr}");
    assert_eq!(numclip(place, &["config", "check", "a.toml"]).0, 0);
    fs::write(&file, format!("{written}\n[htp]\n")).unwrap();
    let line = written.lines().count() + 2;
    let (code, _, stderr) = numclip(place, &["config", "check", "a.toml"]);
    assert!(
        code == 2 && stderr.contains(&format!("a.toml:{line}: unknown key htp")),
        "{stderr}"
    );
}

#[test]
fn a_run_without_model_source_or_sinks_says_what_to_set() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    write_version(&place.join("model"), "1.0.0");
    fs::write(place.join("a.toml"), "[output]\nstdout = 'none'").unwrap();
    let (model, source) = (["--model", "model"], ["--source", "synth:gauge"]);
    for (arguments, reason) in [
        (vec![], "--source"),
        (source.to_vec(), "--model"),
        (
            [&["--config", "a.toml"], &model[..], &source].concat(),
            "would go nowhere",
        ),
        (vec!["--sink", "json:a?keep=x"], "keep"),
    ] {
        let (code, _, stderr) = numclip(place, &[&["run"], &arguments[..]].concat());
        assert!(code == 2 && stderr.contains(reason), "{stderr}");
    }
}

#[test]
fn a_doctor_finds_what_is_broken() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    write_version(&place.join("model"), "1.0.0");
    let examine = |more: &[&str]| -> (i32, Vec<(String, String)>) {
        let arguments = [&["doctor", "--model", "model", "--json"], more].concat();
        let (code, stdout, stderr) = numclip(place, &arguments);
        let report: Value = serde_json::from_str(&stdout).expect(&stderr);
        assert_eq!(report["passed"], code == 0);
        let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
        let checks = report["checks"].as_array().unwrap().iter();
        (
            code,
            checks
                .map(|check| (text(check, "name"), text(check, "verdict")))
                .collect(),
        )
    };
    let verdict = |checks: &[(String, String)], name: &str| {
        let check = checks.iter().find(|check| check.0 == name);
        check.map(|check| check.1.clone())
    };
    let healthy = [
        "--source",
        "synth:gauge?size=64&fps=50",
        "--sink",
        "json:a.jsonl",
    ];
    let (code, checks) = examine(&healthy);
    assert_eq!(code, 0, "{checks:?}");
    for name in ["model", "engine tract", "source", "file"] {
        assert_eq!(verdict(&checks, name).as_deref(), Some("ok"), "{checks:?}");
    }
    fs::write(
        place.join("a.toml"),
        "keep = { frames = 3, folder = 'kept' }",
    )
    .unwrap();
    let (_, checks) = examine(&["--config", "a.toml"]);
    assert_eq!(verdict(&checks, "kept pictures").as_deref(), Some("ok"));
    let sick = ["--source", "nowhere/", "--sink", "csv:/proc/a.csv"];
    let (code, checks) = examine(&sick);
    assert_eq!(code, 1, "{checks:?}");
    assert_eq!(verdict(&checks, "source").as_deref(), Some("fail"));
    for (more, name) in [
        (["--detector", "none.onnx"], "detector"),
        #[cfg(feature = "http")]
        (["--http", "0.0.0.0:8080"], "page"),
    ] {
        let (code, checks) = examine(&more);
        assert_eq!(
            (code, verdict(&checks, name).as_deref()),
            (1, Some("fail")),
            "{checks:?}"
        );
    }
    #[cfg(feature = "mqtt")]
    {
        let (code, checks) = examine(&["--sink", "mqtt://127.0.0.1:1"]);
        assert_eq!(
            (code, verdict(&checks, "broker").as_deref()),
            (1, Some("fail"))
        );
    }
    let encoder = place.join("model/encoder.onnx");
    fs::write(&encoder, "torn").unwrap();
    let (code, checks) = examine(&[]);
    assert_eq!(
        (code, verdict(&checks, "model").as_deref()),
        (1, Some("fail"))
    );
}
