//! Bundles of small runs, read back by the runtime.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use numclip::bundle::{Bundle, Precision};
use numclip::encode::Engine;
use numclip::estimate::spread;
use numclip::pipeline::Pipeline;
use numclip::verify::{cosine, replay};
use numclip_trainer::data::Unreadable;
use numclip_trainer::eval::{Images, Subject, evaluate};
use numclip_trainer::export::{Budget, ExportError, Exported, Options, Wanted, export, page};
use numclip_trainer::fit::{Run, Weights, embed_all, loader, prepare, untrained};
use numclip_trainer::quantize::tflite;

use crate::common::{MODELS, config, copy, gauges, run, task};

fn export_to(run: &Path, out: &Path, precision: Precision) -> Result<Exported, ExportError> {
    export_as(run, out, precision, Wanted::default())
}

fn export_as(
    run: &Path,
    out: &Path,
    precision: Precision,
    int8: Wanted,
) -> Result<Exported, ExportError> {
    export(&Options {
        run,
        out,
        precision,
        weights: Weights::Best,
        int8,
        interval_from: &[],
        stage: &|_| {},
    })
}

#[test]
fn every_model_exports_in_both_precisions() {
    for model in &MODELS[..3] {
        let folder = tempfile::tempdir().unwrap();
        let [run_folder, f32, int8] = ["run", "f32", "int8"].map(|name| folder.path().join(name));
        run(&config(folder.path(), &task(model)), &run_folder, false).unwrap();
        let exported = export_to(&run_folder, &f32, Precision::F32).unwrap();
        // After a dozen steps the embeddings are small beside their rounding.
        let cosine = exported.lowest_cosine.unwrap();
        assert!(cosine > 0.95, "{cosine}");
        let small = export_to(&run_folder, &int8, Precision::Int8).unwrap();
        assert!(small.encoder_bytes * 2 < exported.encoder_bytes);
        assert!(small.macs > 100_000, "{}", small.macs);
        compare(&f32, &int8);
    }
}

/// A run on some of the parts a to d of the gauges, tested on another one.
fn on_parts(folder: &Path, train: &str, test: &str) -> PathBuf {
    let parts = folder.join("parts.csv");
    let rows = (0..48).map(|i| format!("images/{i:06}.png,{}", ["a", "b", "c", "d"][i % 4]));
    let rows: Vec<String> = rows.collect();
    let labels = fs::read_to_string(gauges().join("set/labels.csv")).unwrap();
    let label = |path: &str| {
        let line = labels.lines().find(|line| line.starts_with(path)).unwrap();
        line.split(',').nth(1).unwrap().to_owned()
    };
    let rows = rows.iter().map(|row| {
        let (path, part) = row.split_once(',').unwrap();
        let image = gauges().join("set").join(path);
        format!("{},{},{part}\n", image.display(), label(path))
    });
    fs::write(
        &parts,
        "path,label,part\n".to_owned() + &rows.collect::<String>(),
    )
    .unwrap();
    let text = task(MODELS[0])
        .replace(
            "split = { val_fraction = 0.3 }",
            &format!(
                "columns = {{ split = \"part\" }}\nsplit = {{ train = [{train}], val = [], \
                 test = [{test}], ignore = [{}], val_fraction = 0.0 }}",
                if test.contains('d') { "" } else { "\"d\"" }
            ),
        )
        .replace("epochs = 2", "epochs = 1");
    let table = gauges().join("set/labels.csv").display().to_string();
    let text = text.replace(&table, &parts.display().to_string());
    let out = folder.join(test.replace('"', ""));
    run(&config(folder, &text), &out, false).unwrap();
    out
}

