//! The `numclip` binary as a user meets it.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{picture, write_bundle};

/// A folder with a bundle in `model` and, in `photos`, two good pictures and
/// one in a subfolder.
fn workplace() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_bundle(&folder.path().join("model"));
    for (name, seed) in [
        ("photos/b.png", 1),
        ("photos/a.jpg", 2),
        ("photos/deep/a.bmp", 3),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture(40, 30, seed).save(path).unwrap();
    }
    folder
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Vec<Value> {
        let lines = self.stdout.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The file names of the pictures, in the order printed.
    fn sources(&self) -> Vec<String> {
        let source = |record: &Value| record["source"].as_str().unwrap().replace('\\', "/");
        self.json().iter().map(source).collect()
    }
}

fn numclip(folder: &Path, args: &[&str]) -> Ran {
    with_stdin(folder, args, "")
}

fn with_stdin(folder: &Path, args: &[&str], stdin: &str) -> Ran {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(folder)
        .args(args)
        .write_stdin(stdin)
        .output()
        .unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn predict(folder: &Path, args: &[&str]) -> Ran {
    numclip(folder, &[&["predict", "--model", "model"], args].concat())
}

#[test]
fn folders_globs_and_lists_give_pictures_in_order() {
    let place = workplace();
    let all = ["photos/a.jpg", "photos/b.png", "photos/deep/a.bmp"];
    for (args, expected) in [
        (&["photos"][..], &all[..]),
        (&["photos/**/a.*"], &[all[0], all[2]]),
        (&["photos/*.{png,jpg}"], &all[..2]),
        (&["**/deep/*"], &all[2..]),
        (&["photos/b.png", "photos/a.jpg"], &[all[1], all[0]]),
        (&["photos", "--threads", "1"], &all[..]),
    ] {
        let ran = predict(place.path(), &[args, &["--json"]].concat());
        assert_eq!(
            (ran.code, ran.sources()),
            (0, expected.iter().map(ToString::to_string).collect()),
            "{args:?} {}",
            ran.stderr
        );
    }
    let list = "photos/b.png\n\nphotos/deep/a.bmp\n";
    let ran = with_stdin(
        place.path(),
        &["predict", "--model", "model", "-", "--json"],
        list,
    );
    assert_eq!(ran.sources(), all[1..]);
}

#[test]
fn an_estimate_as_json_has_every_field() {
    let place = workplace();
    let ran = predict(place.path(), &["photos/b.png", "--json"]);
    let record = &ran.json()[0];
    let number = |value: &Value| value.as_f64().unwrap();
    let probabilities: Vec<f64> = record["probabilities"]
        .as_array()
        .unwrap()
        .iter()
        .map(number)
        .collect();
    let best = record["bin"]["index"].as_u64().unwrap() as usize;
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-5);
    assert_eq!(number(&record["bin"]["probability"]), probabilities[best]);
    assert_eq!(record["bin"]["label"], ["green", "ripe", "overripe"][best]);
    let value = number(&record["value"]);
    let expected: f64 = probabilities
        .iter()
        .zip([1.0, 4.0, 9.0])
        .map(|(p, v)| p * v)
        .sum();
    assert!((value - expected).abs() < 1e-4, "{value} {expected}");
    let (low, high) = (
        number(&record["interval"][0]),
        number(&record["interval"][1]),
    );
    assert!(
        low <= value && value <= high && high - low >= 0.5,
        "{record}"
    );
    assert_eq!(
        (&record["unit"], &record["frame"]),
        (&"days".into(), &0.into())
    );
    assert!(
        record["time"]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .is_ok()
    );
    for stage in ["decode", "preprocess", "encode", "estimate"] {
        assert!(number(&record["latency_ms"][stage]) >= 0.0);
    }
    assert_eq!(
        (&record["model"]["name"], &record["model"]["version"]),
        (&"tiny".into(), &"0.1.0".into())
    );
    assert_eq!(record["model"]["sha256"].as_str().unwrap().len(), 64);
}

