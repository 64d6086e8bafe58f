//! A program at work: one image in, one embedding out, nothing allocated on
//! the way but the result.

mod float;

use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::kernels::{Dense, Depthwise};
use super::label::Label;
use super::memory::{Bytes, reals as floats, reals_mut};
use super::plan::{Shape, Tail};
use super::program::{
    AddReady, DenseReady, DepthwiseReady, Outcome, PadReady, Placed, PoolReady, Program, Ready,
};
use super::shares::Shares;
use crate::encode::Layer;

/// What becomes of the bytes of a picture in one channel of the image.
pub struct Lookup {
    /// The picture's channel that is read.
    pub source: usize,
    /// The level for each byte.
    pub levels: [u8; 256],
}

/// Bytes of a picture, and what they become.
type Picture<'a> = (&'a [u8], &'a [Lookup; 3]);

/// A byte that is looked up takes about as long as this many multiply-accumulates.
const LOOKUP_COST: usize = 64;
/// A multiply-accumulate of a depthwise convolution takes about as long as
/// this many of a dense one.
const DEPTHWISE_COST: usize = 4;
/// A value of a float operation takes about as long as this many.
const VALUE_COST: usize = 16;

/// Runs a program, on the calling thread or on a pool of its own.
pub struct Runner {
    program: Arc<Program>,
    pool: Option<ThreadPool>,
    arena: Bytes,
    /// A row of the image, channel by channel.
    row: Vec<u8>,
    sums: Vec<u32>,
    /// Values between two parts of the tail.
    spare: Vec<f32>,
}

impl Runner {
    /// A runner with an arena of its own, for the calling thread.
    pub fn new(program: Arc<Program>) -> Self {
        let channels = program.steps.iter().map(pooled_channels).max();
        Self {
            pool: None,
            arena: Bytes::zeroed(program.arena),
            row: vec![0; program.image.shape.channels * program.image.shape.width],
            sums: vec![0; channels.unwrap_or(0)],
            spare: Vec::new(),
            program,
        }
    }

    /// The image that it takes.
    pub fn image(&self) -> &Placed {
        &self.program.image
    }

    /// The same runner on this many threads of its own. They share the pixels
    /// of large layers; results do not depend on their number.
    ///
    /// # Errors
    /// When the system refuses the threads.
    pub fn with_threads(self, threads: NonZero<usize>) -> Result<Self, ThreadPoolBuildError> {
        let pool = match threads.get() {
            1 => None,
            threads => Some(ThreadPoolBuilder::new().num_threads(threads).build()?),
        };
        Ok(Self { pool, ..self })
    }

    /// The embedding of a planar float image, `[channels, height, width]` of
    /// the program's image.
    pub fn run(&mut self, image: &[f32]) -> Vec<f32> {
        let mut embedding = Vec::new();
        self.quantize(image);
        self.run_steps(None, &mut embedding, &mut || ());
        embedding
    }

    /// Puts into `embedding` that of a picture in bytes, rows of pixels of three channels
    /// as the program's image; `levels` says what a byte of `source` becomes
    /// in each channel of the image.
    pub fn run_pixels(&mut self, pixels: &[u8], levels: &[Lookup; 3], embedding: &mut Vec<f32>) {
        self.run_steps(Some((pixels, levels)), embedding, &mut || ());
    }

    /// How long each step takes for such a picture.
    pub fn time_layers(&mut self, pixels: &[u8], levels: &[Lookup; 3]) -> Vec<Layer> {
        let mut times = Vec::with_capacity(1 + self.program.steps.len());
        let mut last = Instant::now();
        self.run_steps(Some((pixels, levels)), &mut Vec::new(), &mut || {
            times.push(last.elapsed());
            last = Instant::now();
        });
        let image = Label::image();
        let labels = std::iter::once(&image).chain(&self.program.labels);
        let layers = labels.zip(times);
        layers.map(|(label, time)| label.layer(time)).collect()
    }

    /// Writes the levels of a picture's bytes.
    fn look_up(&mut self, (pixels, [a, b, c]): Picture<'_>, threads: usize) {
        let image = &self.program.image;
        let row = image.shape.width * image.shape.channels;
        let to = &mut self.arena.as_mut_slice()[image.bytes()];
        Shares::new(threads, LOOKUP_COST * row).run(0..image.shape.height, to, &|rows, to| {
            let (from, _) = pixels[rows.start * row..rows.end * row].as_chunks::<3>();
            for (to, from) in to.as_chunks_mut::<3>().0.iter_mut().zip(from) {
                let level = |lookup: &Lookup| lookup.levels[usize::from(from[lookup.source])];
                *to = [level(a), level(b), level(c)];
            }
        });
    }

