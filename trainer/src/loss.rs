//! The fine-grained cross-modal ranking loss (FCRC) and its plain counterparts.
//!
//! All functions take the `[N, M]` image-to-bin logits (row: image of the batch, column: bin)
//! and the `[N]` index of each image's bin, both on the same device, and return a `[1]` tensor.
//! They stay finite for logits up to ±1e4, a batch of one, and a batch that holds only one bin.
//!
//! Source: Du et al., "Teach CLIP to Develop a Number Sense for Ordinal Regression", ECCV 2024,
//! with the details of its published code. FCRC multiplies each *logit* by a weight that grows
//! with the label distance `d = |bin of the image − bin of the column|`:
//!
//! ```text
//! w = 1                      where d = 0 (the positive)
//! w = d · (M − 1) / Σ d      elsewhere; Σ over the row (image→text) or column (text→image)
//! ```

mod distill;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Int, Tensor};

pub use distill::{embedding_distance, softened_divergence};

/// Logit of a positive in the softmax that serves as the text→image target.
const TARGET_LOGIT: f64 = 10.0;

/// FCRC from image to text: cross-entropy over the bins on distance-weighted logits, mean over
/// the batch.
pub fn fcrc_image_to_text(logits: Tensor<2>, bins: Tensor<1, Int>) -> Tensor<1> {
    let distance = label_distance(&logits, bins);
    let weights = ranking_weights(&distance, 1);
    negative_log_likelihood(logits * weights, positives(&distance)).mean()
}

/// FCRC from text to image: for each bin present in the batch, the divergence between the images
/// that show it and the softmax over the batch of its distance-weighted logits.
///
/// The target is a softmax over the batch of 10 for an image of that bin and 0 for any other;
/// the Kullback-Leibler divergences are averaged over the bins present.
pub fn fcrc_text_to_image(logits: Tensor<2>, bins: Tensor<1, Int>) -> Tensor<1> {
    let distance = label_distance(&logits, bins);
    let weights = ranking_weights(&distance, 0);
    batch_divergence(logits * weights, positives(&distance))
}

/// Cross-entropy over the bins, mean over the batch.
///
/// `bin_weights` (`[M]`, positive) counters label imbalance: the mean over the batch is weighted
/// by the weight of each image's bin, as PyTorch's `CrossEntropyLoss(weight)` does.
pub fn cross_entropy(
    logits: Tensor<2>,
    bins: Tensor<1, Int>,
    bin_weights: Option<Tensor<1>>,
) -> Tensor<1> {
    let positives = positives(&label_distance(&logits, bins.clone()));
    let losses = negative_log_likelihood(logits, positives);
    weighted_mean(losses, bin_weights.map(|weights| weights.select(0, bins)))
}

/// [`fcrc_text_to_image`] without the distance weights: the plain text→image divergence.
pub fn kl_text_to_image(logits: Tensor<2>, bins: Tensor<1, Int>) -> Tensor<1> {
    let positives = positives(&label_distance(&logits, bins));
    batch_divergence(logits, positives)
}

/// Mean absolute error of the regressed values (`[N]`, in the unit of the labels).
///
/// `sample_weights` (`[N]`, not negative, not all 0) makes it a weighted mean. To make tasks with
/// different ranges comparable, divide both `values` and `labels` by the range beforehand.
pub fn absolute_error(
    values: Tensor<1>,
    labels: Tensor<1>,
    sample_weights: Option<Tensor<1>>,
) -> Tensor<1> {
    weighted_mean((values - labels).abs(), sample_weights)
}

/// `|bin of the image − bin of the column|`, `[N, M]`.
fn label_distance(logits: &Tensor<2>, bins: Tensor<1, Int>) -> Tensor<2> {
    let [_, count] = logits.dims();
    let columns = Tensor::<1, Int>::arange(0..count as i64, &logits.device()).float();
    (bins.float().unsqueeze_dim::<2>(1) - columns.unsqueeze_dim::<2>(0)).abs()
}

fn positives(distance: &Tensor<2>) -> Tensor<2, Bool> {
    distance.clone().equal_scalar(0.0)
}

/// The FCRC weights; `dim` is what the distances are summed over: 1 for rows, 0 for columns.
///
/// Distances are whole numbers, so a sum below 1 is 0: a row or column of positives alone.
fn ranking_weights(distance: &Tensor<2>, dim: usize) -> Tensor<2> {
    let [_, count] = distance.dims();
    let total = distance.clone().sum_dim(dim).clamp_min(1.0);
    let weights = distance.clone().mul_scalar(count as f64 - 1.0) / total;
    weights.mask_fill(positives(distance), 1.0)
}

