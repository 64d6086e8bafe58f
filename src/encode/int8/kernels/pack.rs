//! Weights in the order in which kernels read them.

use crate::encode::int8::memory::Bytes;
use crate::encode::int8::plan::Conv;

/// Weights of a dense convolution: panels of a few outputs each. A panel
/// holds, for every few consecutive input bytes of a window (a group), as many
/// weights of each of its outputs.
pub struct Matrix {
    panels: Vec<Panel>,
    weights: Bytes,
    bias: Vec<i32>,
    multiplier: Vec<f32>,
    offset: Vec<f32>,
    outputs: usize,
    segments: usize,
    groups: usize,
    #[cfg(target_arch = "aarch64")]
    least: i8,
    layout: &'static Layout,
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
    /// Bytes of a group.
    pub depth: usize,
    /// Bytes that a weight takes: 1, or 2 where they are widened.
    pub weight_bytes: usize,
    /// What kernels take off a level before they multiply it: 0, or 128 where
    /// they need it signed.
    pub shift: u8,
    /// Places the weights of a slot in the bytes of a group of the panel.
    pub place: fn(group: &mut [u8], slots: usize, slot: usize, weights: &[i8]),
}

/// A [`Layout::place`]: the signed bytes of one slot after those of the other.
pub fn as_they_are(group: &mut [u8], _slots: usize, slot: usize, weights: &[i8]) {
    let bytes = group[weights.len() * slot..].iter_mut();
    for (byte, weight) in bytes.zip(weights) {
        *byte = weight.cast_unsigned();
    }
}

impl Matrix {
    /// Packs `conv`, which reads `inputs` channels of this zero point.
    pub fn pack(layout: &'static Layout, conv: &Conv, inputs: usize, zero_point: u8) -> Self {
        let outputs = conv.bias.len();
        let [segments, columns] = conv.window.kernel;
        let groups = (columns * inputs).div_ceil(layout.depth);
        let panels = panels(layout, outputs);
        let slots = panels.last().map_or(0, |last| last.before + last.slots);
        let mut matrix = Self {
            panels,
            weights: Bytes::zeroed(slots * segments * groups * layout.slot_bytes()),
            bias: vec![0; slots],
            multiplier: vec![0.0; slots],
            offset: vec![0.0; slots],
            outputs,
            segments,
            groups,
            #[cfg(target_arch = "aarch64")]
            least: conv.weight.iter().copied().min().unwrap_or(0),
            layout,
        };
        for index in 0..matrix.panels.len() {
            matrix.fill(index, conv, inputs, zero_point);
        }
        matrix
    }

    fn fill(&mut self, index: usize, conv: &Conv, inputs: usize, zero_point: u8) {
        let (panel, layout) = (self.panels[index], self.layout);
        let segment = self.groups * layout.depth;
        let start = panel.before * self.segments * self.groups * layout.slot_bytes();
        let bytes = &mut self.weights.as_mut_slice()[start..];
        for slot in 0..panel.slots {
            let output = (layout.order)(panel.slots, slot);
            if output >= panel.outputs {
                continue;
            }
            let output = panel.first + output;
            self.bias[panel.before + slot] = folded_bias(conv, output, zero_point, layout.shift);
            self.multiplier[panel.before + slot] = conv.multiplier[output];
            if let Some(&offset) = conv.offset.get(output) {
                self.offset[panel.before + slot] = offset;
            }
            let window = window(conv, inputs, output, segment);
            let groups = bytes.chunks_exact_mut(panel.slots * layout.slot_bytes());
            for (group, weights) in groups.zip(window.chunks_exact(layout.depth)) {
                (layout.place)(group, panel.slots, slot, weights);
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

    /// Groups of a segment.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Bytes of a segment, the last group filled up.
    pub fn segment_len(&self) -> usize {
        self.groups * self.layout.depth
    }

    /// The least weight.
    #[cfg(target_arch = "aarch64")]
    pub fn least(&self) -> i8 {
        self.least
    }

    /// The panels in the order of their outputs.
    pub fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// Weights, biases, multipliers and offsets of a panel.
    pub fn panel(&self, panel: &Panel) -> (&[u8], &[i32], &[f32], &[f32]) {
        let each = self.segments * self.groups * self.layout.slot_bytes();
        let slots = panel.before..panel.before + panel.slots;
        (
            &self.weights.as_slice()[slots.start * each..slots.end * each],
            &self.bias[slots.clone()],
            &self.multiplier[slots.clone()],
            &self.offset[slots],
        )
    }
}

impl Layout {
    /// Bytes that the weights of a group take for one slot.
    fn slot_bytes(&self) -> usize {
        self.depth * self.weight_bytes
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
/// segment filled up to `segment` of them.
fn window(conv: &Conv, inputs: usize, output: usize, segment: usize) -> Vec<i8> {
    let [height, width] = conv.window.kernel;
    let taps = height * width;
    let mut window = vec![0; height * segment];
    for (channel, weights) in conv.weight[output * inputs * taps..][..inputs * taps]
        .chunks_exact(taps)
        .enumerate()
    {
        for row in 0..height {
            for column in 0..width {
                let at = row * segment + column * inputs + channel;
                window[at] = weights[row * width + column];
            }
        }
    }
    window
}

/// The bias with all that the zero point adds: `Σ w·(q − z)` is
/// `Σ w·(q − s) − (z − s)·Σ w`, where kernels take `s` off the levels.
fn folded_bias(conv: &Conv, output: usize, zero_point: u8, shift: u8) -> i32 {
    let each = conv.weight.len() / conv.bias.len();
    let weights: i32 = conv.weight[output * each..][..each]
        .iter()
        .map(|&weight| i32::from(weight))
        .sum();
    conv.bias[output] - (i32::from(zero_point) - i32::from(shift)) * weights
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
    /// As [`Layout::shift`].
    pub shift: u8,
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
            taps.bias[slot] = folded_bias(conv, channel, zero_point, layout.shift);
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
