//! A task small enough to train in seconds.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use numclip_trainer::config::Config;
use numclip_trainer::fit::{FitError, Options, Outcome, fit};
use numclip_trainer::synth::gauge::{GaugeSet, ImageFormat, write_dataset};
use tempfile::TempDir;

/// Forty-eight rendered gauges, shared by all tests.
pub fn gauges() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let set = GaugeSet {
                count: 48,
                seed: 5,
                size: 40,
                format: ImageFormat::Png,
            };
            write_dataset(&folder.path().join("set"), &set, || {}).unwrap();
            folder
        })
        .path()
}

/// The text of a task file over [`gauges`]; `extra` is appended.
pub fn task(extra: &str) -> String {
    let table = gauges().join("set/labels.csv");
    format!(
        r#"
        bin = [
            {{ label = "low", start = 0, end = 33 }},
            {{ label = "middle", start = 33, end = 67 }},
            {{ label = "high", start = 67, end = 100 }},
        ]
        [task]
        name = "tiny"
        range = [0, 100]
        [data]
        table = "{}"
        split = {{ val_fraction = 0.3 }}
        [text]
        context = "a gauge at"
        tower = {{ width = 32, layers = 1, heads = 2, embedding = 24 }}
        [preprocess]
        size = 32
        mean = [0.5, 0.5, 0.5]
        std = [0.25, 0.25, 0.25]
        {extra}
        "#,
        table.display()
    )
}

/// Small networks of both kinds, with and without batch normalisation, averaging and tuned prompts.
pub const MODELS: [&str; 4] = [
    "[model]\narchitecture = \"mobilenet-v2\"\nwidth = 0.25\nnorm = \"folded\"\n\
     [train]\nepochs = 2\nbatch_size = 8\nema = 0.9\ncheckpoint_steps = 1\n",
    "[model]\narchitecture = \"mobileone-s0\"\nwidth = 0.25\nbranches = 2\n\
     [train]\nepochs = 2\nbatch_size = 8\ncheckpoint_steps = 1\noptimizer = { method = \"radam\" }\n",
    "[model]\narchitecture = \"mobilenet-v2\"\nwidth = 0.25\nhead = { adapter = {}, regressor = { kind = \"expectation\" } }\n\
     [train]\nepochs = 1\nbatch_size = 8\nema = 0.9\nsampling = { kind = \"balanced\", power = 1.0 }\nweighting = \"sqrt-inverse\"\n",
    "[text.tune]\nranks = true\ncontext = \"per-bin\"\n\
     [model]\narchitecture = \"mobileone-s0\"\nwidth = 0.25\nbranches = 1\n\
     [train]\nepochs = 2\nbatch_size = 4\naccumulate = 2\nema = 0.9\ncheckpoint_steps = 1\n\
     freeze = [{ path = \"encoder\", until_epoch = 1 }]\n\
     optimizer = { layer_decay = 0.8, groups = [{ path = \"text\", lr = 1e-2 }, { path = \"text\", lr = 1e-3, from_epoch = 2 }] }\n",
];

/// Writes a task file into `folder` and reads it.
pub fn config(folder: &Path, text: &str) -> Config {
    let path: PathBuf = folder.join("task.toml");
    std::fs::write(&path, text).unwrap();
    Config::read(&path).unwrap()
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

/// Trains without interruption.
pub fn run(config: &Config, out: &Path, resume: bool) -> Result<Outcome, FitError> {
    fit(
        config,
        &Options {
            out,
            resume,
            listen: None,
            interrupt: &AtomicBool::new(false),
        },
    )
}
