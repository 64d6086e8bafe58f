use std::collections::HashSet;

use super::*;
use crate::data::split::tests::{dataset, many_groups};

fn many() -> Dataset {
    dataset(&many_groups())
}

fn bins() -> Vec<Bin> {
    [("low", 0.0, 4.0), ("high", 5.0, 9.0)]
        .map(|(label, start, end)| Bin {
            label: label.into(),
            start,
            end,
        })
        .to_vec()
}

fn splits(dataset: &Dataset, protocol: &Protocol, seed: u64) -> Splits {
    protocol
        .splits(dataset, &SplitPlan::default(), &bins(), seed)
        .unwrap()
}

fn fold(number: usize, of: usize, from: FoldSource) -> Protocol {
    Protocol {
        fold: Some(Fold { number, of, from }),
        ..Protocol::default()
    }
}

fn message(dataset: &Dataset, protocol: &Protocol) -> String {
    protocol
        .splits(dataset, &SplitPlan::default(), &bins(), 0)
        .unwrap_err()
        .to_string()
}

#[test]
fn folds_of_groups_test_every_image_once_and_keep_groups_whole() {
    let dataset = many();
    let mut tested = HashSet::new();
    for number in 1..=5 {
        let splits = splits(&dataset, &fold(number, 5, FoldSource::Auto), 0);
        let groups = |indices: &[usize]| -> HashSet<_> {
            let group = |&i: &usize| dataset.samples()[i].group.clone();
            indices.iter().map(group).collect()
        };
        assert!(groups(&splits.test).is_disjoint(&groups(&splits.train)));
        assert!(groups(&splits.test).is_disjoint(&groups(&splits.val)));
        assert!(!splits.val.is_empty());
        let size = splits.test.len();
        assert!((70..=90).contains(&size), "fold {number} has {size}");
        let low = dataset
            .labels(&splits.test)
            .iter()
            .filter(|l| **l < 5.0)
            .count();
        assert!((0.4..0.6).contains(&(low as f32 / size as f32)));
        assert!(splits.test.iter().all(|index| tested.insert(*index)));
    }
    assert_eq!(tested.len(), 400);
}

#[test]
fn folds_of_a_column_are_its_values_in_order() {
    let rows: String = (0..24)
        .map(|i| format!("{i}.png,{},,{}\n", i % 3, [10, 9, 2][i % 3]))
        .collect();
    let dataset = dataset(&rows);
    let third = splits(&dataset, &fold(3, 3, FoldSource::Auto), 0);
    let values: HashSet<_> = third
        .test
        .iter()
        .map(|&i| dataset.samples()[i].split.clone().unwrap())
        .collect();
    assert_eq!(values, HashSet::from(["10".to_owned()]));
    let error = message(&dataset, &fold(1, 5, FoldSource::Auto));
    assert!(error.contains("3 folds (2, 9, 10), expected 5"), "{error}");
    assert_eq!(
        splits(&dataset, &fold(1, 6, FoldSource::Groups), 0)
            .test
            .len(),
        4
    );
}

#[test]
fn ignored_images_are_in_no_fold() {
    let rows: String = (0..12)
        .map(|i| format!("{i}.png,{},,{}\n", i % 2, ["a", "b", "bad"][i % 3]))
        .collect();
    let dataset = dataset(&rows);
    let plan = SplitPlan {
        ignore: vec!["bad".into()],
        ..SplitPlan::default()
    };
    let splits = fold(1, 2, FoldSource::Column)
        .splits(&dataset, &plan, &bins(), 0)
        .unwrap();
    let all: Vec<usize> = [splits.train, splits.val, splits.test].concat();
    assert_eq!(all.len(), 8);
    assert!(all.iter().all(|index| index % 3 != 2));
}

#[test]
fn a_group_left_out_is_the_test_split() {
    let dataset = many();
    let protocol = Protocol {
        leave_out: Some("g7".into()),
        ..Protocol::default()
    };
    let splits = splits(&dataset, &protocol, 0);
    let group = |&i: &usize| dataset.samples()[i].group.as_deref() == Some("g7");
    assert!(!splits.test.is_empty() && splits.test.iter().all(group));
    assert!(!splits.train.iter().chain(&splits.val).any(group));
    let unknown = Protocol {
        leave_out: Some("g99".into()),
        ..Protocol::default()
    };
    let error = message(&dataset, &unknown);
    assert!(error.contains("group `g99`; there are: g0, g1"), "{error}");
}

fn few(images: usize, per: Class) -> Protocol {
    Protocol {
        few_shot: Some(FewShot {
            images,
            val_images: Some(1),
            per,
        }),
        ..Protocol::default()
    }
}

#[test]
fn few_shot_takes_as_many_of_each_class_nested_and_seeded() {
    let dataset = many();
    for (per, classes) in [(Class::Label, 10), (Class::Bin, 2)] {
        let four = splits(&dataset, &few(4, per), 3);
        assert_eq!((four.train.len(), four.val.len()), (4 * classes, classes));
        let two = splits(&dataset, &few(2, per), 3);
        assert!(two.train.iter().all(|index| four.train.contains(index)));
        assert_eq!(four, splits(&dataset, &few(4, per), 3));
        assert_ne!(four.train, splits(&dataset, &few(4, per), 4).train);
    }
    assert_eq!(
        splits(&dataset, &few(1000, Class::Label), 0).train,
        splits(&dataset, &Protocol::default(), 0).train
    );
}

#[test]
fn labels_that_are_no_classes_are_refused() {
    let rows: String = (0..60).map(|i| format!("{i}.png,{i}.5,,\n")).collect();
    let dataset = dataset(&rows);
    let error = message(&dataset, &few(2, Class::Label));
    assert!(error.contains("--per bin"), "{error}");
    assert_eq!(splits(&dataset, &few(2, Class::Bin), 0).train.len(), 4);
}

#[test]
fn a_shift_thins_the_largest_classes() {
    // Label 0 has 80 images, label 1 forty, label 2 ten.
    let rows: String = (0..130)
        .map(|i| {
            format!(
                "{i}.png,{},,\n",
                usize::from(i >= 80) + usize::from(i >= 120)
            )
        })
        .collect();
    let dataset = dataset(&rows);
    let protocol = Protocol {
        shift: Some(Shift {
            classes: 2,
            keep: 0.1,
            per: Class::Label,
        }),
        ..Protocol::default()
    };
    let plan = SplitPlan {
        val_fraction: 0.0,
        ..SplitPlan::default()
    };
    let shifted = protocol.splits(&dataset, &plan, &bins(), 1).unwrap();
    let count = |label: f32| {
        let labels = dataset.labels(&shifted.train);
        labels.iter().filter(|l| **l == label).count()
    };
    assert_eq!([count(0.0), count(1.0), count(2.0)], [8, 4, 10]);
}

#[test]
fn too_many_folds_are_refused() {
    let dataset = dataset("a,1,x,\nb,2,y,\nc,3,y,\n");
    let error = message(&dataset, &fold(1, 3, FoldSource::Groups));
    assert!(error.contains("3 folds cannot be made from 2"), "{error}");
}
