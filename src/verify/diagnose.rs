//! Why golden vectors are not met: which plan explains them?

use serde::Serialize;

use super::plans::{Mismatch, geometries, mismatches, normalisations, same_normalisation};
use crate::bundle::GoldenCase;
use crate::preprocess::{Channels, Plan};

/// A plan explains tensors if so much is left of them, in levels of 255.
const EXPLAINED_LEVELS: f64 = 1.0;
/// A plan as good as another to this many levels is not told from it.
const TIE_LEVELS: f64 = 0.05;
/// Fewer measured pictures than this are not asked for significance.
const FEW: usize = 10;
/// An improvement counts if it is this many times its standard error.
const SIGNIFICANT: f64 = 3.0;

/// What pictures and tensors say of the plan between them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanDiagnosis {
    /// The plan that comes nearest to the tensors.
    pub found: Plan,
    /// What it leaves unexplained: root mean square, in levels of 255.
    pub rest_levels: f64,
    /// Whether nothing to speak of is left.
    pub explained: bool,
    /// In what it is not the bundle's.
    pub mismatches: Vec<Mismatch>,
}

/// A plan that serves better than the stated one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Better {
    /// The plan.
    pub found: Plan,
    /// Mean error under the stated plan.
    pub before: f64,
    /// Mean error under the plan found.
    pub after: f64,
    /// In what the two differ.
    pub mismatches: Vec<Mismatch>,
}

/// Finds the plan that makes the cases' tensors of their pictures.
///
/// Resize, filter and antialias are tried out. A normalisation is a straight
/// line from levels to values: it is fitted, so that one that nobody thought
/// of is found too. `None` where the cases hold no full tensor.
pub fn diagnose_plan(stated: &Plan, cases: &[GoldenCase]) -> Option<PlanDiagnosis> {
    let cases: Vec<&GoldenCase> = cases
        .iter()
        .filter(|case| case.tensor.len() == stated.pixel_len())
        .collect();
    let mut best: Option<(Plan, f64)> = None;
    for geometry in geometries(stated) {
        let Some((plan, rest)) = fit_lines(&geometry, &cases) else {
            continue;
        };
        if best
            .as_ref()
            .is_none_or(|(_, least)| rest < least - TIE_LEVELS)
        {
            best = Some((plan, rest));
        }
    }
    let (plan, rest_levels) = best?;
    let found = named(stated, plan);
    Some(PlanDiagnosis {
        mismatches: mismatches(stated, &found),
        explained: rest_levels <= EXPLAINED_LEVELS,
        rest_levels,
        found,
    })
}

/// The better order of channels with its best normalisation, and what is left.
fn fit_lines(geometry: &Plan, cases: &[&GoldenCase]) -> Option<(Plan, f64)> {
    let raw = Plan {
        channels: Channels::Rgb,
        mean: [0.0; 3],
        std: [1.0 / 255.0; 3],
        ..geometry.clone()
    };
    let frames = cases.iter().filter_map(|case| case.frame().ok());
    let levels: Vec<Vec<f32>> = frames.map(|frame| raw.tensor(&frame)).collect();
    let other = match geometry.channels {
        Channels::Rgb => Channels::Bgr,
        Channels::Bgr => Channels::Rgb,
    };
    let fit = |channels: Channels| {
        let mut plan = Plan {
            channels,
            ..geometry.clone()
        };
        let mut rest = 0.0;
        for channel in 0..3 {
            let line = Line::fit(pairs(&levels, cases, channels.source(channel), channel))?;
            plan.std[channel] = (1.0 / (255.0 * line.slope)) as f32;
            plan.mean[channel] = (-line.start / (255.0 * line.slope)) as f32;
            rest += line.rest_levels.powi(2) / 3.0;
        }
        Some((plan, rest.sqrt()))
    };
    match (fit(geometry.channels), fit(other)) {
        (Some(own), Some(other)) if other.1 < own.1 - TIE_LEVELS => Some(other),
        (own, other) => own.or(other),
    }
}

/// Levels of a picture's channel beside the values of a tensor's.
fn pairs<'a>(
    levels: &'a [Vec<f32>],
    cases: &'a [&GoldenCase],
    source: usize,
    channel: usize,
) -> impl Iterator<Item = (f64, f64)> + 'a {
    let plane = |values: &'a [f32], channel: usize| {
        let len = values.len() / 3;
        values[channel * len..(channel + 1) * len].iter()
    };
    levels.iter().zip(cases).flat_map(move |(levels, case)| {
        let values = plane(&case.tensor, channel);
        let pairs = plane(levels, source).zip(values);
        pairs.map(|(&level, &value)| (f64::from(level), f64::from(value)))
    })
}

