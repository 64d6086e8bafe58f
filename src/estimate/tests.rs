use super::*;
use crate::bins::Bin;

fn grades(count: usize) -> Bins {
    let bins = (0..count)
        .map(|grade| Bin {
            label: format!("grade {grade}"),
            start: grade as f32,
            end: grade as f32,
        })
        .collect();
    let embeddings = (0..count * count)
        .map(|i| if i % (count + 1) == 0 { 1.0 } else { 0.0 })
        .collect();
    Bins::new(bins, embeddings).unwrap()
}

fn expectation(count: usize) -> Regressor {
    Regressor::Expectation {
        values: (0..count).map(|grade| grade as f32).collect(),
    }
}

#[test]
fn expectation_between_two_equal_bins_is_their_middle() {
    let estimator = Estimator::new(grades(3), expectation(3), 50.0, [0.0, 2.0], None).unwrap();
    let estimate = estimator.estimate(&[0.0, 1.0, 1.0]);
    assert!((estimate.value - 1.5).abs() < 1e-4, "{estimate:?}");
    assert!((estimate.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
}

#[test]
fn ssr_without_shift_is_the_expectation_of_the_starts() {
    let ssr = Regressor::Ssr {
        starts: vec![0.0, 10.0],
        lambda: 1.0,
        hidden_weight: vec![1.0, 0.0, 0.0, 1.0],
        hidden_bias: vec![0.0, 0.0],
        shift_weight: vec![0.0; 4],
        shift_bias: vec![0.0, 0.5_f32.atanh()],
    };
    let value = ssr.value(&[0.0, 0.0], &[0.5, 0.5]);
    assert!((value - 5.0 / 1.5).abs() < 1e-5, "{value}");
}

#[test]
fn values_stay_within_the_range_and_intervals_too() {
    let calibration = Calibration {
        coverage: 0.9,
        quantile: 2.0,
        floor: 0.25,
        ..Calibration::default()
    };
    let estimator = Estimator::new(
        grades(3),
        expectation(3),
        100.0,
        [0.5, 1.75],
        Some(calibration),
    )
    .unwrap();
    let low = estimator.estimate(&[1.0, 0.0, 0.0]);
    assert_eq!(
        (low.value, low.bin, low.interval),
        (0.5, 0, Some([0.5, 1.0]))
    );
}

#[test]
fn softmax_survives_extreme_logits() {
    assert_eq!(softmax(&[1e30, -1e30]), [1.0, 0.0]);
    assert_eq!(softmax(&[-1e30, -1e30]), [0.5, 0.5]);
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let fail = |regressor, scale, range| {
        Estimator::new(grades(3), regressor, scale, range, None)
            .unwrap_err()
            .field
    };
    assert_eq!(fail(expectation(2), 100.0, [0.0, 2.0]), "regressor.values");
    assert_eq!(fail(expectation(3), f32::NAN, [0.0, 2.0]), "logit_scale");
    assert_eq!(fail(expectation(3), 100.0, [2.0, 2.0]), "task.range");
}

mod conformal {
    use proptest::prelude::*;
    use rand::{SeedableRng as _, seq::SliceRandom as _};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Labelled embeddings whose error grows with the doubt between two bins.
    struct Population {
        embeddings: Vec<Vec<f32>>,
        labels: Vec<f32>,
        groups: Vec<Option<String>>,
    }

    fn estimator(calibration: Option<Calibration>) -> Estimator {
        let values = (0..4).map(|grade| 10.0 * grade as f32).collect::<Vec<_>>();
        let bins = values.iter().map(|&value| Bin {
            label: value.to_string(),
            start: value,
            end: value,
        });
        let unit = (0..16).map(|i| f32::from(u8::from(i % 5 == 0)));
        let bins = Bins::new(bins.collect(), unit.collect()).unwrap();
        let regressor = Regressor::Expectation { values };
        Estimator::new(bins, regressor, 6.0, [-50.0, 80.0], calibration).unwrap()
    }

    impl Population {
        /// `groups` times `each` pictures; those of a group share an error.
        fn draw(rng: &mut ChaCha8Rng, groups: usize, each: usize) -> Self {
            let mut drawn = Self {
                embeddings: Vec::new(),
                labels: Vec::new(),
                groups: Vec::new(),
            };
            for group in 0..groups {
                let shared: f32 = rng.random_range(-4.0..4.0);
                for _ in 0..each {
                    let embedding: Vec<f32> = (0..4).map(|_| rng.random_range(0.05..1.0)).collect();
                    let estimate = estimator(None).estimate(&embedding);
                    let noise: f32 = rng.random_range(-1.0..1.0);
                    let width = spread(estimator(None).bins().as_slice(), &estimate.probabilities);
                    drawn.labels.push(estimate.value + noise * width + shared);
                    drawn.embeddings.push(embedding);
                    drawn.groups.push((each > 1).then(|| group.to_string()));
                }
            }
            drawn
        }

        fn labelled(&self) -> Vec<Labelled<'_>> {
            let rows = self.embeddings.iter().zip(&self.labels).zip(&self.groups);
            rows.map(|((embedding, &label), group)| Labelled {
                embedding,
                label,
                group: group.as_deref(),
            })
            .collect()
        }

        fn calibrate(&self, coverage: f32) -> Option<Calibration> {
            calibrate(&estimator(None), &self.labelled(), coverage)
        }

        fn covered(&self, estimator: &Estimator) -> f64 {
            let rows = self.embeddings.iter().zip(&self.labels);
            let inside = rows.filter(|(embedding, label)| {
                let [low, high] = estimator.estimate(embedding).interval.unwrap();
                (low..=high).contains(*label)
            });
            inside.count() as f64 / self.labels.len() as f64
        }

        fn doubted(&self, estimator: &Estimator, doubt: Doubt) -> f64 {
            let doubts = self.embeddings.iter().map(|e| estimator.estimate(e).doubt);
            doubts.filter(|&found| found == Some(doubt)).count() as f64 / self.labels.len() as f64
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// For pictures exchangeable with those that it was fitted on, the
        /// coverage over many draws is the one asked for, within what chance
        /// allows (four standard deviations of the calibration's Beta and of
        /// the test's binomial distribution).
        #[test]
        fn exchangeable_pictures_are_covered(
            seed in any::<u64>(),
            coverage in 0.5_f32..0.95,
            count in 150_usize..400,
        ) {
            const DRAWS: usize = 8;
            const TESTED: usize = 500;
            let rng = &mut ChaCha8Rng::seed_from_u64(seed);
            let mut sum = 0.0;
            for _ in 0..DRAWS {
                let fitted = Population::draw(rng, count, 1).calibrate(coverage).unwrap();
                sum += Population::draw(rng, TESTED, 1).covered(&estimator(Some(fitted)));
            }
            let share = f64::from(coverage);
            let fixing = 0.8 * count as f64;
            let variance = share * (1.0 - share) * (1.0 / fixing + 1.0 / TESTED as f64);
            let chance = 4.0 * (variance / DRAWS as f64).sqrt();
            let mean = sum / DRAWS as f64;
            prop_assert!(mean >= share - chance, "{mean} for {share} ± {chance}");
            prop_assert!(mean <= share + chance + 1.0 / fixing, "{mean} for {share} ± {chance}");
        }
    }

    /// Pictures of one fruit err together: taken as independent they promise
    /// too much, group by group they do not.
    #[test]
    fn new_groups_are_covered_where_groups_err_together() {
        let rng = &mut ChaCha8Rng::seed_from_u64(3);
        let (mut grouped, mut single) = (0.0, 0.0);
        const DRAWS: usize = 60;
        for _ in 0..DRAWS {
            let mut fitted = Population::draw(rng, 24, 20);
            let test = Population::draw(rng, 30, 20);
            let by_group = fitted.calibrate(0.9).unwrap();
            assert_eq!(by_group.groups, 24);
            grouped += test.covered(&estimator(Some(by_group))) / DRAWS as f64;
            fitted.groups.fill(None);
            let by_picture = fitted.calibrate(0.9).unwrap();
            assert_eq!(by_picture.groups, 0);
            single += test.covered(&estimator(Some(by_picture))) / DRAWS as f64;
        }
        assert!(grouped >= 0.9 - 0.01, "by group {grouped}");
        assert!(
            single < grouped - 0.005,
            "by picture {single}, by group {grouped}"
        );
    }

    #[test]
    fn the_quantile_is_that_of_finite_samples() {
        // 19 errors of one spread: ⌈20 · 0.9⌉ = 18th smallest.
        let mut population = Population::draw(&mut ChaCha8Rng::seed_from_u64(0), 19, 1);
        let embedding = vec![0.9, 0.5, 0.3, 0.2];
        let value = estimator(None).estimate(&embedding).value;
        population.embeddings.fill(embedding.clone());
        let mut errors: Vec<f32> = (1..=19).map(|error| error as f32).collect();
        errors.shuffle(&mut ChaCha8Rng::seed_from_u64(1));
        population.labels = errors.iter().map(|error| value - error).collect();
        let fitted = population.calibrate(0.9).unwrap();
        let [low, _] = estimator(Some(fitted))
            .estimate(&embedding)
            .interval
            .unwrap();
        assert!((value - low - 18.0).abs() < 1e-3, "{value} {low}");
        assert_eq!(
            population.calibrate(0.96),
            None,
            "⌈20 · 0.96⌉ is beyond the last"
        );
    }

    #[test]
    fn the_usual_is_seldom_in_doubt_and_the_strange_is() {
        let rng = &mut ChaCha8Rng::seed_from_u64(5);
        let fitted = Population::draw(rng, 1000, 1).calibrate(0.9).unwrap();
        let estimator = estimator(Some(fitted));
        let mut test = Population::draw(rng, 2000, 1);
        for doubt in [Doubt::Wide, Doubt::Unfamiliar] {
            let share = test.doubted(&estimator, doubt);
            assert!(share < 0.03, "{doubt:?} {share}");
        }
        let negative = |embedding: &mut Vec<f32>| embedding.iter_mut().for_each(|x| *x = -*x);
        test.embeddings.iter_mut().for_each(negative);
        assert_eq!(test.doubted(&estimator, Doubt::Unfamiliar), 1.0);
    }

    #[test]
    fn few_pictures_give_an_interval_but_no_idea_of_the_usual() {
        let rng = &mut ChaCha8Rng::seed_from_u64(6);
        let fitted = Population::draw(rng, 30, 1).calibrate(0.8).unwrap();
        assert_eq!(fitted.usual, None);
        assert_eq!(Population::draw(rng, 3, 1).calibrate(0.8), None);
        assert_eq!(Population::draw(rng, 0, 1).calibrate(0.8), None);
    }

    #[test]
    fn several_estimators_count_each_with_its_own_pictures() {
        let rng = &mut ChaCha8Rng::seed_from_u64(7);
        let population = Population::draw(rng, 60, 5);
        let labelled = population.labelled();
        let same = estimator(None);
        let parts = [&labelled[..120], &labelled[120..]];
        let across = calibrate_across(&[(&same, parts[0]), (&same, parts[1])], 0.9);
        assert!(across.is_some());
        assert_eq!(across, population.calibrate(0.9));
        // One whose values lie 30 higher is judged by them, and widens the interval.
        let values = (0..4).map(|grade| 10.0 * grade as f32 + 30.0).collect();
        let regressor = Regressor::Expectation { values };
        let bins = same.bins().clone();
        let high = Estimator::new(bins, regressor, 6.0, [-50.0, 80.0], None).unwrap();
        let wide = calibrate_across(&[(&same, parts[0]), (&high, parts[1])], 0.9);
        assert!(wide.unwrap().quantile > 1.5 * across.unwrap().quantile);
        assert_eq!(calibrate_across(&[], 0.9), None);
    }
}
