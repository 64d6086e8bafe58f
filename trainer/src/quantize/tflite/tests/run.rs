//! A network as it was read back, run by the definition of each operator.

mod rows;

use super::super::model::{Element, Kind, Padding, Quantization, Step};
use super::read::{File, Tensor};

/// The embedding of `image` (planar, `[3, H, W]`).
pub fn run(file: &File, image: &[f32]) -> Vec<f32> {
    let mut values: Vec<Vec<f64>> = file.tensors.iter().map(constant).collect();
    let [_, height, width, channels] = file.tensors[file.input].shape[..] else {
        panic!("the input is a picture");
    };
    let plane = height * width;
    values[file.input] = (0..plane)
        .flat_map(|at| (0..channels).map(move |c| c * plane + at))
        .map(|at| f64::from(image[at]))
        .collect();
    for operator in &file.operators {
        let tensor = |index: usize| &file.tensors[operator.inputs[index]];
        let value = |index: usize| &values[operator.inputs[index]];
        let real = |index: usize| real(tensor(index), value(index));
        let to = &file.tensors[operator.output];
        let output: Vec<f64> = match operator.kind {
            Kind::Conv(step) => conv([tensor(0), tensor(1), tensor(2), to], step, None, &|i| {
                real(i)
            }),
            Kind::DepthwiseConv { step, multiplier } => conv(
                [tensor(0), tensor(1), tensor(2), to],
                step,
                Some(multiplier),
                &|i| real(i),
            ),
            Kind::Add | Kind::Sub | Kind::Mul | Kind::Div => {
                let operands =
                    [0, 1].map(|i| rows::broadcast(&tensor(i).shape, &real(i), &to.shape));
                rows::binary(operator.kind, operands)
            }
            Kind::Mean if tensor(0).shape.len() < 4 => rows::mean(tensor(0), &real(0), value(1)),
            Kind::Mean => mean(&real(0), to.shape[3], value(1)),
            Kind::Pad if tensor(0).shape.len() < 4 => rows::pad(tensor(0), &real(0), value(1)),
            Kind::Pad => pad(tensor(0), &real(0), value(1)),
            Kind::FullyConnected => rows::fully_connected(tensor(1), [real(0), real(1), real(2)]),
            Kind::BatchMatMul => rows::batch_product([tensor(0), tensor(1)], [real(0), real(1)]),
            Kind::Softmax => rows::softmax(tensor(0), &real(0)),
            Kind::Transpose => rows::transpose(tensor(0), &real(0), value(1)),
            Kind::Slice => rows::slice(tensor(0), &real(0), [value(1), value(2)]),
            Kind::Sqrt => real(0).iter().map(|x| x.sqrt()).collect(),
            Kind::Logistic => real(0).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Kind::Gelu => real(0).iter().map(|x| x * rows::normal(*x)).collect(),
            Kind::Relu => real(0).iter().map(|x| x.max(0.0)).collect(),
            Kind::Relu6 => real(0).iter().map(|x| x.clamp(0.0, 6.0)).collect(),
            Kind::Quantize | Kind::Dequantize => real(0),
            Kind::Reshape => {
                let shape: Vec<usize> = value(1).iter().map(|size| *size as usize).collect();
                assert_eq!(shape, to.shape);
                real(0)
            }
        };
        assert_eq!(
            output.len(),
            to.shape.iter().product::<usize>(),
            "{}",
            to.name
        );
        values[operator.output] = store(to, output);
    }
    let output = &file.tensors[file.output];
    assert_eq!(output.element, Element::F32);
    values[file.output].iter().map(|&x| x as f32).collect()
}

/// The elements of a constant; nothing for an activation.
fn constant(tensor: &Tensor) -> Vec<f64> {
    let words = || tensor.data.as_chunks::<4>().0.iter();
    match tensor.element {
        Element::F32 => words().map(|&w| f32::from_le_bytes(w).into()).collect(),
        Element::I32 => words().map(|&w| i32::from_le_bytes(w).into()).collect(),
        Element::I8 => tensor.data.iter().map(|b| b.cast_signed().into()).collect(),
    }
}

