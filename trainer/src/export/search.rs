//! The search for a way to quantise: methods from the cheapest to the dearest.
//!
//! The engines run whole networks in int8 or in floats, so precision is not mixed layer by layer:
//! what is searched is how ranges, weights and biases become integers.

use serde::Serialize;

use super::judge::Score;
use crate::quantize::quantized::Quantized;
use crate::quantize::range::RangeMethod;
use crate::quantize::recipe::Recipe;

/// What a model may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Budget {
    /// Most that the mean absolute error may grow by, in the task's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mae: Option<f64>,
    /// Most milliseconds for one picture, on one thread of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<f64>,
}

/// One way to quantise, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// In words.
    pub method: String,
    /// On validation images.
    pub score: Score,
    /// Whether the error stays within the budget.
    pub within: bool,
    /// Whether this one was taken.
    pub chosen: bool,
}

/// A quantised network with its score.
pub struct Candidate {
    /// How it came about, in words.
    pub method: String,
    /// The network.
    pub quantized: Quantized,
    /// The same as a file.
    pub bytes: Vec<u8>,
    /// On validation images.
    pub score: Score,
}

/// The best candidate so far, and all that were tried.
pub struct Found {
    /// The best.
    pub best: Candidate,
    /// What it was quantised by, or began from.
    pub recipe: Recipe,
    /// All of them, in their order.
    pub tried: Vec<Tried>,
}

impl Budget {
    /// Whether there is a bound on the error, and it holds.
    pub fn is_met(&self, score: &Score) -> bool {
        self.mae.is_some_and(|most| score.mae_increase <= most)
    }
}

/// Tries `first` and then its variations, one choice after the other from the best so far, until
/// the error is within the budget. Without a budget for the error all of them are tried.
///
/// # Errors
/// What `quantize` says.
pub fn search<E>(
    budget: &Budget,
    first: Recipe,
    mut quantize: impl FnMut(&Recipe) -> Result<Candidate, E>,
) -> Result<Found, E> {
    let mut found = Found::new(first, quantize(&first)?, budget);
    let mut seen = vec![first];
    for variations in [ranges, equalized, rounded, corrected] {
        for recipe in variations(found.recipe) {
            if budget.is_met(&found.best.score) {
                return Ok(found);
            }
            if !seen.contains(&recipe) {
                seen.push(recipe);
                found.offer(recipe, quantize(&recipe)?, budget);
            }
        }
    }
    Ok(found)
}

impl Found {
    /// One candidate.
    pub fn new(recipe: Recipe, candidate: Candidate, budget: &Budget) -> Self {
        Self {
            tried: vec![Tried {
                chosen: true,
                ..Tried::of(&candidate, budget)
            }],
            best: candidate,
            recipe,
        }
    }

    /// Takes the candidate if it is better than the best so far.
    ///
    /// What is within the budget comes first. Else the better one is that whose values stay
    /// closest to the float network's, not the one with the least error: on some hundred images
    /// that is larger or smaller by chance.
    pub fn offer(&mut self, recipe: Recipe, candidate: Candidate, budget: &Budget) {
        let rank = |score: &Score| (!budget.is_met(score), score.drift);
        let is_better = rank(&candidate.score) < rank(&self.best.score);
        self.tried.push(Tried::of(&candidate, budget));
        if is_better {
            let last = self.tried.len() - 1;
            let marks = self.tried.iter_mut().enumerate();
            marks.for_each(|(index, tried)| tried.chosen = index == last);
            (self.recipe, self.best) = (recipe, candidate);
        }
    }
}

impl Tried {
    fn of(candidate: &Candidate, budget: &Budget) -> Self {
        Self {
            method: candidate.method.clone(),
            score: candidate.score,
            within: budget.mae.is_none() || budget.is_met(&candidate.score),
            chosen: false,
        }
    }
}

fn ranges(from: Recipe) -> Vec<Recipe> {
    let methods = RangeMethod::all().into_iter();
    methods.map(|range| Recipe { range, ..from }).collect()
}

fn equalized(from: Recipe) -> Vec<Recipe> {
    let equalize = !from.equalize;
    vec![Recipe { equalize, ..from }]
}

fn rounded(from: Recipe) -> Vec<Recipe> {
    let adaptive_rounding = !from.adaptive_rounding;
    vec![Recipe {
        adaptive_rounding,
        ..from
    }]
}

fn corrected(from: Recipe) -> Vec<Recipe> {
    let bias_correction = !from.bias_correction;
    vec![Recipe {
        bias_correction,
        ..from
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ConvNet;
    use crate::quantize::affine::Affine;

    const FIRST: Recipe = Recipe {
        range: RangeMethod::Mse,
        equalize: false,
        adaptive_rounding: false,
        bias_correction: true,
    };

    /// Entropy, equalisation and adaptive rounding each make it better.
    fn candidate(recipe: &Recipe) -> Candidate {
        let points = [
            recipe.range == RangeMethod::Entropy,
            recipe.equalize,
            recipe.adaptive_rounding,
            recipe.bias_correction,
        ];
        let drift = 1.0 - 0.2 * points.iter().filter(|&&point| point).count() as f64;
        let net = ConvNet {
            input: [3, 1, 1],
            nodes: Vec::new(),
        };
        Candidate {
            method: recipe.to_string(),
            quantized: Quantized::nearest(net, Affine::covering(0.0, 1.0), Vec::new()),
            bytes: Vec::new(),
            score: Score {
                mae: 2.0 + drift,
                mae_increase: drift,
                drift,
                lowest_cosine: 1.0,
            },
        }
    }

    fn run(mae: Option<f64>) -> Found {
        let budget = Budget {
            mae,
            milliseconds: None,
        };
        search::<()>(&budget, FIRST, |recipe| Ok(candidate(recipe))).unwrap()
    }

    #[test]
    fn without_a_budget_the_best_is_taken() {
        let found = run(None);
        assert_eq!(
            found.best.method,
            "entropy, equalised, adaptive rounding, bias correction"
        );
        assert_eq!(found.tried.len(), 1 + 4 + 3);
        let chosen: Vec<_> = found.tried.iter().filter(|tried| tried.chosen).collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].method, found.best.method);
    }

    #[test]
    fn the_first_within_the_budget_ends_the_search() {
        for (most, tried, method) in [
            (0.9, 1, "mse, bias correction"),
            (0.61, 5, "entropy, bias correction"),
            (0.41, 6, "entropy, equalised, bias correction"),
        ] {
            let found = run(Some(most));
            assert_eq!(
                (found.tried.len(), found.best.method.as_str()),
                (tried, method)
            );
            assert!(
                found
                    .tried
                    .last()
                    .is_some_and(|last| last.within && last.chosen)
            );
        }
        let broken = run(Some(0.1));
        assert!(broken.tried.len() == 8 && broken.tried.iter().all(|tried| !tried.within));
    }
}