/// value = start + slope · level, by least squares.
struct Line {
    start: f64,
    slope: f64,
    /// Root mean square of what is left, in levels.
    rest_levels: f64,
}

impl Line {
    /// `None` where there is no rising line.
    fn fit(pairs: impl Iterator<Item = (f64, f64)>) -> Option<Self> {
        let [mut n, mut x, mut y, mut xx, mut xy, mut yy] = [0.0; 6];
        for (level, value) in pairs {
            n += 1.0;
            x += level;
            y += value;
            xx += level * level;
            xy += level * value;
            yy += value * value;
        }
        let (var, cov) = (xx - x * x / n, xy - x * y / n);
        let slope = cov / var;
        if !slope.is_finite() || slope <= 0.0 {
            return None;
        }
        let rest = (yy - y * y / n - slope * cov).max(0.0);
        Some(Self {
            start: (y - slope * x) / n,
            slope,
            rest_levels: (rest / n).sqrt() / slope,
        })
    }
}

/// The fitted normalisation made the stated or a known one, if it is that.
fn named(stated: &Plan, fitted: Plan) -> Plan {
    let own = Plan {
        mean: stated.mean,
        std: stated.std,
        ..fitted.clone()
    };
    let known = normalisations(&fitted).into_iter().map(|(_, plan)| plan);
    let mut candidates = std::iter::once(own).chain(known);
    let found = candidates.find(|known| same_normalisation(known, &fitted));
    found.unwrap_or(fitted)
}

/// Looks for a plan under which pictures come out better: the colours (order of
/// channels, normalisation) first and then the way to the size, and the other
/// way round, as one may hide the other.
///
/// `errors` gives, for each plan, the error of every picture. `None` where no
/// plan is better by more than chance.
///
/// # Errors
/// What `errors` says.
pub fn search<E>(
    stated: &Plan,
    mut errors: impl FnMut(&[Plan]) -> Result<Vec<Vec<f64>>, E>,
) -> Result<Option<Better>, E> {
    let mut before = 0.0;
    let mut least: Option<(Plan, f64)> = None;
    let variants: [fn(&Plan) -> Vec<Plan>; 2] = [colours, geometries];
    for steps in [variants, [geometries, colours]] {
        let (mut plan, mut after) = (stated.clone(), 0.0);
        for (step, variants) in steps.into_iter().enumerate() {
            let plans = variants(&plan);
            let errors = errors(&plans)?;
            let chosen = best(&errors);
            if step == 0 {
                before = mean(&errors[0]);
            }
            (plan, after) = (plans[chosen].clone(), mean(&errors[chosen]));
        }
        if least.as_ref().is_none_or(|(_, least)| after < *least) {
            least = Some((plan, after));
        }
    }
    let better = least.map(|(found, after)| Better {
        mismatches: mismatches(stated, &found),
        found,
        before,
        after,
    });
    Ok(better.filter(|better| !better.mismatches.is_empty()))
}

/// `plan` itself, then with both orders of channels and all known
/// normalisations.
fn colours(plan: &Plan) -> Vec<Plan> {
    let mut plans = vec![plan.clone()];
    for channels in [Channels::Rgb, Channels::Bgr] {
        let turned = Plan {
            channels,
            ..plan.clone()
        };
        let named = normalisations(&turned).into_iter().map(|(_, plan)| plan);
        plans.extend(named);
        plans.push(turned);
    }
    plans
}

/// The plan with the least mean error, if it is less than that of the first
/// by more than chance; else the first.
fn best(errors: &[Vec<f64>]) -> usize {
    let means = errors.iter().map(|errors| mean(errors));
    let least = means.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    match least {
        Some((least, _)) if is_better(&errors[0], &errors[least]) => least,
        _ => 0,
    }
}

fn is_better(before: &[f64], after: &[f64]) -> bool {
    let gains: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
    let (count, gain) = (gains.len() as f64, mean(&gains));
    let variance = gains.iter().map(|g| (g - gain).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let needed = match gains.len() < FEW {
        true => 0.0,
        false => SIGNIFICANT * (variance / count).sqrt(),
    };
    gain > needed
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
