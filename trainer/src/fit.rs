//! The training loop: batches in, checkpoints and measurements out.

mod checkpoint;
mod evaluate;
mod gradients;
mod load;
mod meter;
mod objective;
mod start;
mod prepare;
mod parallel;
mod progress;
mod run;
mod teacher;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use numclip::metrics::Metrics;
use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::config::Config;
use crate::data::loader::LoadError;
use crate::data::{Batch, DataError, Loader, Unreadable};
use crate::device::{DeviceError, Opened};
use crate::model::numclip::NumClip;
use crate::model::weights::WeightsError;
use crate::optim::{Ema, GroupedOptimizer, OptimError, clip_gradients, freeze};
use crate::text::TextError;
use checkpoint::Counters;
use gradients::{Pass, is_finite};
use meter::Meter;
use objective::Objective;
use parallel::{Crew, Taught};
use progress::Progress;
use teacher::{Beside, Lessons};

pub use checkpoint::Weights;
pub use evaluate::{Embedded, Evaluation, embed_all, evaluate};
pub use load::{loader, training_loader};
pub use prepare::{Prepared, prepare, prepare_for, prepare_student, untrained};
pub use run::{EpochRecord, Provenance, Run, StepRecord};
pub use start::{TeacherSource, WeightsSource};
pub use teacher::{Teacher, TeacherError};

/// What a run is asked beside its task file.
pub struct Options<'a> {
    /// Folder of the run.
    pub out: &'a Path,
    /// Goes on where an earlier run in `out` stopped.
    pub resume: bool,
    /// Set from outside to end the run after the current step.
    pub interrupt: &'a AtomicBool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Epochs completed.
    pub epochs: usize,
    /// Epoch with the least validation error, counted from 1.
    pub best_epoch: usize,
    /// Validation measures of that epoch.
    pub best: Option<Metrics>,
    /// Ended before its time because it was asked to.
    pub interrupted: bool,
}

/// Why a run ended early.
#[derive(Debug, Error)]
pub enum FitError {
    /// The data set cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Images cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No bin embeddings.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The encoder's configuration describes no network.
    #[error(transparent)]
    Encoder(#[from] crate::model::ConfigError),
    /// The weights to start from do not fit.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A checkpoint to start from cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Images and bins are embedded into spaces of different widths.
    #[error(
        "the image encoder embeds into {image} values, the bins into {bins}; take both from the \
         same CLIP model"
    )]
    Width {
        /// Width of the image embeddings.
        image: usize,
        /// Width of the bin embeddings.
        bins: usize,
    },
    /// The encoder does not train in half precision.
    #[error(
        "train.precision = \"bf16\" is for vision transformers; this encoder trains in \"f32\""
    )]
    Precision,
    /// The device asked for is not to be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// More devices than batches in a step.
    #[error(
        "{devices} devices share out the batches of a step, but train.accumulate gives it \
         {batches}; set accumulate to a multiple of {devices} (batch_size counts the images of one \
         batch)"
    )]
    Idle {
        /// Number of devices.
        devices: usize,
        /// Batches in a step.
        batches: usize,
    },
    /// There is no teacher to learn from.
    #[error(transparent)]
    Teacher(#[from] TeacherError),
    /// A task whose bins are its teacher's, without them.
    #[error("the bins of this task are those of its teacher, and it was not opened")]
    NoBins,
    /// Optimiser settings or state.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// Parts that do not make an estimator.
    #[error("{0}")]
    Estimator(String),
    /// A file of the run cannot be read or written.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        message: String,
    },
    /// The folder holds a run already.
    #[error("{} holds a run already; continue it with --resume or name another folder with --out", .0.display())]
    Exists(PathBuf),
    /// The folder holds the weights of a run that cannot go on.
    #[error(
        "{} holds the weights of a run without its checkpoint.safetensors, so that it cannot go \
         on; name another folder with --out", .0.display()
    )]
    NoCheckpoint(PathBuf),
    /// The folder holds a file that a run would write over.
    #[error(
        "{} holds a task.toml that is none of a run, and a run keeps its own there; name another \
         folder with --out", .0.display()
    )]
    Foreign(PathBuf),
    /// There is nothing to resume.
    #[error("{} holds no run; start it without --resume", .0.display())]
    NothingToResume(PathBuf),
    /// The task file or the data changed since the run began.
    #[error(
        "changed since this run began: {what}; restore that, or start a new run in another folder"
    )]
    Changed {
        /// What changed.
        what: String,
    },
    /// Loss, gradients or weights stopped being numbers.
    #[error(
        "{what} is {value} at epoch {epoch}, step {step}; lower the learning rate or clip_norm. {}",
        good(checkpoint)
    )]
    Diverged {
        /// Loss, gradient norm or weights.
        what: &'static str,
        /// Its value.
        value: f64,
        /// Epoch, from 1.
        epoch: usize,
        /// Step within the epoch, from 1.
        step: usize,
        /// Where to resume from, if anything was saved.
        checkpoint: Option<PathBuf>,
    },
}

