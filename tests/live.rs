//! `numclip run` as a user meets it.

use std::fs;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use serde_json::Value;

use crate::common::{
    afraid_of_the_dark, contents, golden_by_tract, outcome, picture, write_bundle, write_version,
};

fn run(source: &str, prepare: impl Fn(&std::path::Path)) -> (i32, Vec<Value>, String) {
    let place = tempfile::tempdir().unwrap();
    write_bundle(&place.path().join("model"));
    prepare(place.path());
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(place.path())
        .args([
            "-v", "run", "--model", "model", "--json", "--source", source,
        ])
        .timeout(Duration::from_secs(60))
        .output()
        .unwrap();
    outcome(output)
}

#[test]
fn a_picture_that_the_engine_fails_on_does_not_end_the_stream() {
    let (code, records, stderr) = run("photos", |place| {
        let mut contents = contents();
        let encoder = contents.encoders.get_mut("encoder.onnx").unwrap();
        *encoder = afraid_of_the_dark();
        contents.golden = golden_by_tract(&contents);
        fs::remove_dir_all(place.join("model")).unwrap();
        write_version(&place.join("model"), "0.1.0", &contents);
        fs::create_dir(place.join("photos")).unwrap();
        for (name, grey) in [("a", 250), ("b", 0), ("c", 240)] {
            let picture = image::RgbImage::from_pixel(20, 20, image::Rgb([grey; 3]));
            picture
                .save(place.join(format!("photos/{name}.png")))
                .unwrap();
        }
    });
    let sources: Vec<&str> = records
        .iter()
        .filter_map(|r| r["source"].as_str())
        .collect();
    assert_eq!(sources.len(), 2, "{stderr}");
    assert!(sources[0].ends_with("a.png") && sources[1].ends_with("c.png"));
    assert!(
        stderr.contains("b.png") && stderr.contains("not finite"),
        "{stderr}"
    );
    assert_eq!(code, 1);
}

#[test]
fn a_folder_gives_every_picture_and_ends() {
    let (code, records, stderr) = run("photos", |place| {
        fs::create_dir(place.join("photos")).unwrap();
        for seed in 0..9 {
            let path = place.join(format!("photos/{seed}.png"));
            picture(30, 20, seed).save(path).unwrap();
        }
        fs::write(place.join("photos/4.png"), "torn").unwrap();
    });
    assert_eq!((code, records.len()), (1, 8), "{stderr}");
    assert!(stderr.contains("photos/4.png: not a JPEG"), "{stderr}");
    assert!(records[7]["frame"] == 8 && records[7]["latency_ms"]["total"].is_number());
}

#[test]
fn a_camera_program_that_is_missing_is_said_at_once() {
    let start = Instant::now();
    let (code, records, stderr) = run("cmd:no-such-camera-program", |_| ());
    assert_eq!((code, records.len()), (1, 0), "{stderr}");
    assert!(stderr.contains("no-such-camera-program"), "{stderr}");
    assert!(start.elapsed() < Duration::from_secs(20));
}
