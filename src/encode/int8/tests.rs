//! Every instruction set against the definition, on shapes that fit no vector.

mod limits;
mod models;
mod mutants;
mod transformers;

use proptest::prelude::*;

use super::kernels::{self, Kernels, Sum};
use super::plan::{Add, Output, Plan, Target};
use super::plan::{Affine, Conv, Pool, Shape, Step, Tensor, TensorId, Window};
use super::program::Program;
use super::run::Runner;
use std::sync::Arc;

/// A small deterministic source of numbers.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// A convolution drawn at random.
#[derive(Debug, Clone)]
struct Case {
    shape: [usize; 3],
    outputs: usize,
    depthwise: bool,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 4],
    zero_points: [u8; 2],
    range: [u8; 2],
    least: i8,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1_usize..80, 1_usize..9, 1_usize..30).prop_map(|(c, h, w)| [c, h, w]);
    let kernel = prop_oneof![Just([1, 1]), Just([3, 3]), [1_usize..6, 1_usize..6]];
    (
        shape,
        1_usize..70,
        any::<bool>(),
        kernel,
        [1_usize..4, 1_usize..4],
        [0_usize..6, 0_usize..6, 0_usize..6, 0_usize..6],
        any::<[u8; 2]>(),
        any::<[u8; 2]>(),
        prop_oneof![Just(-127), Just(-128)],
        any::<u64>(),
    )
        .prop_map(
            |(
                shape,
                outputs,
                depthwise,
                kernel,
                stride,
                padding,
                zero_points,
                mut range,
                least,
                seed,
            )| {
                range.sort_unstable();
                let [kh, kw] = kernel;
                let padding = [0, 1, 2, 3].map(|side| padding[side] % [kh, kw][side % 2]);
                let outputs = if depthwise { shape[0] } else { outputs };
                Case {
                    shape,
                    outputs,
                    depthwise,
                    kernel,
                    stride,
                    padding,
                    zero_points,
                    range,
                    least,
                    seed,
                }
            },
        )
        .prop_filter("the kernel fits", |case| {
            case.window().output(case.shape[1], case.shape[2]).is_some()
        })
}

impl Case {
    fn window(&self) -> Window {
        Window {
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
        }
    }

    fn input(&self) -> Shape {
        let [channels, height, width] = self.shape;
        Shape {
            channels,
            height,
            width,
        }
    }

    fn output(&self) -> Shape {
        let [_, height, width] = self.shape;
        let [height, width] = self.window().output(height, width).unwrap();
        Shape {
            channels: self.outputs,
            height,
            width,
        }
    }

    fn conv(&self, noise: &mut Noise) -> Conv {
        let inputs = if self.depthwise { 1 } else { self.shape[0] };
        let each = inputs * self.kernel[0] * self.kernel[1];
        let spread = 400.0 / (each as f32).sqrt();
        Conv {
            from: TensorId(0),
            to: Target::Levels(TensorId(1), self.range),
            shape: self.output(),
            window: self.window(),
            depthwise: self.depthwise,
            weight: (0..self.outputs * each)
                .map(|_| noise.byte().cast_signed().max(self.least))
                .collect(),
            bias: (0..self.outputs)
                .map(|_| noise.below(20_000) as i32 - 10_000)
                .collect(),
            multiplier: (0..self.outputs)
                .map(|_| spread * (1 + noise.below(1000)) as f32 / 1e7)
                .collect(),
            offset: Vec::new(),
        }
    }
}

/// The definition, spelled out: `x` is `[height, width, channels]`.
fn definition(case: &Case, conv: &Conv, x: &[u8]) -> Vec<u8> {
    let (from, to) = (case.input(), case.output());
    let inputs = if case.depthwise { 1 } else { from.channels };
    let mut y = Vec::new();
    for (row, column) in
        (0..to.height).flat_map(|row| (0..to.width).map(move |column| (row, column)))
    {
        for output in 0..to.channels {
            let mut sum = i64::from(conv.bias[output]);
            for input in 0..inputs {
                for (ky, kx) in
                    (0..case.kernel[0]).flat_map(|ky| (0..case.kernel[1]).map(move |kx| (ky, kx)))
                {
                    let iy = (row * case.stride[0] + ky).wrapping_sub(case.padding[0]);
                    let ix = (column * case.stride[1] + kx).wrapping_sub(case.padding[1]);
                    if iy < from.height && ix < from.width {
                        let channel = if case.depthwise { output } else { input };
                        let level = i64::from(x[(iy * from.width + ix) * from.channels + channel]);
                        let weight = conv.weight[((output * inputs + input) * case.kernel[0] + ky)
                            * case.kernel[1]
                            + kx];
                        sum += (level - i64::from(case.zero_points[0])) * i64::from(weight);
                    }
                }
            }
            let level = (sum as f32 * conv.multiplier[output]).round_ties_even() as i64;
            let [low, high] = case.range.map(i64::from);
            y.push((level + i64::from(case.zero_points[1])).clamp(low, high) as u8);
        }
    }
    y
}

