//! Cross-layer equalisation: the same function with channels of like range.
//!
//! Dividing the outputs of a convolution by positive numbers and multiplying the weights that read
//! them by the same numbers changes nothing where everything between the two is homogeneous:
//! `f(x / s) = f(x) / s` for ReLU, the identity and the mean (Nagel et al., ICCV 2019, §4.1). The
//! scales per output channel take up what happens to the first convolution's weights, so the
//! numbers weigh the activations against the second one's weights (Xiao et al., ICML 2023, eq. 4).
//!
//! ReLU6 is not homogeneous. Where calibration never saw it reach 6, it is taken as the ReLU that
//! it then is; elsewhere the pair stays as it is. So does a tensor that several nodes read.

use super::calibrate::Observation;
use crate::graph::{Activation, Conv, ConvNet, Op, Value};

/// The smallest factor of a channel, beside 1 for the largest: a channel that hardly moved on the
/// calibration images may move more on others.
const LEAST: f32 = 1.0 / 16.0;

/// `net` with equalised channels; `observations` holds one entry for each of its nodes.
pub fn equalize(net: &ConvNet, observations: &[Observation]) -> ConvNet {
    let mut net = net.clone();
    for from in 0..net.nodes.len() {
        let Some(to) = partner(&net, from) else {
            continue;
        };
        let (before, after) = net.nodes.split_at_mut(to);
        let (Op::Conv(first), Op::Conv(second)) = (&mut before[from].op, &mut after[0].op) else {
            continue;
        };
        let peaks = &observations[from].peaks;
        let clips = peaks.iter().any(|&peak| peak >= 6.0);
        if first.activation == Activation::Relu6 {
            if clips {
                continue;
            }
            first.activation = Activation::Relu;
        }
        let factors = factors(peaks, second);
        divide_outputs(first, &factors);
        multiply_inputs(second, &factors);
    }
    net
}

/// The convolution that alone reads the convolution at `from`, perhaps through pooling.
fn partner(net: &ConvNet, from: usize) -> Option<usize> {
    matches!(net.nodes[from].op, Op::Conv(_)).then_some(())?;
    let mut at = from;
    loop {
        let value = Value::Node(at);
        let reads = |&index: &usize| net.nodes[index].inputs.contains(&value);
        let readers: Vec<usize> = (0..net.nodes.len()).filter(reads).collect();
        let &[reader] = readers.as_slice() else {
            return None;
        };
        match net.nodes[reader].op {
            Op::Conv(_) => return Some(reader),
            Op::GlobalAveragePool => at = reader,
            Op::Add => return None,
        }
    }
}

/// What each channel between two convolutions is divided by, 1 at most.
///
/// A depthwise convolution's scales take up any factor, so its input channels become all alike.
/// Elsewhere a channel's range and that of the weights it meets, beside the largest of their
/// output channel, become alike.
fn factors(peaks: &[f32], second: &Conv) -> Vec<f32> {
    let is_depthwise = second.groups > 1 && second.shape[1] == 1;
    let weights = weight_peaks(second);
    let wanted = |(&peak, &weight): (&f32, &f32)| match is_depthwise {
        true => peak,
        false => (peak / weight.max(f32::MIN_POSITIVE)).sqrt(),
    };
    let dead = |(peak, weight): (&f32, &f32)| *peak == 0.0 || *weight == 0.0;
    let channels = || peaks.iter().zip(&weights);
    let alive = channels().filter(|&channel| !dead(channel));
    let largest = alive.map(wanted).fold(f32::MIN_POSITIVE, f32::max);
    let factor = |channel| match dead(channel) {
        true => 1.0,
        false => (wanted(channel) / largest).max(LEAST),
    };
    channels().map(factor).collect()
}