    /// Writes the image as levels, rows of pixels.
    fn quantize(&mut self, image: &[f32]) {
        let Self {
            program,
            arena,
            row,
            ..
        } = self;
        let Placed { shape, affine, .. } = program.image;
        let levels = &mut arena.as_mut_slice()[program.image.bytes()];
        for (y, to) in levels
            .chunks_exact_mut(shape.width * shape.channels)
            .enumerate()
        {
            for (channel, row) in row.chunks_exact_mut(shape.width).enumerate() {
                let from = &image[(channel * shape.height + y) * shape.width..][..shape.width];
                program
                    .kernels
                    .quantize(from, affine.scale, affine.zero_point, row);
            }
            interleave(row, to, shape.channels);
        }
    }

    /// Encodes `picture`, or else what lies in the image's place; `watch` is
    /// called after every step.
    fn run_steps(
        &mut self,
        picture: Option<Picture<'_>>,
        embedding: &mut Vec<f32>,
        watch: &mut (impl FnMut() + Send),
    ) {
        match self.pool.take() {
            None => self.steps(picture, 1, embedding, watch),
            Some(pool) => {
                pool.install(|| self.steps(picture, pool.current_num_threads(), embedding, watch));
                self.pool = Some(pool);
            }
        }
    }

    fn steps(
        &mut self,
        picture: Option<Picture<'_>>,
        threads: usize,
        embedding: &mut Vec<f32>,
        watch: &mut impl FnMut(),
    ) {
        if let Some(picture) = picture {
            self.look_up(picture, threads);
            watch();
        }
        let program = Arc::clone(&self.program);
        for step in &program.steps {
            match step {
                Ready::Pad(pad) => self.pad(pad),
                Ready::Dense(dense) => self.dense(dense, threads),
                Ready::Depthwise(depthwise) => self.depthwise(depthwise, threads),
                Ready::Add(add) => self.add(add),
                Ready::Pool(pool) => self.pool(pool),
                Ready::Quantize(from, to) => self.quantize_floats(from.clone(), to, threads),
                Ready::Dequantize(from, to) => self.dequantize(from, to.clone()),
                Ready::Float(float) => self.float(&program, float, threads),
            }
            watch();
        }
        match &program.result {
            Outcome::Reals(place) => {
                embedding.clear();
                embedding.extend_from_slice(floats(&self.arena.as_slice()[place.clone()]));
            }
            Outcome::Levels(last, tail) => {
                reals(last, &self.arena.as_slice()[last.bytes()], embedding);
                for tail in tail {
                    std::mem::swap(embedding, &mut self.spare);
                    apply(tail, last.shape, &self.spare, embedding);
                }
            }
        }
    }

    fn quantize_floats(&mut self, from: Range<usize>, place: &Placed, threads: usize) {
        let (kernels, affine) = (self.program.kernels, place.affine);
        let (from, to) = self.pair(from, place.bytes());
        let from = floats(from);
        let row = place.shape.channels;
        Shares::new(threads, VALUE_COST * row).run(0..place.shape.pixels(), to, &|rows, to| {
            let from = &from[rows.start * row..rows.end * row];
            kernels.quantize(from, affine.scale, affine.zero_point, to);
        });
    }

    fn dequantize(&mut self, place: &Placed, to: Range<usize>) {
        let (from, to) = self.pair(place.bytes(), to);
        for (to, level) in reals_mut(to).iter_mut().zip(from) {
            *to = place.affine.real(*level);
        }
    }

    /// The places of what is read and written; the plan keeps them apart.
    fn pair(&mut self, from: Range<usize>, to: Range<usize>) -> (&[u8], &mut [u8]) {
        match self.arena.as_mut_slice().get_disjoint_mut([from, to]) {
            Ok([from, to]) => (from, to),
            Err(_) => unreachable!("a step reads and writes different buffers"),
        }
    }

    fn pad(&mut self, pad: &PadReady) {
        let (from, to) = self.pair(pad.from.bytes(), pad.to.bytes());
        let [top, left] = pad.corner;
        let row = pad.from.shape.width * pad.from.shape.channels;
        let padded_row = pad.to.shape.width * pad.to.shape.channels;
        let at = left * pad.from.shape.channels;
        to.fill(pad.to.affine.zero_point);
        let inner = to.chunks_exact_mut(padded_row).skip(top);
        for (to, from) in inner.zip(from.chunks_exact(row)) {
            to[at..at + row].copy_from_slice(from);
        }
    }

