//! Students that learn from teachers of every kind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use numclip::bundle::{Bundle, Precision};
use numclip::verify::cosine;
use numclip_trainer::config::Config;
use numclip_trainer::data::Unreadable;
use numclip_trainer::export;
use numclip_trainer::fit::{
    FitError, Options, Run, Weights, embed_all, fit, loader, prepare, untrained,
};
use tempfile::TempDir;

use crate::clip::{checkpoint, vit};
use crate::common::{config, copy, gauges, run, task};

/// A run, its bundle, and the tasks of students.
fn teacher() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let text = task(
                "[model]\narchitecture = \"mobilenet-v2\"\nwidth = 0.25\nnorm = \"folded\"\n\
                 [train]\nepochs = 6\nbatch_size = 8\noptimizer = { lr = 2e-3 }\n\
                 [export]\ncalibration_images = 16\n",
            );
            let run_folder = folder.path().join("run");
            run(&config(folder.path(), &text), &run_folder, false).unwrap();
            export(&run_folder, &folder.path().join("bundle"));
            folder
        })
        .path()
}

fn export(run: &Path, out: &Path) {
    export::export(&export::Options {
        run,
        out,
        precision: Precision::Int8,
        weights: Weights::Best,
        int8: export::Wanted::default(),
        interval_from: &[],
        stage: &|_| {},
    })
    .unwrap();
}

const STUDENT: &str = "[model]\narchitecture = \"mobileone-s0\"\nwidth = 0.25\nbranches = 1\n\
                       [augment]\ncrop = { scale = [0.9, 1.0] }\n\
                       [export]\ncalibration_images = 16\n\
                       [train]\nbatch_size = 8\noptimizer = { lr = 3e-3 }\n";

/// A student's task in `folder`: `train` goes on the table of that name, `teacher` makes the other.
fn student(folder: &Path, train: &str, teacher: &str) -> Config {
    config(folder, &student_text(train, teacher))
}

fn student_text(train: &str, teacher: &str) -> String {
    task(&format!("{STUDENT}{train}\n[teacher]\n{teacher}\n"))
}

/// Embeddings of the validation images by a run, and its values.
fn embedded(folder: &Path) -> (Vec<Vec<f32>>, Vec<f32>) {
    let (run, config, _) = Run::read(folder).unwrap();
    let device = Device::flex();
    let prepared = prepare(&config, &device).unwrap();
    let model = untrained(&config, &prepared, &device).unwrap();
    let model = run.load(model, Weights::Last).unwrap();
    let val = &prepared.splits.val;
    let loader = loader(&config, &prepared, val, Unreadable::Stop).unwrap();
    let embeddings = embed_all(&config, &model, &loader).unwrap().embeddings;
    let estimator = prepared.estimator(&config, &model, None).unwrap();
    let values = embeddings.iter().map(|e| estimator.estimate(e).value);
    let values = values.collect();
    (embeddings, values)
}

fn mean(values: impl Iterator<Item = f32>) -> f32 {
    let values: Vec<f32> = values.collect();
    values.iter().sum::<f32>() / values.len() as f32
}

fn metrics(run: &Path) -> String {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap()
}

#[test]
fn a_student_learns_what_its_teacher_says() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = teacher();
    let [taught, alone] = ["taught", "alone"].map(|name| folder.path().join(name));
    let lesson = format!(
        "run = '{}'\nsupervised = false\nviews = 3\ncache = 'cache'\n\
         loss = {{ embedding = 20, value = 0.1 }}\n",
        teacher.join("run/checkpoint.safetensors").display()
    );
    let train = "epochs = 16";
    run(&student(folder.path(), train, &lesson), &taught, false).unwrap();
    let text = task(&format!("{STUDENT}{train}\n"));
    run(&config(folder.path(), &text), &alone, false).unwrap();
    let (wanted, values) = embedded(&teacher.join("run"));
    let agreement = |run: &Path| {
        let (embeddings, got) = embedded(run);
        let pairs = embeddings.iter().zip(&wanted);
        let distance = got.iter().zip(&values).map(|(a, b)| (a - b).abs());
        (mean(pairs.map(|(a, b)| cosine(a, b))), mean(distance))
    };
    let (taught, alone) = (agreement(&taught), agreement(&alone));
    println!("taught {taught:?}, alone {alone:?}");
    assert!(
        taught.0 > 0.8 && taught.0 > alone.0 + 0.2,
        "{taught:?} {alone:?}"
    );
    assert!(taught.1 < alone.1, "{taught:?} {alone:?}");
}

