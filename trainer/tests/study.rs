//! Several runs of a task: planned, run, measured and merged.

use std::fs;
use std::path::PathBuf;

use burn::tensor::Device;
use numclip_trainer::data::LeakPolicy;
use numclip_trainer::eval::{Evaluation, Images, Subject, evaluate};
use numclip_trainer::study::{Plan, collect, write};

use crate::common::{MODELS, config, gauges, run, task};

#[test]
fn folds_and_seeds_become_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.toml");
    fs::write(&path, task(MODELS[2])).unwrap();
    let plan = Plan {
        folds: 2,
        variants: vec![
            vec!["train.loss.value=1".parse().unwrap()],
            vec!["train.loss.value=0".parse().unwrap()],
        ],
        ..Plan::default()
    };
    let mut runs: Vec<PathBuf> = Vec::new();
    for variant in plan.variants() {
        let out = variant.folder(folder.path(), "tiny");
        run(&variant.read(&path).unwrap(), &out, false).unwrap();
        let subject = Subject::at(&out).unwrap();
        let evaluation = evaluate(&subject, &Images::default(), 0, &Device::flex()).unwrap();
        assert_eq!(evaluation.images, "test");
        evaluation.write(&out.join("eval"), "test").unwrap();
        runs.push(out);
    }
    let study = collect(&runs).unwrap();
    assert_eq!(study.settings.len(), 2);
    let images = |setting: usize| -> usize {
        let runs = &study.settings[setting].runs;
        runs.iter().map(|run| run.evaluation.count).sum()
    };
    assert_eq!((images(0), images(1)), (48, 48));
    assert_eq!(study.settings[0].measures["mae"].count, 2);
    assert!(study.settings[1].difference.is_some());
    assert!(study.text().contains("loss.value 0"), "{}", study.text());
    let page = folder.path().join("study.html");
    write(&page, &study).unwrap();
    let page = fs::read_to_string(page).unwrap();
    assert!(!page.contains("NaN") && !page.contains("http"));

    let mut fewer = Evaluation::read(&runs[0].join("eval"), "test").unwrap();
    fewer.count -= 1;
    fewer.write(&runs[0].join("eval"), "test").unwrap();
    let error = collect(&runs).unwrap_err().to_string();
    assert!(
        error.contains("test images") && error.contains("report them apart"),
        "{error}"
    );
}

#[test]
fn an_image_that_cannot_be_read_is_listed_wherever_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    run(&config(folder.path(), &task(MODELS[2])), &out, false).unwrap();
    let mut rows = String::from("path,label\n");
    for i in 0..8 {
        let image = gauges().join(format!("set/images/{i:06}.png"));
        rows += &format!("{},{}\n", image.display(), i * 10);
    }
    // The ninth is a batch of its own.
    fs::write(folder.path().join("torn.png"), "no picture").unwrap();
    let table = folder.path().join("labels.csv");
    fs::write(&table, rows + "torn.png,50\n").unwrap();
    let images = Images {
        table: Some(table),
        ..Images::default()
    };
    let subject = Subject::at(&out).unwrap();
    let evaluation = evaluate(&subject, &images, 0, &Device::flex()).unwrap();
    assert_eq!((evaluation.count, evaluation.skipped.len()), (8, 1));
    assert!(evaluation.skipped[0].ends_with("torn.png"));
}

#[test]
fn a_copy_in_the_test_images_stops_the_run_unless_dropped_or_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = String::from("path,label,split\n");
    for i in 0..24 {
        let source = gauges().join(format!("set/images/{i:06}.png"));
        fs::copy(source, folder.path().join(format!("{i}.png"))).unwrap();
        let split = if i < 16 { "train" } else { "test" };
        rows += &format!("{i}.png,{},{split}\n", (i % 3) * 40);
    }
    fs::copy(folder.path().join("3.png"), folder.path().join("copy.png")).unwrap();
    rows += "copy.png,0,test\n";
    fs::write(folder.path().join("labels.csv"), rows).unwrap();
    let shared = gauges().join("set/labels.csv").display().to_string();
    let text = task(MODELS[2])
        .replace(&shared, "labels.csv")
        .replace("val_fraction = 0.3", "val_fraction = 0.0");
    let mut config = config(folder.path(), &text);
    let out = |name: &str| folder.path().join(name);
    let message = run(&config, &out("refused"), false)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("3.png (train, line 5) = copy.png (test, line 26)"),
        "{message}"
    );
    for (policy, name) in [
        (LeakPolicy::Drop, "left out"),
        (LeakPolicy::Allow, "allowed"),
    ] {
        config.data.leaks = policy;
        run(&config, &out(name), false).unwrap();
        let provenance = fs::read_to_string(out(name).join("provenance.json")).unwrap();
        assert!(provenance.contains(name), "{provenance}");
    }
}
