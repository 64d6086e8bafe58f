//! Outliers of a transformer's activations moved into the weights that read them.
//!
//! A layer norm gives some channels values many times larger than the others', and levels that
//! cover those are coarse for all. Dividing a channel by a number where it is made and multiplying
//! the weights that read it by the same number changes nothing, and weights have levels to spare:
//! SmoothQuant (Xiao et al., ICML 2023, eq. 4). Channels are made by the factors of a layer norm,
//! or, ahead of an attention's last layer, by the weights of its values.

use std::collections::HashMap;

use burn::module::Param;
use burn::nn::LayerNorm;
use burn::tensor::{Tensor, TensorData};

use crate::clip::transformer::{Attention, Block};
use crate::model::vit::Vit;

/// `vit` with smoother channels: `peaks` holds the largest magnitude of each channel for what is
/// multiplied with constant weights, by its name in ONNX. With `strength` 0 the weights' channels
/// become alike, with 1 those of the activations.
pub fn smooth(vit: &Vit, peaks: &HashMap<String, Vec<f32>>, strength: f64) -> Vit {
    let mut vit = vit.clone();
    for (index, block) in vit.transformer.blocks.iter_mut().enumerate() {
        let of = |part: &str| {
            peaks
                .get(&format!("block{index}.{part}"))
                .map(Vec::as_slice)
        };
        smooth_block(block, of, strength);
    }
    if let Some(peaks) = peaks.get("norm_post") {
        smooth_norm(&mut vit.norm_post, &mut vit.projection, peaks, strength);
    }
    vit
}

fn smooth_block<'a>(block: &mut Block, peaks: impl Fn(&str) -> Option<&'a [f32]>, strength: f64) {
    if let Some(peaks) = peaks("norm_1") {
        let weight = &mut block.attention.in_proj.weight;
        smooth_norm(&mut block.norm_1, weight, peaks, strength);
    }
    if let Some(peaks) = peaks("attention.joined") {
        smooth_values(&mut block.attention, peaks, strength);
    }
    if let Some(peaks) = peaks("norm_2") {
        smooth_norm(&mut block.norm_2, &mut block.fc.weight, peaks, strength);
    }
}

/// Between a layer norm and the weights `[inputs, outputs]` that read it.
fn smooth_norm(norm: &mut LayerNorm, weight: &mut Param<Tensor<2>>, peaks: &[f32], strength: f64) {
    let factors = factors(peaks, &weight.val(), strength);
    norm.gamma = Param::from_tensor(norm.gamma.val() / factors.clone());
    let beta = norm.beta.as_ref();
    norm.beta = beta.map(|beta| Param::from_tensor(beta.val() / factors.clone()));
    *weight = Param::from_tensor(weight.val() * factors.unsqueeze_dim::<2>(1));
}

/// Between the values of an attention and its last layer: shares of values are sums of them.
fn smooth_values(attention: &mut Attention, peaks: &[f32], strength: f64) {
    let weight = attention.out_proj.weight.val();
    let factors = factors(peaks, &weight, strength);
    let width = peaks.len();
    // Queries and keys, which lie ahead of the values, stay.
    let ones = Tensor::ones([2 * width], &factors.device());
    let divisors = Tensor::cat(vec![ones, factors.clone()], 0);
    let values = &mut attention.in_proj;
    values.weight = Param::from_tensor(values.weight.val() / divisors.clone().unsqueeze::<2>());
    let bias = values.bias.as_ref();
    values.bias = bias.map(|bias| Param::from_tensor(bias.val() / divisors));
    let weight = weight * factors.unsqueeze_dim::<2>(1);
    attention.out_proj.weight = Param::from_tensor(weight);
}

/// What each channel is divided by; 1 for a channel that is never used.
fn factors(peaks: &[f32], weight: &Tensor<2>, strength: f64) -> Tensor<1> {
    let largest = weight.clone().abs().max_dim(1).into_data();
    let pairs = peaks.iter().zip(largest.iter::<f32>());
    let factor = |(&peak, weight): (&f32, f32)| {
        let (peak, weight) = (f64::from(peak), f64::from(weight));
        let factor = peak.powf(strength) / weight.powf(1.0 - strength);
        match factor.is_normal() && factor < f64::from(f32::MAX) {
            true => factor as f32,
            false => 1.0,
        }
    };
    let factors: Vec<f32> = pairs.map(factor).collect();
    let shape = [factors.len()];
    Tensor::from_data(TensorData::new(factors, shape), &weight.device())
}
