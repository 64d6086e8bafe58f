//! A machine that lends its devices to a run elsewhere.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;

use super::link::{said, tune};
use super::wire::{self, Message, PROTOCOL};
use super::{MachinesError, TICK, tensors};
use crate::config::Config;
use crate::device::Opened;
use crate::fit::checkpoint::Sums;
use crate::fit::feed::{Batches, Feed};
use crate::fit::meter::Meter;
use crate::fit::objective::Objective;
use crate::fit::parallel::Crew;
use crate::fit::progress::Progress;
use crate::fit::run::provenance;
use crate::fit::{FitError, Prepared, Teacher, prepare, prepare_student, untrained, warn};
use crate::model::numclip::NumClip;
use crate::optim::freeze;
use crate::{device, study::Set};

/// Keys of a task that a joining machine may set: where its files lie, and how it loads them.
pub const FILES: [&str; 13] = [
    "data.table",
    "text.weights",
    "text.embeddings",
    "model.init",
    "teacher.run",
    "teacher.bundle",
    "teacher.weights",
    "teacher.onnx",
    "teacher.embeddings",
    "teacher.unlabelled",
    "teacher.cache",
    "train.workers",
    "train.cache_mib",
];

/// What a machine is asked that joins a run.
pub struct Join<'a> {
    /// Where the run listens: `HOST:PORT`.
    pub address: &'a str,
    /// What to compute on.
    pub device: device::Choice,
    /// What is different on this machine; keys of [`FILES`].
    pub set: &'a [Set],
    /// How long to look for a run.
    pub wait: Duration,
    /// Set from outside to leave after the current step.
    pub interrupt: &'a AtomicBool,
}

/// How taking part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The run is over.
    Over,
    /// The run was stopped, to be resumed another time.
    Stopped,
    /// This machine was told to leave.
    Left,
}

/// Why a machine takes no part any more.
enum End {
    /// As agreed.
    Joined(Joined),
    /// The run is not there any more.
    Gone(io::Error),
}

/// Computes a share of the batches of a run on another machine, until it is over. When the run goes
/// away without a word, it is looked for as at the start: it may be resumed.
///
/// # Errors
/// [`FitError`] when there is no run, it needs files that are not here, or an image cannot be read.
pub fn join(asked: &Join<'_>) -> Result<Joined, FitError> {
    if let Some(set) = asked.set.iter().find(|set| !FILES.contains(&&*set.key)) {
        return Err(MachinesError::Key(set.key.clone()).into());
    }
    let devices = asked.device.open()?;
    warn(&devices.note);
    loop {
        let Some(stream) = connect(asked)? else {
            return Ok(Joined::Left);
        };
        let run = Run {
            asked,
            devices: &devices,
            stream,
        };
        match run.take_part()? {
            End::Joined(how) => return Ok(how),
            End::Gone(error) => eprintln!(
                "warning: the run at {} went away: {}; looking for it",
                asked.address,
                said(&error)
            ),
        }
    }
}

/// Looks for the run; none if the user wants to stop.
fn connect(asked: &Join<'_>) -> Result<Option<TcpStream>, MachinesError> {
    let started = Instant::now();
    while !asked.interrupt.load(Ordering::Relaxed) {
        let error = match dial(asked.address) {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) => error,
        };
        if started.elapsed() >= asked.wait {
            return Err(MachinesError::Connect {
                address: asked.address.into(),
                error,
            });
        }
        thread::sleep(TICK);
    }
    Ok(None)
}

fn dial(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => {
                tune(&stream)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The run, as a machine that joined sees it.
struct Run<'a> {
    asked: &'a Join<'a>,
    devices: &'a Opened,
    stream: TcpStream,
}

/// What the batches of an epoch are computed with.
struct Epoch<'a> {
    batches: Batches<'a>,
    /// Batches of the steps to come.
    shares: std::vec::IntoIter<usize>,
    progress: Progress,
    meter: Meter<'a>,
    number: usize,
    sums: Sums,
}

impl<'a> Run<'a> {
    fn take_part(mut self) -> Result<End, FitError> {
        let config = match self.introduce() {
            Ok(config) => config?,
            Err(error) => return Ok(End::Gone(error)),
        };
        match self.work(&config) {
            Ok(end) => Ok(end),
            Err(error) => {
                let reason = error.to_string();
                // What went wrong is said here in any case.
                let _ = self.send(&Message::Failed { reason }, &[]);
                Err(error)
            }
        }
    }

    /// Hears what the task is.
    fn introduce(&mut self) -> io::Result<Result<Config, FitError>> {
        let hello = Message::Hello {
            protocol: PROTOCOL,
            trainer: env!("CARGO_PKG_VERSION").into(),
        };
        self.send(&hello, &[])?;
        Ok(match wire::receive(&mut self.stream)?.0 {
            Message::Task { config } => self.config(&config),
            other => Err(self.unexpected(&other)),
        })
    }

    /// The task of the run, with the files of this machine.
    fn config(&self, text: &str) -> Result<Config, FitError> {
        let set = self.asked.set;
        let changed = Config::from_run(text, |table| set.iter().for_each(|set| set.apply(table)));
        changed.map_err(|error| self.wrong(error.to_string()))
    }

