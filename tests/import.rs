//! `numclip import` as a user meets it: encoders that others have trained.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use assert_cmd::Command;
use prost::Message as _;
use safetensors::serialize;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use tempfile::TempDir;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Size;
use tract_onnx::pb::type_proto::Value as Kind;
use tract_onnx::pb::{ModelProto, ValueInfoProto};

use crate::common::{constant, contents, integers, node, onnx_file, picture, value_info};

const TASK: &str = r#"
task = { name = "ripeness", unit = "days", range = [0, 10] }
bin = [
    { label = "green", start = 0, end = 2 },
    { label = "ripe", start = 3, end = 6 },
    { label = "overripe", start = 7, end = 10 },
]
preprocess = { size = 8, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }
data = { table = "labels.csv" }
train = { epochs = 3 }
"#;

/// A folder with the tiny encoder, its task file and its bin embeddings.
fn workplace() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let contents = contents();
    fs::write(
        place.path().join("a.onnx"),
        &contents.encoders["encoder.onnx"],
    )
    .unwrap();
    fs::write(place.path().join("task.toml"), TASK).unwrap();
    write_bins(place.path(), 3, &contents.embeddings);
    place
}

fn write_bins(place: &Path, rows: usize, values: &[f32]) {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::F32, vec![rows, values.len() / rows], &bytes).unwrap();
    let file = serialize([("rows", view)], None::<HashMap<String, String>>).unwrap();
    fs::write(place.join("bins.safetensors"), file).unwrap();
}

/// Exit code, the JSON line if there is one, and standard error.
fn import(place: &Path, more: &[&str]) -> (i32, Value, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(place)
        .args([
            "import",
            "a.onnx",
            "--task",
            "task.toml",
            "--bins",
            "bins.safetensors",
        ])
        .args(["--out", "model", "--json"])
        .args(more)
        .output()
        .unwrap();
    let line = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), line, stderr)
}

fn engine<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut engines = report["engines"].as_array().unwrap().iter();
    engines.find(|engine| engine["engine"] == name).unwrap()
}

/// The encoder's file with its graph changed.
fn change(place: &Path, change: impl Fn(&mut ModelProto)) {
    let path = place.join("a.onnx");
    let mut model = ModelProto::decode(&*fs::read(&path).unwrap()).unwrap();
    change(&mut model);
    fs::write(path, model.encode_to_vec()).unwrap();
}

fn set_size(info: &mut ValueInfoProto, at: usize, size: Size) {
    let Some(Kind::TensorType(tensor)) = info.r#type.as_mut().unwrap().value.as_mut() else {
        unreachable!("it is a tensor");
    };
    tensor.shape.as_mut().unwrap().dim[at].value = Some(size);
}

#[test]
fn a_float_encoder_becomes_a_bundle() {
    let place = workplace();
    let (code, report, stderr) = import(place.path(), &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(engine(&report, "tract")["passed"], true, "{report}");
    let refusal = engine(&report, "int8")["refusal"].as_str().unwrap();
    assert!(refusal.contains("int8"), "{refusal}");
    assert_eq!(report["report"], Value::Null, "nothing was measured");
    let bundle = numclip::bundle::Bundle::open(&place.path().join("model")).unwrap();
    assert_eq!(bundle.golden().cases.len(), 3);
    assert_eq!(bundle.manifest().interval, None);
}

#[test]
fn free_sizes_and_interleaved_pictures_are_brought_into_shape() {
    let place = workplace();
    import(place.path(), &[]);
    let open = || numclip::bundle::Bundle::open(&place.path().join("model")).unwrap();
    let plain = open().golden().cases.clone();
    change(place.path(), |model| {
        let input = &mut model.graph.as_mut().unwrap().input[0];
        set_size(input, 0, Size::DimParam("batch".into()));
        set_size(input, 2, Size::DimParam("height".into()));
        set_size(input, 3, Size::DimParam("width".into()));
    });
    assert_eq!(import(place.path(), &[]).0, 0);
    assert_eq!(open().golden().cases, plain);
    // The same network, fed row by row, with all channels of a pixel together.
    change(place.path(), |model| {
        let graph = model.graph.as_mut().unwrap();
        for (at, size) in [(0, 1), (1, 8), (2, 8), (3, 3)] {
            set_size(&mut graph.input[0], at, Size::DimValue(size));
        }
        graph.input[0].name = "pixels".into();
        let perm = integers("perm", &[0, 3, 1, 2]);
        graph
            .node
            .insert(0, node("Transpose", &["pixels"], "image", vec![perm]));
    });
    let (code, report, stderr) = import(place.path(), &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        report["notes"][0].as_str().unwrap().contains("Transpose"),
        "{report}"
    );
    assert_eq!(open().golden().cases, plain);
}

/// As ONNX Runtime's quantiser writes them, and its QOperator form.
#[test]
fn quantised_encoders_run_on_both_engines() {
    let place = workplace();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/int8");
    let task = TASK.replace("size = 8, ", "");
    fs::write(place.path().join("task.toml"), task).unwrap();
    let rows: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin() + 0.1).collect();
    write_bins(place.path(), 3, &rows);
    for name in ["qdq-s8.onnx", "qdq-u8.onnx", "qoperator-u8.onnx"] {
        fs::copy(files.join(name), place.path().join("a.onnx")).unwrap();
        let (code, report, stderr) = import(place.path(), &[]);
        assert_eq!(code, 0, "{name}: {stderr}");
        for engine in ["int8", "tract"].map(|name| engine(&report, name)) {
            assert!(
                engine["passed"] == true || engine["refusal"].is_string(),
                "{name}: {report}"
            );
        }
        assert_eq!(engine(&report, "int8")["passed"], true, "{name}: {report}");
    }
}

