//! Calibration fitted on labelled pictures that training did not see.
//!
//! Split conformal prediction (Vovk et al., 2005; Lei et al., 2018): if the
//! pictures to come are exchangeable with these, the interval holds at least
//! the asked share of their labels, whatever the network. Where pictures come
//! in groups (several of one person or fruit), whole groups are exchangeable:
//! each then counts as one, shared out among its pictures (Lee, Barber and
//! Willett, 2023).
//!
//! The guarantee wants the form of the interval chosen without the pictures
//! that fix its size. So every fifth group chooses, and the others fix the
//! size; where there are few of them, all do both.

use std::collections::HashMap;

use super::Estimator;
use super::calibration::{Calibration, Usual, matched, spread};

/// One picture of known value.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// What the encoder made of it: `[dim]`, any norm.
    pub embedding: &'a [f32],
    /// Its value, in the task's unit.
    pub label: f32,
    /// Whom or what it shows, where other pictures show the same.
    pub group: Option<&'a str>,
}

/// Share of pictures within each limit of what is usual.
pub const USUAL_SHARE: f32 = 0.99;
/// Of this many groups one chooses the form of the interval.
const CHOOSES_ONE_IN: usize = 5;
/// Fewer groups than this all choose the form and fix the size.
const MIN_GROUPS_TO_SPLIT: usize = 100;
/// Groups that may lie beyond a quantile, the new one among them; with fewer,
/// the quantile by groups is that of the worst picture seen. (The share is a
/// 32-bit float: not quite 2.)
const MIN_GROUPS_BEYOND: f64 = 2.0 - 1e-5;
/// Pictures for each number of a match, for its covariance to mean something.
const PICTURES_PER_NUMBER: usize = 10;
/// Floors to choose from, as multiples of the median spread; the last stands
/// for intervals of one width.
const FLOORS: [f32; 6] = [0.25, 0.5, 1.0, 2.0, 4.0, f32::INFINITY];
/// Added to the diagonal of a covariance, as a share of its mean.
const RIDGE: f64 = 1e-6;

/// What `estimator` makes of a picture, beside the truth.
struct Scored {
    value: f32,
    error: f32,
    spread: f32,
    matched: Vec<f32>,
    /// Which group it belongs to; of its own without one.
    group: usize,
}

