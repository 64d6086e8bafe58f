//! Operators that change how floats are seen, and those that move them.

use super::{Lowering, Value};
use crate::encode::int8::graph::{GraphError, Node};
use crate::encode::int8::plan::{Float, FloatOp, RealId, Step};
use crate::encode::int8::view::{Axis, Source, View, contiguous};

impl<'a> Lowering<'a> {
    /// `Flatten`, `Reshape`, `Squeeze` and `Unsqueeze`. Nothing to do where a
    /// picture's channels have one value each.
    pub fn reshaped(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let value = self.value(node, 0)?;
        let flat = match value {
            Value::Levels(id) | Value::Real(id) => {
                self.shape(*id).pixels() == 1 && !self.rows.contains_key(id)
            }
            Value::Pending(pending) => {
                pending.shape(&self.tensors).pixels() == 1 && !self.has_rows(pending)
            }
            Value::Floats(..) => true,
            _ => false,
        };
        if flat {
            return Ok(value.clone());
        }
        self.seen(node, |lowering, view| {
            let dims = lowering.new_dims(node, &view.dims())?;
            match view.reshaped(&dims) {
                Some(view) => Ok(view),
                None => {
                    let moved = lowering.contiguous(node, view)?;
                    let reason = || node.error(format!("reshapes {:?} to {dims:?}", moved.dims()));
                    moved.reshaped(&dims).ok_or_else(reason)
                }
            }
        })
    }

    /// `Transpose`.
    pub fn transposed(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        self.seen(node, |_, view| {
            let rank = view.axes.len();
            let order = match node.ints("perm") {
                Some(order) => order.iter().map(|&axis| axis as usize).collect(),
                None => (0..rank).rev().collect::<Vec<_>>(),
            };
            let turned = view.permuted(&order);
            turned.ok_or_else(|| node.error(format!("turns {rank} dimensions by {order:?}")))
        })
    }

    /// `Gather` of one index.
    pub fn gathered(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let indices = self.constant(node, 1)?;
        let &[index] = self.longs(node, 1)? else {
            return Err(node.error("gathers several indices; expected one"));
        };
        let keep = !indices.dims.is_empty();
        self.seen(node, |_, view| {
            let axis = axis(node, node.int("axis", 0), view.axes.len())?;
            let len = view.axes[axis].len;
            let index = place(index, len).filter(|&index| index < len);
            let index = index.ok_or_else(|| node.error(format!("an index beyond {len}")))?;
            let one = view.sliced(axis, index, 1);
            Ok(if keep { one } else { one.without(axis) })
        })
    }

    /// `Slice` in steps of one.
    pub fn sliced(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let (starts, ends) = (self.longs(node, 1)?, self.longs(node, 2)?);
        let given = |index: usize| match node.input(index) {
            "" => Ok(None),
            _ => self.longs(node, index).map(Some),
        };
        let (axes, steps) = (given(3)?, given(4)?);
        let every: Vec<i64> = (0..starts.len() as i64).collect();
        let axes = axes.unwrap_or(&every);
        let unit = steps.is_none_or(|steps| steps.iter().all(|&step| step == 1));
        if !unit || ends.len() != starts.len() || axes.len() != starts.len() {
            return Err(node.error("expected as many starts, ends and axes, and steps of 1"));
        }
        self.seen(node, |_, view| {
            let bounds = starts.iter().zip(ends).zip(axes);
            bounds
                .into_iter()
                .try_fold(view, |view, ((&start, &end), &along)| {
                    let axis = axis(node, along, view.axes.len())?;
                    let len = view.axes[axis].len;
                    let bound = |at| place(at, len).unwrap_or(0).min(len);
                    let (start, end) = (bound(start), bound(end));
                    match start < end {
                        true => Ok(view.sliced(axis, start, end - start)),
                        false => Err(node.error(format!("takes {start} to {end} of {len}"))),
                    }
                })
        })
    }

    /// `Split`, whose outputs are all known at once.
    pub fn split(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let view = self.view(node, 0)?;
        let axis = axis(node, node.int("axis", 0), view.axes.len())?;
        let len = view.axes[axis].len;
        let parts = node.outputs.len();
        let given = match node.input(1) {
            "" => node.ints("split"),
            _ => Some(self.longs(node, 1)?),
        };
        let sizes: Vec<usize> = match given {
            Some(sizes) => sizes
                .iter()
                .map(|&size| usize::try_from(size).unwrap_or(0))
                .collect(),
            None => vec![len / parts.max(1); parts],
        };
        let total = sizes
            .iter()
            .try_fold(0_usize, |sum, &size| sum.checked_add(size));
        if sizes.len() != parts || sizes.contains(&0) || total != Some(len) {
            return Err(node.error(format!("splits {len} into {sizes:?} for {parts} outputs")));
        }
        let mut start = 0;
        let mut first = None;
        for (name, size) in node.outputs.iter().zip(sizes) {
            let value = Value::View(view.sliced(axis, start, size));
            first.get_or_insert(value.clone());
            self.values.insert(name, value);
            start += size;
        }
        first.ok_or_else(|| node.error("has no output"))
    }

