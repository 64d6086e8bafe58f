//! A run that was stopped ends where an unbroken one does, bit for bit.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use numclip::estimate::Regressor;
use numclip_trainer::config::Config;
use numclip_trainer::eval::{self, Images, Subject, evaluate, is_complete};
use numclip_trainer::fit::{FitError, Options, Run, Weights, fit, prepare, untrained};
use numclip_trainer::graph::ConvNet;
use numclip_trainer::report;

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
    let one_step = MODELS[0].replace("batch_size = 8", "batch_size = 64");
    for (model, least) in [
        (MODELS[0], 6),
        (MODELS[1], 6),
        (MODELS[3], 6),
        (&one_step, 1),
    ] {
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
                listen: None,
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
                    listen: None,
                    interrupt: &stop,
                },
            )
            .unwrap();
        }
        assert!(stops >= least, "only {stops} stops");
        assert_same(&unbroken, &resumed, model);
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
fn what_a_folder_holds_decides_how_a_run_begins() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = config(folder.path(), &task(MODELS[2]));
    // A task file of the user's stays.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("task.toml"), "mine").unwrap();
    for resume in [false, true] {
        let error = run(&config, &out, resume).unwrap_err();
        assert!(matches!(error, FitError::Foreign(_)), "{error}");
    }
    assert_eq!(fs::read_to_string(out.join("task.toml")).unwrap(), "mine");
    fs::remove_dir_all(&out).unwrap();
    // A run killed ahead of its first checkpoint begins again, with --resume as well.
    run(&config, &out, false).unwrap();
    let whole = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    fs::remove_file(out.join(CHECKPOINT)).unwrap();
    fs::remove_file(out.join("best.safetensors")).unwrap();
    run(&config, &out, true).unwrap();
    assert_eq!(
        fs::read_to_string(out.join("metrics.jsonl")).unwrap(),
        whole
    );
    let speed = fs::read_to_string(out.join("speed.jsonl")).unwrap();
    assert_eq!(speed.lines().count(), 1, "{speed}");
    // Weights without a checkpoint are no beginning.
    fs::remove_file(out.join(CHECKPOINT)).unwrap();
    for resume in [false, true] {
        let error = run(&config, &out, resume).unwrap_err();
        assert!(matches!(error, FitError::NoCheckpoint(_)), "{error}");
    }
    assert!(out.join("best.safetensors").is_file());
}

#[test]
fn a_run_is_read_whatever_happened_to_its_measurements() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&config(folder.path(), &task(MODELS[2])), &out, false).unwrap();
    let (reader, ..) = Run::read(&out).unwrap();
    let whole = reader.history().unwrap();
    let metrics = out.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    // The power went while a line was written.
    fs::write(&metrics, format!("{text}{{\"epoch\":2,\"st")).unwrap();
    assert_eq!(reader.history().unwrap(), whole);
    fs::write(&metrics, format!("{{\"epoch\"\n{text}")).unwrap();
    let error = reader.history().unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    // Reading writes nothing.
    fs::remove_file(&metrics).unwrap();
    Run::read(&out).unwrap();
    assert!(!metrics.exists());
    // An older trainer took keys without effect.
    let task = fs::read_to_string(out.join("task.toml")).unwrap();
    let older = task.replace("value = 1.0", "value = 0.0");
    assert_ne!(task, older);
    fs::write(out.join("task.toml"), older).unwrap();
    assert!(Config::read(&out.join("task.toml")).is_err());
    assert_eq!(Run::read(&out).unwrap().1.train.loss.value, 0.0);
}

#[test]
fn a_run_is_complete_once_it_is_trained_and_measured() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let config = config(folder.path(), &task(MODELS[0]));
    let options = Options {
        out: &out,
        resume: false,
        listen: None,
        interrupt: &AtomicBool::new(true),
    };
    assert!(fit(&config, &options).unwrap().interrupted);
    let measure = || {
        let subject = Subject::at(&out).unwrap();
        evaluate(&subject, &Images::default(), 0, &Device::flex()).unwrap()
    };
    // What an export leaves beside an unfinished run.
    report::of_run(&out, report::Measured::default()).unwrap();
    assert!(!is_complete(&out));
    run(&config, &out, true).unwrap();
    assert!(!is_complete(&out));
    let measured = measure();
    assert!(measured.warnings.is_empty(), "{:?}", measured.warnings);
    measured.write(&out.join(eval::FOLDER), "val").unwrap();
    assert!(is_complete(&out));
    // A training image is counted among the validation images now.
    let path = out.join("task.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("val_fraction = 0.3", "val_fraction = 0.4"),
    )
    .unwrap();
    let warnings = measure().warnings;
    assert!(warnings[0].contains("splits"), "{warnings:?}");
    fs::write(&path, text).unwrap();
    fs::remove_file(out.join(CHECKPOINT)).unwrap();
    assert!(!is_complete(&out));
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
            listen: None,
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
