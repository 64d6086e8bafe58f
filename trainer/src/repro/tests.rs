//! Small copies of the data sets' folders, made up.

use std::fs;

use super::*;
use crate::config::Config;

/// Writes a picture of one grey level, so that no two are alike.
fn picture(folder: &Path, name: &str, level: u8) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::GrayImage::from_pixel(4, 4, image::Luma([level]))
        .save(path)
        .unwrap();
}

fn paper(name: &str) -> &'static Paper {
    Paper::named(name).unwrap()
}

fn rows(found: &Found, folder: &Path) -> Vec<String> {
    let folder = std::path::absolute(folder).unwrap();
    let text = |row: &Row| {
        let path = row.path.strip_prefix(&folder).unwrap().display();
        let [group, split] = [&row.group, &row.split].map(|part| part.as_deref().unwrap_or("-"));
        format!("{path} {} {group} {split}", row.label)
    };
    found.rows.iter().map(text).collect()
}

fn adience(folder: &Path) {
    let ages = ["(0, 2)", "(27, 32)", "29", "(8, 23)", "None"];
    for (fold, age) in ages.iter().enumerate() {
        let header = "user_id\toriginal_image\tface_id\tage\tgender\tx\ty\tdx\tdy\ttilt_ang\tfiducial_yaw_angle\tfiducial_score";
        let line = format!("3060{fold}@N03\t1_o.jpg\t{fold}\t{age}\tf\t0\t0\t9\t9\t-115\t30\t17");
        fs::write(
            folder.join(format!("fold_{fold}_data.txt")),
            format!("{header}\n{line}\n"),
        )
        .unwrap();
        let image = format!("aligned/3060{fold}@N03/landmark_aligned_face.{fold}.1_o.jpg");
        picture(folder, &image, fold as u8);
    }
}

#[test]
fn adiences_folds_are_read_as_published() {
    let folder = tempfile::tempdir().unwrap();
    adience(folder.path());
    let found = read(paper("adience"), folder.path()).unwrap();
    assert_eq!(
        rows(&found, folder.path()),
        [
            "aligned/30600@N03/landmark_aligned_face.0.1_o.jpg 0 30600@N03 0",
            "aligned/30601@N03/landmark_aligned_face.1.1_o.jpg 4 30601@N03 1",
            "aligned/30602@N03/landmark_aligned_face.2.1_o.jpg 4 30602@N03 2",
        ]
    );
    assert_eq!(found.left_out.len(), 2);
    assert_eq!(found.left_out["age (8, 23)"], 1);
    assert!(!found.has_test());
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |name: &str| read(paper(name), folder.path()).unwrap_err().to_string();
    assert!(message("adience").contains("fold_0_data.txt, fold_1_data.txt"));
    assert!(message("aesthetics").contains("a list (*.txt) not found"));
    assert!(message("morph").contains("a single image not found"));
    adience(folder.path());
    fs::remove_file(folder.path().join("fold_3_data.txt")).unwrap();
    let message = |name: &str| read(paper(name), folder.path()).unwrap_err().to_string();
    assert!(message("adience").contains("fold_3_data.txt not found; expected there: fold_0_data"));
    adience(folder.path());
    fs::remove_dir_all(folder.path().join("aligned/30601@N03")).unwrap();
    let missing = message("adience");
    assert!(missing.contains("1 of 3 images are missing") && missing.contains("30601@N03"));
    fs::remove_dir_all(folder.path().join("aligned")).unwrap();
    assert!(message("adience").contains("unpack aligned.tar.gz"));
    let broken = folder.path().join("fold_2_data.txt");
    fs::create_dir(folder.path().join("faces")).unwrap();
    fs::write(&broken, "header\n\none two\n").unwrap();
    assert!(message("adience").contains("fold_2_data.txt, line 3: expected user"));
    let nowhere = read(paper("hci"), &folder.path().join("nowhere")).unwrap_err();
    assert!(nowhere.to_string().contains("the folder not found"));
}

#[test]
fn decades_are_folders_anywhere_near() {
    let folder = tempfile::tempdir().unwrap();
    for (level, decade) in ["1930s", "1940s", "1950s", "1960s"].iter().enumerate() {
        picture(
            folder.path(),
            &format!("data/imgs/{decade}/b.png"),
            level as u8,
        );
        picture(
            folder.path(),
            &format!("data/imgs/{decade}/deep/a.PNG"),
            9 + level as u8,
        );
    }
    let error = read(paper("hci"), folder.path()).unwrap_err().to_string();
    assert!(error.contains("1970s not found"), "{error}");
    picture(folder.path(), "data/imgs/1970s/c.jpg", 77);
    fs::write(folder.path().join("data/imgs/1970s/notes.md"), "").unwrap();
    let found = read(paper("hci"), folder.path()).unwrap();
    assert_eq!(found.rows.len(), 9);
    assert_eq!(
        rows(&found, folder.path())[8],
        "data/imgs/1970s/c.jpg 4 - -"
    );
}

