//! Weights in the order in which kernels read them.

use crate::encode::int8::memory::Bytes;
use crate::encode::int8::plan::Conv;

/// Weights of a dense convolution: panels of a few outputs each. A panel
/// holds, for every four consecutive input bytes of a window (a quad), four
/// weights of each of its outputs.
pub struct Matrix {
    panels: Vec<Panel>,
    weights: Bytes,
    bias: Vec<i32>,
    multiplier: Vec<f32>,
    outputs: usize,
    segments: usize,
    quads: usize,
}

/// Outputs that are computed together. Slots beyond the last output hold zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    /// First output.
    pub first: usize,
    /// Outputs, at most `slots`.
    pub outputs: usize,
    /// Places for outputs.
    pub slots: usize,
    /// Slots of the panels before this one.
    before: usize,
}

/// How a set of kernels wants its panels.
pub struct Layout {
    /// Slots of a panel.
    pub slots: usize,
    /// Slots of the last panel where so few outputs remain.
    pub narrow: usize,
    /// Output within the panel of each slot, by slots of the panel.
    pub order: fn(slots: usize, slot: usize) -> usize,
    /// Bytes that four weights take.
    pub quad_bytes: usize,
    /// Places the four weights of a slot in the bytes of a quad of the panel.
    pub place: fn(quad: &mut [u8], slots: usize, slot: usize, weights: [i8; 4]),
}

/// A [`Layout::place`]: four signed bytes for each slot.
pub fn as_they_are(quad: &mut [u8], _slots: usize, slot: usize, weights: [i8; 4]) {
    quad[4 * slot..][..4].copy_from_slice(&weights.map(i8::cast_unsigned));
}

impl Matrix {
    /// Packs `conv`, which reads `inputs` channels of this zero point.
    pub fn pack(layout: &Layout, conv: &Conv, inputs: usize, zero_point: u8) -> Self {
        let outputs = conv.bias.len();
        let [segments, columns] = conv.window.kernel;
        let quads = (columns * inputs).div_ceil(4);
        let panels = panels(layout, outputs);
        let slots = panels.last().map_or(0, |last| last.before + last.slots);
        let mut matrix = Self {
            panels,
            weights: Bytes::zeroed(slots * segments * quads * layout.quad_bytes),
            bias: vec![0; slots],
            multiplier: vec![0.0; slots],
            outputs,
            segments,
            quads,
        };
        for index in 0..matrix.panels.len() {
            matrix.fill(layout, index, conv, inputs, zero_point);
        }
        matrix
    }

    fn fill(&mut self, layout: &Layout, index: usize, conv: &Conv, inputs: usize, zero_point: u8) {
        let (panel, quads) = (self.panels[index], self.quads);
        let quad_len = panel.slots * layout.quad_bytes;
        let start = panel.before * self.segments * self.quads * layout.quad_bytes;
        let bytes = &mut self.weights.as_mut_slice()[start..];
        for slot in 0..panel.slots {
            let output = (layout.order)(panel.slots, slot);
            if output >= panel.outputs {
                continue;
            }
            let output = panel.first + output;
            self.bias[panel.before + slot] = folded_bias(conv, output, zero_point);
            self.multiplier[panel.before + slot] = conv.multiplier[output];
            let window = window(conv, inputs, output, quads);
            for (bytes, &weights) in bytes.chunks_exact_mut(quad_len).zip(window.as_chunks().0) {
                (layout.place)(bytes, panel.slots, slot, weights);
            }
        }
    }

    /// Outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Segments of a window, at least 1.
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Quads of a segment.
    pub fn quads(&self) -> usize {
        self.quads
    }

    /// The panels in the order of their outputs.
    pub fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// Weights, biases and multipliers of a panel.
    pub fn panel(&self, panel: &Panel, quad_bytes: usize) -> (&[u8], &[i32], &[f32]) {
        let quads = self.segments * self.quads * quad_bytes;
        let slots = panel.before..panel.before + panel.slots;
        (
            &self.weights.as_slice()[slots.start * quads..slots.end * quads],
            &self.bias[slots.clone()],
            &self.multiplier[slots],
        )
    }
}