#[test]
fn an_interval_comes_from_the_runs_of_a_cross_validation() {
    let folder = tempfile::tempdir().unwrap();
    let all = on_parts(folder.path(), "\"a\", \"b\", \"c\"", "\"d\"");
    let folds = [
        on_parts(folder.path(), "\"b\", \"c\"", "\"a\""),
        on_parts(folder.path(), "\"a\", \"c\"", "\"b\""),
        on_parts(folder.path(), "\"a\", \"b\"", "\"c\""),
    ];
    let out = folder.path().join("bundle");
    let with = |interval_from: &[PathBuf]| {
        export(&Options {
            run: &all,
            out: &out,
            precision: Precision::Int8,
            weights: Weights::Best,
            int8: Wanted::default(),
            interval_from,
            stage: &|_| {},
        })
    };
    // Without validation images there is no interval.
    let exported = with(&[]).unwrap();
    assert!(
        exported.lowest_cosine.unwrap() < 1.0,
        "nothing was compared"
    );
    assert!(Bundle::open(&out).unwrap().manifest().interval.is_none());
    with(&folds).unwrap();
    let manifest = Bundle::open(&out).unwrap().manifest().clone();
    let fitted_on = &manifest.provenance.interval;
    assert!(
        fitted_on.starts_with("36 images that 3 runs"),
        "{fitted_on}"
    );
    // Its half width is reached by nine tenths of the errors on the held-out images.
    let interval = manifest.interval.unwrap();
    let mut scores = Vec::new();
    for fold in &folds {
        let subject = Subject::at(fold).unwrap();
        let rows = evaluate(&subject, &Images::default(), 0, &Device::flex())
            .unwrap()
            .rows;
        let (run, config, _) = Run::read(fold).unwrap();
        let device = Device::flex();
        let prepared = prepare(&config, &device).unwrap();
        let model = untrained(&config, &prepared, &device).unwrap();
        let model = run.load(model, Weights::Best).unwrap();
        let test = &prepared.splits.test;
        let loader = loader(&config, &prepared, test, Unreadable::Stop).unwrap();
        let embedded = embed_all(&config, &model, &loader).unwrap().embeddings;
        let estimator = prepared.estimator(&config, &model, None).unwrap();
        for (row, embedding) in rows.iter().zip(&embedded) {
            let estimate = estimator.estimate(embedding);
            let spread = spread(&config.bin, &estimate.probabilities).max(interval.floor);
            scores.push((row.label - estimate.value).abs() / spread);
        }
    }
    let inside = scores.iter().filter(|&&s| s <= interval.quantile * 1.0001);
    // 0.9 of 36 + 1, rounded up.
    assert_eq!(inside.count(), 34);

    let refused = |runs: &[PathBuf], why: &str| {
        let message = with(runs).unwrap_err().to_string();
        assert!(message.contains(why), "{message}");
    };
    refused(&[folds[0].clone(), folds[0].clone()], "another run");
    refused(std::slice::from_ref(&all), "those of the exported run");
    refused(&[folder.path().join("nothing")], "nothing");
}

/// Both bundles replay their golden vectors and agree on images of the task.
fn compare(f32: &Path, int8: &Path) {
    let open = |folder: &Path| Pipeline::new(Bundle::open(folder).unwrap(), None).unwrap();
    let (f32, int8) = (open(f32), open(int8));
    for pipeline in [&f32, &int8] {
        let replays = replay(pipeline).unwrap();
        assert!(
            replays.len() == 3 && replays.iter().all(|replay| replay.passed),
            "{replays:?}"
        );
        let manifest = pipeline.bundle().manifest();
        assert!(
            manifest.provenance.text_tower.contains("random"),
            "{:?}",
            manifest.provenance
        );
        let precisions: Vec<_> = manifest
            .report
            .iter()
            .map(|report| report.precision)
            .collect();
        assert_eq!(precisions, [Precision::F32, Precision::Int8]);
    }
    let (mut a, mut b) = (f32.worker().unwrap(), int8.worker().unwrap());
    for entry in fs::read_dir(gauges().join("set/images")).unwrap().take(8) {
        let frame = numclip::decode::open(&entry.unwrap().path()).unwrap();
        a.preprocess(&frame);
        b.preprocess(&frame);
        assert!(cosine(a.encode().unwrap(), b.encode().unwrap()) > 0.95);
    }
}