#[test]
fn every_kind_of_teacher_teaches() {
    let folder = tempfile::tempdir().unwrap();
    checkpoint(folder.path(), &vit());
    let bundle = teacher().join("bundle").display().to_string();
    let plan = "{ size = 32, mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }";
    for (index, (lesson, head, name)) in [
        (
            format!("run = '{}'", teacher().join("run").display()),
            "",
            "run run",
        ),
        (format!("bundle = '{bundle}'"), "", "bundle tiny 0.1.0"),
        (
            "weights = 'clip.safetensors'\nunlabelled = 'more/*.png'".into(),
            "head = { logit_scale = 50.0 }",
            "CLIP clip.safetensors",
        ),
        (
            format!(
                "onnx = '{bundle}/encoder.onnx'\nembeddings = '{bundle}/bins.safetensors'\npreprocess = {plan}"
            ),
            "",
            "ONNX encoder.onnx",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        more_gauges(folder.path());
        let lesson = format!("{lesson}\nviews = 'clean'\ncache = 'cache'\n");
        let text = student_text("epochs = 1", &lesson);
        let text = text.replace("branches = 1\n", &format!("branches = 1\n{head}\n"));
        let out = folder.path().join(format!("run{index}"));
        run(&config(folder.path(), &text), &out, false).unwrap();
        let (_, _, provenance) = Run::read(&out).unwrap();
        assert_eq!(provenance.teacher.unwrap().name, name);
    }
}

/// Images beside the table: one of its own, and one that is new.
fn more_gauges(folder: &Path) -> PathBuf {
    let more = folder.join("more");
    fs::create_dir_all(&more).unwrap();
    let images = gauges().join("set/images");
    fs::copy(images.join("000000.png"), more.join("copy.png")).unwrap();
    for number in 1..4 {
        let picture = image::RgbImage::from_fn(40, 40, |x, y| {
            image::Rgb([(x * 6) as u8, (y * 6) as u8, number as u8 * 60])
        });
        picture.save(more.join(format!("new{number}.png"))).unwrap();
    }
    more
}

/// A task with everything that has a state: views, unlabelled images, several batches a step.
pub fn involved(folder: &Path) -> Config {
    more_gauges(folder);
    let lesson = format!(
        "bundle = '{}'\nviews = 2\ncache = 'cache'\nunlabelled = 'more'\nunlabelled_batch = 2\n\
         loss = {{ embedding = 0.5, distribution = 2.0, value = 0.1, temperature = 4.0 }}\n",
        teacher().join("bundle").display()
    );
    let train =
        "epochs = 3\naccumulate = 2\nema = 0.9\nsampling = { kind = \"balanced\", power = 1.0 }";
    student(folder, train, &lesson)
}

#[test]
fn a_stopped_student_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let config = involved(folder.path());
    let [unbroken, resumed] = ["unbroken", "resumed"].map(|name| folder.path().join(name));
    run(&config, &unbroken, false).unwrap();
    // The first command asks the teacher anew, and so does every other one.
    let mut resume = false;
    loop {
        fs::remove_dir_all(folder.path().join("cache")).unwrap();
        // Set once the teacher was asked: the answers are kept.
        let stop = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let metrics = resumed.join("metrics.jsonl");
                let lines = || {
                    fs::read_to_string(&metrics)
                        .unwrap_or_default()
                        .lines()
                        .count()
                };
                let before = lines();
                let begun = std::time::Instant::now();
                while lines() == before && begun.elapsed().as_secs() < 60 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let options = Options {
                out: &resumed,
                resume,
                listen: None,
                interrupt: &stop,
            };
            fit(&config, &options).unwrap()
        });
        resume = true;
        if !outcome.interrupted {
            break;
        }
    }
    assert_eq!(metrics(&unbroken), metrics(&resumed));
    assert_eq!(embedded(&unbroken), embedded(&resumed));
}