#[test]
fn morph_is_read_from_its_album_or_from_lists() {
    let folder = tempfile::tempdir().unwrap();
    for (level, name) in [
        "009055_1M54.JPG",
        "009055_2M55.JPG",
        "100000_00F21.jpg",
        "cover.jpg",
    ]
    .iter()
    .enumerate()
    {
        picture(folder.path(), &format!("Album2/{name}"), level as u8);
    }
    let found = read(paper("morph"), folder.path()).unwrap();
    assert_eq!(
        rows(&found, folder.path()),
        [
            "Album2/009055_1M54.JPG 54 009055 -",
            "Album2/009055_2M55.JPG 55 009055 -",
            "Album2/100000_00F21.jpg 21 100000 -",
        ]
    );
    assert_eq!(found.left_out["not named PERSON_NxAGE"], 1);
    fs::write(
        folder.path().join("morph_train.txt"),
        "Album2/009055_1M54.JPG 54\n",
    )
    .unwrap();
    fs::write(
        folder.path().join("morph_test.txt"),
        "Album2/100000_00F21.jpg 21\n",
    )
    .unwrap();
    let found = read(paper("morph"), folder.path()).unwrap();
    assert!(found.has_test());
    assert_eq!(
        rows(&found, folder.path()),
        [
            "Album2/100000_00F21.jpg 21 100000 test",
            "Album2/009055_1M54.JPG 54 009055 train"
        ]
    );
    let part = Part {
        seeds: vec![3, 4],
        ..Part::default()
    };
    assert_eq!(
        paper("morph")
            .runs(&found, &part, folder.path())
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn grades_are_their_median_and_paths_may_hold_blanks() {
    let folder = tempfile::tempdir().unwrap();
    picture(folder.path(), "a photo 7.png", 1);
    picture(folder.path(), "b.png", 2);
    let list = folder.path().join("grades.txt");
    fs::write(&list, "a photo 7.png 3 5 1 4 4\n\nb.png\t2 4\n").unwrap();
    let found = read(paper("aesthetics"), folder.path()).unwrap();
    // The 7 belongs to no number at the end of the line: a name follows it.
    assert_eq!(
        rows(&found, folder.path()),
        ["a photo 7.png 4 - -", "b.png 4 - -"]
    );
    fs::write(&list, "b.png good\n").unwrap();
    let error = read(paper("aesthetics"), folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("grades.txt, line 1: expected a path"),
        "{error}"
    );
    fs::write(&list, "b.png 2\n").unwrap();
    fs::write(folder.path().join("more.txt"), "b.png 2\n").unwrap();
    let error = read(paper("aesthetics"), folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("a list for each of 5 folds"), "{error}");
}

#[test]
fn every_table_has_a_task_that_reads_and_runs_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let found = Found::default();
    for paper in &PAPERS {
        let task = paper.write(&found, folder.path()).unwrap();
        let part = Part {
            seeds: vec![0, 1],
            ..Part::default()
        };
        let runs = paper.runs(&found, &part, folder.path()).unwrap();
        let folders: BTreeSet<&PathBuf> = runs.iter().map(|(folder, _)| folder).collect();
        assert_eq!(
            (runs.len(), folders.len()),
            (2 * paper.folds, 2 * paper.folds)
        );
        let config: Config = runs[0].1.read(&task).unwrap();
        assert_eq!(config.data.table, folder.path().join("labels.csv"));
        assert_eq!(config.data.leaks, LeakPolicy::default());
        for figure in paper.figures {
            assert!(["mae", "accuracy"].contains(&figure.measure));
        }
        let part = Part {
            folds: vec![2],
            set: vec!["train.epochs=1".parse().unwrap()],
            ..part
        };
        let runs = paper.runs(&found, &part, folder.path()).unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0].1.read(&task).unwrap().train.epochs, 1);
        assert!(runs[0].0.ends_with(format!(
            "{}-fold2of{}-train.epochs-1-seed0",
            paper.name, paper.folds
        )));
        let part = Part {
            folds: vec![paper.folds + 1],
            ..part
        };
        assert!(paper.runs(&found, &part, folder.path()).is_err());
    }
}

#[test]
fn the_published_tuning_is_set_with_a_checkpoint() {
    let sets = paper("aesthetics").sets(Some(Path::new("/models/ViT-B-16.pt")));
    let text: Vec<String> = sets.iter().map(ToString::to_string).collect();
    assert!(text.contains(&"model.architecture=clip".into()), "{text:?}");
    assert!(
        text.contains(&"model.init=/models/ViT-B-16.pt".into()),
        "{text:?}"
    );
    assert!(
        text.iter()
            .any(|set| set.starts_with("text.tune=") && set.contains("shared"))
    );
    assert!(
        text.iter()
            .any(|set| set.starts_with("train.optimizer.groups="))
    );
}

#[test]
fn figures_without_a_source_are_not_given() {
    let comparison = Comparison {
        name: "adience",
        source: "none",
        runs: [1, 5],
        from_clip: true,
        lines: vec![
            Line {
                measure: "mae",
                unit: "groups",
                reported: None,
                obtained: Some(0.5),
                half_width: Some(0.04),
                difference: None,
            },
            Line {
                measure: "accuracy",
                unit: "%",
                reported: Some(60.0),
                obtained: Some(58.5),
                half_width: None,
                difference: Some(-1.5),
            },
        ],
    };
    assert_eq!(
        comparison.text(),
        "adience: 1 of 5 runs, none\n\
         \x20               reported     obtained  difference\n\
         \x20 MAE, groups  not given  0.50 ± 0.04           -\n\
         \x20 accuracy, %      60.00        58.50       -1.50\n"
    );
}