/// `−ln softmax` over the bins at the positive of each image, `[N]`.
fn negative_log_likelihood(logits: Tensor<2>, positives: Tensor<2, Bool>) -> Tensor<1> {
    (log_softmax(logits, 1) * positives.float())
        .sum_dim(1)
        .squeeze_dim::<1>(1)
        .neg()
}

fn batch_divergence(logits: Tensor<2>, positives: Tensor<2, Bool>) -> Tensor<1> {
    let positives = positives.float();
    let present = positives.clone().max_dim(0);
    let log_target = log_softmax(positives.mul_scalar(TARGET_LOGIT), 0);
    let divergence = log_target.clone().exp() * (log_target - log_softmax(logits, 0));
    (divergence.sum_dim(0) * present.clone()).sum() / present.sum()
}

fn weighted_mean(losses: Tensor<1>, weights: Option<Tensor<1>>) -> Tensor<1> {
    match weights {
        Some(weights) => (losses * weights.clone()).sum() / weights.sum(),
        None => losses.mean(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    type Loss = fn(Tensor<2>, Tensor<1, Int>) -> Tensor<1>;

    const LOSSES: [(&str, Loss); 4] = [
        ("fcrc_image_to_text", fcrc_image_to_text),
        ("fcrc_text_to_image", fcrc_text_to_image),
        ("cross_entropy", |logits, bins| {
            cross_entropy(logits, bins, None)
        }),
        ("kl_text_to_image", kl_text_to_image),
    ];

    /// The loss and its gradient with respect to the logits.
    fn evaluate(loss: Loss, logits: &[Vec<f32>], bins: &[i64]) -> (f32, Vec<f32>) {
        let device = Device::flex().autodiff();
        let shape = [logits.len(), logits[0].len()];
        let data = TensorData::new(logits.concat(), shape);
        let logits = Tensor::<2>::from_data(data, &device).require_grad();
        let value = loss(
            logits.clone(),
            Tensor::from_data(TensorData::from(bins), &device),
        );
        let scalar = value.clone().into_scalar();
        let gradient = logits.grad(&value.backward()).expect("a gradient");
        (scalar, gradient.try_into_vec_as().expect("f32 values"))
    }

    fn assert_close(got: f64, expected: f64, tolerance: f64, what: &str) {
        let error = (got - expected).abs() / expected.abs().max(1e-3);
        assert!(error <= tolerance, "{what}: {got}, expected {expected}");
    }

    fn log_sum_exp(values: &[f64]) -> f64 {
        values.iter().map(|v| v.exp()).sum::<f64>().ln()
    }

    /// Three bins, an image of bin 0 and one of bin 2; every weight worked out by hand.
    #[test]
    fn two_images_by_hand() {
        let logits = [vec![1.0, 2.0, 3.0], vec![0.5, -1.0, 2.0]];
        let bins = [0, 2];
        let value = |index: usize| f64::from(evaluate(LOSSES[index].1, &logits, &bins).0);

        // Distances 0 1 2 and 2 1 0, both of sum 3: weights 1, 2/3, 4/3 and 4/3, 2/3, 1.
        let first = log_sum_exp(&[1.0, 4.0 / 3.0, 4.0]) - 1.0;
        let second = log_sum_exp(&[2.0 / 3.0, -2.0 / 3.0, 2.0]) - 2.0;
        assert_close(value(0), (first + second) / 2.0, 1e-6, LOSSES[0].0);

        let plain = log_sum_exp(&[1.0, 2.0, 3.0]) - 1.0 + log_sum_exp(&[0.5, -1.0, 2.0]) - 2.0;
        assert_close(value(2), plain / 2.0, 1e-6, LOSSES[2].0);

        // A column holds one positive and one negative at distance 2: weights 1 and 2.
        let high = 1.0 / (1.0 + (-10f64).exp());
        let divergence = |positive: f64, negative: f64| {
            let total = log_sum_exp(&[positive, negative]);
            high * (high.ln() - positive + total)
                + (1.0 - high) * ((1.0 - high).ln() - negative + total)
        };
        let ranked = (divergence(1.0, 2.0 * 0.5) + divergence(2.0, 2.0 * 3.0)) / 2.0;
        assert_close(value(1), ranked, 1e-5, LOSSES[1].0);
        let plain = (divergence(1.0, 0.5) + divergence(2.0, 3.0)) / 2.0;
        assert_close(value(3), plain, 1e-5, LOSSES[3].0);
    }

    #[test]
    fn gradients_follow_finite_differences() {
        let logits = [vec![0.3, -0.7, 1.1], vec![0.5, 0.2, -0.4]];
        let step = 1e-2;
        for (name, loss) in LOSSES {
            let (_, gradient) = evaluate(loss, &logits, &[1, 2]);
            for index in 0..6 {
                let nudged = |by: f32| {
                    let mut logits = logits.clone();
                    logits[index / 3][index % 3] += by;
                    evaluate(loss, &logits, &[1, 2]).0
                };
                let slope = (nudged(step) - nudged(-step)) / (2.0 * step);
                let error = (slope - gradient[index]).abs();
                assert!(error < 1e-3, "{name}[{index}]: {slope} {}", gradient[index]);
            }
        }
    }

    #[test]
    fn stays_finite_at_the_edges() {
        let cases: [(Vec<Vec<f32>>, Vec<i64>); 5] = [
            (vec![vec![1e4, -1e4, 0.0], vec![-1e4, 1e4, 1e4]], vec![1, 0]),
            (vec![vec![1e4; 10], vec![-1e4; 10]], vec![0, 9]),
            (vec![vec![3.0, 2.0, 1.0]], vec![2]),
            (vec![vec![3.0, 2.0]; 4], vec![1; 4]),
            (vec![vec![3.0], vec![-3.0]], vec![0, 0]),
        ];
        for (logits, bins) in cases {
            for (name, loss) in LOSSES {
                let (value, gradient) = evaluate(loss, &logits, &bins);
                assert!(value.is_finite(), "{name} {bins:?}: {value}");
                let finite = gradient.iter().all(|g| g.is_finite());
                assert!(finite, "{name} {bins:?}: {gradient:?}");
            }
        }
    }

    #[test]
    fn weights_turn_means_into_weighted_means() {
        let device = Device::flex();
        let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
        let (values, labels) = (tensor(&[1.0, 5.0]), tensor(&[2.0, 2.0]));
        let plain: f32 = absolute_error(values.clone(), labels.clone(), None).into_scalar();
        assert_eq!(plain, 2.0);
        let weights = Some(tensor(&[3.0, 1.0]));
        let weighted: f32 = absolute_error(values, labels, weights).into_scalar();
        assert_eq!(weighted, 1.5);

        // Uniform logits: every image costs ln 2, whatever the weights.
        let logits = Tensor::<2>::zeros([3, 2], &device);
        let bins = Tensor::<1, Int>::from_ints([0, 1, 1], &device);
        let loss: f32 = cross_entropy(logits, bins, Some(tensor(&[5.0, 0.1]))).into_scalar();
        assert_close(loss.into(), 2f64.ln(), 1e-6, "uniform");

        // Weight 0 takes a bin out: what is left is the plain loss of the first image.
        let logits = Tensor::<2>::from_floats([[1.0, 0.0], [4.0, 0.0]], &device);
        let bins = Tensor::<1, Int>::from_ints([0, 1], &device);
        let loss: f32 = cross_entropy(logits, bins, Some(tensor(&[1.0, 0.0]))).into_scalar();
        assert_close(loss.into(), (1.0 + (-1f64).exp()).ln(), 1e-6, "masked");
    }

    #[test]
    fn equals_the_reference() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../shared/golden/numclip-reference.json"
        );
        let Ok(text) = std::fs::read_to_string(path) else {
            println!("skipped: no golden vectors at {path}");
            return;
        };
        let golden: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases = golden["fcrc"].as_array().expect("cases");
        for (index, case) in cases.iter().enumerate() {
            let logits: Vec<Vec<f32>> = parse(&case["logits"]);
            let bins: Vec<i64> = parse(&case["bin_labels"]);
            for (name, loss) in LOSSES {
                let (value, gradient) = evaluate(loss, &logits, &bins);
                let expected = &case["expected"][name];
                let what = format!("case {index} {name}");
                assert_close(value.into(), parse(&expected["loss"]), 1e-5, &what);
                let reference: Vec<Vec<f64>> = parse(&expected["grad_logits"]);
                for (got, expected) in gradient.iter().zip(reference.concat()) {
                    assert_close((*got).into(), expected, 1e-4, &format!("{what} gradient"));
                }
            }
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> T {
        serde_json::from_value(value.clone()).expect("a golden value of the right shape")
    }
}
