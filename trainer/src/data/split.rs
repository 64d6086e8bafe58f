//! Training, validation and test images.

use std::collections::{BTreeMap, HashMap};

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    dataset::Dataset,
    error::{DataError, DataErrorKind as Kind},
};

/// Visits of each group at most, to decide whether it is held back.
const ROUNDS: usize = 50;

/// How a data set is divided.
///
/// With a split column, its values are looked up in the lists. Without one,
/// all images are for training. Validation (and test) images are then held
/// back from the training images where the table names none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SplitPlan {
    /// Values that mean training.
    pub train: Vec<String>,
    /// Values that mean validation.
    pub val: Vec<String>,
    /// Values that mean test.
    pub test: Vec<String>,
    /// Values to leave out.
    pub ignore: Vec<String>,
    /// Share of the training images to hold back for validation, 0 to 1, where
    /// the table names none.
    pub val_fraction: f32,
    /// Share of the training images to hold back for test, 0 to 1, where the
    /// table names none.
    pub test_fraction: f32,
    /// Decides which groups are held back.
    pub seed: u64,
}

/// Positions in [`Dataset::samples`], ascending.
///
/// A table may put an image or a group into two of them: [`super::leak`] finds
/// that, and more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Splits {
    /// For fitting; never empty.
    pub train: Vec<usize>,
    /// For choosing.
    pub val: Vec<usize>,
    /// For reporting.
    pub test: Vec<usize>,
    /// Without labels, for a teacher's outputs to be learned.
    pub unlabelled: Vec<usize>,
}

impl Default for SplitPlan {
    fn default() -> Self {
        let named = |name: &str| vec![name.to_owned()];
        Self {
            train: named("train"),
            val: named("val"),
            test: named("test"),
            ignore: Vec::new(),
            val_fraction: 0.15,
            test_fraction: 0.0,
            seed: 0,
        }
    }
}

impl Splits {
    /// Divides a data set.
    ///
    /// Images held back are whole groups, chosen so that their labels are
    /// spread like those of all training images as well as the groups allow.
    ///
    /// # Errors
    ///
    /// If a split value is unknown, training is left without images, or there
    /// are too few groups to hold some back.
    pub fn new(dataset: &Dataset, plan: &SplitPlan) -> Result<Self, DataError> {
        check_fractions(dataset, plan)?;
        let mut splits = assign(dataset, plan)?;
        let holds_test_back = splits.test.is_empty() && plan.test_fraction > 0.0;
        if holds_test_back {
            splits.test = hold_back(
                dataset,
                &mut splits.train,
                plan.test_fraction,
                plan.seed ^ 1,
                "test",
            )?;
        }
        if splits.val.is_empty() && plan.val_fraction > 0.0 {
            // The share is of all that could have been trained on.
            let left = match holds_test_back {
                true => 1.0 - plan.test_fraction,
                false => 1.0,
            };
            let fraction = plan.val_fraction / left;
            splits.val = hold_back(dataset, &mut splits.train, fraction, plan.seed, "val")?;
        }
        if splits.train.is_empty() {
            return Err(dataset.error(None, Kind::EmptySplit("train")));
        }
        Ok(splits)
    }
}

fn check_fractions(dataset: &Dataset, plan: &SplitPlan) -> Result<(), DataError> {
    let wrong = |name, got| Err(dataset.error(None, Kind::Fraction { name, got }));
    if !(0.0..1.0).contains(&plan.test_fraction) {
        return wrong("test_fraction", plan.test_fraction);
    }
    if !(0.0..1.0 - plan.test_fraction).contains(&plan.val_fraction) {
        return wrong("val_fraction", plan.val_fraction);
    }
    Ok(())
}

/// Follows the table's split column.
fn assign(dataset: &Dataset, plan: &SplitPlan) -> Result<Splits, DataError> {
    let mut splits = Splits::default();
    for (index, sample) in dataset.samples().iter().enumerate() {
        let Some(value) = &sample.split else {
            splits.train.push(index);
            continue;
        };
        let mut known = plan.ignore.contains(value);
        for (names, split) in [
            (&plan.train, &mut splits.train),
            (&plan.val, &mut splits.val),
            (&plan.test, &mut splits.test),
        ] {
            if names.contains(value) {
                split.push(index);
                known = true;
            }
        }
        if !known {
            return Err(dataset.error(sample.line, Kind::UnknownSplit(value.clone())));
        }
    }
    Ok(splits)
}