fn panels(layout: &Layout, outputs: usize) -> Vec<Panel> {
    let panel = |first: usize| {
        let rest = outputs - first;
        Panel {
            first,
            outputs: rest.min(layout.slots),
            slots: if rest <= layout.narrow {
                layout.narrow
            } else {
                layout.slots
            },
            before: first,
        }
    };
    (0..outputs).step_by(layout.slots).map(panel).collect()
}

/// The weights of one output in the order of a window's bytes, each
/// segment filled up to whole quads.
fn window(conv: &Conv, inputs: usize, output: usize, quads: usize) -> Vec<i8> {
    let [height, width] = conv.window.kernel;
    let taps = height * width;
    let mut window = vec![0; height * quads * 4];
    for (channel, weights) in conv.weight[output * inputs * taps..][..inputs * taps]
        .chunks_exact(taps)
        .enumerate()
    {
        for row in 0..height {
            for column in 0..width {
                let at = row * quads * 4 + column * inputs + channel;
                window[at] = weights[row * width + column];
            }
        }
    }
    window
}

/// The bias with all that the zero point adds: `Σ w·(q − z)` is `Σ w·q − z·Σ w`.
fn folded_bias(conv: &Conv, output: usize, zero_point: u8) -> i32 {
    let each = conv.weight.len() / conv.bias.len();
    let weights: i32 = conv.weight[output * each..][..each]
        .iter()
        .map(|&weight| i32::from(weight))
        .sum();
    conv.bias[output] - i32::from(zero_point) * weights
}

/// Weights of a depthwise convolution, packed by the kernels that read them.
pub struct Taps {
    /// As the kernels like it.
    pub weights: Bytes,
    /// For each channel, rounded up to whole blocks; zero points folded in.
    pub bias: Vec<i32>,
    /// For each channel, rounded up to whole blocks.
    pub multiplier: Vec<f32>,
    channels: usize,
    kernel: [usize; 2],
}

/// How a set of kernels wants its depthwise weights.
pub struct TapLayout {
    /// Channels that are computed together.
    pub block: usize,
    /// Bytes that the weights of a block take, by kernel.
    pub block_bytes: fn(kernel: [usize; 2]) -> usize,
    /// Place in the block's bytes of the weight of this channel (within the
    /// block), kernel row and kernel column.
    pub place: fn(kernel: [usize; 2], channel: usize, row: usize, column: usize) -> usize,
    /// Bytes of a weight: 1, or 2 where they are widened.
    pub weight_bytes: usize,
    /// Slot, within the block, of the bias and multiplier of a channel.
    pub slot: fn(channel: usize) -> usize,
}

impl Taps {
    /// Packs `conv`, whose input has this zero point.
    pub fn pack(layout: &TapLayout, conv: &Conv, zero_point: u8) -> Self {
        let (channels, kernel) = (conv.bias.len(), conv.window.kernel);
        let blocks = channels.div_ceil(layout.block);
        let block_bytes = (layout.block_bytes)(kernel);
        let mut taps = Self {
            weights: Bytes::zeroed(blocks * block_bytes),
            bias: vec![0; blocks * layout.block],
            multiplier: vec![0.0; blocks * layout.block],
            channels,
            kernel,
        };
        for channel in 0..channels {
            let (block, within) = (channel / layout.block, channel % layout.block);
            let slot = block * layout.block + (layout.slot)(within);
            taps.bias[slot] = folded_bias(conv, channel, zero_point);
            taps.multiplier[slot] = conv.multiplier[channel];
            let bytes = &mut taps.weights.as_mut_slice()[block * block_bytes..];
            for tap in 0..kernel[0] * kernel[1] {
                let weight =
                    i16::from(conv.weight[channel * kernel[0] * kernel[1] + tap]).to_le_bytes();
                let at = (layout.place)(kernel, within, tap / kernel[1], tap % kernel[1]);
                bytes[at..at + layout.weight_bytes].copy_from_slice(&weight[..layout.weight_bytes]);
            }
        }
        taps
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Rows and columns of the kernel.
    pub fn kernel(&self) -> [usize; 2] {
        self.kernel
    }
}