#[test]
fn a_damaged_answer_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = involved(folder.path());
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    run(&config, &first, false).unwrap();
    let mut kept = Vec::new();
    for entry in walkdir::WalkDir::new(folder.path().join("cache")) {
        let path = entry.unwrap().into_path();
        if path.is_file() {
            let good = fs::read(&path).unwrap();
            let mut bad = good.clone();
            bad[5] ^= 1;
            fs::write(&path, bad).unwrap();
            kept.push((path, good));
        }
    }
    // Images of the training split, and the three that are new: a copy of a labelled one is none.
    let (_, _, provenance) = Run::read(&first).unwrap();
    assert_eq!(kept.len(), provenance.images[0] + 3);
    run(&config, &second, false).unwrap();
    assert_eq!(metrics(&first), metrics(&second));
    for (path, good) in kept {
        assert!(fs::read(&path).unwrap() == good, "{}", path.display());
    }
}

#[test]
fn a_student_that_is_trained_needs_neither_teacher_nor_unlabelled_images() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("teacher");
    copy(&teacher().join("bundle"), &own);
    let known = Bundle::open(&own).unwrap();
    let more = more_gauges(folder.path());
    let config = student(
        folder.path(),
        "epochs = 1",
        "bundle = 'teacher'\nviews = 1\ncache = 'cache'\nunlabelled = 'more'",
    );
    let [trained, out] = ["run", "bundle"].map(|name| folder.path().join(name));
    run(&config, &trained, false).unwrap();
    // Its images without labels are gone as well.
    fs::remove_dir_all(&own).unwrap();
    fs::remove_dir_all(&more).unwrap();
    export(&trained, &out);
    let bundle = Bundle::open(&out).unwrap();
    assert_eq!(bundle.estimator().bins(), known.estimator().bins());
    let provenance = &bundle.manifest().provenance;
    let expected = format!("bundle tiny 0.1.0 (sha256 {})", known.sha256());
    assert!(provenance.teacher.starts_with(&expected), "{provenance:?}");
    let digest = &known.manifest().provenance.data_digest;
    assert!(provenance.teacher.contains(digest), "{provenance:?}");
    assert!(provenance.text_tower.contains("random text tower"));
    // A student can teach.
    let lesson = format!("run = '{}'\nviews = 1\ncache = 'cache'", trained.display());
    let config = student(folder.path(), "epochs = 1", &lesson);
    run(&config, &folder.path().join("second"), false).unwrap();
    // It cannot go on without its teacher.
    let config = student(
        folder.path(),
        "epochs = 1",
        "bundle = 'teacher'\nviews = 1\ncache = 'cache'",
    );
    let error = run(&config, &trained, true).unwrap_err().to_string();
    assert!(
        error.contains("teacher.bundle") && error.contains("no such file"),
        "{error}"
    );
}

#[test]
fn a_small_transformer_learns_and_leaves_in_float() {
    let folder = tempfile::tempdir().unwrap();
    let lesson = format!(
        "bundle = '{}'\nviews = 1\ncache = 'cache'",
        teacher().join("bundle").display()
    );
    let text = student_text("epochs = 1", &lesson).replace(
        "mobileone-s0\"\nwidth = 0.25\nbranches = 1",
        "vit-tiny\"\npatch = 16",
    );
    let [trained, out] = ["run", "bundle"].map(|name| folder.path().join(name));
    run(&config(folder.path(), &text), &trained, false).unwrap();
    let exported = export::export(&export::Options {
        run: &trained,
        out: &out,
        precision: Precision::F32,
        weights: Weights::Best,
        int8: export::Wanted::default(),
        interval_from: &[],
        stage: &|_| {},
    });
    assert!(exported.unwrap().macs > 5_000_000);
    let bundle = Bundle::open(&out).unwrap();
    let architecture = &bundle.manifest().provenance.architecture;
    assert_eq!(architecture, "vit-tiny, patch 16, 32 px");
}

