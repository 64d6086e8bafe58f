use std::path::Path;

use image::{RgbImage, imageops};

use super::*;
use crate::data::{Columns, DataError, SplitPlan, fingerprint::fingerprints};
use crate::synth::gauge::{GaugeSet, ImageFormat, write_dataset};

fn gauges(folder: &Path, count: u64) {
    let set = GaugeSet {
        count,
        seed: 3,
        size: 96,
        format: ImageFormat::Png,
    };
    write_dataset(&folder.join("set"), &set, || {}).unwrap();
}

/// Twelve gauges to train on; `rows` adds to the table.
fn leaks(change: impl Fn(&RgbImage) -> RgbImage, rows: &str) -> Vec<Leak> {
    let folder = tempfile::tempdir().unwrap();
    gauges(folder.path(), 12);
    let images = folder.path().join("set/images");
    let first = image::open(images.join("000003.png")).unwrap().into_rgb8();
    change(&first).save(images.join("copy.png")).unwrap();
    let mut table = String::from("path,label,group,split\n");
    for i in 0..12 {
        table += &format!("images/{i:06}.png,{i},g{i},train\n");
    }
    let path = folder.path().join("set/t.csv");
    std::fs::write(&path, table + rows).unwrap();
    let dataset = Dataset::open(&path, &Columns::default(), [0.0, 100.0]).unwrap();
    let plan = SplitPlan {
        val_fraction: 0.0,
        ..SplitPlan::default()
    };
    let splits = Splits::new(&dataset, &plan).unwrap();
    let prints = fingerprints(&dataset).unwrap();
    let again = fingerprints(&dataset).unwrap();
    assert_eq!(
        prints, again,
        "what was kept differs from what was computed"
    );
    find(&dataset, &splits, &prints)
}

const COPY: &str = "images/copy.png,3,,test\n";

#[test]
fn different_gauges_are_no_copies() {
    let folder = tempfile::tempdir().unwrap();
    gauges(folder.path(), 120);
    let table = folder.path().join("set/labels.csv");
    let dataset = Dataset::open(&table, &Columns::default(), [0.0, 100.0]).unwrap();
    let prints = fingerprints(&dataset).unwrap();
    let splits = Splits {
        train: (0..60).collect(),
        val: (60..90).collect(),
        test: (90..120).collect(),
        ..Splits::default()
    };
    assert_eq!(find(&dataset, &splits, &prints), []);
}

#[test]
fn copies_are_found_however_they_were_saved() {
    type Change = fn(&RgbImage) -> RgbImage;
    let changes: [(&str, Change); 5] = [
        ("same", RgbImage::clone),
        ("half", |i| {
            imageops::resize(i, 48, 48, imageops::FilterType::Triangle)
        }),
        ("pale", |i| {
            let mut pale = i.clone();
            pale.iter_mut().for_each(|v| *v = *v / 5 * 4 + 30);
            pale
        }),
        ("mirrored", |i| imageops::flip_horizontal(i)),
        ("noisy", |i| {
            let mut noisy = i.clone();
            let values = noisy.iter_mut().enumerate();
            values.for_each(|(at, v)| *v = v.saturating_add((at * 7 % 5) as u8));
            noisy
        }),
    ];
    for (name, change) in changes {
        let found = leaks(change, COPY);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!(found[0].first.name, "images/000003.png", "{name}");
        assert_eq!((found[0].second.split, found[0].second.line), ("test", 14));
        match &found[0].kind {
            LeakKind::Bytes => assert_eq!(name, "same"),
            LeakKind::Look { mirrored, .. } => assert_eq!(*mirrored, name == "mirrored"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn another_picture_and_a_group_in_two_splits() {
    let upside_down = |i: &RgbImage| imageops::rotate180(i);
    assert_eq!(leaks(upside_down, COPY), []);
    let found = leaks(upside_down, "images/copy.png,3,g5,test\n");
    assert_eq!(found.len(), 1);
    let line = found[0].to_string();
    assert_eq!(
        line,
        "group `g5` is in train (line 7) and in test (line 14)"
    );
    assert!(!found[0].is_copy());
}

#[test]
fn a_split_used_twice_is_found_and_cannot_be_mended() -> Result<(), DataError> {
    let folder = tempfile::tempdir().unwrap();
    gauges(folder.path(), 6);
    let table = folder.path().join("set/t.csv");
    let rows: String = (0..6)
        .map(|i| format!("images/{i:06}.png,{i},{}\n", if i < 4 { "a" } else { "b" }))
        .collect();
    std::fs::write(&table, format!("path,label,split\n{rows}")).unwrap();
    let dataset = Dataset::open(&table, &Columns::default(), [0.0, 100.0])?;
    let plan = SplitPlan {
        train: vec!["a".into()],
        val: vec!["b".into()],
        test: vec!["b".into()],
        ..SplitPlan::default()
    };
    let mut splits = Splits::new(&dataset, &plan)?;
    let found = find(&dataset, &splits, &fingerprints(&dataset)?);
    let lines = summary(&found);
    assert_eq!(lines[0], "2 image(s) in two splits:");
    assert_eq!(
        lines[1],
        "  images/000004.png (line 6) is in val and in test"
    );
    assert!(!drop_copies(&mut splits, &found));
    assert_eq!((splits.val.len(), splits.test.len()), (2, 2));
    let message = dataset.leaking(found).to_string();
    assert!(!message.contains("drop"), "{message}");
    Ok(())
}

#[test]
fn copies_are_dropped_unless_nothing_is_left_of_a_split() {
    let folder = tempfile::tempdir().unwrap();
    gauges(folder.path(), 4);
    let images = folder.path().join("set/images");
    std::fs::copy(images.join("000003.png"), images.join("copy.png")).unwrap();
    let divided = |rows: &str| {
        let table = folder.path().join("set/t.csv");
        std::fs::write(&table, format!("path,label,split\n{rows}")).unwrap();
        let dataset = Dataset::open(&table, &Columns::default(), [0.0, 100.0]).unwrap();
        let plan = SplitPlan {
            val_fraction: 0.0,
            ..SplitPlan::default()
        };
        let mut splits = Splits::new(&dataset, &plan).unwrap();
        let found = find(&dataset, &splits, &fingerprints(&dataset).unwrap());
        (drop_copies(&mut splits, &found), splits.val)
    };
    let start = "images/000000.png,0,train\nimages/000003.png,3,val\nimages/copy.png,3,test\n";
    assert_eq!(divided(start), (false, vec![1]));
    assert_eq!(
        divided(&format!("{start}images/000001.png,1,val\n")),
        (true, vec![3])
    );
}