#[test]
fn labelled_pictures_measure_it_and_fit_its_interval() {
    let place = workplace();
    let mut table = String::from("path,label\n");
    for seed in 0..40 {
        let name = format!("{seed}.png");
        picture(12, 10, seed)
            .save(place.path().join(&name))
            .unwrap();
        table += &format!("{name},{}\n", seed % 10);
    }
    table += "missing.png,3\n";
    fs::write(place.path().join("labels.csv"), table).unwrap();
    let (code, report, stderr) = import(place.path(), &["--labels", "labels.csv"]);
    assert_eq!((code, &report["failed"]), (1, &1.into()), "{stderr}");
    assert!(stderr.contains("missing.png"), "{stderr}");
    let metrics = &report["report"]["metrics"];
    assert_eq!(metrics["count"], 20);
    assert!(
        metrics["interval_coverage"].as_f64().unwrap() > 0.6,
        "{report}"
    );
    assert_eq!(
        report["interval"]["usual"],
        Value::Null,
        "40 pictures do not tell"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let two_outputs = |model: &mut ModelProto| {
        let output = value_info("b", &[1, 5, 8, 8]);
        model.graph.as_mut().unwrap().output.push(output);
    };
    type Prepare<'a> = &'a dyn Fn(&Path);
    let task = |from: &'static str, to: &'static str| {
        move |place: &Path| fs::write(place.join("task.toml"), TASK.replace(from, to)).unwrap()
    };
    let cases: [(Prepare<'_>, &[&str]); 12] = [
        (
            &|p| fs::write(p.join("a.onnx"), "no model").unwrap(),
            &["a.onnx", "not an ONNX model"],
        ),
        (
            &|p| write_bins(p, 2, &[1.0; 8]),
            &["tensor rows", "[3, width]", "[2, 4]"],
        ),
        (
            &|p| write_bins(p, 3, &[1.0; 15]),
            &["output of the network", "[1, 5]"],
        ),
        (&|p| write_bins(p, 3, &[0.0; 12]), &["row 0", "not zero"]),
        (
            &|p| change(p, two_outputs),
            &["outputs", "--output", "embedding, b"],
        ),
        (
            &|p| {
                change(p, |m| {
                    set_size(
                        &mut m.graph.as_mut().unwrap().input[0],
                        0,
                        Size::DimValue(4),
                    )
                })
            },
            &["input image", "[1, 3, side, side]", "[4, 3, 8, 8]"],
        ),
        (
            &|p| {
                change(p, |m| {
                    m.graph.as_mut().unwrap().initializer[0].data_location = Some(1)
                })
            },
            &["constant conv", "another file"],
        ),
        (
            &|p| fs::write(p.join("a.onnx"), quantised_softmax()).unwrap(),
            &["Softmax", "DequantizeLinear"],
        ),
        (
            &task("size = 8", "size = 9"),
            &["preprocess.size", "expected 8", "got 9"],
        ),
        (
            &task("preprocess =", "prepare ="),
            &["[preprocess]", "nothing"],
        ),
        (&task("unit =", "units ="), &["task.toml", "units"]),
        (
            &task("std = [0.5, 0.5, 0.5]", "std = [0.5, 0, 0.5]"),
            &["preprocess.std", "positive"],
        ),
    ];
    for (prepare, parts) in cases {
        let place = workplace();
        prepare(place.path());
        let (code, _, stderr) = import(place.path(), &[]);
        assert_eq!(code, 3, "{parts:?}: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        assert!(!place.path().join("model").exists());
    }
    let place = workplace();
    change(place.path(), two_outputs);
    let (code, report, stderr) = import(place.path(), &["--output", "embedding"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        report["notes"][0].as_str().unwrap().contains("b"),
        "{report}"
    );
}

/// A Softmax between integers, on which tract is wrong.
fn quantised_softmax() -> Vec<u8> {
    let nodes = vec![
        node("GlobalAveragePool", &["image"], "mean", vec![]),
        node("DequantizeLinear", &["mean", "scale"], "a", vec![]),
        node("Softmax", &["a"], "b", vec![]),
        node("QuantizeLinear", &["b", "scale"], "embedding", vec![]),
    ];
    let scale = constant("scale", &[], &[0.1]);
    let input = value_info("image", &[1, 3, 8, 8]);
    let output = value_info("embedding", &[1, 4]);
    onnx_file(nodes, vec![scale], input, vec![output])
}
