//! Protocols: which images a run trains on and is tested on, beyond the plain
//! split of its table.
//!
//! Folds and left-out groups depend on the table and the split's seed alone,
//! so that runs of other seeds are tested on the same images. Few-shot and
//! shifted training sets are drawn by the seed of the run.

use std::collections::{BTreeMap, BTreeSet};

use numclip::bins::{Bin, index_of};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{
    dataset::Dataset,
    error::{DataError, DataErrorKind as Kind},
    split::{SplitPlan, Splits, groups, strata},
};

/// Changes to the split of a table; none by default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Protocol {
    /// One fold of a cross-validation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fold: Option<Fold>,
    /// The group that is the test split; all others are for training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave_out: Option<String>,
    /// A few training images of each class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<FewShot>,
    /// Fewer training images of the largest classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<Shift>,
}

/// One fold of a cross-validation: it is the test split, the others are for
/// training, and validation is held back from those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    /// The fold, from 1.
    pub number: usize,
    /// Number of folds, at least 2.
    pub of: usize,
    /// Where the folds come from.
    #[serde(default)]
    pub from: FoldSource,
}

/// Where folds come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoldSource {
    /// The split column, where the table has one; otherwise the groups.
    #[default]
    Auto,
    /// The values of the split column, in ascending order.
    Column,
    /// Whole groups, dealt out so that sizes and labels are spread evenly.
    Groups,
}

/// A few training images of each class. With the same seed, the images of a
/// smaller number are among those of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// Training images of each class; all where it has fewer.
    pub images: usize,
    /// Validation images of each class; all that were held back if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_images: Option<usize>,
    /// What a class is.
    #[serde(default)]
    pub per: Class,
}

/// Fewer training images of the largest classes (the label distribution shift
/// of OrdinalCLIP, Li et al., NeurIPS 2022).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shift {
    /// How many of the largest classes are thinned.
    pub classes: usize,
    /// Share of their images that stays, above 0 and below 1; at least one image does.
    pub keep: f32,
    /// What a class is.
    #[serde(default)]
    pub per: Class,
}

/// What counts as a class of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// All images with the same label.
    #[default]
    Label,
    /// All images whose label falls into the same bin.
    Bin,
}

impl Protocol {
    /// Divides `dataset` by `plan` and this protocol; `seed` draws few-shot
    /// and shifted training images.
    ///
    /// # Errors
    ///
    /// Those of [`Splits::new`]; if folds or groups are not to be had, or
    /// labels are no classes.
    pub fn splits(
        &self,
        dataset: &Dataset,
        plan: &SplitPlan,
        bins: &[Bin],
        seed: u64,
    ) -> Result<Splits, DataError> {
        let mut splits = match (&self.fold, &self.leave_out) {
            (Some(fold), _) => fold.splits(dataset, plan)?,
            (None, Some(group)) => leave_out(dataset, plan, group)?,
            (None, None) => Splits::new(dataset, plan)?,
        };
        let draw = Draw {
            dataset,
            bins,
            seed,
        };
        if let Some(Shift { classes, keep, per }) = self.shift {
            splits.train = draw.shifted(&splits.train, per, classes, keep)?;
        }
        if let Some(few) = self.few_shot {
            splits.train = draw.few(&splits.train, few.per, few.images)?;
            if let Some(images) = few.val_images {
                splits.val = draw.few(&splits.val, few.per, images)?;
            }
        }
        Ok(splits)
    }
}

impl Fold {
    fn splits(self, dataset: &Dataset, plan: &SplitPlan) -> Result<Splits, DataError> {
        let taking_part = taking_part(dataset, plan);
        let has_column = taking_part
            .iter()
            .any(|&index| dataset.samples()[index].split.is_some());
        let from_column = match self.from {
            FoldSource::Column => true,
            FoldSource::Groups => false,
            FoldSource::Auto => has_column,
        };
        let fold_of = match from_column {
            true => folds_of_column(dataset, &taking_part, self.of)?,
            false => folds_of_groups(dataset, &taking_part, self.of, plan.seed)?,
        };
        let tested = |position: usize| fold_of[position] == self.number - 1;
        split_off(dataset, plan, &taking_part, tested)
    }
}