    /// `Concat`.
    pub fn joined(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let views = (0..node.inputs.len()).map(|index| self.view(node, index));
        let views: Vec<View> = views.collect::<Result<_, _>>()?;
        let mut dims = views.first().map(View::dims).unwrap_or_default();
        let axis = axis(node, node.int("axis", 0), dims.len())?;
        let alike = |view: &View| {
            let mut others = view.dims();
            others.len() == dims.len() && {
                others[axis] = dims[axis];
                others == dims
            }
        };
        if !views.iter().all(alike) {
            return Err(node.error("joins tensors of unlike dimensions"));
        }
        dims[axis] = views.iter().map(|view| view.axes[axis].len).sum();
        let to = self.push_reals(node, &dims)?;
        let places = contiguous(&dims);
        let mut start = 0;
        for view in views {
            let len = view.axes[axis].len;
            self.copy(view, to, start * places[axis].step, &places);
            start += len;
        }
        Ok(Value::View(View::whole(Source::Real(to), &dims)))
    }

    /// `Pad` with a constant.
    pub fn padded(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        if !matches!(node.text("mode"), "" | "constant") || !node.input(3).is_empty() {
            return Err(node.error("expected padding of all dimensions with a constant"));
        }
        let fill = match node.input(2) {
            "" => 0.0,
            name => self.scalar(node, name)?,
        };
        let view = self.view(node, 0)?;
        let rank = view.axes.len();
        let pads = self.longs(node, 1)?;
        let sizes = pads.iter().map(|&pad| usize::try_from(pad).ok());
        let sizes: Option<Vec<usize>> = sizes.collect();
        let Some(sizes) = sizes.filter(|sizes| sizes.len() == 2 * rank) else {
            return Err(node.error(format!("pads {pads:?} of {rank} dimensions")));
        };
        let dims = view.dims().into_iter().enumerate();
        let dims: Vec<usize> = dims
            .map(|(axis, len)| {
                len.saturating_add(sizes[axis])
                    .saturating_add(sizes[rank + axis])
            })
            .collect();
        let to = self.push_reals(node, &dims)?;
        let places = contiguous(&dims);
        let filled = View {
            source: self.push_constant(vec![fill]),
            start: 0,
            axes: dims.iter().map(|&len| Axis { len, step: 0 }).collect(),
        };
        self.copy(filled, to, 0, &places);
        let corner = sizes
            .iter()
            .zip(&places)
            .map(|(size, axis)| size * axis.step);
        self.copy(view, to, corner.sum(), &places);
        Ok(Value::View(View::whole(Source::Real(to), &dims)))
    }

    /// `Expand` to constant dimensions.
    pub fn expanded(&mut self, node: &'a Node) -> Result<Value, GraphError> {
        let dims = self.longs(node, 1)?.iter();
        let dims: Vec<usize> = dims.map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
        self.seen(node, |_, view| {
            let common = crate::encode::int8::view::common(&view.dims(), &dims);
            let wide = common.and_then(|dims| view.broadcast(&dims));
            wide.filter(|view| !view.dims().contains(&0))
                .ok_or_else(|| node.error(format!("repeats {:?} to {dims:?}", view.dims())))
        })
    }

    /// The same values one after the other, in a place of their own where they
    /// are not.
    pub fn contiguous(&mut self, node: &Node, view: View) -> Result<View, GraphError> {
        if view.is_contiguous() && matches!(view.source, Source::Real(_)) {
            return Ok(view);
        }
        let dims = view.dims();
        let to = self.push_reals(node, &dims)?;
        self.copy(view, to, 0, &contiguous(&dims));
        Ok(View::whole(Source::Real(to), &dims))
    }

    /// Copies `from` to places of `to` that lie as far apart as these.
    pub fn copy(&mut self, from: View, to: RealId, start: usize, places: &[Axis]) {
        let lens = from.axes.iter().map(|axis| axis.len);
        let places = places.iter().zip(lens);
        let places = places.map(|(place, len)| Axis { len, ..*place });
        self.steps.push(Step::Float(Float {
            op: FloatOp::Copy(start, places.collect()),
            from: vec![from],
            to,
        }));
    }