#[test]
fn what_cannot_teach_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = teacher().join("bundle").display().to_string();
    let run_folder = teacher().join("run").display().to_string();
    let refusal = |text: &str| {
        fs::write(folder.path().join("task.toml"), text).unwrap();
        let error = match Config::read(&folder.path().join("task.toml")) {
            Err(error) => error.to_string(),
            Ok(config) => run(&config, &folder.path().join("out"), false)
                .unwrap_err()
                .to_string(),
        };
        assert!(!folder.path().join("out/checkpoint.safetensors").exists());
        error
    };
    let good = student_text(
        "epochs = 1",
        &format!("bundle = '{bundle}'\ncache = 'cache'"),
    );
    for (from, to, expected) in [
        (
            "[teacher]\n",
            "[teacher]\nrun = 'x'\n",
            "teacher: expected one of run, bundle",
        ),
        (
            &*format!("bundle = '{bundle}'"),
            "views = 1",
            "teacher: expected one of run, bundle",
        ),
        (&bundle, "nothing", "no such file"),
        (
            &*format!("bundle = '{bundle}'"),
            &*format!("run = '{bundle}'"),
            "neither the folder of a run nor",
        ),
        (
            &*format!("bundle = '{bundle}'"),
            "weights = 'task.toml'",
            "task.toml: not a weight file",
        ),
        (
            &*format!("bundle = '{bundle}'"),
            "onnx = 'task.toml'",
            "preprocess and embeddings beside onnx",
        ),
        (
            "start = 33, end = 67",
            "start = 33, end = 66",
            "are not those of bundle tiny 0.1.0, which knows \"low\" 0 to 33",
        ),
        (
            "branches = 1\n",
            "branches = 1\nhead = { logit_scale = 20 }\n",
            "logit scale is 100, the student's 20; set",
        ),
        (
            "[text]\n",
            "[text]\ntune = { ranks = true }\n",
            "the bins are the teacher's",
        ),
        (
            "cache = 'cache'",
            "cache = 'cache'\nviews = 'many'",
            "expected \"clean\" or a number of views",
        ),
        (
            "cache = 'cache'",
            "cache = 'cache'\nviews = 0",
            "teacher.views",
        ),
        (
            "cache = 'cache'",
            "cache = 'cache'\nunlabelled = 'none/*.png'",
            "no image here",
        ),
        (
            "cache = 'cache'",
            "cache = 'cache'\nsupervised = false\nloss = { embedding = 0, distribution = 0, value = 0 }",
            "not all 0 where",
        ),
        (
            "cache = 'cache'",
            "cache = 'cache'\nloss = { temperature = 0 }",
            "a positive number",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        let error = refusal(&good.replacen(from, to, 1));
        assert!(error.contains(expected), "{from} → {to}: {error}");
    }
    // An image that cannot be read stops the teacher before training, or is counted.
    more_gauges(folder.path());
    fs::write(folder.path().join("more/new2.png"), "no picture").unwrap();
    let lesson = format!("run = '{run_folder}'\ncache = 'cache'\nunlabelled = 'more'\nviews = 1");
    let error = refusal(&student_text("epochs = 1", &lesson));
    assert!(
        error.contains("the teacher cannot read") && error.contains("new2.png"),
        "{error}"
    );
    let lenient =
        student_text("epochs = 1", &lesson).replace("[data]\n", "[data]\nmax_unreadable = 1\n");
    run(
        &config(folder.path(), &lenient),
        &folder.path().join("lenient"),
        false,
    )
    .unwrap();
}

#[test]
fn asking_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let config = involved(folder.path());
    let options = Options {
        out: &folder.path().join("run"),
        resume: false,
        listen: None,
        interrupt: &AtomicBool::new(true),
    };
    let error = fit(&config, &options).unwrap_err();
    assert!(matches!(error, FitError::Teacher(_)), "{error}");
    assert!(error.to_string().contains("give the same command again"));
    run(&config, &folder.path().join("run"), false).unwrap();
}