/// The interval that holds `coverage` (0 to 1) of exchangeable labels, and
/// what is usual. `None` where `pictures` are too few for that share.
///
/// With too few groups, pictures are taken to be independent, and
/// [`Calibration::groups`] is 0.
pub fn calibrate(
    estimator: &Estimator,
    pictures: &[Labelled<'_>],
    coverage: f32,
) -> Option<Calibration> {
    calibrate_across(&[(estimator, pictures)], coverage)
}

/// As [`calibrate`] for an estimator that learned from all labelled pictures there are, by those
/// of a cross-validation: each with the pictures that it did not learn from.
///
/// Cross-conformal prediction (Vovk, 2015). The guarantee is weaker, for up to twice the share of
/// misses (Barber et al., 2021), and as ever for pictures that are exchangeable with these.
pub fn calibrate_across(
    tried: &[(&Estimator, &[Labelled<'_>])],
    coverage: f32,
) -> Option<Calibration> {
    let scored = score(tried);
    let groups = scored.iter().map(|s| s.group + 1).max()?;
    let (estimator, _) = tried.first()?;
    let (choosing, fixing): (Vec<&Scored>, Vec<&Scored>) = match groups < MIN_GROUPS_TO_SPLIT {
        true => (scored.iter().collect(), scored.iter().collect()),
        false => scored.iter().partition(|s| s.group % CHOOSES_ONE_IN == 0),
    };
    let span = estimator.range[1] - estimator.range[0];
    let floor = choose_floor(&choosing, coverage, span, groups < MIN_GROUPS_TO_SPLIT)?;
    let (quantile, groups) = quantile(&fixing, coverage, |s| s.error / width(s, floor))?;
    let mut calibration = Calibration {
        coverage,
        quantile,
        floor,
        groups: if groups < fixing.len() { groups } else { 0 },
        usual: None,
    };
    let width = |s: &Scored| {
        let [low, high] = calibration.interval(s.value, s.spread, estimator.range);
        high - low
    };
    calibration.usual = usual(&choosing, &fixing, width).or_else(|| {
        let all: Vec<&Scored> = scored.iter().collect();
        usual(&all, &all, width)
    });
    Some(calibration)
}

fn score(tried: &[(&Estimator, &[Labelled<'_>])]) -> Vec<Scored> {
    let pictures = tried.iter().flat_map(|(estimator, pictures)| {
        let one = |picture| (*estimator, picture);
        pictures.iter().copied().map(one)
    });
    let (estimators, pictures): (Vec<&Estimator>, Vec<Labelled<'_>>) = pictures.unzip();
    let score = |((picture, estimator), group): ((&Labelled<'_>, &Estimator), usize)| {
        let estimate = estimator.estimate(picture.embedding);
        let cosines = estimator.bins.cosines(picture.embedding);
        Scored {
            value: estimate.value,
            error: (estimate.value - picture.label).abs(),
            spread: spread(estimator.bins.as_slice(), &estimate.probabilities),
            matched: matched(cosines, picture.embedding).collect(),
            group,
        }
    };
    let groups = numbered_groups(&pictures);
    let tried = pictures.iter().zip(estimators);
    tried.zip(groups).map(score).collect()
}

/// A number for the group of each picture, in order of appearance.
fn numbered_groups(pictures: &[Labelled<'_>]) -> Vec<usize> {
    let mut names: HashMap<&str, usize> = HashMap::new();
    let mut next = 0;
    let mut numbers = Vec::with_capacity(pictures.len());
    for picture in pictures {
        let known = picture.group.and_then(|name| names.get(name).copied());
        let number = known.unwrap_or(next);
        next = next.max(number + 1);
        names.extend(picture.group.map(|name| (name, number)));
        numbers.push(number);
    }
    numbers
}

fn width(scored: &Scored, floor: f32) -> f32 {
    scored.spread.max(floor).max(f32::MIN_POSITIVE)
}

/// The floor whose intervals are the narrowest in the mean. A `small` set is
/// given the middle way: it could not tell.
fn choose_floor(choosing: &[&Scored], coverage: f32, span: f32, small: bool) -> Option<f32> {
    let mut spreads: Vec<f32> = choosing.iter().map(|s| s.spread).collect();
    spreads.sort_by(f32::total_cmp);
    let median = *spreads.get(spreads.len() / 2)?;
    if small {
        return Some(0.5 * median);
    }
    let floors = FLOORS.map(|factor| (factor * median.max(f32::MIN_POSITIVE)).min(span));
    let mean_width = |floor: f32| {
        let (quantile, _) = quantile(choosing, coverage, |s| s.error / width(s, floor))?;
        let sum: f32 = choosing.iter().map(|s| width(s, floor)).sum();
        Some(quantile * sum)
    };
    let widths = floors.iter().map(|&floor| (floor, mean_width(floor)));
    let known = widths.filter_map(|(floor, width)| Some((floor, width?)));
    known.min_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0)
}

/// The value that a new picture's score does not exceed with probability
/// `share`, and how many groups say so. Each group has the weight of one, the
/// new picture's too; the quantile of n single pictures is thus the
/// ⌈(n + 1)·share⌉-th smallest score. Where groups are too few, each picture
/// counts for itself.
fn quantile(
    scored: &[&Scored],
    share: f32,
    score: impl Fn(&Scored) -> f32,
) -> Option<(f32, usize)> {
    let mut sizes: HashMap<usize, usize> = HashMap::new();
    for picture in scored {
        *sizes.entry(picture.group).or_default() += 1;
    }
    let by_group = scored
        .iter()
        .map(|s| (score(s), 1.0 / sizes[&s.group] as f64));
    let single = scored.iter().map(|s| (score(s), 1.0));
    let beyond = (sizes.len() + 1) as f64 * (1.0 - f64::from(share));
    let by_group = match beyond >= MIN_GROUPS_BEYOND {
        true => weighted_quantile(by_group.collect(), sizes.len(), share),
        false => None,
    };
    by_group.map(|q| (q, sizes.len())).or_else(|| {
        let single = weighted_quantile(single.collect(), scored.len(), share);
        single.map(|q| (q, scored.len()))
    })
}

fn weighted_quantile(mut scores: Vec<(f32, f64)>, groups: usize, share: f32) -> Option<f32> {
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Shares such as 0.8 are not exact in binary.
    let wanted = (groups + 1) as f64 * f64::from(share) - 1e-5;
    let mut weight = 0.0;
    let reached = scores.into_iter().find(|(_, of_score)| {
        weight += of_score;
        weight >= wanted
    });
    reached
        .map(|(score, _)| score)
        .filter(|score| score.is_finite())
}

/// What is usual: the mean match and its covariance from `choosing`, the
/// limits from `fixing`; `width` is that of a picture's interval. None where
/// there are too few of either.
fn usual(
    choosing: &[&Scored],
    fixing: &[&Scored],
    width: impl Fn(&Scored) -> f32 + Copy,
) -> Option<Usual> {
    let matches: Vec<&[f32]> = choosing.iter().map(|s| &s.matched[..]).collect();
    let numbers = matches.first()?.len();
    if matches.len() < PICTURES_PER_NUMBER * numbers {
        return None;
    }
    let mean = mean_of(&matches);
    let whiten = inverse_factor(&covariance(&matches, &mean))?;
    let mut usual = Usual {
        share: USUAL_SHARE,
        width: 0.0,
        distance: 0.0,
        mean: mean.iter().map(|&value| value as f32).collect(),
        whiten: whiten.iter().map(|&value| value as f32).collect(),
    };
    usual.distance = quantile(fixing, USUAL_SHARE, |s| usual.distance_of(&s.matched))?.0;
    usual.width = quantile(fixing, USUAL_SHARE, width)?.0;
    let is_finite = usual
        .mean
        .iter()
        .chain(&usual.whiten)
        .all(|v| v.is_finite());
    is_finite.then_some(usual)
}

fn mean_of(rows: &[&[f32]]) -> Vec<f64> {
    let sum = |column: usize| rows.iter().map(|row| f64::from(row[column])).sum::<f64>();
    (0..rows[0].len())
        .map(|column| sum(column) / rows.len() as f64)
        .collect()
}

/// `[len, len]`, row-major, with a ridge that makes it positive definite.
fn covariance(rows: &[&[f32]], mean: &[f64]) -> Vec<f64> {
    let len = mean.len();
    let mut covariance = vec![0.0; len * len];
    for row in rows {
        let centred: Vec<f64> = row
            .iter()
            .zip(mean)
            .map(|(&x, m)| f64::from(x) - m)
            .collect();
        for (i, a) in centred.iter().enumerate() {
            for (j, b) in centred.iter().enumerate() {
                covariance[i * len + j] += a * b / rows.len() as f64;
            }
        }
    }
    let trace: f64 = (0..len).map(|i| covariance[i * len + i]).sum();
    for i in 0..len {
        covariance[i * len + i] += RIDGE * trace / len as f64 + f64::MIN_POSITIVE;
    }
    covariance
}

/// The inverse of the Cholesky factor, as the rows of a lower triangle; none
/// where the matrix is not positive definite.
fn inverse_factor(matrix: &[f64]) -> Option<Vec<f64>> {
    let len = matrix.len().isqrt();
    let at = |row: usize, column: usize| row * (row + 1) / 2 + column;
    let mut factor = vec![0.0; at(len, 0)];
    for i in 0..len {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| factor[at(i, k)] * factor[at(j, k)]).sum();
            let rest = matrix[i * len + j] - known;
            factor[at(i, j)] = match i == j {
                true if rest > 0.0 => rest.sqrt(),
                true => return None,
                false => rest / factor[at(j, j)],
            };
        }
    }
    let mut inverse = vec![0.0; factor.len()];
    for j in 0..len {
        inverse[at(j, j)] = 1.0 / factor[at(j, j)];
        for i in j + 1..len {
            let known: f64 = (j..i).map(|k| factor[at(i, k)] * inverse[at(k, j)]).sum();
            inverse[at(i, j)] = -known / factor[at(i, i)];
        }
    }
    Some(inverse)
}