#[test]
fn a_search_tries_every_method_and_tells_what_each_layer_costs() {
    let folder = tempfile::tempdir().unwrap();
    let (run_folder, out) = (folder.path().join("run"), folder.path().join("bundle"));
    run(&config(folder.path(), &task(MODELS[0])), &run_folder, false).unwrap();
    let wanted = Wanted {
        search: true,
        details: true,
        aware_epochs: 1,
        ..Wanted::default()
    };
    let exported = export_as(&run_folder, &out, Precision::Int8, wanted).unwrap();
    let evidence = &exported.evidence;
    let methods: Vec<_> = evidence
        .tried
        .iter()
        .map(|tried| tried.method.as_str())
        .collect();
    assert_eq!(methods.len(), 9, "{methods:?}");
    for part in [
        "min-max",
        "moving-average",
        "percentile",
        "entropy",
        "equalised",
        "aware",
    ] {
        assert!(
            methods.iter().any(|method| method.contains(part)),
            "{methods:?}"
        );
    }
    let chosen: Vec<_> = evidence.tried.iter().filter(|tried| tried.chosen).collect();
    assert_eq!((chosen.len(), &chosen[0].method), (1, &evidence.method));
    let least = evidence
        .tried
        .iter()
        .map(|tried| tried.score.drift)
        .fold(f64::MAX, f64::min);
    assert_eq!(chosen[0].score.drift, least);
    assert!(
        evidence
            .latencies
            .iter()
            .any(|latency| latency.engine == "int8")
    );
    let costs = evidence.costs.as_ref().unwrap();
    assert!(costs.layers.len() > 20 && costs.layers[0].name == "image");
    assert_eq!(
        costs.layers.iter().map(|layer| layer.macs).sum::<u64>(),
        exported.macs
    );
    assert!(
        costs
            .layers
            .iter()
            .all(|layer| layer.sqnr_alone.is_none_or(|db| db > 5.0))
    );
    let provenance = Bundle::open(&out).unwrap().manifest().provenance.clone();
    assert!(
        provenance.quantization.contains(&evidence.method),
        "{provenance:?}"
    );
    let (_, config, _) = Run::read(&run_folder).unwrap();
    let page = fs::read_to_string(page::write(&run_folder, &config, &exported).unwrap()).unwrap();
    assert!(methods.iter().all(|method| page.contains(method)));
    for outside in ["http://", "https://", "src=", "<script", "NaN"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
}

/// Layers of each kind of network stay in floats where that is asked, or where the budget wants it,
/// and the engines run the result, TensorFlow Lite's form included.
#[test]
fn sensitive_layers_stay_in_floats() {
    const VIT: &str = "[model]\narchitecture = \"vit-tiny\"\n\
         [train]\nepochs = 1\nbatch_size = 8\n";
    for model in [MODELS[0], VIT] {
        let folder = tempfile::tempdir().unwrap();
        let (run_folder, out) = (folder.path().join("run"), folder.path().join("bundle"));
        run(&config(folder.path(), &task(model)), &run_folder, false).unwrap();
        let asked = Wanted {
            float_layers: Some(2),
            ..Wanted::default()
        };
        let exported = export_as(&run_folder, &out, Precision::Int8, asked).unwrap();
        let evidence = &exported.evidence;
        assert!(evidence.method.ends_with(" in floats"), "{evidence:?}");
        assert_eq!(evidence.tried.len(), 2);
        // After a dozen steps the embeddings are small beside their rounding.
        assert!(evidence.tried[1].score.lowest_cosine > 0.95, "{evidence:?}");
        let pipeline = Pipeline::new(Bundle::open(&out).unwrap(), None).unwrap();
        assert_eq!(pipeline.engine(), Engine::Int8);
        assert!(
            replay(&pipeline)
                .unwrap()
                .iter()
                .all(|replay| replay.passed)
        );
        tflite::add(&out).unwrap();
        if model == VIT {
            let aware = Wanted {
                aware_epochs: 1,
                ..Wanted::default()
            };
            let refused = export_as(&run_folder, &out, Precision::Int8, aware).unwrap_err();
            assert!(matches!(refused, ExportError::Aware), "{refused}");
            continue;
        }
        // Nothing is that near: every way is tried, then more and more layers stay in floats.
        let strict = Wanted {
            search: true,
            force: true,
            budget: Budget {
                mae: Some(-100.0),
                milliseconds: None,
            },
            ..Wanted::default()
        };
        let exported = export_as(&run_folder, &out, Precision::Int8, strict).unwrap();
        let tried = &exported.evidence.tried;
        let mixed = tried
            .iter()
            .filter(|tried| tried.method.ends_with("floats"));
        assert!(mixed.count() > 4, "{tried:?}");
        assert_eq!(exported.evidence.broken.len(), 1);
    }
}

#[test]
fn a_broken_budget_leaves_no_bundle_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let (run_folder, out) = (folder.path().join("run"), folder.path().join("bundle"));
    run(&config(folder.path(), &task(MODELS[0])), &run_folder, false).unwrap();
    let mut wanted = Wanted {
        budget: Budget {
            mae: None,
            milliseconds: Some(0.0),
        },
        ..Wanted::default()
    };
    let refused = export_as(&run_folder, &out, Precision::Int8, wanted).unwrap_err();
    assert!(matches!(refused, ExportError::Budget(_)), "{refused}");
    assert!(refused.to_string().contains("ms"), "{refused}");
    assert!(!out.exists());
    wanted.force = true;
    let forced = export_as(&run_folder, &out, Precision::Int8, wanted).unwrap();
    assert!(!forced.evidence.broken.is_empty());
    Bundle::open(&out).unwrap();
    // The first method is within a generous budget, so no other one is tried.
    wanted.budget = Budget {
        mae: Some(50.0),
        milliseconds: None,
    };
    wanted.search = true;
    let kept = export_as(&run_folder, &out, Precision::Int8, wanted).unwrap();
    assert_eq!(kept.evidence.tried.len(), 1);
    assert!(kept.evidence.tried[0].within && kept.evidence.broken.is_empty());
}

