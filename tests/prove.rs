//! `numclip verify --diagnose`, `predict --abstain` and `calibrate` as a user
//! meets them, on the gauge model.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use numclip::bundle::{self, Bundle, BundleError, Contents, Golden, Manifest};
use numclip::encode::Engine;
use numclip::pipeline::Pipeline;
use numclip::synth::gauge::{GaugeSpec, render};
use numclip::verify::record;
use serde_json::Value;
use tempfile::TempDir;

fn gauge() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gauge")
}

/// Exit code, JSON lines and standard error.
fn numclip(place: &Path, arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(place)
        .args(arguments)
        .output()
        .unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), lines.collect(), stderr)
}

/// The gauge model with another manifest; its golden vectors stay.
fn edited(change: impl Fn(&mut Manifest)) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&gauge()).unwrap();
    let mut manifest = bundle.manifest().clone();
    change(&mut manifest);
    write(place.path(), &bundle, manifest, bundle.golden().clone());
    place
}

fn write(place: &Path, bundle: &Bundle, manifest: Manifest, golden: Golden) {
    let encoders = bundle.manifest().encoder.iter();
    let contents = Contents {
        encoders: encoders
            .map(|encoder| (encoder.path.clone(), bundle.read_encoder(encoder).unwrap()))
            .collect(),
        embeddings: bundle.estimator().bins().embeddings().to_vec(),
        golden,
    };
    bundle::write(&place.join("model"), manifest, &contents, |_| {
        Ok::<(), BundleError>(())
    })
    .unwrap();
}

/// 0..255 where the gauge's encoder learned from -1..1. (It hardly cares for the
/// order of channels.)
fn feed_raw_pixels(manifest: &mut Manifest) {
    manifest.preprocess.mean = [0.0; 3];
    manifest.preprocess.std = [1.0 / 255.0; 3];
}

/// Renders with their labels.
fn labelled(place: &Path, count: u64) {
    let mut table = String::from("path,label,group\n");
    for index in 0..count {
        let spec = GaugeSpec::nth(4711, index);
        let name = format!("{index}.png");
        render(&spec, 160).save(place.join(&name)).unwrap();
        table += &format!("{name},{},{}\n", spec.value, index / 2);
    }
    fs::write(place.join("labels.csv"), table).unwrap();
}

fn mismatches(diagnosis: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mismatches = diagnosis["mismatches"].as_array().unwrap().iter();
    mismatches
        .map(|mismatch| (text(&mismatch["field"]), text(&mismatch["found"])))
        .collect()
}

#[test]
fn a_damaged_plan_is_named_by_the_golden_vectors() {
    use numclip::preprocess::{Channels, Filter, Resize};
    type Change = fn(&mut Manifest);
    let steps = "-1..1 in steps of 1/128";
    let damages: [(Change, &str, &str); 6] = [
        (|m| m.preprocess.channels = Channels::Bgr, "channels", "RGB"),
        (
            |m| m.preprocess.mean = [0.485, 0.456, 0.406],
            "normalisation",
            steps,
        ),
        (|m| m.preprocess.std = [1.0; 3], "normalisation", steps),
        (
            |m| m.preprocess.resize = Resize::ShorterSide { to: Some(150) },
            "resize",
            "shorter side to the size, centre crop",
        ),
        (
            |m| m.preprocess.filter = Filter::Bilinear,
            "filter",
            "bicubic",
        ),
        (
            |m| m.preprocess.antialias = false,
            "antialias",
            "with antialias",
        ),
    ];
    for (change, field, found) in damages {
        let place = edited(change);
        let arguments = ["verify", "model", "--diagnose", "--json"];
        let (code, lines, stderr) = numclip(place.path(), &arguments);
        assert_eq!(code, 1, "{field}: {stderr}");
        let diagnosis = &lines[0]["diagnosis"];
        let expected = vec![(field.to_owned(), found.to_owned())];
        assert_eq!(mismatches(&diagnosis["plan"]), expected, "{diagnosis}");
        assert!(diagnosis["engines"][0]["passed"] == true, "{diagnosis}");
    }
}

/// Plan and golden tensors were changed together: the embeddings still tell.
#[test]
fn a_plan_that_the_embeddings_contradict_is_named() {
    let place = edited(|_| ());
    let bundle = Bundle::open(&place.path().join("model")).unwrap();
    let (mut manifest, mut golden) = (bundle.manifest().clone(), bundle.golden().clone());
    feed_raw_pixels(&mut manifest);
    for case in &mut golden.cases {
        case.tensor = manifest.preprocess.tensor(&case.frame().unwrap());
    }
    write(place.path(), &bundle, manifest, golden);
    let arguments = [
        "verify",
        "model",
        "--engine",
        "int8",
        "--diagnose",
        "--json",
    ];
    let (code, lines, stderr) = numclip(place.path(), &arguments);
    let diagnosis = &lines[0]["diagnosis"];
    assert_eq!(code, 1, "{stderr}");
    assert_eq!(mismatches(&diagnosis["plan"]), [], "{diagnosis}");
    let found = mismatches(&diagnosis["embeddings"]);
    assert!(
        found.len() == 1 && found[0].0 == "normalisation",
        "{diagnosis}"
    );
}

