//! Attributes of convolutions.

use crate::encode::int8::graph::{GraphError, Node};
use crate::encode::int8::plan::{Shape, Window};

/// Whether each channel is convolved on its own; else all are with all.
///
/// # Errors
/// [`GraphError`] for groups of another size.
pub fn is_depthwise(
    node: &Node,
    channels: usize,
    outputs: usize,
    inputs: usize,
) -> Result<bool, GraphError> {
    let groups = usize::try_from(node.int("group", 1)).unwrap_or(0);
    match (groups, inputs) {
        (1, inputs) if inputs == channels => Ok(false),
        (groups, 1) if groups == channels && groups == outputs => Ok(true),
        _ => Err(node.error(format!(
            "{groups} groups of {inputs} inputs for {channels} channels and {outputs} outputs; expected one group, or one for each channel"
        ))),
    }
}

/// Where the kernel of a convolution of `shape` is laid.
///
/// # Errors
/// [`GraphError`] for dilation, and for padding by a kernel or more.
pub fn window(node: &Node, kernel: [usize; 2], shape: Shape) -> Result<Window, GraphError> {
    let dilations: [usize; 2] = node.sizes("dilations", 1)?;
    let stride: [usize; 2] = node.sizes("strides", 1)?;
    let padding = match node.text("auto_pad") {
        "" | "NOTSET" => node.sizes("pads", 0)?,
        "VALID" => [0; 4],
        "SAME_UPPER" => same(kernel, stride, shape, false),
        "SAME_LOWER" => same(kernel, stride, shape, true),
        other => return Err(node.error(format!("auto_pad {other}"))),
    };
    let small = padding
        .iter()
        .zip([kernel, kernel].as_flattened())
        .all(|(padding, kernel)| padding < kernel);
    match dilations == [1; 2] && !kernel.contains(&0) && !stride.contains(&0) && small {
        true => Ok(Window { kernel, stride, padding }),
        false => Err(node.error(format!(
            "kernel {kernel:?}, strides {stride:?}, pads {padding:?}, dilations {dilations:?}; expected no dilation and pads below the kernel"
        ))),
    }
}

/// Padding by which an output has `⌈input / stride⌉` pixels along each side.
fn same(kernel: [usize; 2], stride: [usize; 2], shape: Shape, lower: bool) -> [usize; 4] {
    let along = |size: usize, axis: usize| {
        let covered = (size.div_ceil(stride[axis].max(1)) - 1) * stride[axis] + kernel[axis];
        let total = covered.saturating_sub(size);
        let less = total / 2;
        if lower {
            [total - less, less]
        } else {
            [less, total - less]
        }
    };
    let ([top, bottom], [left, right]) = (along(shape.height, 0), along(shape.width, 1));
    [top, left, bottom, right]
}
