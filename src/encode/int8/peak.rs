//! How fast a set of kernels is at its best.

use std::time::Instant;

use super::kernels::{Dense, Kernels, Requant, Windows};
use super::plan::{Conv, Shape, Target, TensorId, Window};

/// A product whose levels and weights stay in the first-level cache, and whose
/// sizes suit the tiles of all kernels.
const PIXELS: usize = 48;
const INPUTS: usize = 256;
const OUTPUTS: usize = 64;
const RUNS: usize = 20;
const ROUNDS: usize = 15;

/// Multiply-accumulates per second of the fastest of a few rounds.
pub fn macs_per_second(kernels: &dyn Kernels) -> f64 {
    let conv = Conv {
        from: TensorId(0),
        to: Target::Levels(TensorId(1), [0, 255]),
        shape: Shape {
            channels: OUTPUTS,
            height: 1,
            width: PIXELS,
        },
        window: Window::POINT,
        depthwise: false,
        weight: (0..INPUTS * OUTPUTS).map(|i| (i % 15) as i8 - 7).collect(),
        bias: vec![0; OUTPUTS],
        multiplier: vec![1e-3; OUTPUTS],
        offset: Vec::new(),
    };
    let matrix = kernels.pack_dense(&conv, INPUTS, 0);
    let dense = Dense {
        from: &[100; PIXELS * INPUTS],
        windows: Windows {
            rows: 1,
            columns: PIXELS,
            row_step: 0,
            column_step: INPUTS,
            segment_step: 0,
        },
        matrix: &matrix,
        requant: Some(Requant {
            zero_point: 0,
            range: [0, 255],
        }),
    };
    let mut to = vec![0; PIXELS * OUTPUTS];
    let mut round = || {
        let start = Instant::now();
        (0..RUNS).for_each(|_| kernels.dense(&dense, &mut to));
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..ROUNDS).map(|_| round()).fold(f64::MAX, f64::min);
    (RUNS * PIXELS * INPUTS * OUTPUTS) as f64 / fastest
}