#[test]
fn the_same_run_gives_the_same_bundle_and_keeps_what_lies_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let run_folder = folder.path().join("run");
    run(&config(folder.path(), &task(MODELS[0])), &run_folder, false).unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    export_to(&run_folder, &one, Precision::Int8).unwrap();
    export_to(&run_folder, &two, Precision::F32).unwrap();
    fs::create_dir(two.join("samples")).unwrap();
    fs::write(two.join("samples/note.txt"), "keep me").unwrap();
    export_to(&run_folder, &two, Precision::Int8).unwrap();
    assert_eq!(
        fs::read_to_string(two.join("samples/note.txt")).unwrap(),
        "keep me"
    );
    let digest = |folder: &Path| Bundle::open(folder).unwrap().sha256().to_owned();
    assert_eq!(digest(&one), digest(&two));
}

#[test]
fn an_occupied_folder_and_changed_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("set");
    copy(&gauges().join("set"), &data);
    let text = task(MODELS[2]).replace(
        &gauges().join("set").display().to_string(),
        &data.display().to_string(),
    );
    let run_folder = folder.path().join("run");
    run(&config(folder.path(), &text), &run_folder, false).unwrap();

    let occupied = folder.path().join("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("thesis.txt"), "do not lose").unwrap();
    let error = export_to(&run_folder, &occupied, Precision::Int8).unwrap_err();
    assert!(error.to_string().contains("holds no bundle"), "{error}");
    assert_eq!(fs::read_dir(&occupied).unwrap().count(), 1);

    let table = data.join("labels.csv");
    let labels = fs::read_to_string(&table).unwrap();
    let changed = labels.trim_end().rsplit_once(',').unwrap().0.to_owned() + ",12.5\n";
    fs::write(&table, changed).unwrap();
    let out = folder.path().join("out");
    assert!(matches!(
        export_to(&run_folder, &out, Precision::Int8),
        Err(ExportError::Data { .. })
    ));
    assert!(!out.exists());

    // The same rows in another order make other splits.
    let mut lines: Vec<&str> = labels.lines().collect();
    lines[1..].reverse();
    fs::write(&table, lines.join("\n")).unwrap();
    let refused = export_to(&run_folder, &out, Precision::F32).unwrap_err();
    assert!(matches!(refused, ExportError::Data { .. }), "{refused}");
    let config = config(folder.path(), &text);
    let refused = run(&config, &run_folder, true).unwrap_err().to_string();
    assert!(refused.contains("began: the splits"), "{refused}");
    // A run of an older trainer has no digest of its splits, and is read all the same.
    let provenance = run_folder.join("provenance.json");
    let mut older: serde_json::Value =
        serde_json::from_slice(&fs::read(&provenance).unwrap()).unwrap();
    older.as_object_mut().unwrap().remove("splits");
    fs::write(&provenance, older.to_string()).unwrap();
    run(&config, &run_folder, true).unwrap();
    export_to(&run_folder, &out, Precision::F32).unwrap();
}

#[test]
fn what_was_tuned_leaves_with_the_bundle() {
    let embeddings = MODELS[0].to_owned() + "[text.tune]\nembeddings = true\n";
    for (model, expected) in [
        (
            MODELS[3],
            "ranks and a context for each bin tuned on the images",
        ),
        (&embeddings, "embeddings tuned on the images"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [run_folder, out] = ["run", "bundle"].map(|name| folder.path().join(name));
        let config = config(folder.path(), &task(model));
        run(&config, &run_folder, false).unwrap();
        export_to(&run_folder, &out, Precision::F32).unwrap();
        let bundle = Bundle::open(&out).unwrap();
        let source = &bundle.manifest().provenance.text_tower;
        assert!(source.contains(expected), "{source}");

        let device = Device::flex();
        let prepared = prepare(&config, &device).unwrap();
        let (run, ..) = Run::read(&run_folder).unwrap();
        let start = untrained(&config, &prepared, &device).unwrap();
        let trained = run.load(start, Weights::Best).unwrap();
        let bins = prepared.bin_embeddings(&trained).unwrap().values;
        assert_ne!(bins, prepared.embeddings.values);
        assert_eq!(bundle.estimator().bins().embeddings(), bins);
    }
}