    fn dense(&mut self, dense: &DenseReady, threads: usize) {
        let kernels = self.program.kernels;
        let (from, to) = self.pair(dense.from.clone(), dense.to.clone());
        let call = Dense {
            from,
            windows: dense.windows,
            matrix: &dense.matrix,
            requant: dense.requant,
        };
        let shares = Shares::new(threads, call.macs() / call.bands());
        shares.run(0..call.bands(), to, &|bands, to| {
            kernels.dense(&call.part(bands), to);
        });
    }

    fn depthwise(&mut self, depthwise: &DepthwiseReady, threads: usize) {
        let kernels = self.program.kernels;
        let zero_point = depthwise.from.affine.zero_point;
        let outside = depthwise.outside.clone();
        self.arena.as_mut_slice()[outside.clone()].fill(zero_point);
        let places = [depthwise.from.bytes(), outside, depthwise.to.bytes()];
        let Ok([from, outside, to]) = self.arena.as_mut_slice().get_disjoint_mut(places) else {
            unreachable!("a step's buffers lie apart");
        };
        let call = Depthwise {
            from,
            shape: depthwise.from.shape,
            window: depthwise.window,
            rows: 0..depthwise.to.shape.height,
            columns: depthwise.to.shape.width,
            outside,
            taps: &depthwise.taps,
            requant: depthwise.requant,
        };
        let work = DEPTHWISE_COST * depthwise.window.taps() * (to.len() / call.rows.len());
        Shares::new(threads, work).run(call.rows.clone(), to, &|rows, to| {
            let part = Depthwise {
                rows,
                ..call.clone()
            };
            kernels.depthwise(&part, to);
        });
    }

    fn add(&mut self, add: &AddReady) {
        let kernels = self.program.kernels;
        let [a, b] = add.from.clone();
        if a == b {
            let (from, to) = self.pair(a, add.to.clone());
            return kernels.add(&add.sum, [from, from], to);
        }
        let Ok([a, b, to]) = self
            .arena
            .as_mut_slice()
            .get_disjoint_mut([a, b, add.to.clone()])
        else {
            unreachable!("a step's buffers lie apart");
        };
        kernels.add(&add.sum, [a, b], to);
    }

    fn pool(&mut self, pool: &PoolReady) {
        let shape = pool.from.shape;
        let sums = &mut self.sums[..shape.channels];
        let levels = self.arena.as_mut_slice();
        self.program
            .kernels
            .channel_sums(&levels[pool.from.bytes()], sums);
        let zeros = shape.pixels() as i64 * i64::from(pool.from.affine.zero_point);
        for (to, &sum) in levels[pool.to.clone()].iter_mut().zip(&*sums) {
            *to = pool
                .requant
                .level_of((i64::from(sum) - zeros) as f32 * pool.ratio);
        }
    }
}

fn pooled_channels(step: &Ready) -> usize {
    match step {
        Ready::Pool(pool) => pool.from.shape.channels,
        _ => 0,
    }
}

/// `[channels, pixels]` → `[pixels, channels]`.
fn interleave(planes: &[u8], pixels: &mut [u8], channels: usize) {
    let width = planes.len() / channels;
    for (channel, plane) in planes.chunks_exact(width).enumerate() {
        for (pixel, &level) in pixels.chunks_exact_mut(channels).zip(plane) {
            pixel[channel] = level;
        }
    }
}

/// Real values, channel by channel.
fn reals(last: &Placed, levels: &[u8], values: &mut Vec<f32>) {
    let Shape { channels, .. } = last.shape;
    let pixels = last.shape.pixels();
    let at = |index: usize| levels[index % pixels * channels + index / pixels];
    values.clear();
    values.extend((0..last.shape.values()).map(|index| last.affine.real(at(index))));
}

fn apply(tail: &Tail, shape: Shape, values: &[f32], applied: &mut Vec<f32>) {
    applied.clear();
    match tail {
        Tail::Pool => {
            let mean = |plane: &[f32]| plane.iter().sum::<f32>() / plane.len() as f32;
            applied.extend(values.chunks_exact(shape.pixels()).map(mean));
        }
        Tail::Linear { weight, bias } => {
            let rows = weight.chunks_exact(values.len().max(1)).zip(bias);
            let dot = |row: &[f32]| row.iter().zip(values).map(|(w, x)| w * x).sum::<f32>();
            applied.extend(rows.map(|(row, bias)| dot(row) + bias));
        }
    }
}