/// Everything in the bundle agrees, but the encoder was trained on pictures
/// prepared in another way: labelled pictures tell.
#[test]
fn a_plan_that_the_encoder_was_not_trained_with_is_named() {
    let place = edited(feed_raw_pixels);
    let bundle = Bundle::open(&place.path().join("model")).unwrap();
    let pipeline = Pipeline::new(bundle.clone(), Some(Engine::Int8)).unwrap();
    let mut worker = pipeline.worker().unwrap();
    let mut golden = bundle.golden().clone();
    for case in &mut golden.cases {
        let encode = |tensor: &[f32]| worker.encode_tensor(tensor);
        let plan = &bundle.manifest().preprocess;
        *case = record(case.frame().unwrap(), plan, bundle.estimator(), encode).unwrap();
    }
    write(place.path(), &bundle, bundle.manifest().clone(), golden);
    labelled(place.path(), 32);
    let verify = ["verify", "model", "--engine", "int8", "--json"];
    assert_eq!(numclip(place.path(), &verify).0, 0);
    let arguments = [&verify[..], &["--diagnose", "--csv", "labels.csv"]].concat();
    let (code, lines, stderr) = numclip(place.path(), &arguments);
    let tried = &lines[0]["diagnosis"]["labels"];
    assert_eq!((code, &tried["pictures"]), (1, &32.into()), "{stderr}");
    let found = mismatches(&tried["better"]);
    assert!(
        found.iter().any(|(field, _)| field == "normalisation"),
        "{tried}"
    );
    let error = |value: &Value| value.as_f64().unwrap();
    assert!(
        error(&tried["better"]["after"]) < 0.5 * error(&tried["mae"]),
        "{tried}"
    );
}

#[test]
fn every_engine_is_held_against_the_golden_vectors() {
    let place = tempfile::tempdir().unwrap();
    let model = gauge();
    let (code, lines, stderr) =
        numclip(place.path(), &["verify", model.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let engines = lines[0]["engines"].as_array().unwrap();
    assert_eq!(engines.len(), Engine::ALL.len());
    for name in ["int8", "tract"] {
        let engine = engines
            .iter()
            .find(|engine| engine["engine"] == name)
            .unwrap();
        assert!(engine["cosine"].as_f64().unwrap() > 0.999, "{engine}");
        assert!(
            engine["value_difference"].as_f64().unwrap() < 0.5,
            "{engine}"
        );
        assert!(engine["latency_ms"].as_f64().unwrap() > 0.0, "{engine}");
    }
}

#[test]
fn calibrated_bundles_doubt_what_they_have_not_seen() {
    let place = tempfile::tempdir().unwrap();
    labelled(place.path(), 480);
    let model = gauge();
    let model = model.to_str().unwrap();
    let arguments = [
        "calibrate",
        model,
        "--labels",
        "labels.csv",
        "--out",
        "own",
        "--json",
    ];
    let (code, lines, stderr) = numclip(place.path(), &arguments);
    assert_eq!(code, 0, "{stderr}");
    // 120 groups of two fit it; chance alone moves the share by 3 %.
    let coverage = lines[0]["report"]["metrics"]["interval_coverage"]
        .as_f64()
        .unwrap();
    assert!((0.8..=0.99).contains(&coverage), "{lines:?}");
    assert_eq!(
        lines[0]["interval"]["usual"]["mean"]
            .as_array()
            .unwrap()
            .len(),
        11
    );
    let grey = image::RgbImage::from_pixel(90, 90, image::Rgb([120, 90, 60]));
    grey.save(place.path().join("grey.png")).unwrap();
    let (_, lines, _) = numclip(
        place.path(),
        &["predict", "--model", "own", "grey.png", "--json"],
    );
    assert_eq!(lines[0]["doubt"], "unfamiliar", "{lines:?}");
    let arguments = ["predict", "--model", "own", "--csv", "labels.csv", "--json"];
    let (_, all, _) = numclip(place.path(), &arguments);
    let arguments = [&arguments[..], &["--abstain", "1.5"]].concat();
    let (code, strict, _) = numclip(place.path(), &arguments);
    let (all, strict) = (all.last().unwrap(), strict.last().unwrap());
    let count = |report: &Value| report["metrics"]["count"].as_u64().unwrap_or(0);
    assert_eq!((code, count(all), &all["abstained"]), (0, 480, &0.into()));
    assert_eq!(
        count(strict) + strict["abstained"].as_u64().unwrap_or(480),
        480,
        "{strict}"
    );
    assert_eq!(all["by_range"].as_array().unwrap().len(), 10);
    assert_eq!(all["by_group"].as_array().unwrap().len(), 240);
}

#[test]
fn a_bundle_without_limits_cannot_abstain_by_itself() {
    let place = edited(|manifest| manifest.interval = None);
    for abstain in ["auto", "3"] {
        let arguments = ["predict", "--model", "model", "x.png", "--abstain", abstain];
        let (code, _, stderr) = numclip(place.path(), &arguments);
        assert!(code == 2 && stderr.contains("--abstain"), "{stderr}");
    }
}
