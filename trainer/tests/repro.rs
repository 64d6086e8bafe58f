//! A table of the literature on a small, made-up copy of its data.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use assert_cmd::Command;
use serde_json::Value;

/// Adience's folder with a person for each fold and group, two pictures of each.
fn adience(folder: &Path) {
    let groups = [
        "(0, 2)",
        "(4, 6)",
        "(8, 12)",
        "(15, 20)",
        "(25, 32)",
        "(38, 43)",
        "(48, 53)",
        "(60, 100)",
    ];
    for fold in 0..5_usize {
        let mut list = String::from("user_id\toriginal_image\tface_id\tage\tgender\n");
        for (group, age) in groups.iter().enumerate() {
            let user = format!("{fold}{group}@N00");
            let images = folder.join("aligned").join(&user);
            fs::create_dir_all(&images).unwrap();
            for face in 0..2_usize {
                list += &format!("{user}\tp.png\t{face}\t{age}\tf\n");
                let level = |x: u32, y: u32| {
                    let noise = (x as usize * 7 + y as usize * 13) * (fold * 2 + face + 1) % 40;
                    image::Luma([(group * 30 + noise) as u8])
                };
                let picture = image::GrayImage::from_fn(32, 32, level);
                let name = format!("landmark_aligned_face.{face}.p.png");
                picture.save(images.join(name)).unwrap();
            }
        }
        list += &format!("{fold}9@N00\tp.png\t0\tNone\tm\n");
        fs::write(folder.join(format!("fold_{fold}_data.txt")), list).unwrap();
    }
}

fn trainer() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trainer"))
}

fn repro(folder: &Path) -> Command {
    let mut command = trainer();
    command.args(["repro", "adience", "--folds", "1,4", "--json", "--data"]);
    command
        .arg(folder.join("adience"))
        .arg("--runs")
        .arg(folder.join("runs"));
    for set in [
        "model.width=0.25",
        "preprocess.size=32",
        "train.epochs=1",
        "train.batch_size=8",
        "text.tower={ width = 32, layers = 1, heads = 2, embedding = 24 }",
    ] {
        command.args(["--set", set]);
    }
    command
}

#[test]
fn folds_are_run_once_and_compared_with_what_is_published() {
    let folder = tempfile::tempdir().unwrap();
    adience(&folder.path().join("adience"));
    let output = repro(folder.path()).assert().success().get_output().clone();
    let comparison: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(comparison["runs"], serde_json::json!([2, 5]));
    assert_eq!(comparison["from_clip"], false);
    let line = |measure: &str| {
        let lines = comparison["lines"].as_array().unwrap().iter();
        lines
            .clone()
            .find(|line| line["measure"] == measure)
            .unwrap()
            .clone()
    };
    for measure in ["mae", "accuracy"] {
        assert_eq!(line(measure)["reported"], Value::Null);
        assert!(line(measure)["obtained"].as_f64().unwrap().is_finite());
    }
    assert!((0.0..=100.0).contains(&line("accuracy")["obtained"].as_f64().unwrap()));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("80 images") && said.contains("left out: 5 with age None"),
        "{said}"
    );
    assert!(said.contains("images/s"), "{said}");

    let table = folder.path().join("runs/adience");
    assert!(table.join("report.html").is_file());
    let run = table
        .read_dir()
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let run = run
        .filter(|path| path.join("speed.jsonl").is_file())
        .collect::<Vec<_>>();
    assert_eq!(run.len(), 2);
    let trained = |path: &Path| -> SystemTime {
        fs::metadata(path.join("checkpoint.safetensors"))
            .unwrap()
            .modified()
            .unwrap()
    };
    let speed: Value =
        serde_json::from_str(&fs::read_to_string(run[0].join("speed.jsonl")).unwrap()).unwrap();
    assert_eq!(speed["device"], "cpu");
    assert!(speed["images_per_second"].as_f64().unwrap() > 0.0);
    assert!((0.0..1.0).contains(&speed["waiting"].as_f64().unwrap()));

    let before: Vec<SystemTime> = run.iter().map(|path| trained(path)).collect();
    let again = repro(folder.path())
        .assert()
        .success()
        .get_output()
        .stdout
        .clone();
    assert_eq!(again, output.stdout);
    assert_eq!(
        before,
        run.iter().map(|path| trained(path)).collect::<Vec<_>>()
    );
}

#[test]
fn what_a_table_needs_is_said() {
    let listed = trainer()
        .args(["repro", "--list"])
        .assert()
        .success()
        .get_output()
        .clone();
    let text = String::from_utf8(listed.stdout).unwrap();
    for expected in [
        "morph",
        "hci",
        "2.08",
        "69.61",
        "76.53",
        "not given",
        "fold_0_data.txt",
    ] {
        assert!(text.contains(expected), "{expected}");
    }
    let folder = tempfile::tempdir().unwrap();
    let missing = trainer()
        .args(["repro", "hci", "--data"])
        .arg(folder.path())
        .assert()
        .failure();
    let said = String::from_utf8_lossy(&missing.get_output().stderr).into_owned();
    assert!(
        said.contains("1930s, 1940s, 1950s, 1960s, 1970s not found"),
        "{said}"
    );
    let command = trainer().args(["repro", "hci"]).assert().failure().code(2);
    assert!(String::from_utf8_lossy(&command.get_output().stderr).contains("--data"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_was_not_built_in_says_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("task.toml");
    fs::write(&task, crate::common::task(crate::common::MODELS[2])).unwrap();
    let mut command = trainer();
    command
        .arg("fit")
        .arg(&task)
        .args(["--device", "cuda", "--out"]);
    let failed = command.arg(folder.path().join("run")).assert().failure();
    let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
    assert!(
        said.contains("--features cuda") && said.contains("--device cpu"),
        "{said}"
    );
    assert!(!folder.path().join("run").exists());
    let wrong = trainer()
        .arg("fit")
        .arg(&task)
        .args(["--device", "gpu"])
        .assert()
        .code(2);
    assert!(
        String::from_utf8_lossy(&wrong.get_output().stderr).contains("expected auto, cpu, cuda")
    );
}