fn leave_out(dataset: &Dataset, plan: &SplitPlan, group: &str) -> Result<Splits, DataError> {
    let taking_part = taking_part(dataset, plan);
    let group_of = |index: usize| dataset.samples()[index].group.as_deref();
    if !taking_part.iter().any(|&i| group_of(i) == Some(group)) {
        let known: BTreeSet<&str> = taking_part.iter().filter_map(|&i| group_of(i)).collect();
        return Err(dataset.error(
            None,
            Kind::UnknownGroup {
                group: group.into(),
                known: known.into_iter().map(Into::into).collect(),
            },
        ));
    }
    split_off(dataset, plan, &taking_part, |position| {
        group_of(taking_part[position]) == Some(group)
    })
}

/// Images that the plan does not leave out.
fn taking_part(dataset: &Dataset, plan: &SplitPlan) -> Vec<usize> {
    let ignored = |split: &Option<String>| {
        split
            .as_ref()
            .is_some_and(|value| plan.ignore.contains(value))
    };
    let samples = dataset.samples().iter().enumerate();
    samples
        .filter(|(_, sample)| !ignored(&sample.split))
        .map(|(index, _)| index)
        .collect()
}

/// Tests on the positions of `taking_part` that `tested` names and trains on
/// the rest, with validation held back as `plan` says.
fn split_off(
    dataset: &Dataset,
    plan: &SplitPlan,
    taking_part: &[usize],
    tested: impl Fn(usize) -> bool,
) -> Result<Splits, DataError> {
    const TRAIN: &str = "train";
    const TEST: &str = "test";
    const IGNORE: &str = "ignore";
    let mut names = vec![Some(IGNORE.to_owned()); dataset.samples().len()];
    for (position, &index) in taking_part.iter().enumerate() {
        let name = if tested(position) { TEST } else { TRAIN };
        names[index] = Some(name.to_owned());
    }
    let plan = SplitPlan {
        train: vec![TRAIN.into()],
        val: Vec::new(),
        test: vec![TEST.into()],
        ignore: vec![IGNORE.into()],
        test_fraction: 0.0,
        ..plan.clone()
    };
    Splits::new(&dataset.with_splits(names), &plan)
}

/// The fold, from 0, of each of `indices`: the rank of its split value.
fn folds_of_column(
    dataset: &Dataset,
    indices: &[usize],
    of: usize,
) -> Result<Vec<usize>, DataError> {
    let value = |index: usize| dataset.samples()[index].split.clone().unwrap_or_default();
    let mut values: Vec<String> = indices.iter().map(|&index| value(index)).collect();
    values.sort_by(|a, b| by_number(a, b));
    values.dedup();
    if values.len() != of {
        return Err(dataset.error(None, Kind::FoldCount { values, of }));
    }
    let rank = |index: usize| values.iter().position(|v| *v == value(index));
    Ok(indices.iter().filter_map(|&index| rank(index)).collect())
}

/// Numbers ascending, everything else after them in alphabetical order.
fn by_number(a: &str, b: &str) -> std::cmp::Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => x.total_cmp(&y),
        (x, y) => x.is_err().cmp(&y.is_err()).then_with(|| a.cmp(b)),
    }
}

