//! What sits on the encoder's embedding: adapter, cosine logits, regressor.
//!
//! ```text
//! embedding [N, D] → Adapter → cosine_logits with the bin embeddings [M, D] → Regressor → value [N]
//! ```
//!
//! Source: Du et al., "Teach CLIP to Develop a Number Sense for Ordinal Regression", ECCV 2024,
//! with the details of its published code. The trained weights leave as plain row-major
//! `[out, in]` vectors, the layout PyTorch uses, for the bundle.

use burn::module::{Initializer, Module};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{relu, softmax};
use burn::tensor::{Device, Tensor};
use rand::Rng;

use super::layers::linear;

/// The smallest denominator of [`Ssr`]: with λ = 1 an offset of −1 would divide by 0.
///
/// The runtime applies the same floor.
pub const SSR_MIN_DENOMINATOR: f64 = 1e-6;

/// A bottleneck on the embedding, mixed with the embedding itself.
///
/// `out = ratio · relu(up · relu(down · x)) + (1 − ratio) · x`, without biases. Both layers end in
/// a ReLU.
#[derive(Module, Debug)]
pub struct Adapter {
    down: Linear,
    up: Linear,
    ratio: f64,
}

/// The weights of an [`Adapter`] for an embedding of width D and a bottleneck of width H.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterWeights {
    /// `[H, D]`, row-major.
    pub down: Vec<f32>,
    /// `[D, H]`, row-major.
    pub up: Vec<f32>,
    /// Share of the adapted embedding in the mix, 0 to 1.
    pub ratio: f32,
}

impl Adapter {
    /// An adapter for embeddings of width `dim` with a bottleneck of `dim / reduction` (at least
    /// 1). The paper uses a reduction of 4 and a ratio of 0.8.
    pub fn new(
        dim: usize,
        reduction: usize,
        ratio: f64,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let hidden = (dim / reduction).max(1);
        Self {
            down: linear([dim, hidden], false, rng, device),
            up: linear([hidden, dim], false, rng, device),
            ratio,
        }
    }

    /// `[N, D]` embeddings to `[N, D]` adapted embeddings, not normalised.
    pub fn forward(&self, embedding: Tensor<2>) -> Tensor<2> {
        let hidden = relu(self.down.forward(embedding.clone()));
        let adapted = relu(self.up.forward(hidden));
        adapted.mul_scalar(self.ratio) + embedding.mul_scalar(1.0 - self.ratio)
    }

    /// The weights for the bundle.
    pub fn to_plain(&self) -> AdapterWeights {
        AdapterWeights {
            down: plain_weight(&self.down),
            up: plain_weight(&self.up),
            ratio: self.ratio as f32,
        }
    }
}

/// Cosine similarity of every image with every bin, times `scale` (CLIP: 100): the logits.
///
/// `embedding` is `[N, D]` of any length (0 gives logits of 0), `bins` `[M, D]` of unit rows;
/// the result `[N, M]`.
pub fn cosine_logits(embedding: Tensor<2>, bins: Tensor<2>, scale: f64) -> Tensor<2> {
    let norm = embedding.clone().square().sum_dim(1).add_scalar(1e-24);
    (embedding / norm.sqrt())
        .matmul(bins.transpose())
        .mul_scalar(scale)
}

/// Turns the M bin logits of an image into a number.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one")]
pub enum Regressor {
    /// Bin starts, shifted by learned offsets.
    Ssr(Ssr),
    /// The mean of fixed bin values.
    Expectation(Expectation),
}

impl Regressor {
    /// `[N, M]` logits to `[N]` values, in the unit of the labels.
    pub fn forward(&self, logits: Tensor<2>) -> Tensor<1> {
        match self {
            Self::Ssr(ssr) => ssr.forward(logits),
            Self::Expectation(expectation) => expectation.forward(logits),
        }
    }
}

/// The soft stagewise regressor: each bin adds its start, moved by an offset learned from the
/// logits.
///
/// ```text
/// p      = softmax(logits)
/// offset = tanh(W₂ · relu(W₁ · logits + b₁) + b₂)           W₁: [2M, M], W₂: [M, 2M]
/// value  = Σ p_i · start_i / max(1 + λ · offset_i, 1e-6)
/// ```
///
/// A positive offset lowers the bin's value and a negative one raises it; a bin that starts at 0
/// always adds 0. λ bounds the range: a bin reaches from `start / (1 + λ)` to `start / (1 − λ)`,
/// so the published λ = 1 has no upper bound.
#[derive(Module, Debug)]
pub struct Ssr {
    hidden: Linear,
    offset: Linear,
    #[module(skip)]
    starts: Vec<f32>,
    lambda: f64,
}