/// The largest weight of each input channel, beside the largest of its output channel.
fn weight_peaks(conv: &Conv) -> Vec<f32> {
    let kernel = conv.shape[2] * conv.shape[3];
    let per_group = conv.shape[0] / conv.groups;
    let mut peaks = vec![0.0_f32; conv.shape[1] * conv.groups];
    for (output, row) in conv.weight.chunks_exact(conv.fan_in()).enumerate() {
        let largest = row.iter().fold(f32::MIN_POSITIVE, |m, w| m.max(w.abs()));
        let first = output / per_group * conv.shape[1];
        for (place, weight) in row.iter().enumerate() {
            let peak = &mut peaks[first + place / kernel];
            *peak = peak.max(weight.abs() / largest);
        }
    }
    peaks
}

fn divide_outputs(conv: &mut Conv, factors: &[f32]) {
    let fan_in = conv.fan_in();
    let rows = conv.weight.chunks_exact_mut(fan_in).zip(&mut conv.bias);
    for ((row, bias), factor) in rows.zip(factors) {
        row.iter_mut().for_each(|weight| *weight /= factor);
        *bias /= factor;
    }
}

fn multiply_inputs(conv: &mut Conv, factors: &[f32]) {
    let (fan_in, kernel) = (conv.fan_in(), conv.shape[2] * conv.shape[3]);
    let per_group = conv.shape[0] / conv.groups;
    for (output, row) in conv.weight.chunks_exact_mut(fan_in).enumerate() {
        let first = output / per_group * conv.shape[1];
        for (place, weight) in row.iter_mut().enumerate() {
            *weight *= factors[first + place / kernel];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::calibrate::observe;
    use super::super::tests::{SIZE, conv, images, network};
    use super::*;

    #[test]
    fn the_function_stays_and_channels_become_alike() {
        for activation in [Activation::Relu, Activation::Relu6, Activation::None] {
            let mut net = ConvNet {
                input: [3, SIZE, SIZE],
                nodes: Vec::new(),
            };
            let stem = net.push(
                "stem",
                conv(1, [8, 3, 3, 3], 2, [0, 0, 1, 1], 1, activation),
                vec![Value::Image],
            );
            let deep = net.push(
                "deep",
                conv(3, [8, 1, 3, 3], 1, [1; 4], 8, activation),
                vec![stem],
            );
            let point = net.push(
                "point",
                conv(5, [6, 8, 1, 1], 1, [0; 4], 1, activation),
                vec![deep],
            );
            let pool = net.push("pool", Op::GlobalAveragePool, vec![point]);
            net.push(
                "head",
                conv(7, [4, 6, 1, 1], 1, [0; 4], 1, Activation::None),
                vec![pool],
            );
            let Op::Conv(stem) = &mut net.nodes[0].op else {
                unreachable!()
            };
            divide_outputs(stem, &[1.0, 2.0, 3.0, 5.0, 7.0, 8.0, 9.0, 10.0]);
            let equal = equalize(&net, &observe(&net, &images(4)).unwrap());
            assert_ne!(net, equal);
            for image in images(4) {
                let (a, b) = (net.forward(&image), equal.forward(&image));
                assert!(
                    a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4),
                    "{a:?} {b:?}"
                );
            }
            let peaks = &observe(&equal, &images(4)).unwrap()[0].peaks;
            let (low, high) = peaks
                .iter()
                .fold((f32::MAX, 0.0_f32), |(l, h), &p| (l.min(p), h.max(p)));
            assert!(low > 0.99 * high, "{peaks:?}");
        }
    }

    #[test]
    fn what_is_not_homogeneous_or_is_read_twice_stays() {
        let net = network();
        let seen = observe(&net, &images(2)).unwrap();
        // The stem is read by a convolution and a sum, the sum has two inputs: only the depthwise
        // convolution has a partner.
        let equal = equalize(&net, &seen);
        assert_eq!(
            (&net.nodes[0], &net.nodes[3..]),
            (&equal.nodes[0], &equal.nodes[3..])
        );
        assert_ne!(net.nodes[1..3], equal.nodes[1..3]);
        let mut clipped = (net, seen);
        let Op::Conv(conv) = &mut clipped.0.nodes[1].op else {
            unreachable!()
        };
        conv.activation = Activation::Relu6;
        clipped.1[1].peaks[3] = 6.0;
        assert_eq!(clipped.0, equalize(&clipped.0, &clipped.1));
    }
}
