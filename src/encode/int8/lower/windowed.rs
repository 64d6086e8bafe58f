//! Convolutions that stay in floats between integer ones, of operations that are there already.

use super::window::{is_depthwise, window};
use super::{IMAGE, Lowering, Value};
use crate::encode::int8::graph::{GraphError, Node};
use crate::encode::int8::plan::{Affine, Binary, FloatOp, Shape, Step, TensorId, Unary, Window};
use crate::encode::int8::view::{Axis, Source, View, contiguous};

/// The most pixels of a kernel that convolves each channel on its own: each is two steps.
const MAX_TAPS: usize = 121;

impl<'a> Lowering<'a> {
    /// `Conv` in floats, of all channels with all or of each on its own.
    pub fn windowed(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let wrong = || node.error("expected a float picture, and constant weights in floats");
        let graph = self.graph;
        let constant = graph.constants.get(node.input(1)).ok_or_else(wrong)?;
        let (&[outputs, inputs, rows, columns], Some(weights)) =
            (constant.dims.as_slice(), constant.floats())
        else {
            return Err(wrong());
        };
        let picture = self.view(node, 0)?.permuted(&[0, 2, 3, 1]);
        let picture = picture
            .filter(|picture| picture.axes[0].len == 1)
            .ok_or_else(wrong)?;
        let [height, width, channels] = [1, 2, 3].map(|axis| picture.axes[axis].len);
        let shape = Shape {
            channels,
            height,
            width,
        };
        let depthwise = is_depthwise(node, channels, outputs, inputs)?;
        let window = window(node, [rows, columns], shape)?;
        let [height, width] = window.output(height, width).ok_or_else(wrong)?;
        if depthwise && window.taps() > MAX_TAPS {
            return Err(node.error(format!(
                "a kernel of {} pixels in floats; at most {MAX_TAPS} run here",
                window.taps()
            )));
        }
        let picture = self.framed(node, &picture, window)?;
        let weights = by_tap(weights, [outputs, inputs], window.taps());
        let [down, right] = [1, 2].map(|axis| picture.axes[axis].step);
        let axis = |len, step| Axis { len, step };
        let taps = View {
            axes: vec![
                axis(rows, down),
                axis(columns, right),
                axis(height, down * window.stride[0]),
                axis(width, right * window.stride[1]),
                picture.axes[3],
            ],
            ..picture
        };
        let result = match depthwise {
            true => self.tap_by_tap(node, &taps, weights)?,
            false => self.all_taps(node, &taps, weights)?,
        };
        let result = result.reshaped(&[1, height, width, outputs]);
        self.convolved(node, result.ok_or_else(wrong)?)
    }

    /// `[1, height, width, channels]` with the window's zeros around it.
    fn framed(&mut self, node: &Node, picture: &View, window: Window) -> Result<View, GraphError> {
        if window.padding == [0; 4] {
            return Ok(picture.clone());
        }
        let [top, left, bottom, right] = window.padding;
        let mut dims = picture.dims();
        dims[1] += top + bottom;
        dims[2] += left + right;
        let to = self.push_reals(node, &dims)?;
        let places = contiguous(&dims);
        let zeros = View {
            source: self.push_constant(vec![0.0]),
            start: 0,
            axes: dims.iter().map(|&len| Axis { len, step: 0 }).collect(),
        };
        self.copy(zeros, to, 0, &places);
        let corner = top * places[1].step + left * places[2].step;
        self.copy(picture.clone(), to, corner, &places);
        Ok(View::whole(Source::Real(to), &dims))
    }

