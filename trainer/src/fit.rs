//! The training loop: batches in, checkpoints and measurements out.

mod checkpoint;
mod evaluate;
mod feed;
mod gradients;
mod load;
mod machines;
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
use crate::data::{DataError, Loader, Unreadable};
use crate::device::{DeviceError, Opened};
use crate::model::numclip::NumClip;
use crate::model::weights::WeightsError;
use crate::optim::{Ema, GroupedOptimizer, OptimError, clip_gradients, freeze};
use crate::text::TextError;
use checkpoint::{Counters, file_error};
use feed::Feed;
use gradients::{Pass, is_finite};
use machines::{Machines, Steps};
use meter::Meter;
use objective::Objective;
use parallel::Crew;
use progress::Progress;

pub use checkpoint::Weights;
pub use evaluate::{Embedded, Evaluation, embed_all, evaluate};
pub use load::{loader, training_loader};
pub use machines::{FILES, Join, Joined, Listen, MachinesError, join};
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
    /// Where other machines may join; none to compute alone.
    pub listen: Option<&'a Listen>,
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
    /// Machines do not work together.
    #[error(transparent)]
    Machines(#[from] MachinesError),
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
    // An address that cannot be listened on is told before a folder is made.
    let task = toml::to_string(config).map_err(|error| file_error(options.out, &error))?;
    let task = machines::Task {
        config: task,
        provenance: run::provenance(&prepared),
    };
    let share = (devices.devices.len(), config.train.accumulate);
    let mut machines = Machines::open(options.listen, task, share)?;
    let run = Run::open(options.out, config, &prepared, options.resume)?;
    let mut state = State::new(config, &prepared, devices.first())?;
    if Run::is_begun(options.out) {
        state = state.restore(&run)?;
        run.truncate_metrics(&state.counters)?;
    }
    let feed = Feed::new(config, &prepared, teacher.as_ref(), options.interrupt)?;
    warn(feed.warnings());
    let trainer = Trainer::new(config, &prepared, &run, feed, &devices)?;
    machines.wait_for(options.listen.map_or(1, |l| l.machines), options.interrupt);
    let outcome = trainer.train(state, &mut machines, options.interrupt)?;
    machines.dismiss(!outcome.interrupted);
    Ok(outcome)
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
    feed: Feed<'a>,
    validation: Option<Loader>,
    devices: &'a Opened,
    crew: Crew<'a>,
}

impl<'a> Trainer<'a> {
    fn new(
        config: &'a Config,
        prepared: &'a Prepared,
        run: &'a Run,
        feed: Feed<'a>,
        devices: &'a Opened,
    ) -> Result<Self, FitError> {
        let splits = &prepared.splits;
        let validation = match splits.val.is_empty() {
            true => None,
            false => Some(loader(config, prepared, &splits.val, Unreadable::Stop)?),
        };
        let counts = prepared.dataset.check_bins(&splits.train, &config.bin)?;
        let objective = Objective::new(config, &counts);
        Ok(Self {
            config,
            prepared,
            run,
            feed,
            validation,
            devices,
            crew: Crew::new(config, objective, &devices.devices, |device| {
                untrained(config, prepared, device)
            })?,
        })
    }

    fn train(
        &self,
        mut state: State,
        machines: &mut Machines,
        interrupt: &AtomicBool,
    ) -> Result<Outcome, FitError> {
        let train = &self.config.train;
        if !Run::is_begun(self.run.folder()) {
            // However early the run is killed, it goes on from here.
            self.save(&mut state)?;
        }
        while !state.counters.is_over(train) {
            state = self.epoch(state, machines, interrupt)?;
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
    fn epoch(
        &self,
        mut state: State,
        machines: &mut Machines,
        interrupt: &AtomicBool,
    ) -> Result<State, FitError> {
        let epoch = state.counters.epoch;
        let steps = self.steps();
        state.model = freeze::apply(&self.config.train.freeze, state.model, epoch + 1);
        state.optimizer.begin_epoch(epoch + 1);
        let mut meter = Meter::start(self.devices);
        let (epochs, done) = (self.config.train.epochs, state.counters.step);
        let progress = Progress::start(epoch + 1, epochs, steps.count(), done);
        let share = machines.share_out(&state.model, epoch, (steps, done))?;
        let mut batches = self.feed.batches(epoch, share);
        while state.counters.step < steps.count() {
            let step = state.counters.step;
            if machines.changed() {
                let share = machines.share_out(&state.model, epoch, (steps, step))?;
                batches = self.feed.batches(epoch, share);
            }
            meter.note_machines(machines.count());
            let mut pass = self.crew.begin();
            let own = machines.ask(&state.model, steps.of(step))?;
            let own = batches.few(own.len(), &mut meter, &progress);
            self.crew.work(&mut pass, &state.model, own)?;
            let undone = machines.gather(&mut pass, &state.model);
            if !undone.is_empty() {
                let undone = self.feed.batches(epoch, undone);
                self.crew.work(&mut pass, &state.model, undone)?;
            }
            self.require_finite("the loss", pass.loss(), &state.counters)?;
            meter.add(pass.labels.len());
            state = self.step(state, pass)?;
            progress.advance(&state.counters.sums, &meter.speed(epoch + 1));
            let stop = interrupt.load(Ordering::Relaxed);
            let due = state
                .counters
                .step
                .is_multiple_of(self.config.train.checkpoint_steps);
            if state.counters.step < steps.count() && (stop || due) {
                self.require_finite_weights(&state)?;
                self.save(&mut state)?;
            }
            if stop && state.counters.step < steps.count() {
                return Ok(state);
            }
        }
        self.finish_epoch(state, &progress, &meter)
    }

    fn steps(&self) -> Steps {
        Steps {
            batches: self.feed.batches_per_epoch(),
            accumulate: self.config.train.accumulate,
        }
    }

    fn step(&self, mut state: State, mut pass: Pass<'_>) -> Result<State, FitError> {
        let counters = &state.counters;
        let loss = pass.loss();
        let mut gradients = pass.gradients(&state.model);
        let norm = clip_gradients(&state.model, &mut gradients, self.config.train.clip_norm);
        self.require_finite("the gradient norm", norm, counters)?;
        let steps = self.steps().count() as u64;
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
