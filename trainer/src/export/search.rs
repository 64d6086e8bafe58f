//! The search for a way to quantise: methods from the cheapest to the dearest, then layers that
//! stay in floats, as few as the budget lets.

use serde::Serialize;

use super::judge::Score;

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
    /// For one picture, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<f64>,
    /// Whether the error stays within the budget.
    pub within: bool,
    /// Whether this one was taken.
    pub chosen: bool,
}

/// A quantised network with its score.
pub struct Candidate<N> {
    /// How it came about, in words.
    pub method: String,
    /// The network.
    pub network: N,
    /// The same as a file.
    pub bytes: Vec<u8>,
    /// On validation images.
    pub score: Score,
    /// For one picture, where the budget bounds that.
    pub milliseconds: Option<f64>,
}

/// The best candidate so far, and all that were tried.
pub struct Found<R, N> {
    /// The best.
    pub best: Candidate<N>,
    /// What it was quantised by, or began from.
    pub recipe: R,
    /// All of them, in their order.
    pub tried: Vec<Tried>,
}

/// Other choices than a recipe's in one respect.
pub type Variations<R> = fn(R) -> Vec<R>;

impl Budget {
    /// Whether there is a bound on the error, and it holds.
    pub fn is_met(&self, score: &Score) -> bool {
        self.mae.is_some_and(|most| score.mae_increase <= most)
    }

    /// Whether there is a bound on the time, and it does not hold.
    pub fn is_too_slow(&self, milliseconds: Option<f64>) -> bool {
        let pair = self.milliseconds.zip(milliseconds);
        pair.is_some_and(|(most, taken)| taken > most)
    }
}