fn good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("The last good checkpoint is {}", path.display()),
        None => "No checkpoint was written yet".into(),
    }
}

/// Trains the model that `config` describes and keeps everything about it in
/// `options.out`.
///
/// # Errors
/// [`FitError`]; the last checkpoint stays usable whatever happens.
pub fn fit(config: &Config, options: &Options<'_>) -> Result<Outcome, FitError> {
    let devices = config.train.device.open()?;
    // Teacher and bins are asked on the CPU: what a run was made from is the same on every device.
    let device = Device::flex();
    let teacher = Teacher::open(config, &device)?;
    let prepared = match &teacher {
        Some(teacher) => prepare_student(config, teacher)?,
        None => prepare(config, &device)?,
    };
    warn(devices.note.iter().chain(&prepared.warnings));
    let run = Run::open(options.out, config, &prepared, options.resume)?;
    let mut state = State::new(config, &prepared, &devices.devices[0])?;
    if Run::is_begun(options.out) {
        state = state.restore(&run)?;
        run.truncate_metrics(&state.counters)?;
    }
    let trainer = Trainer::new(config, &prepared, &run, &devices)?;
    let trainer = match &teacher {
        Some(teacher) => trainer.taught_by(teacher, options.interrupt)?,
        None => trainer,
    };
    trainer.train(state, options.interrupt)
}

fn warn<'a>(warnings: impl IntoIterator<Item = &'a String>) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// Everything that changes while training.
struct State {
    model: NumClip,
    optimizer: GroupedOptimizer,
    ema: Option<Ema<NumClip>>,
    counters: Counters,
}

impl State {
    fn new(config: &Config, prepared: &Prepared, device: &Device) -> Result<Self, FitError> {
        let model = untrained(config, prepared, &config.training_device(device))?;
        freeze::check(&config.train.freeze, &model)?;
        let optimizer = GroupedOptimizer::new(&config.train.optimizer, &model)?;
        let ema = config.train.ema.map(|decay| Ema::new(&model, decay));
        Ok(Self {
            model,
            optimizer,
            ema,
            counters: Counters::default(),
        })
    }

    /// The weights that are validated and exported.
    fn evaluated(&self) -> NumClip {
        match &self.ema {
            Some(ema) => ema.model().clone(),
            None => burn::module::Module::valid(&self.model),
        }
    }
}