/// Takes whole groups out of `from`: about `fraction` of the images, spread
/// over the labels.
///
/// Groups are visited in random order and held back or given back whenever
/// that lowers the [`Shortfall`], until no single group does.
fn hold_back(
    dataset: &Dataset,
    from: &mut Vec<usize>,
    fraction: f32,
    seed: u64,
    split: &'static str,
) -> Result<Vec<usize>, DataError> {
    let mut groups = groups(dataset, from);
    if groups.len() < 2 {
        let groups = groups.len();
        return Err(dataset.error(None, Kind::TooFewGroups { split, groups }));
    }
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut shortfall = Shortfall::new(from, &dataset.labels(from), fraction);
    let mut chosen = vec![false; groups.len()];
    for _ in 0..ROUNDS {
        let mut changed = false;
        for (group, chosen) in groups.iter().zip(&mut chosen) {
            let direction = if *chosen { -1.0 } else { 1.0 };
            if shortfall.falls_by(group, direction) {
                *chosen = !*chosen;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let taken = groups.iter().zip(&chosen).filter(|(_, chosen)| **chosen);
    let mut held: Vec<usize> = taken.flat_map(|(group, _)| group.clone()).collect();
    if held.is_empty() {
        // All groups are larger than the share: the smallest comes closest.
        held.extend(
            groups
                .iter()
                .min_by_key(|group| group.len())
                .into_iter()
                .flatten(),
        );
    }
    held.sort_unstable();
    from.retain(|index| held.binary_search(index).is_err());
    Ok(held)
}

/// How far the images held back are from the share wanted: of all images, of
/// each half and each quarter of them by label, and of each stratum.
///
/// Scales with few strata weigh more, so that a share of less than one image
/// in each of many strata still adds up to the share of the whole.
struct Shortfall {
    /// For each sample of the data set: its stratum at each scale.
    strata: HashMap<usize, Vec<usize>>,
    /// Images wanted less images held back, by scale and stratum.
    missing: Vec<Vec<f64>>,
}

impl Shortfall {
    fn new(indices: &[usize], labels: &[f32], fraction: f32) -> Self {
        let scales = [
            quantiles(labels, 1),
            quantiles(labels, 2),
            quantiles(labels, 4),
            strata(labels),
        ];
        let of_sample = |position: usize| scales.iter().map(|scale| scale[position]).collect();
        let positions = indices.iter().enumerate();
        let missing = scales.iter().map(|scale| {
            let mut missing = vec![0.0; scale.iter().max().map_or(0, |last| last + 1)];
            scale
                .iter()
                .for_each(|&stratum| missing[stratum] += f64::from(fraction));
            missing
        });
        Self {
            missing: missing.collect(),
            strata: positions
                .map(|(position, &index)| (index, of_sample(position)))
                .collect(),
        }
    }

    /// Holds a group back (`direction` 1) or gives it back (−1) if that brings
    /// the shares closer; says whether it did.
    fn falls_by(&mut self, group: &[usize], direction: f64) -> bool {
        let before = self.total();
        self.count(group, direction);
        let falls = self.total() < before - 1e-9;
        if !falls {
            self.count(group, -direction);
        }
        falls
    }

    fn count(&mut self, group: &[usize], direction: f64) {
        for index in group {
            for (missing, &stratum) in self.missing.iter_mut().zip(&self.strata[index]) {
                missing[stratum] -= direction;
            }
        }
    }

    fn total(&self) -> f64 {
        let squares =
            |scale: &Vec<f64>| scale.iter().map(|m| m * m).sum::<f64>() / scale.len() as f64;
        self.missing.iter().map(squares).sum()
    }
}

/// Samples by group, in an order that does not depend on hashing.
pub(super) fn groups(dataset: &Dataset, indices: &[usize]) -> Vec<Vec<usize>> {
    let mut named: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut single = Vec::new();
    for &index in indices {
        match &dataset.samples()[index].group {
            Some(group) => named.entry(group).or_default().push(index),
            None => single.push(vec![index]),
        }
    }
    named.into_values().chain(single).collect()
}

/// Stratum of each label: the label itself if there are at most twenty
/// different ones, otherwise its tenth in ascending order.
pub(super) fn strata(labels: &[f32]) -> Vec<usize> {
    let mut distinct = labels.to_vec();
    distinct.sort_by(f32::total_cmp);
    distinct.dedup();
    match distinct.len() {
        ..=20 => labels
            .iter()
            .map(|label| below(&distinct, *label))
            .collect(),
        _ => quantiles(labels, 10),
    }
}

/// Which of `count` equal parts each label falls into, in ascending order;
/// equal labels fall into the same.
fn quantiles(labels: &[f32], count: usize) -> Vec<usize> {
    let mut ascending = labels.to_vec();
    ascending.sort_by(f32::total_cmp);
    let place = |label: &f32| below(&ascending, *label) * count / ascending.len();
    labels.iter().map(place).collect()
}

/// How many of the ascending values are below `label`.
fn below(ascending: &[f32], label: f32) -> usize {
    ascending.partition_point(|value| *value < label)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::{Columns, dataset::tests::folder};

    /// A data set with rows of path, label, group and split.
    pub(in crate::data) fn dataset(rows: &str) -> Dataset {
        let names: Vec<&str> = rows
            .lines()
            .filter_map(|row| row.split(',').next())
            .collect();
        let text = format!("path,label,group,split\n{rows}");
        let (_folder, path) = folder("t.csv", &text, &names);
        Dataset::open(&path, &Columns::default(), [0.0, 100.0]).unwrap()
    }

    fn split(rows: &str, plan: &SplitPlan) -> Result<(Dataset, Splits), DataError> {
        let dataset = dataset(rows);
        let splits = Splits::new(&dataset, plan)?;
        Ok((dataset, splits))
    }

    /// Four hundred images of ten labels in forty groups of uneven size.
    pub(in crate::data) fn many_groups() -> String {
        (0..400)
            .map(|i: u64| (i, i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40))
            .map(|(i, random)| format!("{i}.png,{},g{},\n", i % 10, random % 43 % 40))
            .collect()
    }

    #[test]
    fn the_tables_splits_are_followed() {
        let plan = SplitPlan {
            train: vec!["0".into(), "1".into()],
            test: vec!["3".into()],
            ignore: vec!["9".into()],
            val_fraction: 0.0,
            ..SplitPlan::default()
        };
        let rows = "a,1,,0\nb,2,,1\nc,3,,3\nd,4,,9\n";
        let (_, splits) = split(rows, &plan).unwrap();
        assert_eq!(splits.train, [0, 1]);
        assert_eq!(splits.test, [2]);
        let error = split("a,1,,0\nb,2,,7\n", &plan).unwrap_err();
        assert!(
            error.to_string().contains("line 3: split `7` is in none"),
            "{error}"
        );
    }

    #[test]
    fn held_back_groups_stay_whole_and_stratified() {
        let plan = SplitPlan {
            val_fraction: 0.2,
            test_fraction: 0.1,
            ..SplitPlan::default()
        };
        let (dataset, splits) = split(&many_groups(), &plan).unwrap();
        let names = |indices: &[usize]| -> HashSet<_> {
            indices
                .iter()
                .map(|&i| dataset.samples()[i].group.clone())
                .collect()
        };
        let (train, val, test) = (
            names(&splits.train),
            names(&splits.val),
            names(&splits.test),
        );
        assert!(train.is_disjoint(&val) && train.is_disjoint(&test) && val.is_disjoint(&test));
        assert_eq!(
            splits.train.len() + splits.val.len() + splits.test.len(),
            400
        );
        assert!(
            (60..=100).contains(&splits.val.len()),
            "{} held back",
            splits.val.len()
        );
        assert!(
            (25..=55).contains(&splits.test.len()),
            "{} held back",
            splits.test.len()
        );
    }

    #[test]
    fn single_images_are_stratified_exactly() {
        let rows: String = (0..200).map(|i| format!("{i}.png,{},,\n", i % 4)).collect();
        let plan = SplitPlan {
            val_fraction: 0.25,
            ..SplitPlan::default()
        };
        let (dataset, splits) = split(&rows, &plan).unwrap();
        for label in 0..4 {
            let held = dataset
                .labels(&splits.val)
                .iter()
                .filter(|l| **l == label as f32)
                .count();
            assert!((12..=13).contains(&held), "{held} of label {label}");
        }
    }

    #[test]
    fn a_test_split_of_the_table_takes_nothing_off_the_share_for_validation() {
        let split_of = |i: usize| if i < 100 { "train" } else { "test" };
        let rows: String = (0..120)
            .map(|i| format!("{i}.png,{},,{}\n", i % 4, split_of(i)))
            .collect();
        let plan = SplitPlan {
            val_fraction: 0.2,
            test_fraction: 0.5,
            ..SplitPlan::default()
        };
        let (_, splits) = split(&rows, &plan).unwrap();
        assert_eq!((splits.val.len(), splits.test.len()), (20, 20));
    }

    #[test]
    fn few_images_with_many_labels_give_their_share_from_everywhere() {
        let rows: String = (0..24).map(|i| format!("{i}.png,{},,\n", i * 4)).collect();
        for seed in 0..20 {
            let plan = SplitPlan {
                seed,
                ..SplitPlan::default()
            };
            let (_, splits) = split(&rows, &plan).unwrap();
            assert!((3..=4).contains(&splits.val.len()), "{:?}", splits.val);
            for half in [0..12, 12..24] {
                let held = splits
                    .val
                    .iter()
                    .filter(|index| half.contains(*index))
                    .count();
                assert!((1..=3).contains(&held), "seed {seed}: {:?}", splits.val);
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn shares_are_right_for_any_set(
            labels in proptest::collection::vec(0_u8..60, 8..160),
            size in 1_usize..5,
            fraction in 0.05_f32..0.5,
            seed: u64,
        ) {
            let count = labels.len();
            let rows = |label: &dyn Fn(usize) -> String| -> String {
                (0..count).map(|i| format!("{i}.png,{},{},\n", labels[i], label(i))).collect()
            };
            let plan = SplitPlan { val_fraction: fraction, seed, ..SplitPlan::default() };
            let wanted = count as f32 * fraction;

            // Images of their own: the share within rounding, each half too.
            let (dataset, splits) = split(&rows(&|_| String::new()), &plan).unwrap();
            let held = splits.val.len() as f32;
            proptest::prop_assert!((held - wanted).abs() < 1.0 || wanted < 1.0 && held == 1.0, "{held} for {wanted}");
            proptest::prop_assert_eq!(splits.train.len() + splits.val.len(), count);
            let parts = quantiles(&dataset.labels(&(0..count).collect::<Vec<_>>()), 2);
            for part in 0..2 {
                let all = parts.iter().filter(|p| **p == part).count() as f32;
                let held = splits.val.iter().filter(|i| parts[**i] == part).count() as f32;
                proptest::prop_assert!((held - all * fraction).abs() < 2.0, "{held} of {all}");
            }
            proptest::prop_assert_eq!(&split(&rows(&|_| String::new()), &plan).unwrap().1, &splits);

            // Groups: whole, and the share within one of them.
            let grouped = split(&rows(&|i| format!("g{}", i / size)), &plan);
            if count.div_ceil(size) > 1 {
                let splits = grouped.unwrap().1;
                let groups: HashSet<usize> = splits.val.iter().map(|i| i / size).collect();
                proptest::prop_assert!(splits.train.iter().all(|i| !groups.contains(&(i / size))));
                let held = splits.val.len() as f32;
                proptest::prop_assert!((held - wanted).abs() <= size as f32, "{held} for {wanted}");
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        let by_seed = |seed| {
            let plan = SplitPlan {
                seed,
                ..SplitPlan::default()
            };
            split(&many_groups(), &plan).unwrap().1
        };
        assert_eq!(by_seed(1), by_seed(1));
        assert_ne!(by_seed(1), by_seed(2));
    }

    #[test]
    fn impossible_plans_are_refused() {
        let one_group = "a,1,x,\nb,2,x,\n";
        let error = split(one_group, &SplitPlan::default()).unwrap_err();
        assert!(
            error.to_string().contains("cannot be taken from 1 group"),
            "{error}"
        );
        let plan = SplitPlan {
            val_fraction: 0.6,
            test_fraction: 0.5,
            ..SplitPlan::default()
        };
        let error = split(&many_groups(), &plan).unwrap_err();
        assert!(error.to_string().contains("val_fraction is 0.6"), "{error}");
        let error = split(
            "a,1,,test\n",
            &SplitPlan {
                val_fraction: 0.0,
                ..SplitPlan::default()
            },
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("train split has no images")
        );
    }
}