/// Runs a plan of these steps on `kernels`; the image is in levels.
fn levels_of(plan: Plan, kernels: &'static dyn Kernels, image: &[u8]) -> Vec<u8> {
    let affine = plan.tensors[0].affine;
    let shape = plan.tensors[0].shape;
    let last = plan.tensors[1];
    let mut runner = Runner::new(Arc::new(Program::new(plan, kernels).unwrap()));
    let planar: Vec<f32> = (0..shape.values())
        .map(|i| affine.real(image[i % shape.pixels() * shape.channels + i / shape.pixels()]))
        .collect();
    let reals = runner.run(&planar);
    let pixels = last.shape.pixels();
    (0..reals.len())
        .map(|i| {
            last.affine
                .level(reals[i % last.shape.channels * pixels + i / last.shape.channels])
        })
        .collect()
}

fn tensor(shape: Shape, zero_point: u8) -> Tensor {
    Tensor {
        shape,
        affine: Affine {
            scale: 0.5,
            zero_point,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn convolutions_follow_the_definition(case in cases()) {
        let mut noise = Noise(case.seed);
        let conv = case.conv(&mut noise);
        let image: Vec<u8> = (0..case.input().values()).map(|_| noise.byte()).collect();
        let expected = definition(&case, &conv, &image);
        for kernels in kernels::all() {
            let plan = Plan {
                tensors: vec![tensor(case.input(), case.zero_points[0]), tensor(case.output(), case.zero_points[1])],
                steps: vec![Step::Conv(case.conv(&mut Noise(case.seed)))],
                names: Vec::new(),
                reals: Vec::new(),
                constants: Vec::new(),
                output: Output::Levels(TensorId(1), Vec::new()),
            };
            let got = levels_of(plan, kernels, &image);
            prop_assert!(got == expected, "{}: {case:?}\n{got:?}\n{expected:?}", kernels.name());
        }
    }

    #[test]
    fn sums_and_means_follow_the_definition(
        (channels, height, width) in (1_usize..80, 1_usize..9, 1_usize..30),
        zero_points in any::<[u8; 3]>(), ratio in [0.0_f32..3.0, 0.0_f32..3.0], seed in any::<u64>(),
    ) {
        let shape = Shape { channels, height, width };
        let mut noise = Noise(seed);
        let image: Vec<u8> = (0..shape.values()).map(|_| noise.byte()).collect();
        let range = [3, 250];
        let sum = Sum::new(&Add { from: [TensorId(0); 2], to: TensorId(1), ratio, range }, [zero_points[0], zero_points[1]], zero_points[2]);
        let other: Vec<u8> = image.iter().rev().copied().collect();
        let real = |level: u8, i: usize| (f32::from(level) - f32::from(zero_points[i])) * ratio[i];
        let level = |value: f32| (value.round_ties_even() as i32 + i32::from(zero_points[2])).clamp(3, 250) as u8;
        let expected: Vec<u8> = image.iter().zip(&other).map(|(a, b)| level(real(*a, 0) + real(*b, 1))).collect();
        let mean = |channel: usize| {
            let pixels = image.iter().skip(channel).step_by(channels);
            let sum: i32 = pixels.map(|&level| i32::from(level) - i32::from(zero_points[0])).sum();
            level(sum as f32 * ratio[0] / shape.pixels() as f32)
        };
        let means: Vec<u8> = (0..channels).map(mean).collect();
        for kernels in kernels::all() {
            let mut got = vec![0; image.len()];
            kernels.add(&sum, [&image, &other], &mut got);
            prop_assert_eq!(&got, &expected, "{}", kernels.name());
            let plan = Plan {
                tensors: vec![tensor(shape, zero_points[0]), tensor(Shape { channels, height: 1, width: 1 }, zero_points[2])],
                steps: vec![Step::Pool(Pool { from: TensorId(0), to: TensorId(1), ratio: ratio[0] / shape.pixels() as f32, range })],
                names: Vec::new(),
                reals: Vec::new(),
                constants: Vec::new(),
                output: Output::Levels(TensorId(1), Vec::new()),
            };
            let got = levels_of(plan, kernels, &image);
            let apart = got.iter().zip(&means).map(|(a, b)| a.abs_diff(*b)).max();
            prop_assert!(apart <= Some(1), "{}: {got:?} {means:?}", kernels.name());
        }
    }
}
