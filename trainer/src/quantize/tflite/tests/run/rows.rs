//! Operators of transformers.

use super::super::super::model::Kind;
use super::Tensor;

/// `values` of `shape` repeated to `to`.
pub fn broadcast(shape: &[usize], values: &[f64], to: &[usize]) -> Vec<f64> {
    let missing = to.len() - shape.len();
    let at = |flat: usize| {
        let mut rest = flat;
        let (mut place, mut step) = (0, 1);
        for axis in (0..to.len()).rev() {
            let index = rest % to[axis];
            rest /= to[axis];
            if axis >= missing {
                let size = shape[axis - missing];
                place += if size == 1 { 0 } else { index * step };
                step *= size;
            }
        }
        values[place]
    };
    (0..to.iter().product()).map(at).collect()
}

pub fn binary(kind: Kind, [a, b]: [Vec<f64>; 2]) -> Vec<f64> {
    let of = |(a, b): (&f64, &f64)| match kind {
        Kind::Add => a + b,
        Kind::Sub => a - b,
        Kind::Mul => a * b,
        _ => a / b,
    };
    a.iter().zip(&b).map(of).collect()
}

/// The mean along the last axis.
pub fn mean(from: &Tensor, values: &[f64], axes: &[f64]) -> Vec<f64> {
    assert_eq!(axes, [from.shape.len() as f64 - 1.0]);
    let width = from.shape[from.shape.len() - 1];
    let rows = values.chunks(width);
    rows.map(|row| row.iter().sum::<f64>() / width as f64)
        .collect()
}

/// Zeros ahead of and behind the rows.
pub fn pad(from: &Tensor, values: &[f64], counts: &[f64]) -> Vec<f64> {
    let [1, _, width] = from.shape[..] else {
        panic!("rows");
    };
    let [0.0, 0.0, before, after, 0.0, 0.0] = counts[..] else {
        panic!("{counts:?}");
    };
    let zeros = |rows: f64| vec![0.0; rows as usize * width];
    [zeros(before), values.to_vec(), zeros(after)].concat()
}

/// Without the rounding of the rows that the library adds where weights are int8.
pub fn fully_connected(weight: &Tensor, [x, w, bias]: [Vec<f64>; 3]) -> Vec<f64> {
    let [outputs, inputs] = weight.shape[..] else {
        panic!("a matrix");
    };
    assert_eq!(bias.len(), outputs);
    let dot = |row: &[f64], output: usize| {
        let weights = &w[output * inputs..][..inputs];
        bias[output] + row.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>()
    };
    let rows = x.chunks(inputs);
    rows.flat_map(|row| {
        (0..outputs)
            .map(|output| dot(row, output))
            .collect::<Vec<_>>()
    })
    .collect()
}

pub fn batch_product([a, b]: [&Tensor; 2], [x, y]: [Vec<f64>; 2]) -> Vec<f64> {
    let ([.., rows, depth], [.., inner, columns]) = (&a.shape[..], &b.shape[..]) else {
        panic!("matrices");
    };
    assert_eq!(depth, inner);
    let pairs = x.chunks(rows * depth).zip(y.chunks(depth * columns));
    let mut products = Vec::new();
    for (x, y) in pairs {
        for (row, column) in (0..*rows).flat_map(|r| (0..*columns).map(move |c| (r, c))) {
            let terms = (0..*depth).map(|k| x[row * depth + k] * y[k * columns + column]);
            products.push(terms.sum());
        }
    }
    products
}

pub fn softmax(from: &Tensor, values: &[f64]) -> Vec<f64> {
    let width = from.shape[from.shape.len() - 1];
    let of = |row: &[f64]| {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / sum).collect::<Vec<_>>()
    };
    values.chunks(width).flat_map(of).collect()
}

pub fn transpose(from: &Tensor, values: &[f64], order: &[f64]) -> Vec<f64> {
    let order: Vec<usize> = order.iter().map(|&axis| axis as usize).collect();
    let shape: Vec<usize> = order.iter().map(|&axis| from.shape[axis]).collect();
    let step = |axis: usize| from.shape[axis + 1..].iter().product::<usize>();
    let at = |flat: usize| {
        let (mut rest, mut place) = (flat, 0);
        for axis in (0..shape.len()).rev() {
            place += rest % shape[axis] * step(order[axis]);
            rest /= shape[axis];
        }
        values[place]
    };
    (0..values.len()).map(at).collect()
}

/// One row.
pub fn slice(from: &Tensor, values: &[f64], [begin, size]: [&[f64]; 2]) -> Vec<f64> {
    let width = from.shape[2];
    assert_eq!(
        (begin[0], begin[2], size),
        (0.0, 0.0, &[1.0, 1.0, width as f64][..])
    );
    values[begin[1] as usize * width..][..width].to_vec()
}

/// The normal distribution (Abramowitz & Stegun, 7.1.26: within 1.5e-7).
pub fn normal(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let erf = 1.0 - poly.iter().fold(0.0, |sum, c| (sum + c) * t) * (-z * z).exp();
    match x < 0.0 {
        true => 0.5 * (1.0 - erf),
        false => 0.5 * (1.0 + erf),
    }
}
