//! The stages against vectors from PIL and from the published reference code.
//! The vectors lie outside the repository; where they are absent, the tests
//! say so and check nothing.

use std::fs;
use std::path::{Path, PathBuf};

use numclip::decode;
use numclip::estimate::{Regressor, softmax};
use numclip::preprocess::{Plan, Preprocessor};
use serde_json::Value;

fn golden(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/golden")
        .join(name);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// All numbers in `value`, in order, however deep they lie.
fn numbers(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        value => vec![value.as_f64().unwrap() as f32],
    }
}

#[test]
fn preprocessing_is_that_of_pil() {
    let Some(folder) = golden("preprocess") else {
        return;
    };
    for case in json(&folder.join("preprocess.json")).as_array().unwrap() {
        let picture =
            |field: &str| decode::open(&folder.join(case[field].as_str().unwrap())).unwrap();
        let (frame, expected) = (picture("input"), picture("expected"));
        let size = case["size"].as_u64().unwrap() as usize;
        let plan = Plan::clip(size as u32);
        let mut preprocessor = Preprocessor::default();
        let pairs = preprocessor
            .fit(&plan, &frame)
            .iter()
            .zip(expected.pixels());
        let levels: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).collect();
        let within_one =
            levels.iter().filter(|&&level| level <= 1).count() as f64 / levels.len() as f64;
        let worst = levels.iter().max().unwrap();
        println!(
            "{} at {size}: {:.4} % within one level, worst {worst}",
            case["input"],
            100.0 * within_one
        );
        assert!(
            within_one >= 0.999 && *worst <= 3,
            "{} {within_one} {worst}",
            case["input"]
        );
        check_normalized(case, &plan.tensor(&frame), size);
    }
}

/// Means of the planes and the first pixels, where a level is worth about 0.015.
fn check_normalized(case: &Value, tensor: &[f32], size: usize) {
    let planes = tensor.chunks_exact(size * size);
    let expected = case["normalized_chw_mean"].as_array().unwrap();
    for ((plane, mean), first) in planes
        .zip(expected)
        .zip(case["normalized_first_pixels"].as_array().unwrap())
    {
        let got = plane.iter().map(|&value| f64::from(value)).sum::<f64>() / plane.len() as f64;
        assert!((got - mean.as_f64().unwrap()).abs() < 2e-3, "{got} {mean}");
        for (got, want) in plane.iter().zip(numbers(first)) {
            assert!((got - want).abs() < 0.047, "{got} {want}");
        }
    }
}

#[test]
fn the_ssr_regressor_is_that_of_the_reference() {
    let Some(path) = golden("numclip-reference.json") else {
        return;
    };
    for case in json(&path)["ssr"].as_array().unwrap() {
        let weight = |name: &str| numbers(&case["weights"][name]);
        let starts = numbers(&case["bin_starts"]);
        let regressor = Regressor::Ssr {
            lambda: case["lambda_delta"].as_f64().unwrap() as f32,
            hidden_weight: weight("stage1_FC_after_PB.0.weight"),
            hidden_bias: weight("stage1_FC_after_PB.0.bias"),
            shift_weight: weight("stage1_delta_k.0.weight"),
            shift_bias: weight("stage1_delta_k.0.bias"),
            starts: starts.clone(),
        };
        regressor.check(starts.len()).unwrap();
        let rows = case["logits"].as_array().unwrap();
        for (row, expected) in rows.iter().zip(numbers(&case["expected_value"])) {
            let logits = numbers(row);
            let got = regressor.value(&logits, &softmax(&logits));
            println!("expected {expected}, got {got}");
            assert!(
                (got - expected).abs() <= 1e-5 * expected.abs(),
                "expected {expected}, got {got}"
            );
        }
    }
}