/// What `levels` stand for.
fn real(tensor: &Tensor, levels: &[f64]) -> Vec<f64> {
    let Some(quantization) = &tensor.quantization else {
        return levels.to_vec();
    };
    let inner: usize = tensor.shape[quantization.axis + 1..].iter().product();
    let scale = |at: usize| match &quantization.scales[..] {
        [scale] => *scale,
        scales => scales[at / inner % scales.len()],
    };
    let zero = quantization.zero_point as f64;
    let levels = levels.iter().enumerate();
    levels
        .map(|(at, level)| (level - zero) * f64::from(scale(at)))
        .collect()
}

/// What a tensor keeps of real values.
fn store(tensor: &Tensor, reals: Vec<f64>) -> Vec<f64> {
    match &tensor.quantization {
        Some(Quantization {
            scales, zero_point, ..
        }) => {
            let (scale, zero) = (f64::from(scales[0]), *zero_point as f64);
            let level = |x: f64| ((x / scale).round_ties_even() + zero).clamp(-128.0, 127.0);
            reals.into_iter().map(level).collect()
        }
        None => reals,
    }
}

fn mean(values: &[f64], channels: usize, axes: &[f64]) -> Vec<f64> {
    assert_eq!(axes, [1.0, 2.0]);
    let pixels = (values.len() / channels) as f64;
    let of = |channel: usize| values.iter().skip(channel).step_by(channels).sum::<f64>() / pixels;
    (0..channels).map(of).collect()
}

fn pad(from: &Tensor, values: &[f64], counts: &[f64]) -> Vec<f64> {
    let count = |at: usize| counts[at] as usize;
    let [_, height, width, channels] = from.shape[..] else {
        panic!("a picture");
    };
    let padded = [count(2) + height + count(3), count(4) + width + count(5)];
    let mut output = vec![0.0; padded[0] * padded[1] * channels];
    for (row, line) in values.chunks(width * channels).enumerate() {
        let start = ((row + count(2)) * padded[1] + count(4)) * channels;
        output[start..start + line.len()].copy_from_slice(line);
    }
    output
}

/// Depthwise with a multiplier, else dense in as many groups as the weights say.
fn conv(
    [from, weight, bias, to]: [&Tensor; 4],
    step: Step,
    multiplier: Option<usize>,
    real: &dyn Fn(usize) -> Vec<f64>,
) -> Vec<f64> {
    let (x, w, b) = (real(0), real(1), real(2));
    let [_, height, width, channels] = from.shape[..] else {
        panic!("a picture");
    };
    let [_, rows, columns, outputs] = to.shape[..] else {
        panic!("a picture");
    };
    let kernel = [weight.shape[1], weight.shape[2]];
    assert_eq!(bias.shape, [outputs]);
    let per_group = if multiplier.is_some() {
        1
    } else {
        weight.shape[3]
    };
    let group = outputs / (channels / per_group);
    assert!(multiplier.is_none_or(|multiplier| multiplier == group));
    let before = |axis: usize, size: usize, steps: usize| match step.padding {
        Padding::Valid => 0,
        Padding::Same => ((steps - 1) * step.stride[axis] + kernel[axis]).saturating_sub(size) / 2,
    };
    let (top, left) = (before(0, height, rows), before(1, width, columns));
    let mut y = Vec::with_capacity(rows * columns * outputs);
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        for (output, &bias) in b.iter().enumerate() {
            let mut sum = bias;
            for (ky, kx) in (0..kernel[0]).flat_map(|ky| (0..kernel[1]).map(move |kx| (ky, kx))) {
                let at = (row * step.stride[0] + ky).wrapping_sub(top);
                let across = (column * step.stride[1] + kx).wrapping_sub(left);
                if at >= height || across >= width {
                    continue;
                }
                let pixel = (at * width + across) * channels + output / group * per_group;
                let tap = ky * kernel[1] + kx;
                let first = match multiplier {
                    Some(_) => tap * outputs + output,
                    None => (output * kernel[0] * kernel[1] + tap) * per_group,
                };
                let pairs = x[pixel..pixel + per_group]
                    .iter()
                    .zip(&w[first..first + per_group]);
                sum += pairs.map(|(x, w)| x * w).sum::<f64>();
            }
            y.push(sum);
        }
    }
    y
}
