//! The detector's network, run by tract.

#[cfg(feature = "tract")]
pub use with_tract::{Network, Runner};
#[cfg(not(feature = "tract"))]
pub use without::{Network, Runner};

#[cfg(feature = "tract")]
mod with_tract {
    use std::io::Cursor;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use tract_onnx::prelude::*;
    use tract_onnx::tract_hir::infer::Factoid as _;
    use tract_onnx::tract_hir::internal::{DimLike as _, bail};

    use crate::detect::DetectError;
    use crate::detect::layout::Output;

    /// Sides of the input where the file leaves them open, in pixels.
    const SIDE: usize = 320;
    const MAX_SIDE: usize = 4096;

    /// A network with one picture as input.
    pub struct Network {
        file: String,
        plan: Arc<TypedSimplePlan>,
        input: [usize; 4],
        outputs: Vec<Vec<usize>>,
    }

    pub struct Runner {
        file: String,
        state: TypedSimpleState,
        input: [usize; 4],
    }

    impl Network {
        /// Loads an ONNX file that maps `[1, 3, height, width]` to float outputs.
        pub fn load(file: &str, bytes: &[u8]) -> Result<Self, String> {
            // tract asserts in places on models that contradict themselves.
            let loaded = catch_unwind(AssertUnwindSafe(|| optimise(bytes)));
            let (plan, input) = loaded
                .map_err(|_| "the network contradicts itself".to_owned())?
                .map_err(|error| format!("{error:#}"))?;
            let count = plan.model().output_outlets().map_or(0, <[_]>::len);
            let shape = |index| {
                let fact = plan.model().output_fact(index).ok()?;
                (fact.datum_type == f32::datum_type())
                    .then(|| fact.shape.as_concrete().map(<[usize]>::to_vec))?
            };
            Ok(Self {
                file: file.into(),
                input,
                outputs: (0..count)
                    .map(|index| shape(index).unwrap_or_default())
                    .collect(),
                plan,
            })
        }

        /// Width and height of the input.
        pub fn size(&self) -> (u32, u32) {
            (self.input[3] as u32, self.input[2] as u32)
        }

        /// Shapes of the outputs; empty for those that are not known or no floats.
        pub fn outputs(&self) -> &[Vec<usize>] {
            &self.outputs
        }

        pub fn runner(&self) -> Result<Runner, DetectError> {
            let state = self.plan.spawn();
            Ok(Runner {
                file: self.file.clone(),
                state: state.map_err(|error| failed(&self.file, &error))?,
                input: self.input,
            })
        }
    }

    impl Runner {
        /// The outputs for a tensor `[3, height, width]`.
        pub fn run(&mut self, tensor: &[f32]) -> Result<Vec<Output>, DetectError> {
            let file = &self.file;
            let failed = |error: TractError| failed(file, &error);
            let input = Tensor::from_shape(&self.input, tensor).map_err(failed)?;
            let outputs = self.state.run(tvec![input.into()]).map_err(failed)?;
            let output = |tensor: &TValue| {
                let view = tensor.to_plain_array_view::<f32>().map_err(failed)?;
                Ok(Output {
                    shape: view.shape().to_vec(),
                    values: view.iter().copied().collect(),
                })
            };
            outputs.iter().map(output).collect()
        }
    }

    fn optimise(bytes: &[u8]) -> TractResult<(Arc<TypedSimplePlan>, [usize; 4])> {
        let model = onnx().model_for_read(&mut Cursor::new(bytes))?;
        let input = input_shape(&model)?;
        let plan = model
            .with_input_fact(0, f32::fact(input).into())?
            .into_optimized()?
            .into_runnable()?;
        Ok((plan, input))
    }

    fn input_shape(model: &InferenceModel) -> TractResult<[usize; 4]> {
        let inputs = model.input_outlets()?.len();
        if inputs != 1 {
            bail!("expected one input, got {inputs}");
        }
        let shape = &model.input_fact(0)?.shape;
        let known = |dim: Option<usize>, open: usize| dim.unwrap_or(open);
        let sides: Vec<Option<usize>> = shape
            .dims()
            .map(|dim| dim.concretize().and_then(|dim| dim.to_usize().ok()))
            .collect();
        let input = match sides[..] {
            [batch, channels, height, width] => [
                known(batch, 1),
                known(channels, 3),
                known(height, SIDE),
                known(width, SIDE),
            ],
            _ => bail!("expected an input [1, 3, height, width], got {shape:?}"),
        };
        let is_sound = |side| (32..=MAX_SIDE).contains(&side);
        match input {
            [1, 3, height, width] if is_sound(height) && is_sound(width) => Ok(input),
            _ => bail!(
                "expected an input [1, 3, height, width] with sides from 32 to {MAX_SIDE}, got {input:?}"
            ),
        }
    }

    fn failed(file: &str, error: &TractError) -> DetectError {
        DetectError {
            file: file.into(),
            message: format!("{error:#}"),
        }
    }
}

#[cfg(not(feature = "tract"))]
mod without {
    use std::convert::Infallible;

    use crate::detect::DetectError;
    use crate::detect::layout::Output;

    /// There is none in a build without tract.
    pub struct Network(Infallible);
    pub struct Runner(Infallible);

    impl Network {
        pub fn load(_: &str, _: &[u8]) -> Result<Self, String> {
            Err("this build cannot run detectors; build numclip with the feature tract".into())
        }

        pub fn size(&self) -> (u32, u32) {
            match self.0 {}
        }

        pub fn outputs(&self) -> &[Vec<usize>] {
            match self.0 {}
        }

        pub fn runner(&self) -> Result<Runner, DetectError> {
            match self.0 {}
        }
    }

    impl Runner {
        pub fn run(&mut self, _: &[f32]) -> Result<Vec<Output>, DetectError> {
            match self.0 {}
        }
    }
}
