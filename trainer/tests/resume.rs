//! A run that was stopped ends where an unbroken one does, bit for bit.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use numclip::estimate::Regressor;
use numclip_trainer::fit::{FitError, Options, Run, Weights, fit, prepare, untrained};
use numclip_trainer::graph::ConvNet;

use crate::common::{MODELS, config, run, task};

const CHECKPOINT: &str = "checkpoint.safetensors";

/// Compares measurements and weights of two runs, bit for bit.
pub fn assert_same(unbroken: &Path, resumed: &Path, what: &str) {
    let measurements = |folder: &Path| fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert_eq!(
        measurements(unbroken),
        measurements(resumed),
        "{what}: measurements differ"
    );
    for weights in [Weights::Best, Weights::Last] {
        assert_eq!(
            folded(unbroken, weights),
            folded(resumed, weights),
            "{what}: {weights:?} weights differ"
        );
    }
}

/// All weights of a run as plain values: encoder, regressor, bin embeddings.
fn folded(folder: &Path, weights: Weights) -> (ConvNet, Regressor, Vec<f32>) {
    let (run, config, _) = Run::read(folder).unwrap();
    let device = Device::flex();
    let prepared = prepare(&config, &device).unwrap();
    let model = run
        .load(untrained(&config, &prepared, &device).unwrap(), weights)
        .unwrap();
    let bins = prepared.bin_embeddings(&model).unwrap().values;
    (model.fold(32).unwrap(), model.plain_regressor(), bins)
}

#[test]
fn the_last_weights_are_averaged_like_the_best() {
    let folder = tempfile::tempdir().unwrap();
    // Without validation the best weights are those of the last epoch.
    let text = task(MODELS[0]).replace("val_fraction = 0.3", "val_fraction = 0.0");
    let out = folder.path().join("run");
    run(&config(folder.path(), &text), &out, false).unwrap();
    assert_eq!(folded(&out, Weights::Best), folded(&out, Weights::Last));
}

#[test]
fn stopping_after_every_step_changes_nothing() {
    for index in [0, 1, 3] {
        let model = MODELS[index];
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), &task(model));
        let [unbroken, resumed] = ["unbroken", "resumed"].map(|name| folder.path().join(name));
        run(&config, &unbroken, false).unwrap();
        let stop = AtomicBool::new(true);
        let mut stops = 0;
        let mut outcome = fit(
            &config,
            &Options {
                out: &resumed,
                resume: false,
                interrupt: &stop,
            },
        )
        .unwrap();
        while outcome.interrupted {
            stops += 1;
            assert!(stops < 100, "the run does not advance");
            outcome = fit(
                &config,
                &Options {
                    out: &resumed,
                    resume: true,
                    interrupt: &stop,
                },
            )
            .unwrap();
        }
        assert!(stops >= 6, "only {stops} stops");
        assert_same(&unbroken, &resumed, &format!("model {index}"));
    }
}

#[test]
fn a_killed_process_is_resumed_from_its_last_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &task(MODELS[0]));
    let [unbroken, killed] = ["unbroken", "killed"].map(|name| folder.path().join(name));
    run(&config, &unbroken, false).unwrap();
    for round in 0..3 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command
            .arg("fit")
            .arg(folder.path().join("task.toml"))
            .arg("--out")
            .arg(&killed);
        if killed.join(CHECKPOINT).is_file() {
            command.arg("--resume");
        }
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        kill_after_progress(&mut child, &killed, round);
    }
    run(&config, &killed, killed.join(CHECKPOINT).is_file()).unwrap();
    assert_same(&unbroken, &killed, "killed");
}

/// Kills the process once it has written another checkpoint, a little later
/// in each round.
fn kill_after_progress(child: &mut std::process::Child, folder: &Path, round: u64) {
    let written = || {
        fs::metadata(folder.join(CHECKPOINT))
            .and_then(|file| file.modified())
            .ok()
    };
    let before = written();
    let deadline = Instant::now() + Duration::from_secs(60);
    while written() == before && child.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(7 * round));
    // The process may have ended by itself: then there is nothing to kill.
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn a_run_is_neither_overwritten_nor_continued_with_another_task() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let first = config(folder.path(), &task(MODELS[2]));
    assert!(matches!(
        run(&first, &out, true),
        Err(FitError::NothingToResume(_))
    ));
    run(&first, &out, false).unwrap();
    assert!(matches!(run(&first, &out, false), Err(FitError::Exists(_))));
    let other = config(folder.path(), &task(&MODELS[2].replace("0.9", "0.8")));
    let error = run(&other, &out, true).unwrap_err();
    assert!(error.to_string().contains("the task file"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = config(folder.path(), &task(MODELS[2]));
    run(&config, &out, false).unwrap();
    let path = out.join(CHECKPOINT);
    let whole = fs::read(&path).unwrap();
    for damage in [
        &whole[..0],
        &whole[..7],
        &whole[..whole.len() / 2],
        b"not a checkpoint".as_slice(),
    ] {
        fs::write(&path, damage).unwrap();
        let error = run(&config, &out, true).unwrap_err();
        assert!(error.to_string().contains(CHECKPOINT), "{error}");
    }
}

/// Runs `trainer` with files limited to 64 blocks: writing more fails as it
/// does on a full disk.
#[cfg(unix)]
fn with_little_space(arguments: &[&std::ffi::OsStr]) -> std::process::Output {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
    command
        .arg(env!("CARGO_BIN_EXE_trainer"))
        .args(arguments)
        .output()
        .unwrap()
}

#[cfg(unix)]
#[test]
fn a_full_disk_costs_nothing_that_was_written_before() {
    let folder = tempfile::tempdir().unwrap();
    let task_file = folder.path().join("task.toml");
    let config = config(folder.path(), &task(MODELS[0]));
    let [out, bundle] = ["run", "bundle"].map(|name| folder.path().join(name));
    let stop = AtomicBool::new(true);
    fit(
        &config,
        &Options {
            out: &out,
            resume: false,
            interrupt: &stop,
        },
    )
    .unwrap();
    let names = |folder: &Path| {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let (before, entries) = (fs::read(out.join(CHECKPOINT)).unwrap(), names(&out));
    let fit_arguments = [
        "fit".as_ref(),
        task_file.as_os_str(),
        "--resume".as_ref(),
        "--out".as_ref(),
        out.as_os_str(),
    ];
    let failed = with_little_space(&fit_arguments);
    let message = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        !failed.status.success() && message.contains(CHECKPOINT),
        "{message}"
    );
    assert_eq!(fs::read(out.join(CHECKPOINT)).unwrap(), before);
    assert_eq!(names(&out), entries, "something half-written was left");

    run(&config, &out, true).unwrap();
    let entries = names(folder.path());
    let export = [
        "export".as_ref(),
        out.as_os_str(),
        "--out".as_ref(),
        bundle.as_os_str(),
    ];
    let failed = with_little_space(&export);
    assert!(!failed.status.success());
    assert_eq!(
        names(folder.path()),
        entries,
        "a half-written bundle was left"
    );
}