/// Tries `first` and then its variations, one choice after the other from the best so far, until
/// the error is within the budget. Without a budget for the error all of them are tried.
///
/// # Errors
/// What `quantize` says.
pub fn search<R: Copy + PartialEq, N, E>(
    budget: &Budget,
    first: R,
    choices: &[Variations<R>],
    mut quantize: impl FnMut(&R) -> Result<Candidate<N>, E>,
) -> Result<Found<R, N>, E> {
    let mut found = Found::new(first, quantize(&first)?, budget);
    let mut seen = vec![first];
    for variations in choices {
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

/// Leaves layers in floats: as many as are `asked`, or as few as the budget lets.
///
/// # Errors
/// What `quantize`, which gets the number, says.
pub fn leave_floats<R: Copy, N, E>(
    asked: Option<usize>,
    budget: &Budget,
    layers: usize,
    found: &mut Found<R, N>,
    mut quantize: impl FnMut(usize) -> Result<Candidate<N>, E>,
) -> Result<(), E> {
    let Some(count) = asked else {
        return fewest_floats(budget, layers, found, quantize);
    };
    let candidate = quantize(count.min(layers))?;
    found.take(found.recipe, candidate, budget);
    Ok(())
}

/// Leaves layers in floats, as few as keep the error within its budget: their number is doubled
/// until it does, and halved back. Ends without one where that takes longer than the budget has it.
///
/// # Errors
/// What `quantize`, which gets the number, says.
fn fewest_floats<R: Copy, N, E>(
    budget: &Budget,
    layers: usize,
    found: &mut Found<R, N>,
    mut quantize: impl FnMut(usize) -> Result<Candidate<N>, E>,
) -> Result<(), E> {
    let (mut few, mut many) = (0, layers + 1);
    while many - few > 1 {
        let count = match many > layers {
            true => (2 * few).clamp(1, layers),
            false => few.midpoint(many),
        };
        let candidate = quantize(count)?;
        if budget.is_too_slow(candidate.milliseconds) {
            found.tried.push(Tried::of(&candidate, budget));
            return Ok(());
        }
        match budget.is_met(&candidate.score) {
            true => {
                found.take(found.recipe, candidate, budget);
                many = count;
            }
            false => {
                found.tried.push(Tried::of(&candidate, budget));
                few = count;
            }
        }
    }
    Ok(())
}

impl<R, N> Found<R, N> {
    /// One candidate.
    pub fn new(recipe: R, candidate: Candidate<N>, budget: &Budget) -> Self {
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
    pub fn offer(&mut self, recipe: R, candidate: Candidate<N>, budget: &Budget) {
        let rank = |score: &Score| (!budget.is_met(score), score.drift);
        match rank(&candidate.score) < rank(&self.best.score) {
            true => self.take(recipe, candidate, budget),
            false => self.tried.push(Tried::of(&candidate, budget)),
        }
    }

    /// Takes the candidate in place of the best so far.
    pub fn take(&mut self, recipe: R, candidate: Candidate<N>, budget: &Budget) {
        self.tried.iter_mut().for_each(|tried| tried.chosen = false);
        self.tried.push(Tried {
            chosen: true,
            ..Tried::of(&candidate, budget)
        });
        (self.recipe, self.best) = (recipe, candidate);
    }
}

impl Tried {
    fn of<N>(candidate: &Candidate<N>, budget: &Budget) -> Self {
        let slow = budget.is_too_slow(candidate.milliseconds);
        Self {
            method: candidate.method.clone(),
            score: candidate.score,
            milliseconds: candidate.milliseconds,
            within: (budget.mae.is_none() || budget.is_met(&candidate.score)) && !slow,
            chosen: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::range::RangeMethod;
    use crate::quantize::recipe::Recipe;

    const FIRST: Recipe = Recipe {
        range: RangeMethod::Mse,
        equalize: false,
        adaptive_rounding: false,
        bias_correction: true,
    };

    /// Entropy, equalisation and adaptive rounding each make it better.
    fn candidate(recipe: &Recipe) -> Candidate<()> {
        let points = [
            recipe.range == RangeMethod::Entropy,
            recipe.equalize,
            recipe.adaptive_rounding,
            recipe.bias_correction,
        ];
        let drift = 1.0 - 0.2 * points.iter().filter(|&&point| point).count() as f64;
        of_drift(recipe.to_string(), drift)
    }

    fn of_drift(method: String, drift: f64) -> Candidate<()> {
        Candidate {
            method,
            network: (),
            bytes: Vec::new(),
            score: Score {
                mae: 2.0 + drift,
                mae_increase: drift,
                drift,
                lowest_cosine: 1.0,
            },
            milliseconds: None,
        }
    }

    fn run(mae: Option<f64>) -> Found<Recipe, ()> {
        let budget = Budget {
            mae,
            milliseconds: None,
        };
        search::<_, _, ()>(&budget, FIRST, &Recipe::CHOICES, |recipe| {
            Ok(candidate(recipe))
        })
        .unwrap()
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

    /// Each layer in floats takes a tenth off the drift and costs a millisecond.
    fn with_floats(mae: f64, milliseconds: Option<f64>) -> Found<u8, ()> {
        let budget = Budget {
            mae: Some(mae),
            milliseconds,
        };
        let mut found = Found::new(0, of_drift("none".into(), 1.0), &budget);
        fewest_floats::<_, _, ()>(&budget, 10, &mut found, |count| {
            let taken = count as f64;
            Ok(Candidate {
                milliseconds: Some(taken),
                ..of_drift(count.to_string(), 1.0 - 0.1 * taken)
            })
        })
        .unwrap();
        found
    }

    #[test]
    fn as_few_layers_as_the_budget_lets_stay_in_floats() {
        for (most, fewest, tried) in [
            (0.91, "1", &["none", "1"][..]),
            (0.41, "6", &["none", "1", "2", "4", "8", "6", "5"]),
            (0.01, "10", &["none", "1", "2", "4", "8", "10", "9"]),
        ] {
            let found = with_floats(most, None);
            let methods: Vec<&str> = found.tried.iter().map(|t| t.method.as_str()).collect();
            assert_eq!((found.best.method.as_str(), &*methods), (fewest, tried));
            let chosen = found.tried.iter().find(|tried| tried.chosen);
            assert!(chosen.is_some_and(|chosen| chosen.method == fewest && chosen.within));
        }
        let never = with_floats(-1.0, None);
        assert_eq!((never.best.method.as_str(), never.tried.len()), ("none", 6));
    }

    #[test]
    fn layers_in_floats_end_where_time_does() {
        let found = with_floats(0.41, Some(3.0));
        assert_eq!(found.best.method, "none");
        assert_eq!(
            found.tried.last().map(|tried| tried.method.as_str()),
            Some("4")
        );
        assert!(!found.tried.iter().any(|tried| tried.within));
    }
}
