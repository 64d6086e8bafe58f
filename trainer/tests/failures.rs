//! What ends a run early leaves it whole: the cause is said, the last checkpoint is good.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use numclip_trainer::fit::{FitError, Run, Weights, prepare, untrained};

use crate::common::{MODELS, config, copy, gauges, run, task};
use crate::resume::assert_same;

const CHECKPOINT: &str = "checkpoint.safetensors";

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    for (index, lr) in ["1e20", "1e38"].iter().enumerate() {
        let model = MODELS[0].replace(
            "ema = 0.9",
            &format!("clip_norm = 1e30\noptimizer = {{ lr = {lr} }}"),
        );
        let out = folder.path().join(index.to_string());
        let error = run(&config(folder.path(), &task(&model)), &out, false).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, FitError::Diverged { .. }), "{text}");
        assert!(text.contains("lower the learning rate"), "{text}");
        let said = match out.join(CHECKPOINT).is_file() {
            true => "The last good checkpoint is",
            false => "No checkpoint was written yet",
        };
        assert!(text.contains(said), "{text}");
    }
}

#[test]
fn freezing_everything_is_refused_before_the_run_begins() {
    let folder = tempfile::tempdir().unwrap();
    for (freeze, expected) in [
        (
            "[{ path = 'encoder' }, { path = 'regressor', until_epoch = 1 }]",
            "nothing to train",
        ),
        ("[{ path = 'encodr' }]", "encoder, regressor"),
    ] {
        let model = MODELS[0].replace("ema = 0.9", &format!("freeze = {freeze}"));
        let out = folder.path().join("run");
        let error = run(&config(folder.path(), &task(&model)), &out, false).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!out.join(CHECKPOINT).exists());
        fs::remove_dir_all(out).unwrap();
    }
}

/// Waits until the run in `folder` has finished its second epoch.
fn wait_for_epoch_2(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let reached = || {
        let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
        text.contains("{\"epoch\":2,\"train_loss\"")
    };
    while !reached() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_image_that_breaks_in_epoch_3_is_named_and_the_run_goes_on_once_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("set");
    copy(&gauges().join("set"), &data);
    let model = MODELS[0].replace("epochs = 2", "epochs = 10\ncache_mib = 0");
    let (old, new) = (gauges().join("set"), data.clone());
    let text = task(&model).replace(&old.display().to_string(), &new.display().to_string());
    let config = config(folder.path(), &text);
    let [unbroken, broken] = ["unbroken", "broken"].map(|name| folder.path().join(name));
    run(&config, &unbroken, false).unwrap();

    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_for_epoch_2(&broken);
            for entry in fs::read_dir(data.join("images")).unwrap() {
                fs::write(entry.unwrap().path(), "no picture").unwrap();
            }
        });
        run(&config, &broken, false).unwrap_err()
    });
    assert!(error.to_string().contains(".png"), "{error}");
    assert!(broken.join("best.safetensors").is_file());

    fs::remove_dir_all(&data).unwrap();
    copy(&gauges().join("set"), &data);
    run(&config, &broken, true).unwrap();
    assert_same(&unbroken, &broken, "after the images came back");
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_step_and_says_how_to_go_on() {
    use std::process::{Command, Stdio};

    let folder = tempfile::tempdir().unwrap();
    let model = MODELS[3].replace("epochs = 2", "epochs = 6");
    let config = config(folder.path(), &task(&model));
    let [unbroken, out] = ["unbroken", "stopped"].map(|name| folder.path().join(name));
    run(&config, &unbroken, false).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_trainer"))
        .arg("fit")
        .arg(folder.path().join("task.toml"))
        .arg("--out")
        .arg(&out)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_epoch_2(&out);
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let ended = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(
        message.contains("stopped in epoch") && message.contains("--resume"),
        "{message}"
    );
    run(&config, &out, true).unwrap();
    assert_same(&unbroken, &out, "interrupted");
}

#[test]
fn a_frozen_part_does_not_move() {
    let folder = tempfile::tempdir().unwrap();
    let text = MODELS[3]
        .replace("epochs = 2", "epochs = 1")
        .replace("ema = 0.9", "");
    let config = config(folder.path(), &task(&text));
    let out = folder.path().join("run");
    run(&config, &out, false).unwrap();
    let device = Device::flex();
    let prepared = prepare(&config, &device).unwrap();
    let start = untrained(&config, &prepared, &device).unwrap();
    let (run, ..) = Run::read(&out).unwrap();
    let end = run.load(start.clone(), Weights::Last).unwrap();
    assert_eq!(start.fold(32), end.fold(32), "the encoder moved");
    let bins = |model| prepared.bin_embeddings(model).unwrap().values;
    assert_ne!(bins(&start), bins(&end), "the prompts did not learn");
}