/// The fold, from 0, of each of `indices`. Groups, the largest first, go one
/// by one to the fold that has least of what they bring: of each stratum of
/// labels as its share of the whole, and of images.
fn folds_of_groups(
    dataset: &Dataset,
    indices: &[usize],
    of: usize,
    seed: u64,
) -> Result<Vec<usize>, DataError> {
    let mut groups = groups(dataset, indices);
    if groups.len() < of {
        let (folds, groups) = (of, groups.len());
        return Err(dataset.error(None, Kind::TooFewForFolds { folds, groups }));
    }
    groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    let strata = strata(&dataset.labels(indices));
    let stratum_of: BTreeMap<usize, usize> = indices.iter().copied().zip(strata).collect();
    let mut totals = vec![0.0; stratum_of.values().max().map_or(0, |last| last + 1)];
    stratum_of.values().for_each(|&s| totals[s] += 1.0);
    let mut held = vec![vec![0.0; totals.len()]; of];
    let mut fold_of: BTreeMap<usize, usize> = BTreeMap::new();
    for group in &groups {
        let overlap = |fold: &[f64]| -> f64 {
            let shares = group.iter().map(|i| stratum_of[i]);
            shares.map(|s| fold[s] / totals[s]).sum()
        };
        let weight = |fold: &[f64]| (overlap(fold), fold.iter().sum::<f64>());
        let lightest = (0..of)
            .min_by(|&a, &b| {
                let ((a, a_size), (b, b_size)) = (weight(&held[a]), weight(&held[b]));
                a.total_cmp(&b).then(a_size.total_cmp(&b_size))
            })
            .unwrap_or(0);
        for index in group {
            held[lightest][stratum_of[index]] += 1.0;
            fold_of.insert(*index, lightest);
        }
    }
    Ok(indices.iter().map(|index| fold_of[index]).collect())
}

/// What images are drawn from, and by which seed.
struct Draw<'a> {
    dataset: &'a Dataset,
    bins: &'a [Bin],
    seed: u64,
}

impl Draw<'_> {
    /// At most `images` of each class of `from`.
    fn few(&self, from: &[usize], per: Class, images: usize) -> Result<Vec<usize>, DataError> {
        let classes = self.classes(from, per)?;
        Ok(sorted(classes.into_iter().flat_map(|mut class| {
            class.truncate(images);
            class
        })))
    }

    /// `from` with the `count` largest classes thinned to a share `keep`.
    fn shifted(
        &self,
        from: &[usize],
        per: Class,
        count: usize,
        keep: f32,
    ) -> Result<Vec<usize>, DataError> {
        let mut classes = self.classes(from, per)?;
        classes.sort_by_key(|class| std::cmp::Reverse(class.len()));
        for class in classes.iter_mut().take(count) {
            let kept = (class.len() as f32 * keep) as usize;
            class.truncate(kept.max(1));
        }
        Ok(sorted(classes.into_iter().flatten()))
    }

    /// `from` by class, in ascending order of the classes, each shuffled.
    fn classes(&self, from: &[usize], per: Class) -> Result<Vec<Vec<usize>>, DataError> {
        let mut labels = self.dataset.labels(from);
        let class: Vec<usize> = match per {
            Class::Bin => labels.iter().map(|&l| index_of(self.bins, l)).collect(),
            Class::Label => {
                let of_image = labels.clone();
                labels.sort_by(f32::total_cmp);
                labels.dedup();
                let rank = |label| labels.partition_point(|&l| l < label);
                of_image.into_iter().map(rank).collect()
            }
        };
        if per == Class::Label && labels.len() > 8 && labels.len() * 2 > from.len() {
            let (labels, images) = (labels.len(), from.len());
            return Err(self.dataset.error(None, Kind::NoClasses { labels, images }));
        }
        let mut classes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (class, &index) in class.into_iter().zip(from) {
            classes.entry(class).or_default().push(index);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut classes: Vec<Vec<usize>> = classes.into_values().collect();
        classes.iter_mut().for_each(|class| class.shuffle(&mut rng));
        Ok(classes)
    }
}

fn sorted(indices: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut indices: Vec<usize> = indices.collect();
    indices.sort_unstable();
    indices
}

#[cfg(test)]
mod tests;
