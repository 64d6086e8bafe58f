//! The vendor's engine: TensorFlow Lite with XNNPACK, through the crate
//! `tflitec`.
//!
//! The library is not part of this project; `tests/tflite/library.sh` fetches
//! one. It applies XNNPACK by itself.

use std::num::NonZero;
use std::sync::Arc;

use self_cell::self_cell;
use tflitec::interpreter::{Interpreter, Options};
use tflitec::tensor::{DataType, Tensor};

use super::{EncodeError, Engine, Model, Session};
use crate::bundle::{Bundle, EncoderFile};

/// The oldest TensorFlow Lite that computes int8 networks with a scale for
/// each channel; some before it return zeros and say nothing.
const LEAST_VERSION: [u32; 2] = [2, 12];

type Parsed<'a> = tflitec::model::Model<'a>;

self_cell!(
    /// A file and what the library made of it, which points into the file.
    struct Network {
        owner: Vec<u8>,
        #[covariant]
        dependent: Parsed,
    }
);

self_cell!(
    /// A network and one that runs it.
    struct Running {
        owner: Arc<Network>,
        #[covariant]
        dependent: Interpreter,
    }
);

/// A TensorFlow Lite network.
pub struct TfliteModel {
    file: String,
    network: Arc<Network>,
    size: usize,
    dim: usize,
}

struct TfliteSession {
    file: String,
    running: Running,
    /// The picture as the network reads it: `[size, size, 3]`.
    image: Vec<f32>,
    dim: usize,
}

impl TfliteModel {
    /// Loads one of the bundle's encoders.
    ///
    /// # Errors
    /// [`EncodeError`] when the library is too old or cannot load the file, or
    /// the network does not map `[1, size, size, 3]` to `[1, dim]`.
    pub fn load(bundle: &Bundle, encoder: &EncoderFile) -> Result<Self, EncodeError> {
        let bytes = bundle.read_encoder(encoder)?;
        let manifest = bundle.manifest();
        let size = manifest.preprocess.size as usize;
        Self::from_bytes(&encoder.path, bytes, size, manifest.bins.dim)
    }

    /// Loads a network that maps `[1, size, size, 3]` to `[1, dim]`, both
    /// 32-bit floats; `file` names it in errors.
    ///
    /// # Errors
    /// As [`TfliteModel::load`].
    pub fn from_bytes(
        file: &str,
        bytes: Vec<u8>,
        size: usize,
        dim: usize,
    ) -> Result<Self, EncodeError> {
        let refused = |message: String| EncodeError::Load {
            file: file.into(),
            engine: Engine::Tflite,
            message,
        };
        check_version(tflitec::tf_lite_version()).map_err(refused)?;
        let network = Network::try_new(bytes, |bytes| Parsed::from_bytes(bytes))
            .map_err(|error| refused(error.to_string()))?;
        let model = Self {
            file: file.into(),
            network: Arc::new(network),
            size,
            dim,
        };
        let running = model.start(NonZero::<usize>::MIN).map_err(refused)?;
        model.check_shapes(running.borrow_dependent())?;
        Ok(model)
    }

    fn start(&self, threads: NonZero<usize>) -> Result<Running, String> {
        let options = Options {
            thread_count: threads.get().try_into().unwrap_or(i32::MAX),
        };
        Running::try_new(Arc::clone(&self.network), |network| {
            let interpreter = Interpreter::new(network.borrow_dependent(), Some(options))?;
            interpreter.allocate_tensors()?;
            Ok(interpreter)
        })
        .map_err(|error: tflitec::Error| error.to_string())
    }

    fn check_shapes(&self, interpreter: &Interpreter<'_>) -> Result<(), EncodeError> {
        let (input, output) = (interpreter.input(0), interpreter.output(0));
        let shape = |what, expected: &[usize], tensor: tflitec::Result<Tensor<'_>>| {
            let tensor = tensor.map_err(failed)?;
            let found = tensor.shape().dimensions();
            match tensor.data_type() == DataType::Float32 && found == expected {
                true => Ok(()),
                false => Err(EncodeError::Shape {
                    file: self.file.clone(),
                    what,
                    expected: format!("Float32 {expected:?}"),
                    got: format!("{:?} {found:?}", tensor.data_type()),
                }),
            }
        };
        shape("input of the network", &[1, self.size, self.size, 3], input)?;
        shape("output of the network", &[1, self.dim], output)
    }
}

impl Model for TfliteModel {
    fn engine(&self) -> Engine {
        Engine::Tflite
    }

    fn kernels(&self) -> Option<&'static str> {
        Some(tflitec::tf_lite_version())
    }

    fn session_on(&self, threads: NonZero<usize>) -> Result<Box<dyn Session>, EncodeError> {
        Ok(Box::new(TfliteSession {
            file: self.file.clone(),
            running: self.start(threads).map_err(failed)?,
            image: vec![0.0; 3 * self.size * self.size],
            dim: self.dim,
        }))
    }
}

impl Session for TfliteSession {
    fn encode(&mut self, tensor: &[f32]) -> Result<Vec<f32>, EncodeError> {
        if tensor.len() != self.image.len() {
            return Err(EncodeError::Shape {
                file: self.file.clone(),
                what: "input of the network",
                expected: format!("{} values", self.image.len()),
                got: format!("{} values", tensor.len()),
            });
        }
        interleave(tensor, &mut self.image);
        let interpreter = self.running.borrow_dependent();
        interpreter.copy(&self.image, 0).map_err(failed)?;
        interpreter.invoke().map_err(failed)?;
        let output = interpreter.output(0).map_err(failed)?;
        let embedding = output.data::<f32>().to_vec();
        match embedding.len() == self.dim && embedding.iter().all(|value| value.is_finite()) {
            true => Ok(embedding),
            false => Err(failed("the embedding is not finite")),
        }
    }
}

/// Three planes to pixels of three values.
fn interleave(planes: &[f32], pixels: &mut [f32]) {
    let plane = planes.len() / 3;
    let (red, rest) = planes.split_at(plane);
    let (green, blue) = rest.split_at(plane);
    let channels = red.iter().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in pixels.as_chunks_mut().0.iter_mut().zip(channels) {
        *pixel = [*red, *green, *blue];
    }
}

/// `version` is that of TensorFlow Lite (`2.19.0`), or `LiteRT` with its own,
/// which is newer than all of them.
fn check_version(version: &str) -> Result<(), String> {
    if version.starts_with("LiteRT ") {
        return Ok(());
    }
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if [major, minor] >= LEAST_VERSION => Ok(()),
        _ => {
            let [major, minor] = LEAST_VERSION;
            Err(format!(
                "the library is TensorFlow Lite {version}, expected {major}.{minor} or newer; \
                 tests/tflite/library.sh fetches one"
            ))
        }
    }
}

fn failed(error: impl std::fmt::Display) -> EncodeError {
    EncodeError::Run {
        engine: Engine::Tflite,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_libraries_are_refused_by_name() {
        for fits in ["LiteRT 2.3.0", "2.12.0", "2.19.1", "3.0"] {
            check_version(fits).unwrap();
        }
        for old in ["2.9.1", "1.15.0", "unknown", ""] {
            let error = check_version(old).unwrap_err();
            assert!(error.contains("expected 2.12 or newer"), "{error}");
        }
    }
}