#[test]
fn a_batch_goes_on_over_bad_pictures() {
    let place = workplace();
    let bad = |name: &str, bytes: &[u8]| {
        fs::write(place.path().join("photos").join(name), bytes).unwrap()
    };
    let good = fs::read(place.path().join("photos/a.jpg")).unwrap();
    bad("empty.jpg", b"");
    bad("cut.jpg", &good[..good.len() - 30]);
    bad("text.png", b"not a picture");
    bad("huge.bmp", &huge_bmp());
    let ran = predict(
        place.path(),
        &["photos", "photos/gone.jpg", "nothing/*.jpg"],
    );
    assert_eq!(
        (ran.code, ran.stdout.lines().count()),
        (1, 3),
        "{}",
        ran.stderr
    );
    for reason in [
        "empty.jpg: the file is empty",
        "cut.jpg: the file ends in the middle",
        "text.png: not a JPEG, PNG, WebP, BMP or TIFF",
        "huge.bmp: 20000×20000 pixels, more than the limit of 16384",
        "gone.jpg: No such file",
        "nothing/*.jpg: no file matches",
        "3 pictures in",
        "6 failed",
    ] {
        assert!(ran.stderr.contains(reason), "{reason}: {}", ran.stderr);
    }
    let ran = predict(place.path(), &["photos", "--json"]);
    let failed: Vec<Value> = ran
        .json()
        .into_iter()
        .filter(|record| record["error"].is_string())
        .collect();
    assert_eq!((ran.code, failed.len(), ran.json().len()), (1, 4, 7));
    let ran = predict(place.path(), &["photos/empty.jpg", "photos/text.png"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
}

/// A header that promises 20,000 × 20,000 pixels.
fn huge_bmp() -> Vec<u8> {
    let mut bytes = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    for side in [20_000_u32, 20_000] {
        bytes.extend(side.to_le_bytes());
    }
    bytes.extend(b"\x01\0\x18\0");
    bytes.extend([0; 24]);
    bytes
}

#[test]
fn labels_from_a_csv_are_compared() {
    let place = workplace();
    let csv = "file,days,fold\nphotos/a.jpg,3,1\nphotos/b.png,4.5,2\nphotos/deep/a.bmp,9,2\n";
    fs::write(place.path().join("labels.csv"), csv).unwrap();
    let columns = [
        "--csv",
        "labels.csv",
        "--path-column",
        "file",
        "--label-column",
        "days",
    ];
    let ran = predict(
        place.path(),
        &[&columns[..], &["--where", "fold=2", "--json"]].concat(),
    );
    let records = ran.json();
    assert_eq!((ran.code, records.len()), (0, 3), "{}", ran.stderr);
    let value = |index: usize| records[index]["value"].as_f64().unwrap();
    let mae = ((value(0) - 4.5).abs() + (value(1) - 9.0).abs()) / 2.0;
    let metrics = &records[2]["metrics"];
    assert!(
        (metrics["mae"].as_f64().unwrap() - mae).abs() < 1e-5,
        "{metrics}"
    );
    assert_eq!(
        (&metrics["count"], &records[0]["label"]),
        (&2.into(), &4.5.into())
    );
    let ran = predict(place.path(), &columns);
    assert!(
        ran.stdout.contains("MAE") && ran.stdout.contains("error at most 2"),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_bad_csv_is_named_with_its_line() {
    let place = workplace();
    for (csv, args, expected) in [
        (
            "path,label\na.jpg,1\nb.jpg,high\n",
            &[][..],
            "labels.csv:3: label \"high\"",
        ),
        (
            "path,label\na.jpg,NaN\n",
            &[],
            "labels.csv:2: label \"NaN\", expected a number from 0 to 10",
        ),
        ("path,label\na.jpg,11\n", &[], "labels.csv:2: label \"11\""),
        (
            "path,grade\na.jpg,1\n",
            &[],
            "no column \"label\" (--label-column); the header has: path, grade",
        ),
        (
            "path,label\na.jpg,1\n",
            &["--where", "fold=2"],
            "no column \"fold\" (--where)",
        ),
        (
            "path,label\na.jpg,1\n",
            &["--where", "label=2"],
            "none of its 1 rows is selected",
        ),
        ("path,label\na.jpg\n", &[], "line: 2"),
    ] {
        fs::write(place.path().join("labels.csv"), csv).unwrap();
        let ran = predict(place.path(), &[&["--csv", "labels.csv"], args].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{csv}");
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    }
    let ran = predict(place.path(), &["--csv", "absent.csv"]);
    assert_eq!(ran.code, 4);
}

#[test]
fn annotated_pictures_are_drawn() {
    let place = workplace();
    let ran = predict(place.path(), &["photos", "--annotate", "out"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for name in ["out/a.png", "out/b.png", "out/deep/a.png"] {
        let drawn = image::open(place.path().join(name)).unwrap().into_rgb8();
        assert_eq!(drawn.dimensions(), (640 + 400, 480), "{name}");
        let panel = drawn.enumerate_pixels().filter(|(x, ..)| *x >= 640);
        let (ink, paper): (Vec<_>, Vec<_>) = panel.partition(|(.., pixel)| pixel.0 != [255; 3]);
        assert!(
            ink.len() > 4000 && paper.len() > 100_000,
            "{name}: {} {}",
            ink.len(),
            paper.len()
        );
    }
    let before = fs::read(place.path().join("photos/b.png")).unwrap();
    let ran = predict(place.path(), &["photos", "--annotate", "photos"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("would overwrite"), "{}", ran.stderr);
    assert_eq!(fs::read(place.path().join("photos/b.png")).unwrap(), before);
}

#[test]
fn a_whole_bundle_is_verified_and_described() {
    let place = workplace();
    let ran = numclip(place.path(), &["verify", "model"]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    // Three files, and the one engine that runs floats.
    assert_eq!(ran.stdout.matches("ok").count(), 4, "{}", ran.stdout);
    let report = &numclip(place.path(), &["verify", "model", "--json"]).json()[0];
    assert_eq!(
        (&report["passed"], report["files"].as_array().unwrap().len()),
        (&true.into(), 3)
    );
    let engines = report["engines"].as_array().unwrap();
    let ran_by = |engine: &&Value| engine["passed"] == true;
    let golden = &engines.iter().find(ran_by).unwrap()["golden"][1];
    let apart = golden["value"].as_f64().unwrap() - golden["expected"].as_f64().unwrap();
    assert!(
        apart.abs() < 1e-4 && golden["cosine"].as_f64().unwrap() > 0.999_99,
        "{golden}"
    );
    let ran = numclip(place.path(), &["inspect", "model"]);
    for part in [
        "tiny",
        "ripeness, 0.00 to 10.00 days",
        "overripe",
        "8×8 RGB",
        "1.250 days",
        "seeded random",
        "MIT",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let manifest = place.path().join("model/bundle.toml");
    let mut text = fs::read_to_string(&manifest).unwrap();
    let second = text[text.find("[[report]]").unwrap()..].replace("k = 2.0", "k = 3.0");
    text += &second[..second[1..]
        .find("\n[[report")
        .map_or(second.len(), |end| end + 1)];
    fs::write(&manifest, text).unwrap();
    let ran = numclip(place.path(), &["inspect", "model"]);
    assert!(ran.stdout.contains("within 2"), "{}", ran.stdout);
    let described = &numclip(place.path(), &["inspect", "model", "--json"]).json()[0];
    assert_eq!(described["manifest"]["bins"]["bin"][2]["label"], "overripe");
}

#[test]
fn every_damaged_file_is_found() {
    let place = workplace();
    for name in ["encoder.onnx", "bins.safetensors", "golden.safetensors"] {
        let path = place.path().join("model").join(name);
        let whole = fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        fs::write(&path, damaged).unwrap();
        let verified = numclip(place.path(), &["verify", "model"]);
        assert_eq!(verified.code, 3);
        assert_eq!(
            verified.stdout.matches("failed").count(),
            1,
            "{}",
            verified.stdout
        );
        for ran in [
            verified,
            predict(place.path(), &["photos"]),
            numclip(place.path(), &["inspect", "model"]),
        ] {
            assert_eq!(ran.code, 3);
            assert!(
                ran.stderr.contains(&format!("{name}: SHA-256 is ")),
                "{}",
                ran.stderr
            );
        }
        fs::remove_file(&path).unwrap();
        let ran = predict(place.path(), &["photos"]);
        assert!(ran.code == 3 && ran.stderr.contains(name), "{}", ran.stderr);
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn manifests_that_do_not_fit_are_refused_by_field() {
    let place = workplace();
    let path = place.path().join("model/bundle.toml");
    let whole = fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("schema = 1", "schema = 2", "schema 2 is newer than 1"),
        ("schema = 1", "", "schema: expected a number"),
        (
            "schema = 1",
            "schema = 1\ncolour = 3",
            "unknown field `colour`",
        ),
        ("size = 8", "size = 9", "0.tensor: expected F32 [3, 9, 9]"),
        ("dim = 4", "dim = 5", "embeddings: expected F32 [3, 5]"),
        (
            "values = [1.0, ",
            "values = [",
            "regressor.values: expected 3 numbers, got 2",
        ),
        ("range = [0.0, 10.0]", "range = [0.0, nan]", "task.range"),
        (
            "path = \"encoder.onnx\"",
            "path = \"../encoder.onnx\"",
            "../encoder.onnx is used but has no SHA-256",
        ),
        ("[model]", "[model", "bundle.toml: "),
    ] {
        assert!(whole.contains(from), "{from} in {whole}");
        fs::write(&path, whole.replacen(from, to, 1)).unwrap();
        let ran = predict(place.path(), &["photos"]);
        assert_eq!(ran.code, 3, "{from} → {to}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    }
    let ran = numclip(place.path(), &["predict", "--model", "photos", "photos"]);
    assert!(
        ran.code == 3 && ran.stderr.contains("a bundle is a folder with bundle.toml"),
        "{}",
        ran.stderr
    );
}

#[test]
fn parity_that_is_off_fails_without_blaming_the_bundle() {
    let place = workplace();
    let mut contents = crate::common::contents();
    contents.golden.cases[1].value += 1.0;
    let ok = |_: &Path| Ok::<(), numclip::bundle::BundleError>(());
    numclip::bundle::write(
        &place.path().join("off"),
        crate::common::manifest(),
        &contents,
        ok,
    )
    .unwrap();
    let ran = numclip(place.path(), &["verify", "off"]);
    assert_eq!(
        (ran.code, ran.stdout.matches("failed").count()),
        (1, 1),
        "{}",
        ran.stdout
    );
}

#[test]
fn wrong_usage_is_told_apart() {
    let place = workplace();
    for args in [
        &["predict", "photos"][..],
        &["predict", "--model", "model"],
        &[
            "predict", "--model", "model", "photos", "--engine", "abacus",
        ],
        &["predict", "--model", "model", "photos", "--threads", "0"],
        &[
            "predict", "--model", "model", "--csv", "x.csv", "--where", "fold",
        ],
        &["paint"],
    ] {
        let ran = numclip(place.path(), args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}");
    }
    for args in [&["--help"][..], &["predict", "--help"], &["--version"]] {
        assert_eq!(numclip(place.path(), args).code, 0);
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    let place = workplace();
    let binary = assert_cmd::cargo::cargo_bin!("numclip");
    let script = format!(
        "'{}' predict --model model $(for i in $(seq 400); do echo photos/a.jpg; done) --json | head -n 1; echo ${{PIPESTATUS[0]}}",
        binary.display()
    );
    let output = Command::new("bash")
        .current_dir(place.path())
        .args(["-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().count() == 2 && text.ends_with("\n0\n"),
        "{text}"
    );
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn bench_says_what_it_measured() {
    let place = workplace();
    let image = ["--image", "photos/b.png", "--seconds", "0.05"];
    let bench = |more: &[&str]| {
        let args = [&["bench", "--model", "model"], &image[..], more].concat();
        numclip(place.path(), &args)
    };
    let ran = bench(&["--json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let [measured] = ran.json().try_into().unwrap();
    for stage in ["decode", "preprocess", "encode", "estimate", "all"] {
        let times = &measured["milliseconds"][stage];
        let of = |name: &str| times[name].as_f64().unwrap();
        let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"].map(of);
        assert!(
            0.0 <= p50 && p50 <= p90 && p90 <= p99 && p99 <= max,
            "{stage}: {times}"
        );
    }
    let number = |name: &str| measured[name].as_f64().unwrap();
    assert!(number("first_estimate_ms") >= number("load_ms"));
    let median = measured["milliseconds"]["all"]["p50"].as_f64().unwrap();
    assert!((number("frames_per_second") * median - 1e3).abs() < 1.0);
    assert!(number("lowest_golden_cosine") > 0.999);
    assert!(number("frames") >= 1.0);
    let memory = measured["peak_memory_bytes"].as_f64();
    assert!(memory.is_none_or(|bytes| bytes > 1e6));
    assert_eq!(measured["threads"], 1);
}

#[test]
fn bench_tells_what_each_layer_takes() {
    let gauge = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gauge");
    let bench = |more: &[&str]| {
        let args = ["bench", "--model", gauge, "--layers", "--seconds", "0.05"];
        numclip(Path::new("."), &[&args[..], more].concat())
    };
    let [measured] = bench(&["--json"]).json().try_into().unwrap();
    let layers = measured["layers"].as_array().unwrap();
    let macs: u64 = layers
        .iter()
        .map(|layer| layer["macs"].as_u64().unwrap())
        .sum();
    assert_eq!(Some(macs), measured["macs"].as_u64());
    for layer in layers {
        assert!(!layer["name"].as_str().unwrap().is_empty(), "{layer}");
        assert!(layer["milliseconds"].as_f64().unwrap() >= 0.0, "{layer}");
        let share = layer["share_of_peak"].as_f64();
        assert_eq!(share.is_some(), layer["macs"].as_u64() > Some(0), "{layer}");
    }
    let text = bench(&[]).stdout;
    assert!(text.contains("depthwise 3x3"), "{text}");
    assert_eq!(bench(&["--engine", "all"]).code, 2);
    let general = bench(&["--engine", "tract"]);
    assert_eq!(general.code, 0, "{}", general.stderr);
    assert!(general.stderr.contains("cannot tell"), "{}", general.stderr);
}

#[test]
fn bench_puts_engines_side_by_side() {
    let gauge = concat!(env!("CARGO_MANIFEST_DIR"), "/models/gauge");
    let bench = |more: &[&str]| {
        let args = [
            "bench",
            "--model",
            gauge,
            "--engine",
            "all",
            "--seconds",
            "0.02",
        ];
        numclip(Path::new("."), &[&args[..], more].concat())
    };
    let ran = bench(&["--threads", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let int8 = lines[0].find("int8 (");
    assert!(int8 < lines[0].find("tract"), "{}", ran.stdout);
    assert!(int8.is_some(), "{}", ran.stdout);
    for row in ["encode, ms", "share of the peak", "lowest golden cosine"] {
        assert!(
            lines.iter().any(|line| line.starts_with(row)),
            "{row}: {}",
            ran.stdout
        );
    }
    let engines = bench(&["--json"]).json();
    let names: Vec<_> = engines.iter().map(|measured| &measured["engine"]).collect();
    assert_eq!(names, ["int8", "tract"]);
    let share = engines[0]["gmacs_per_second"].as_f64().unwrap()
        / engines[0]["peak_gmacs_per_second"].as_f64().unwrap();
    assert!((0.001..1.5).contains(&share), "{share}");
}
