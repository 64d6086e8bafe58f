//! What the steps of a program are called where layers are listed.

use std::time::Duration;

use super::plan::{Conv, Float, FloatOp, Plan, Step, Window};
use crate::encode::Layer;

/// Name, kind and work of a step.
#[derive(Clone)]
pub struct Label {
    name: String,
    what: String,
    macs: u64,
}

impl Label {
    /// That of the plan's step at `index`, which is `step`.
    pub fn new(plan: &Plan, index: usize, step: &Step) -> Self {
        Self {
            name: plan.names.get(index).cloned().unwrap_or_default(),
            what: what(plan, step),
            macs: step.macs(),
        }
    }

    /// That of the bytes of a picture becoming levels.
    pub fn image() -> Self {
        Self {
            name: "image".into(),
            what: "normalise and quantise".into(),
            macs: 0,
        }
    }

    /// That of a copy made for the step.
    pub fn preparation(&self) -> Self {
        Self {
            what: "pad".into(),
            macs: 0,
            ..self.clone()
        }
    }

    /// The step as a layer that took this long.
    pub fn layer(&self, time: Duration) -> Layer {
        Layer {
            name: self.name.clone(),
            what: self.what.clone(),
            macs: self.macs,
            time,
        }
    }
}

fn what(plan: &Plan, step: &Step) -> String {
    match step {
        Step::Conv(conv) => convolution(plan, conv),
        Step::Add(_) => "add".into(),
        Step::Pool(_) => "mean of pixels".into(),
        Step::Quantize(..) => "quantise".into(),
        Step::Dequantize(..) => "dequantise".into(),
        Step::Float(float) => operation(float),
    }
}

/// Such as `depthwise 3x3 /2, 96 of 56x56`.
fn convolution(plan: &Plan, conv: &Conv) -> String {
    let Window { kernel, stride, .. } = conv.window;
    let kind = if conv.depthwise { "depthwise" } else { "conv" };
    let step = match stride {
        [1, 1] => String::new(),
        [down, right] if down == right => format!(" /{down}"),
        [down, right] => format!(" /{down}x{right}"),
    };
    let from = plan.tensor(conv.from).shape;
    let to = conv.shape;
    format!(
        "{kind} {}x{}{step}, {} to {} of {}x{}",
        kernel[0], kernel[1], from.channels, to.channels, to.height, to.width
    )
}

fn operation(float: &Float) -> String {
    match &float.op {
        FloatOp::Copy(..) => "copy".into(),
        FloatOp::Binary(op) => format!("{op:?}").to_lowercase(),
        FloatOp::Unary(op) => {
            let name = format!("{op:?}").to_lowercase();
            name.split('(').next().unwrap_or_default().to_owned()
        }
        FloatOp::Mean(_) => "mean of rows".into(),
        FloatOp::Softmax(_) => "softmax".into(),
        FloatOp::Norm(_) => "layer norm".into(),
        FloatOp::Product(..) => "product".into(),
        FloatOp::Attention(keys, ..) => {
            format!("attention, {} heads of {} keys", keys.count, keys.columns)
        }
    }
}