/// The weights of an [`Ssr`] over M bins.
#[derive(Clone, Debug, PartialEq)]
pub struct SsrWeights {
    /// W₁, `[2M, M]`, row-major.
    pub hidden_weight: Vec<f32>,
    /// b₁, `[2M]`.
    pub hidden_bias: Vec<f32>,
    /// W₂, `[M, 2M]`, row-major.
    pub offset_weight: Vec<f32>,
    /// b₂, `[M]`.
    pub offset_bias: Vec<f32>,
    /// Where each bin starts, `[M]`, in the unit of the labels.
    pub starts: Vec<f32>,
    /// λ, how far an offset reaches: 0 to 1.
    pub lambda: f32,
}

impl Ssr {
    /// A regressor over bins with the given starts (in the unit of the labels).
    ///
    /// The offsets begin at 0, so training starts from the mean of the starts, well away from
    /// small denominators.
    pub fn new(starts: Vec<f32>, lambda: f64, rng: &mut impl Rng, device: &Device) -> Self {
        let bins = starts.len();
        Self {
            hidden: linear([bins, 2 * bins], true, rng, device),
            offset: LinearConfig::new(2 * bins, bins)
                .with_initializer(Initializer::Zeros)
                .init(device),
            starts,
            lambda,
        }
    }

    /// `[N, M]` logits to `[N]` values, in the unit of the starts.
    pub fn forward(&self, logits: Tensor<2>) -> Tensor<1> {
        let hidden = relu(self.hidden.forward(logits.clone()));
        let offset = self.offset.forward(hidden).tanh();
        let denominator = offset
            .mul_scalar(self.lambda)
            .add_scalar(1.0)
            .clamp_min(SSR_MIN_DENOMINATOR);
        let starts = row(&self.starts, &logits);
        (softmax(logits, 1) * starts / denominator)
            .sum_dim(1)
            .squeeze_dim(1)
    }

    /// The weights for the bundle.
    pub fn to_plain(&self) -> SsrWeights {
        SsrWeights {
            hidden_weight: plain_weight(&self.hidden),
            hidden_bias: plain_bias(&self.hidden),
            offset_weight: plain_weight(&self.offset),
            offset_bias: plain_bias(&self.offset),
            starts: self.starts.clone(),
            lambda: self.lambda as f32,
        }
    }
}

/// The expectation of fixed bin values: `value = Σ p_i · value_i`. It has nothing to train.
#[derive(Module, Debug)]
pub struct Expectation {
    #[module(skip)]
    values: Vec<f32>,
}

impl Expectation {
    /// An expectation over bins with the given values (in the unit of the labels).
    pub fn new(values: Vec<f32>) -> Self {
        Self { values }
    }

    /// `[N, M]` logits to `[N]` values, in the unit of the bin values.
    pub fn forward(&self, logits: Tensor<2>) -> Tensor<1> {
        let values = row(&self.values, &logits);
        (softmax(logits, 1) * values).sum_dim(1).squeeze_dim(1)
    }

    /// The bin values for the bundle, `[M]`.
    pub fn to_plain(&self) -> Vec<f32> {
        self.values.clone()
    }
}

/// `values` as a `[1, M]` tensor beside `logits`.
fn row(values: &[f32], logits: &Tensor<2>) -> Tensor<2> {
    Tensor::<1>::from_floats(values, &logits.device()).unsqueeze_dim(0)
}

/// The weight as row-major `[out, in]`; burn keeps it as `[in, out]`.
fn plain_weight(layer: &Linear) -> Vec<f32> {
    plain(layer.weight.val().transpose())
}

fn plain_bias(layer: &Linear) -> Vec<f32> {
    layer
        .bias
        .as_ref()
        .map_or_else(Vec::new, |b| plain(b.val()))
}

