//! Task files and data that cannot be used, and what is said about them.

use std::fs;

use assert_cmd::Command;
use numclip_trainer::config::Config;

use crate::common::{MODELS, config, gauges, run, task};

/// The message about a task file of this text.
fn refusal(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.toml");
    fs::write(&path, text).unwrap();
    let message = Config::read(&path).unwrap_err().to_string();
    assert!(message.contains("task.toml"), "{message}");
    message
}

/// A task file with a part of it replaced is refused: the part, its replacement, what is said.
fn refused_with(cases: &[(&str, &str, &str)]) {
    let good = task(MODELS[0]);
    for (from, to, expected) in cases {
        assert!(good.contains(from), "{from}");
        let message = refusal(&good.replacen(from, to, 1));
        assert!(message.contains(expected), "{to}: {message}");
    }
}

#[test]
fn task_files_are_checked_field_by_field() {
    let cases = [
        ("range = [0, 100]", "range = [100, 0]", "task.range"),
        ("name = \"tiny\"", "name = \"../etc\"", "task.name"),
        ("name = \"tiny\"", "nmae = \"tiny\"", "nmae"),
        ("start = 33", "start = 20", "before bins[0] ends"),
        (
            "std = [0.25, 0.25, 0.25]",
            "std = [0.25, 0, 0.25]",
            "preprocess.std",
        ),
        ("batch_size = 8", "batch_size = 0", "train.batch_size"),
        ("ema = 0.9", "ema = 1.5", "train.ema"),
        (
            "epochs = 2",
            "epochs = 2\nloss = { image_to_text = 0, text_to_image = 0, value = 0 }",
            "train.loss",
        ),
        (
            "epochs = 2",
            "epochs = 2\naccumulate = 0",
            "train.accumulate",
        ),
        (
            "context = \"a gauge at\"",
            "tune = { embeddings = true, ranks = true }",
            "text.tune",
        ),
        (
            "context = \"a gauge at\"",
            "tune = { base_ranks = { count = 2 } }",
            "text.tune.base_ranks",
        ),
        (
            "context = \"a gauge at\"",
            "embeddings = \"x\"\ntune = { ranks = true }",
            "there is no tower",
        ),
        (
            "epochs = 2",
            "epochs = 2\nschedule = { warmup_epochs = -1 }",
            "warmup_epochs",
        ),
        (
            "norm = \"folded\"",
            "head = { adapter = { reduction = 0 } }",
            "model.head.adapter.reduction: expected 1 or more, got 0",
        ),
        (
            "norm = \"folded\"",
            "head = { adapter = { ratio = 1.5 } }",
            "model.head.adapter.ratio: expected 0 to 1, got 1.5",
        ),
        (
            "norm = \"folded\"",
            "head = { regressor = { kind = \"ssr\", lambda = -0.5 } }",
            "model.head.regressor.lambda: expected 0 to 1",
        ),
        (
            "epochs = 2",
            "epochs = 2\noptimizer = { lr = -1 }",
            "train.optimizer: `lr` is -1, expected 0 or more",
        ),
        (
            "epochs = 2",
            "epochs = 2\nsampling = { kind = \"balanced\", power = 2 }",
            "train.sampling.power: expected 0 to 1",
        ),
        (
            "[text]",
            "[augment]\nflip = 2\n[text]",
            "augment.flip: expected 0 to 1",
        ),
    ];
    refused_with(&cases);
}

#[test]
fn keys_without_effect_are_refused() {
    let cases = [
        (
            "context = \"a gauge at\"",
            "context = \"a gauge at\"\nembeddings = \"x\"",
            "no context or placement beside text.embeddings",
        ),
        (
            "context = \"a gauge at\"",
            "embeddings = \"x\"",
            "text.tower: expected none beside text.embeddings",
        ),
        (
            "context = \"a gauge at\"",
            "weights = \"x\"",
            "text.tower: expected none beside",
        ),
        (
            "epochs = 2",
            "epochs = 2\nweighting = \"sqrt-inverse\"\nloss = { value = 0 }",
            "train.weighting: expected \"none\"",
        ),
        (
            "[text]",
            "[teacher]\nrun = \"x\"\nunlabelled_batch = 2\n[text]",
            "teacher.unlabelled_batch: expected none without teacher.unlabelled",
        ),
        (
            "[train]",
            "[teacher]\nrun = \"x\"\nsupervised = false\n[train]\nloss = { kl = 1 }",
            "no loss or weighting beside teacher.supervised = false",
        ),
    ];
    refused_with(&cases);
}