    /// Each channel on its own: `taps` is `[rows, columns, height, width, channels]`, `weights`
    /// `[rows, columns, channels]`.
    fn tap_by_tap(
        &mut self,
        node: &Node,
        taps: &View,
        weights: Vec<f32>,
    ) -> Result<View, GraphError> {
        let dims = taps.dims();
        let weights = View::whole(self.push_constant(weights), &[dims[0], dims[1], dims[4]]);
        let mut sum: Option<View> = None;
        for (row, column) in (0..dims[0]).flat_map(|row| (0..dims[1]).map(move |c| (row, c))) {
            let one = |view: &View| {
                let tap = view.sliced(0, row, 1).sliced(1, column, 1);
                tap.without(0).without(0)
            };
            let product = self.combined(node, Binary::Mul, one(taps), one(&weights))?;
            sum = Some(match sum {
                Some(sum) => self.combined(node, Binary::Add, sum, product)?,
                None => product,
            });
        }
        sum.ok_or_else(|| node.error("a kernel without pixels"))
    }

    /// All channels with all: `taps` is `[rows, columns, height, width, channels]`, `weights`
    /// `[rows, columns, channels, outputs]`.
    fn all_taps(
        &mut self,
        node: &Node,
        taps: &View,
        weights: Vec<f32>,
    ) -> Result<View, GraphError> {
        let dims = taps.dims();
        let (pixels, depth) = (dims[2] * dims[3], dims[0] * dims[1] * dims[4]);
        let wrong = || node.error(format!("kernels of {dims:?}"));
        let patches = taps.permuted(&[2, 3, 0, 1, 4]).ok_or_else(wrong)?;
        let patches = self.contiguous(node, patches)?;
        let patches = patches.reshaped(&[pixels, depth]).ok_or_else(wrong)?;
        let outputs = weights.len() / depth;
        let weights = View::whole(self.push_constant(weights), &[depth, outputs]);
        self.multiplied_matrices(node, patches, weights)
    }

    /// Floats within bounds; a picture stays as it lies.
    pub fn clamped(&mut self, node: &'a Node, bounds: [f32; 2]) -> Result<Value, GraphError> {
        let view = self.view(node, 0)?;
        let op = FloatOp::Unary(Unary::Clamp(bounds));
        let Some((stored, _)) = as_picture(&view) else {
            return self.of_rows(node, op);
        };
        let dims = stored.dims();
        let bounded = self.emit_float(node, op, vec![stored], &dims)?;
        let bounded = bounded.permuted(&[0, 3, 1, 2]).unwrap_or(bounded);
        Ok(Value::View(bounded))
    }

    /// Makes levels of floats, a picture of those that lie as one.
    pub fn quantized_view(
        &mut self,
        node: &Node,
        view: View,
        affine: Affine,
    ) -> Result<TensorId, GraphError> {
        let Some((stored, shape)) = as_picture(&view) else {
            return self.requantize(node, view, affine);
        };
        let id = self.push(shape, affine);
        if id == IMAGE {
            return Err(node.error("comes before the image is quantised"));
        }
        self.steps.push(Step::Quantize(stored, id));
        Ok(id)
    }
}

/// `[1, channels, height, width]` as it lies, if that is `[height, width, channels]`.
fn as_picture(view: &View) -> Option<(View, Shape)> {
    let &[1, channels, height, width] = view.dims().as_slice() else {
        return None;
    };
    let shape = Shape {
        channels,
        height,
        width,
    };
    let stored = view.permuted(&[0, 2, 3, 1])?;
    // Floats that lie in both orders are rows, unless there is one pixel of them.
    let is_picture = shape.pixels() == 1 || !view.is_contiguous();
    let lies = stored.is_contiguous() && matches!(view.source, Source::Real(_));
    (is_picture && lies).then_some((stored, shape))
}

/// `[output, input, tap]` as `[tap, input, output]`.
fn by_tap(weights: &[f32], [outputs, inputs]: [usize; 2], taps: usize) -> Vec<f32> {
    let mut moved = Vec::with_capacity(weights.len());
    for (tap, input) in (0..taps).flat_map(|tap| (0..inputs).map(move |input| (tap, input))) {
        moved.extend((0..outputs).map(|output| weights[(output * inputs + input) * taps + tap]));
    }
    moved
}