    fn work(&mut self, config: &Config) -> Result<End, FitError> {
        let here = Device::flex();
        let teacher = Teacher::open(config, &here)?;
        let prepared = match &teacher {
            Some(teacher) => prepare_student(config, teacher)?,
            None => prepare(config, &here)?,
        };
        let feed = Feed::new(config, &prepared, teacher.as_ref(), self.asked.interrupt)?;
        let ready = Message::Ready {
            provenance: Box::new(provenance(&prepared)),
            devices: self.devices.devices.len(),
            device: self.devices.name.clone(),
        };
        let welcomed = self.send(&ready, &[]).and_then(|()| self.next());
        match welcomed {
            Ok(Some((Message::Welcome, _))) => {}
            Ok(Some((Message::Refused { reason }, _))) => {
                let address = self.asked.address.into();
                return Err(MachinesError::Refused { address, reason }.into());
            }
            Ok(Some((other, _))) => return Err(self.unexpected(&other)),
            Ok(None) => return Ok(End::Joined(Joined::Left)),
            Err(error) => return Ok(End::Gone(error)),
        }
        eprintln!("joined {}: {}", self.asked.address, config.task.name);
        self.serve(config, &prepared, &feed)
    }

    /// Computes what is asked for.
    fn serve(
        &mut self,
        config: &Config,
        prepared: &Prepared,
        feed: &Feed<'_>,
    ) -> Result<End, FitError> {
        let counts = prepared
            .dataset
            .check_bins(&prepared.splits.train, &config.bin)?;
        let objective = Objective::new(config, &counts);
        let crew = Crew::new(config, objective, &self.devices.devices, |device| {
            untrained(config, prepared, device)
        })?;
        let first = config.training_device(self.devices.first());
        let mut model = untrained(config, prepared, &first)?;
        let mut epoch: Option<Epoch<'_>> = None;
        loop {
            let (message, body) = match self.next() {
                Ok(Some(message)) => message,
                Ok(None) => {
                    let reason = "its user stopped it".into();
                    // The run notices in any case.
                    let _ = self.send(&Message::Failed { reason }, &[]);
                    return Ok(End::Joined(Joined::Left));
                }
                Err(error) => return Ok(End::Gone(error)),
            };
            match message {
                Message::Epoch {
                    epoch: number,
                    shares,
                } => {
                    let loaded = tensors::load_whole(model, body);
                    model = loaded.map_err(|error| self.wrong(error))?;
                    model = freeze::apply(&config.train.freeze, model, number + 1);
                    let lens: Vec<usize> = shares.iter().map(ExactSizeIterator::len).collect();
                    epoch = Some(Epoch {
                        progress: Progress::start(number + 1, config.train.epochs, lens.len(), 0),
                        meter: Meter::start(self.devices),
                        batches: feed.batches(number, shares.into_iter().flatten().collect()),
                        shares: lens.into_iter(),
                        number: number + 1,
                        sums: Sums::default(),
                    });
                }
                Message::Step => {
                    let loaded = tensors::load_weights(model, &body);
                    model = loaded.map_err(|error| self.wrong(error))?;
                    let step = epoch.as_mut().and_then(|epoch| epoch.step(&crew, &model));
                    let part = match step {
                        Some(part) => part?,
                        None => return Err(self.wrong("a step of no epoch".into())),
                    };
                    if let Err(error) = self.send(&Message::Part, &part) {
                        return Ok(End::Gone(error));
                    }
                }
                Message::Done { over: true } => return Ok(End::Joined(Joined::Over)),
                Message::Done { over: false } => return Ok(End::Joined(Joined::Stopped)),
                other => return Err(self.unexpected(&other)),
            }
        }
    }

    /// The next message; none if the user wants to stop before it comes.
    fn next(&mut self) -> io::Result<Option<(Message, Vec<u8>)>> {
        self.stream.set_read_timeout(Some(TICK))?;
        loop {
            if self.asked.interrupt.load(Ordering::Relaxed) {
                return Ok(None);
            }
            match self.stream.peek(&mut [0]) {
                Ok(_) => break,
                Err(error) if is_wait(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.set_read_timeout(None)?;
        wire::receive(&mut self.stream).map(Some)
    }

    fn send(&mut self, message: &Message, body: &[u8]) -> io::Result<()> {
        wire::send(&mut self.stream, message, body)
    }

    fn unexpected(&self, message: &Message) -> FitError {
        match message {
            Message::Refused { reason } => MachinesError::Refused {
                address: self.asked.address.into(),
                reason: reason.clone(),
            }
            .into(),
            other => self.wrong(format!("unexpected message {other:?}")),
        }
    }

    fn wrong(&self, message: String) -> FitError {
        let peer = format!("the run at {}", self.asked.address);
        MachinesError::Protocol { peer, message }.into()
    }
}

impl Epoch<'_> {
    /// The next share of a step, as the run wants to hear it; none if there is no share left.
    fn step(&mut self, crew: &Crew<'_>, model: &NumClip) -> Option<Result<Vec<u8>, FitError>> {
        let count = self.shares.next()?;
        Some(self.compute(count, crew, model))
    }

    fn compute(
        &mut self,
        count: usize,
        crew: &Crew<'_>,
        model: &NumClip,
    ) -> Result<Vec<u8>, FitError> {
        let mut pass = crew.begin();
        let batches = self.batches.few(count, &mut self.meter, &self.progress);
        crew.work(&mut pass, model, batches)?;
        self.meter.add(pass.labels.len());
        self.sums.add(pass.loss(), &pass.values, &pass.labels);
        self.progress
            .advance(&self.sums, &self.meter.speed(self.number));
        if self.shares.len() == 0 {
            self.progress.close(&self.meter.speed(self.number));
        }
        tensors::part(model, pass.into_part()).map_err(FitError::Estimator)
    }
}

fn is_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
