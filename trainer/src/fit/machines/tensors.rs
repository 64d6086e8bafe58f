//! Weights and gradients on their way between machines.
//!
//! Machines build the same model from the same task, so a parameter is known by its place in it.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::fit::checkpoint::{load_model, model_bytes};
use crate::fit::gradients::Part;
use crate::model::numclip::NumClip;

const LOSSES: &str = "losses";
const VALUES: &str = "values";
const LABELS: &str = "labels";

/// A tensor of 32-bit floats.
struct Plain {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// A record of the whole model.
pub fn whole(model: &NumClip) -> Result<Vec<u8>, String> {
    model_bytes(model)
}

/// The model with the values of such a record.
pub fn load_whole(model: NumClip, record: Vec<u8>) -> Result<NumClip, String> {
    load_model(model, record)
}

/// The parameters that learn.
pub fn weights(model: &NumClip) -> Result<Vec<u8>, String> {
    struct Collect(Vec<Plain>, usize);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = next(&mut self.1);
            if param.is_require_grad() {
                self.0.push(plain(name, param.val()));
            }
        }
    }
    let mut collect = Collect(Vec::new(), 0);
    model.visit(&mut collect);
    file(&collect.0)
}

/// The model with the values of such parameters.
pub fn load_weights(model: NumClip, bytes: &[u8]) -> Result<NumClip, String> {
    struct Load<'a> {
        file: SafeTensors<'a>,
        place: usize,
        taken: usize,
        error: Option<String>,
    }
    impl ModuleMapper for Load<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = next(&mut self.place);
            if !param.is_require_grad() {
                return param;
            }
            match data::<D>(&self.file, &name, param.lazy_shape().dims()) {
                Ok(data) => {
                    self.taken += 1;
                    param.map(|old| Tensor::from_data(data, &old.device()).require_grad())
                }
                Err(error) => {
                    self.error.get_or_insert(error);
                    param
                }
            }
        }
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut load = Load {
        file,
        place: 0,
        taken: 0,
        error: None,
    };
    let model = model.map(&mut load);
    match load.error {
        Some(error) => Err(error),
        None if load.taken != load.file.len() => Err(format!(
            "{} weights came, {} learn here",
            load.file.len(),
            load.taken
        )),
        None => Ok(model),
    }
}

/// What a machine computed of a step, for the parameters of `model`.
pub fn part(model: &NumClip, part: Part) -> Result<Vec<u8>, String> {
    struct Collect(GradientsParams, Vec<Plain>, usize);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = next(&mut self.2);
            if let Some(gradient) = self.0.remove::<D>(param.id) {
                self.1.push(plain(name, gradient));
            }
        }
    }
    let row = |name: &str, values: Vec<f32>| Plain {
        name: name.into(),
        shape: vec![values.len()],
        values,
    };
    let [high, low] = split(part.losses);
    let told = vec![
        row(LOSSES, vec![high, low]),
        row(VALUES, part.values),
        row(LABELS, part.labels),
    ];
    let mut collect = Collect(part.gradients, told, 0);
    model.visit(&mut collect);
    file(&collect.1)
}

/// What another machine computed, for the parameters of this `model` on `device`.
pub fn load_part(model: &NumClip, bytes: &[u8], device: &Device) -> Result<Part, String> {
    struct Load<'a> {
        file: SafeTensors<'a>,
        device: &'a Device,
        place: usize,
        gradients: GradientsParams,
        taken: usize,
        error: Option<String>,
    }
    impl ModuleVisitor for Load<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = next(&mut self.place);
            if self.file.tensor(&name).is_err() {
                return;
            }
            match data::<D>(&self.file, &name, param.lazy_shape().dims()) {
                Ok(data) => {
                    self.taken += 1;
                    let gradient = Tensor::<D>::from_data(data, self.device);
                    self.gradients.register(param.id, gradient);
                }
                Err(error) => drop(self.error.get_or_insert(error)),
            }
        }
    }
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut load = Load {
        file,
        device,
        place: 0,
        gradients: GradientsParams::new(),
        taken: 0,
        error: None,
    };
    model.visit(&mut load);
    if let Some(error) = load.error {
        return Err(error);
    }
    let strangers = load.file.len() - load.taken;
    if strangers != 3 {
        return Err(format!("{strangers} tensors of no parameter, expected 3"));
    }
    let [high, low] = row(&load.file, LOSSES)?[..] else {
        return Err("losses: expected 2 numbers".into());
    };
    let part = Part {
        losses: f64::from(high) + f64::from(low),
        values: row(&load.file, VALUES)?,
        labels: row(&load.file, LABELS)?,
        gradients: load.gradients,
    };
    match part.values.len() == part.labels.len() {
        true => Ok(part),
        false => Err(format!(
            "{} values for {} labels",
            part.values.len(),
            part.labels.len()
        )),
    }
}

/// A number as the sum of two smaller ones.
fn split(value: f64) -> [f32; 2] {
    let high = value as f32;
    match high.is_finite() {
        true => [high, (value - f64::from(high)) as f32],
        false => [high, 0.0],
    }
}

fn next(place: &mut usize) -> String {
    *place += 1;
    format!("parameter {place}")
}

fn plain<const D: usize>(name: String, tensor: Tensor<D>) -> Plain {
    Plain {
        name,
        shape: tensor.dims().to_vec(),
        values: tensor.into_data_as::<f32>().iter().collect(),
    }
}

fn file(tensors: &[Plain]) -> Result<Vec<u8>, String> {
    let bytes = |tensor: &Plain| -> Vec<u8> {
        tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    let bytes: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        view.map(|view| (tensor.name.as_str(), view))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    serialize(views, None).map_err(|error| error.to_string())
}

fn data<const D: usize>(
    file: &SafeTensors<'_>,
    name: &str,
    shape: [usize; D],
) -> Result<TensorData, String> {
    let tensor = file.tensor(name).map_err(|error| error.to_string())?;
    match (tensor.dtype(), tensor.shape() == shape) {
        (Dtype::F32, true) => Ok(TensorData::new(floats(tensor.data()), shape)),
        (dtype, _) => Err(format!(
            "{name}: expected F32 {shape:?}, got {dtype:?} {:?}",
            tensor.shape()
        )),
    }
}

fn row(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, String> {
    let tensor = file.tensor(name).map_err(|error| error.to_string())?;
    match (tensor.dtype(), tensor.shape().len()) {
        (Dtype::F32, 1) => Ok(floats(tensor.data())),
        (dtype, _) => Err(format!(
            "{name}: expected F32 [N], got {dtype:?} {:?}",
            tensor.shape()
        )),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let (values, _) = bytes.as_chunks();
    values
        .iter()
        .map(|value| f32::from_le_bytes(*value))
        .collect()
}