    /// Sees input 0 another way; levels stay levels.
    fn seen(
        &mut self,
        node: &'a Node,
        other: impl FnOnce(&mut Self, View) -> Result<View, GraphError>,
    ) -> Result<Value, GraphError> {
        let affine = match self.value(node, 0) {
            Ok(Value::Levels(id)) => Some(self.tensors[id.0].affine),
            Ok(Value::LevelsOf(_, affine)) => Some(*affine),
            _ => None,
        };
        let view = self.view(node, 0)?;
        let view = other(self, view)?;
        Ok(match affine {
            Some(affine) => Value::LevelsOf(view, affine),
            None => Value::View(view),
        })
    }

    /// Dimensions that `node` gives to a tensor of `dims`.
    fn new_dims(&self, node: &Node, dims: &[usize]) -> Result<Vec<usize>, GraphError> {
        let rank = dims.len();
        match node.op.as_str() {
            "Flatten" => {
                let axis = place(node.int("axis", 1), rank).filter(|&axis| axis <= rank);
                let axis = axis.ok_or_else(|| node.error("an axis beyond its input"))?;
                Ok(vec![
                    dims[..axis].iter().product(),
                    dims[axis..].iter().product(),
                ])
            }
            "Reshape" => self.given_dims(node, dims),
            op => {
                let axes = match node.input(1) {
                    "" => node.ints("axes").unwrap_or(&[]),
                    _ => self.longs(node, 1)?,
                };
                match op {
                    "Squeeze" => squeezed(node, dims, axes),
                    _ => unsqueezed(node, dims, axes),
                }
            }
        }
    }

    /// The second input of `Reshape`: 0 keeps a dimension, −1 takes what is left.
    fn given_dims(&self, node: &Node, dims: &[usize]) -> Result<Vec<usize>, GraphError> {
        let given = self.longs(node, 1)?;
        let known = |(index, &dim): (usize, &i64)| match dim {
            0 => dims.get(index).copied(),
            -1 => Some(1),
            dim => usize::try_from(dim).ok(),
        };
        let wrong = || node.error(format!("reshapes {dims:?} to {given:?}"));
        let new: Option<Vec<usize>> = given.iter().enumerate().map(known).collect();
        let mut new = new.ok_or_else(wrong)?;
        let covered = new
            .iter()
            .try_fold(1_usize, |all, &dim| all.checked_mul(dim));
        let count: usize = dims.iter().product();
        if let Some(open) = given.iter().position(|&dim| dim == -1) {
            let covered = covered.filter(|&covered| covered > 0).ok_or_else(wrong)?;
            new[open] = count / covered;
        }
        let all = new
            .iter()
            .try_fold(1_usize, |all, &dim| all.checked_mul(dim));
        match all == Some(count) && new.len() <= super::float::MAX_RANK {
            true => Ok(new),
            false => Err(wrong()),
        }
    }

    /// The constant integers that `node` reads as input `index`.
    fn longs(&self, node: &Node, index: usize) -> Result<&'a [i64], GraphError> {
        let constant = self.graph.constants.get(node.input(index));
        let longs = constant.and_then(|constant| constant.longs());
        longs.ok_or_else(|| node.error(format!("input {index} is no constant of integers")))
    }
}

/// An index that may count from the end.
fn place(index: i64, len: usize) -> Option<usize> {
    let from_end = if index < 0 { len as i64 } else { 0 };
    usize::try_from(index.saturating_add(from_end)).ok()
}

/// A dimension that may count from the end.
pub fn axis(node: &Node, axis: i64, rank: usize) -> Result<usize, GraphError> {
    let at = place(axis, rank).filter(|&at| at < rank);
    at.ok_or_else(|| node.error(format!("axis {axis} of {rank} dimensions")))
}

fn squeezed(node: &Node, dims: &[usize], axes: &[i64]) -> Result<Vec<usize>, GraphError> {
    let axes = axes.iter().map(|&along| axis(node, along, dims.len()));
    let axes: Vec<usize> = axes.collect::<Result<_, _>>()?;
    let gone = |index: usize| match axes.is_empty() {
        true => dims[index] == 1,
        false => axes.contains(&index),
    };
    Ok((0..dims.len())
        .filter(|&index| !gone(index))
        .map(|index| dims[index])
        .collect())
}

fn unsqueezed(node: &Node, dims: &[usize], axes: &[i64]) -> Result<Vec<usize>, GraphError> {
    let rank = dims.len() + axes.len();
    if rank > super::float::MAX_RANK {
        return Err(node.error(format!("makes {rank} dimensions")));
    }
    let axes = axes.iter().map(|&along| axis(node, along, rank));
    let axes: Vec<usize> = axes.collect::<Result<_, _>>()?;
    let mut left = dims.iter();
    let new = (0..rank).map(|index| match axes.contains(&index) {
        true => 1,
        false => left.next().copied().unwrap_or(1),
    });
    Ok(new.collect())
}