struct Trainer<'a> {
    config: &'a Config,
    prepared: &'a Prepared,
    run: &'a Run,
    loader: Loader,
    validation: Option<Loader>,
    lessons: Option<Lessons>,
    devices: &'a Opened,
    crew: Crew<'a>,
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a Config,
        prepared: &'a Prepared,
        run: &'a Run,
        devices: &'a Opened,
    ) -> Result<Self, FitError> {
        let splits = &prepared.splits;
        let images = (config.train.batch_size, config.train.seed);
        let loader = training_loader(config, prepared, &splits.train, images, None)?;
        let validation = match splits.val.is_empty() {
            true => None,
            false => Some(self::loader(
                config,
                prepared,
                &splits.val,
                Unreadable::Stop,
            )?),
        };
        let counts = prepared.dataset.check_bins(&splits.train, &config.bin)?;
        let objective = Objective::new(config, &counts);
        Ok(Self {
            config,
            prepared,
            run,
            loader,
            validation,
            lessons: None,
            devices,
            crew: Crew::new(config, objective, &devices.devices, |device| {
                untrained(config, prepared, device)
            })?,
        })
    }

    /// The same with everything that `teacher` says of the training images.
    fn taught_by(self, teacher: &Teacher, interrupt: &AtomicBool) -> Result<Self, FitError> {
        let (config, prepared) = (self.config, self.prepared);
        let lessons = Lessons::new(config, prepared, teacher, interrupt)?;
        warn(lessons.warnings());
        let images = (config.train.batch_size, config.train.seed);
        let views = teacher::views(config, teacher);
        let train = &prepared.splits.train;
        Ok(Self {
            loader: training_loader(config, prepared, train, images, views.as_ref())?,
            lessons: Some(lessons),
            ..self
        })
    }

    fn train(&self, mut state: State, interrupt: &AtomicBool) -> Result<Outcome, FitError> {
        let train = &self.config.train;
        if !Run::is_begun(self.run.folder()) {
            // However early the run is killed, it goes on from here.
            self.save(&mut state)?;
        }
        while !state.counters.is_over(train) {
            state = self.epoch(state, interrupt)?;
            if interrupt.load(Ordering::Relaxed) {
                break;
            }
        }
        let interrupted = !state.counters.is_over(train);
        let counters = state.counters;
        Ok(Outcome {
            epochs: counters.epoch,
            best_epoch: counters.best_epoch,
            best: counters.best,
            interrupted,
        })
    }

    /// One epoch, or the rest of one.
    fn epoch(&self, mut state: State, interrupt: &AtomicBool) -> Result<State, FitError> {
        let epoch = state.counters.epoch;
        let (steps, accumulate) = (self.steps(), self.config.train.accumulate);
        state.model = freeze::apply(&self.config.train.freeze, state.model, epoch + 1);
        state.optimizer.begin_epoch(epoch + 1);
        let mut meter = Meter::start(self.devices);
        let progress = Progress::start(
            epoch + 1,
            self.config.train.epochs,
            steps,
            state.counters.step,
        );
        let first = state.counters.step * accumulate;
        let mut batches = self.loader.epoch(epoch as u64, first);
        let shown = epoch * self.loader.steps() + first;
        let lessons = self.lessons.as_ref();
        let mut beside = lessons.and_then(|lessons| lessons.beside(shown as u64));
        while state.counters.step < steps {
            let mut pass = self.crew.begin();
            let copies = self.crew.copies(&state.model);
            let mut batches = batches.by_ref().take(accumulate);
            loop {
                let together = batches.by_ref().take(self.crew.len());
                let together = together.map(|batch| self.taught(batch?, &mut beside, &progress));
                let together: Vec<Taught> = meter.wait(|| together.collect::<Result<_, _>>())?;
                if together.is_empty() {
                    break;
                }
                self.crew.add(&mut pass, &state.model, &copies, &together);
                self.require_finite("the loss", pass.loss(), &state.counters)?;
            }
            meter.add(pass.labels.len());
            state = self.step(state, pass)?;
            progress.advance(&state.counters.sums, &meter.speed(epoch + 1));
            let stop = interrupt.load(Ordering::Relaxed);
            let due = state
                .counters
                .step
                .is_multiple_of(self.config.train.checkpoint_steps);
            if state.counters.step < steps && (stop || due) {
                self.require_finite_weights(&state)?;
                self.save(&mut state)?;
            }
            if stop && state.counters.step < steps {
                return Ok(state);
            }
        }
        self.finish_epoch(state, &progress, &meter)
    }

    /// A batch with what the teacher says of it and of unlabelled images beside it.
    fn taught(
        &self,
        batch: Batch,
        beside: &mut Option<Beside<'_>>,
        progress: &Progress,
    ) -> Result<Taught, FitError> {
        let Some(lessons) = &self.lessons else {
            progress.skipped(&batch);
            return Ok((batch, None));
        };
        let beside = beside.as_mut().and_then(Iterator::next).transpose()?;
        beside.iter().for_each(|batch| progress.skipped(batch));
        progress.skipped(&batch);
        let lesson = lessons.about(self.prepared, &batch, beside)?;
        Ok((batch, Some(lesson)))
    }

    /// Steps in an epoch.
    fn steps(&self) -> usize {
        self.loader.steps().div_ceil(self.config.train.accumulate)
    }

    fn step(&self, mut state: State, mut pass: Pass<'_>) -> Result<State, FitError> {
        let counters = &state.counters;
        let loss = pass.loss();
        let mut gradients = pass.gradients(&state.model);
        let norm = clip_gradients(&state.model, &mut gradients, self.config.train.clip_norm);
        self.require_finite("the gradient norm", norm, counters)?;
        let steps = self.steps() as u64;
        let train = &self.config.train;
        let factor = train
            .schedule
            .factor(counters.global_step(steps), steps, train.epochs as f64);
        state.model = state.optimizer.step(factor, state.model, gradients);
        if let Some(ema) = &mut state.ema {
            ema.update(&state.model);
        }
        let record = StepRecord {
            epoch: counters.epoch + 1,
            step: counters.step + 1,
            loss,
            gradient_norm: norm,
            learning_rate: train.optimizer.lr * factor,
        };
        state.counters.step += 1;
        state.counters.sums.add(loss, &pass.values, &pass.labels);
        self.run.append(&record)?;
        Ok(state)
    }

    /// What is saved must be good to resume from.
    fn require_finite_weights(&self, state: &State) -> Result<(), FitError> {
        match is_finite(&state.model) {
            true => Ok(()),
            false => self.require_finite("a weight", f64::NAN, &state.counters),
        }
    }

    fn require_finite(
        &self,
        what: &'static str,
        value: f64,
        counters: &Counters,
    ) -> Result<(), FitError> {
        match value.is_finite() {
            true => Ok(()),
            false => Err(FitError::Diverged {
                what,
                value,
                epoch: counters.epoch + 1,
                step: counters.step + 1,
                checkpoint: Some(self.run.checkpoint()).filter(|path| path.is_file()),
            }),
        }
    }

    fn finish_epoch(
        &self,
        mut state: State,
        progress: &Progress,
        meter: &Meter<'_>,
    ) -> Result<State, FitError> {
        let speed = meter.speed(state.counters.epoch + 1);
        self.require_finite_weights(&state)?;
        let model = state.evaluated();
        let validation = self
            .validation
            .as_ref()
            .map(|loader| evaluate(self.config, self.prepared, &model, loader))
            .transpose()?
            .and_then(|evaluation| evaluation.metrics);
        let sums = std::mem::take(&mut state.counters.sums);
        state.counters.epoch += 1;
        state.counters.step = 0;
        let record = EpochRecord {
            epoch: state.counters.epoch,
            train_loss: sums.mean_loss(),
            train_mae: sums.mean_error(),
            validation: validation.clone(),
        };
        let better = state.counters.update_best(validation);
        self.run.append(&record)?;
        self.run.append_speed(&speed)?;
        progress.finish(&record, better, &speed);
        if better || self.validation.is_none() {
            self.run.save_best(&model, state.counters.epoch)?;
        }
        self.save(&mut state)?;
        Ok(state)
    }

    fn save(&self, state: &mut State) -> Result<(), FitError> {
        state.counters.metrics_bytes = self.run.flush()?;
        self.run.save(state)
    }
}