fn plain<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::Param;
    use burn::tensor::TensorData;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use serde_json::Value;

    #[test]
    fn adapter_by_hand() {
        let device = Device::flex();
        // D = 2, H = 1: down [1, -2], up [3, -1].
        let adapter = Adapter {
            down: layer(&[vec![1.0, -2.0]], None, &device),
            up: layer(&[vec![3.0], vec![-1.0]], None, &device),
            ratio: 0.8,
        };
        let input = Tensor::from_floats([[5.0, 1.0], [1.0, 1.0]], &device);
        // Row 0: hidden 3, up 9 and −3 → 0. Row 1: hidden −1 → 0.
        let expected = [0.8 * 9.0 + 0.2 * 5.0, 0.2, 0.2, 0.2];
        assert_close(&plain(adapter.forward(input)), &expected, 1e-6);
        let weights = adapter.to_plain();
        assert_eq!(
            (weights.down, weights.up),
            (vec![1.0, -2.0], vec![3.0, -1.0])
        );
    }

    #[test]
    fn cosine_logits_by_hand() {
        let device = Device::flex().autodiff();
        let embedding = Tensor::<2>::from_floats([[3.0, 4.0], [0.0, 0.0]], &device).require_grad();
        let bins = Tensor::from_floats([[1.0, 0.0], [0.0, -1.0], [0.6, 0.8]], &device);
        let logits = cosine_logits(embedding.clone(), bins, 10.0);
        let expected = [6.0, -8.0, 10.0, 0.0, 0.0, 0.0];
        assert_close(&plain(logits.clone()), &expected, 1e-6);
        let gradient = embedding.grad(&logits.sum().backward()).expect("gradient");
        assert!(plain(gradient).iter().all(|g| g.is_finite()));
    }

    #[test]
    fn ssr_by_hand() {
        let device = Device::flex();
        let ssr = Ssr {
            // Four hidden units: the two logits and their negatives, cut at 0.
            hidden: layer(
                &[
                    vec![1.0, 0.0],
                    vec![0.0, 1.0],
                    vec![-1.0, 0.0],
                    vec![0.0, -1.0],
                ],
                Some(&[0.0, 0.0, 0.0, 0.5]),
                &device,
            ),
            offset: layer(
                &[vec![1.0, 0.0, 0.0, 0.0], vec![0.0, 0.0, 0.0, 2.0]],
                Some(&[0.0, -1.0]),
                &device,
            ),
            starts: vec![10.0, 20.0],
            lambda: 0.5,
        };
        let logits = Tensor::from_floats([[0.0, (3f32).ln()], [1.0, -1.0]], &device);
        // Row 0: p = 1/4, 3/4; offsets tanh(0), tanh(−1).
        let first = 0.25 * 10.0 + 0.75 * 20.0 / (1.0 - 0.5 * 1f64.tanh());
        // Row 1: hidden 1, 0, 0, 1.5; offsets tanh(1), tanh(2).
        let p = 1.0 / (1.0 + (-2f64).exp());
        let second =
            p * 10.0 / (1.0 + 0.5 * 1f64.tanh()) + (1.0 - p) * 20.0 / (1.0 + 0.5 * 2f64.tanh());
        let values = plain(Regressor::Ssr(ssr).forward(logits));
        assert_close(&values, &[first as f32, second as f32], 1e-5);
    }

    #[test]
    fn a_new_ssr_is_the_mean_of_the_starts() {
        let device = Device::flex();
        let starts = vec![0.0, 13.0, 19.0, 35.0, 65.0];
        let logits = Tensor::from_floats([[25.0, 24.0, -3.0, 22.0, 0.0]], &device);
        let ssr = Ssr::new(
            starts.clone(),
            1.0,
            &mut ChaCha8Rng::seed_from_u64(0),
            &device,
        )
        .forward(logits.clone());
        let expectation = Regressor::Expectation(Expectation::new(starts)).forward(logits);
        assert_close(&plain(ssr), &plain(expectation), 1e-6);
    }

    #[test]
    fn a_denominator_of_zero_is_held_at_the_floor() {
        let device = Device::flex().autodiff();
        let ssr = Ssr {
            hidden: layer(&[vec![1.0], vec![0.0]], Some(&[0.0, 0.0]), &device),
            offset: layer(&[vec![-100.0, 0.0]], Some(&[0.0]), &device),
            starts: vec![2.0],
            lambda: 1.0,
        };
        let logits = Tensor::<2>::from_floats([[30.0]], &device).require_grad();
        let value = ssr.forward(logits.clone());
        let scalar: f32 = value.clone().into_scalar();
        assert!((scalar / 2e6 - 1.0).abs() < 1e-3, "{scalar}");
        let gradient = plain(logits.grad(&value.backward()).expect("gradient"));
        assert!(gradient[0].is_finite());
    }

    #[test]
    fn heads_equal_the_reference() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../shared/golden/numclip-reference.json"
        );
        let Ok(text) = std::fs::read_to_string(path) else {
            println!("skipped: no golden vectors at {path}");
            return;
        };
        let golden: Value = serde_json::from_str(&text).expect("JSON");
        check_adapter(&golden["adapter"][0]);
        check_ssr(&golden["ssr"][0]);
    }

    fn check_adapter(case: &Value) {
        let device = Device::flex();
        let weight = |name: &str| layer(&matrix(&case["weights"][name]), None, &device);
        let adapter = Adapter {
            down: weight("fc.0.weight"),
            up: weight("fc.2.weight"),
            ratio: 0.8,
        };
        let features = tensor(&matrix(&case["features"]), &device);
        let text = tensor(&matrix(&case["text"]), &device);
        let logits = plain(cosine_logits(adapter.forward(features), text, 100.0));
        let expected = matrix(&case["expected_logits"]).concat();
        assert_close(&logits, &expected, 1e-4);
    }

    /// With λ = 1 the reference's own f32 values hang on the last bits of the tanh: one unit in
    /// the last place of an offset near −1 moves a value by `p · start / denominator²` of it. So
    /// the tolerance is 1e-5 plus what four such units do.
    fn check_ssr(case: &Value) {
        let device = Device::flex();
        let weight = |name: &str| matrix(&case["weights"][name]);
        let bias = |name: &str| vector(&case["weights"][name]);
        let ssr = Ssr {
            hidden: layer(
                &weight("stage1_FC_after_PB.0.weight"),
                Some(&bias("stage1_FC_after_PB.0.bias")),
                &device,
            ),
            offset: layer(
                &weight("stage1_delta_k.0.weight"),
                Some(&bias("stage1_delta_k.0.bias")),
                &device,
            ),
            starts: vector(&case["bin_starts"]),
            lambda: 1.0,
        };
        let logits = matrix(&case["logits"]);
        let values = plain(ssr.forward(tensor(&logits, &device)));
        let expected = vector(&case["expected_value"]);
        for (row, (value, expected)) in values.iter().zip(expected).enumerate() {
            let tolerance = 1e-5 * f64::from(expected) + rounding(&ssr.to_plain(), &logits[row]);
            let error = (f64::from(*value) - f64::from(expected)).abs();
            assert!(
                error <= tolerance,
                "row {row}: {value}, expected {expected}"
            );
        }
    }

    /// What four units in the last place of the tanh move the value by, evaluated in f64.
    fn rounding(weights: &SsrWeights, logits: &[f32]) -> f64 {
        let bins = logits.len();
        let affine = |weight: &[f32], bias: &[f32], input: &[f64]| -> Vec<f64> {
            let rows = weight.chunks(input.len());
            rows.zip(bias)
                .map(|(row, b)| {
                    let dot: f64 = row.iter().zip(input).map(|(w, x)| f64::from(*w) * x).sum();
                    dot + f64::from(*b)
                })
                .collect()
        };
        let logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        let hidden = affine(&weights.hidden_weight, &weights.hidden_bias, &logits);
        let hidden: Vec<f64> = hidden.iter().map(|h| h.max(0.0)).collect();
        let offset = affine(&weights.offset_weight, &weights.offset_bias, &hidden);
        let total: f64 = logits.iter().map(|x| x.exp()).sum();
        (0..bins)
            .map(|i| {
                let denominator = 1.0 + offset[i].tanh();
                let share = logits[i].exp() / total * f64::from(weights.starts[i]);
                share * 4.0 * f64::from(f32::EPSILON) / denominator.powi(2)
            })
            .sum()
    }

    fn layer(weight: &[Vec<f32>], bias: Option<&[f32]>, device: &Device) -> Linear {
        Linear {
            weight: Param::from_tensor(tensor(weight, device).transpose()),
            bias: bias.map(|b| Param::from_tensor(Tensor::from_floats(b, device))),
        }
    }

    fn tensor(rows: &[Vec<f32>], device: &Device) -> Tensor<2> {
        let shape = [rows.len(), rows[0].len()];
        Tensor::from_data(TensorData::new(rows.concat(), shape), device)
    }

    fn matrix(value: &Value) -> Vec<Vec<f32>> {
        serde_json::from_value(value.clone()).expect("a matrix")
    }

    fn vector(value: &Value) -> Vec<f32> {
        serde_json::from_value(value.clone()).expect("a vector")
    }

    fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            let error = (got - expected).abs();
            assert!(
                error <= tolerance * expected.abs().max(1.0),
                "{got}, expected {expected}"
            );
        }
    }
}