#[test]
fn flags_that_say_nothing_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.toml");
    fs::write(&path, task(MODELS[0])).unwrap();
    let path = path.to_str().unwrap();
    let trainer = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        let arguments = arguments.split(' ');
        command.args(arguments.map(|word| if word == "TASK" { path } else { word }));
        command.assert()
    };
    for (arguments, expected) in [
        ("fit TASK --per bin", "--few-shot"),
        ("fit TASK --folds-from groups", "--fold"),
        (
            "fit TASK --seed 9223372036854775808",
            "expected a number from 0",
        ),
        ("plan TASK --per bin", "--few-shot"),
        ("export run --out x --precision f32 --search", "--search"),
        (
            "export run --out x --precision f32 --qat-epochs 2",
            "--qat-epochs",
        ),
        (
            "export run --out x --precision f32 --equalize",
            "--equalize",
        ),
    ] {
        let failed = trainer(arguments).failure().code(2);
        let said = String::from_utf8_lossy(&failed.get_output().stderr).into_owned();
        assert!(said.contains(expected), "{arguments}: {said}");
    }
    // Both kinds of class at once, and the folds of a plan, are none of these.
    for (arguments, expected) in [
        ("plan TASK --few-shot 1,2 --shift 2:0.5 --per bin", "bin"),
        ("plan TASK --folds 2 --folds-from groups", "groups"),
    ] {
        let printed = trainer(arguments).success();
        let printed = String::from_utf8_lossy(&printed.get_output().stdout).into_owned();
        assert_eq!(printed.lines().count(), 2, "{printed}");
        assert!(printed.contains(expected), "{printed}");
    }
}

/// The message about training on this table, with so many unreadable images allowed.
fn data_refusal(table: &str, skipped: usize) -> String {
    let folder = tempfile::tempdir().unwrap();
    let images = gauges().join("set/images");
    fs::create_dir(folder.path().join("images")).unwrap();
    for entry in fs::read_dir(images).unwrap().take(6).enumerate() {
        let (index, entry) = (entry.0, entry.1.unwrap());
        fs::copy(
            entry.path(),
            folder.path().join(format!("images/{index}.png")),
        )
        .unwrap();
    }
    fs::write(folder.path().join("images/torn.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    fs::write(folder.path().join("labels.csv"), table).unwrap();
    let old = gauges().join("set/labels.csv").display().to_string();
    let new = folder.path().join("labels.csv").display().to_string();
    let text = task(MODELS[2]).replace("[data]", &format!("[data]\nmax_unreadable = {skipped}"));
    let config = config(folder.path(), &text.replace(&old, &new));
    let out = folder.path().join("run");
    let message = run(&config, &out, false).unwrap_err().to_string();
    assert!(!out.join("best.safetensors").exists());
    message
}

#[test]
fn bad_tables_are_refused_with_file_and_line() {
    let rows = |extra: &str| {
        format!(
            "path,label,group\nimages/0.png,10,a\nimages/1.png,50,b\nimages/2.png,90,c\n{extra}\n"
        )
    };
    let cases = [
        (rows("images/3.png,101,d"), "line 5"),
        (rows("images/3.png,NaN,d"), "line 5"),
        (rows("images/0.png,20,d"), "line 5"),
        (rows("images/none.png,20,d"), "images/none.png"),
        ("path,label\n".to_owned(), "labels.csv"),
        ("image,label\nimages/0.png,1\n".to_owned(), "path"),
    ];
    for (table, expected) in cases {
        let message = data_refusal(&table, 0);
        assert!(
            message.contains("labels.csv") && message.contains(expected),
            "{expected}: {message}"
        );
    }
}

#[test]
fn a_bin_without_images_and_a_torn_image_are_named() {
    let empty =
        "path,label,split\nimages/0.png,10,train\nimages/1.png,90,train\nimages/2.png,50,val\n";
    let message = data_refusal(empty, 0);
    assert!(message.contains("middle"), "{message}");
    let torn = "path,label,split\nimages/0.png,10,train\nimages/1.png,90,train\nimages/torn.png,50,train\nimages/2.png,50,val\n";
    let message = data_refusal(torn, 0);
    assert!(message.contains("torn.png"), "{message}");
    // What is measured is never left out in silence.
    let torn = "path,label,split\nimages/0.png,10,train\nimages/1.png,90,train\nimages/2.png,50,train\nimages/torn.png,50,val\n";
    let message = data_refusal(torn, 5);
    assert!(
        message.contains("torn.png") && message.contains("data.max_unreadable"),
        "{message}"
    );
}

#[test]
fn the_task_files_that_ship_can_be_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tasks");
    let mut read = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = Config::read(&path).unwrap();
        assert_eq!(
            path.file_stem().unwrap().to_str(),
            Some(config.task.name.as_str())
        );
        read += 1;
    }
    assert_eq!(read, 8);
}
