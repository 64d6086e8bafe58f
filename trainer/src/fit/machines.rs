//! Several machines at work on one step: each computes some of its batches.
//!
//! ```text
//! trainer fit --listen          trainer join            trainer join
//!   model, optimiser,   Epoch, Step: weights  →   its share of the batches,
//!   files of the run    ←  Part: gradients        computed by its own devices
//! ```
//!
//! The machine that was told to `fit` alone holds what a run is: optimiser, averages, measurements,
//! checkpoints. The others hold the data and hear the weights of every step, so one may come at any
//! time, and what one leaves undone is computed by the first.
//!
//! The connections are plain TCP, without passwords: they are for a network of trusted machines.

mod join;
mod link;
pub(super) mod tensors;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use super::FitError;
use super::gradients::Pass;
use super::run::Provenance;
use crate::model::numclip::NumClip;
use link::Link;

pub use join::{FILES, Join, Joined, join};

/// How often a wait looks whether the user wants to stop.
const TICK: Duration = Duration::from_millis(100);

/// Where `fit` waits for other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Such as `0.0.0.0:29500`.
    pub address: String,
    /// Machines to wait for before the first step, this one among them.
    pub machines: usize,
}

/// What those who join work on.
pub struct Task {
    /// The resolved task file, as TOML.
    pub config: String,
    /// What it was made from here.
    pub provenance: Provenance,
}

/// Why machines do not work together.
#[derive(Debug, Error)]
pub enum MachinesError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; name an address of this machine and a free port")]
    Listen {
        /// The address.
        address: String,
        /// What happened.
        error: io::Error,
    },
    /// Fewer batches in a step than devices.
    #[error(
        "{devices} devices of {machines} machines share out the batches of a step, but \
         train.accumulate gives it {batches}; set accumulate to a multiple of {devices} \
         (batch_size counts the images of one batch)"
    )]
    Idle {
        /// Machines to wait for.
        machines: usize,
        /// Least number of their devices.
        devices: usize,
        /// Batches in a step.
        batches: usize,
    },
    /// Nothing answers.
    #[error(
        "no run to join at {address}: {error}; start one there with `trainer fit TASK.toml \
         --listen ADDRESS`"
    )]
    Connect {
        /// The address.
        address: String,
        /// What happened last.
        error: io::Error,
    },
    /// The other side does not keep to the protocol.
    #[error("{peer}: {message}")]
    Protocol {
        /// The other side.
        peer: String,
        /// What is wrong.
        message: String,
    },
    /// The run does not want this machine.
    #[error("the run at {address} does not take this machine: {reason}")]
    Refused {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// A key that is the run's alone.
    #[error(
        "--set {0}: a machine that joins keeps to the task of the run; it may set {keys}",
        keys = FILES.join(", ")
    )]
    Key(String),
}

/// The steps of an epoch in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Batches in an epoch.
    pub batches: usize,
    /// Batches in a step; the last one may have fewer.
    pub accumulate: usize,
}

impl Steps {
    /// Their number.
    pub fn count(self) -> usize {
        self.batches.div_ceil(self.accumulate)
    }

    /// Batches of step `step`.
    pub fn of(self, step: usize) -> Range<usize> {
        let end = ((step + 1) * self.accumulate).min(self.batches);
        (step * self.accumulate).min(end)..end
    }
}

/// The other machines of a run.
pub struct Machines {
    /// Devices of this machine.
    devices: usize,
    links: Vec<Helper>,
    /// Who joins and who leaves since the batches were shared out.
    changed: bool,
    door: Option<Door>,
}

/// Another machine.
struct Helper {
    link: Link,
    /// Batches of this step that it was asked for.
    asked: Range<usize>,
}

/// Lets machines in.
struct Door {
    arrivals: Receiver<Link>,
    closed: Arc<AtomicBool>,
    keeper: Option<JoinHandle<()>>,
}

impl Machines {
    /// This one alone, or with those that come to the address to `listen` on.
    ///
    /// # Errors
    /// [`MachinesError`] when there is nothing to listen on, or too little to share out.
    pub fn open(
        listen: Option<&Listen>,
        task: Task,
        (devices, accumulate): (usize, usize),
    ) -> Result<Self, MachinesError> {
        let door = match listen {
            Some(listen) => {
                let least = devices + listen.machines.saturating_sub(1);
                if accumulate < least.max(devices + 1) {
                    return Err(MachinesError::Idle {
                        machines: listen.machines.max(2),
                        devices: least.max(devices + 1),
                        batches: accumulate,
                    });
                }
                Some(Door::open(&listen.address, task)?)
            }
            None => None,
        };
        Ok(Self {
            devices,
            links: Vec::new(),
            changed: true,
            door,
        })
    }

    /// Waits until `machines` are there, this one among them, or the user wants to stop.
    pub fn wait_for(&mut self, machines: usize, interrupt: &AtomicBool) {
        if self.count() < machines {
            eprintln!("waiting for {machines} machines, this one among them");
        }
        while self.count() < machines && !interrupt.load(Ordering::Relaxed) {
            let Some(door) = &self.door else { return };
            match door.arrivals.recv_timeout(TICK) {
                Ok(link) => self.let_in(link),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether machines came or left, so that batches must be shared out anew.
    pub fn changed(&mut self) -> bool {
        while let Some(Ok(link)) = self.door.as_ref().map(|door| door.arrivals.try_recv()) {
            self.let_in(link);
        }
        self.changed
    }

    /// Shares out the batches of an epoch (from 0) from step `first` on, and gives those of this
    /// machine.
    ///
    /// # Errors
    /// [`FitError`] when the model cannot be written down.
    pub fn share_out(
        &mut self,
        model: &NumClip,
        epoch: usize,
        (steps, first): (Steps, usize),
    ) -> Result<Vec<usize>, FitError> {
        let model = match self.links.is_empty() {
            true => Vec::new(),
            false => tensors::whole(model).map_err(unwritten)?,
        };
        loop {
            let rest = (first..steps.count()).map(|step| self.shares(steps.of(step)));
            let shares: Vec<Vec<Range<usize>>> = rest.collect();
            let of = |machine: usize| shares.iter().map(move |step| step[machine].clone());
            let mut machine = 0;
            let there = self.links.len();
            self.links.retain_mut(|helper| {
                machine += 1;
                let batches = of(machine).filter(|share| !share.is_empty()).collect();
                let sent = helper.link.begin_epoch(epoch, batches, &model);
                sent.map_err(|error| lost(&error)).is_ok()
            });
            if self.links.len() == there {
                self.changed = false;
                return Ok(of(0).flatten().collect());
            }
        }
    }

    /// Asks the others for their shares of the `batches` of a step, and gives this machine's.
    ///
    /// # Errors
    /// [`FitError`] when the weights cannot be written down.
    pub fn ask(
        &mut self,
        model: &NumClip,
        batches: Range<usize>,
    ) -> Result<Range<usize>, FitError> {
        let mut shares = self.shares(batches).into_iter();
        let own = shares.next().unwrap_or_default();
        if self.links.is_empty() {
            return Ok(own);
        }
        let weights = tensors::weights(model).map_err(unwritten)?;
        for (helper, share) in self.links.iter_mut().zip(shares) {
            helper.asked = share;
            if !helper.asked.is_empty()
                && let Err(error) = helper.link.step(&weights)
            {
                lost(&error);
                helper.link.close();
            }
        }
        Ok(own)
    }

    /// Adds what the others computed to the step, and gives the batches of those that left.
    pub fn gather(&mut self, pass: &mut Pass<'_>, model: &NumClip) -> Vec<usize> {
        let mut undone = Vec::new();
        self.links.retain_mut(|helper| {
            let share = std::mem::take(&mut helper.asked);
            if share.is_empty() {
                return true;
            }
            let part = helper.link.part().and_then(|bytes| {
                let part = tensors::load_part(model, &bytes, pass.device());
                part.map_err(|message| helper.link.wrong(message))
            });
            match part {
                Ok(part) => pass.add_part(model, part),
                Err(error) => {
                    if helper.link.is_open() {
                        lost(&error);
                    }
                    undone.extend(share);
                    return false;
                }
            }
            true
        });
        self.changed |= !undone.is_empty();
        undone
    }

    /// Tells the others that this was all, or that the run goes on another time.
    pub fn dismiss(mut self, over: bool) {
        for helper in &mut self.links {
            // One that is gone needs no word.
            let _ = helper.link.done(over);
        }
    }

    /// Number of machines, this one among them.
    pub fn count(&self) -> usize {
        1 + self.links.len()
    }

    fn let_in(&mut self, link: Link) {
        eprintln!("joined: {} ({})", link.name(), link.device());
        self.links.push(Helper { link, asked: 0..0 });
        self.changed = true;
    }

    fn shares(&self, batches: Range<usize>) -> Vec<Range<usize>> {
        let others = self.links.iter().map(|helper| helper.link.devices());
        let devices: Vec<usize> = [self.devices].into_iter().chain(others).collect();
        shares(batches, &devices)
    }
}

/// Divides batches among machines by the number of their devices; the first have the larger part.
fn shares(batches: Range<usize>, devices: &[usize]) -> Vec<Range<usize>> {
    let all: usize = devices.iter().sum();
    let mut before = 0;
    let mut start = batches.start;
    let share = |count: &usize| {
        before += count;
        let end = batches.start + (batches.len() * before).div_ceil(all.max(1));
        std::mem::replace(&mut start, end)..end
    };
    devices.iter().map(share).collect()
}

fn lost(error: &MachinesError) {
    eprintln!("warning: lost {error}; its batches are computed here");
}

fn unwritten(message: String) -> FitError {
    FitError::Estimator(format!(
        "the weights cannot be sent to other machines: {message}"
    ))
}

impl Door {
    fn open(address: &str, task: Task) -> Result<Self, MachinesError> {
        let fail = |error| MachinesError::Listen {
            address: address.into(),
            error,
        };
        let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(fail)?.collect();
        let listener = TcpListener::bind(&addresses[..]).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        eprintln!(
            "listening on {address}: `trainer join HOST:{}` lends a machine",
            address.port()
        );
        let (sender, arrivals) = channel();
        let closed = Arc::new(AtomicBool::new(false));
        let keeper = {
            let closed = Arc::clone(&closed);
            thread::spawn(move || keep(&listener, &Arc::new(task), &sender, &closed))
        };
        Ok(Self {
            arrivals,
            closed,
            keeper: Some(keeper),
        })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.take() {
            // It holds nothing that its panic could leave half done.
            let _ = keeper.join();
        }
    }
}

/// Greets whoever comes, each in a thread of its own: preparing data takes some of them minutes.
fn keep(listener: &TcpListener, task: &Arc<Task>, arrivals: &Sender<Link>, closed: &AtomicBool) {
    while !closed.load(Ordering::Relaxed) {
        let Ok((stream, peer)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        let (task, arrivals) = (Arc::clone(task), arrivals.clone());
        thread::spawn(move || match Link::greet(stream, peer, &task) {
            // A run that is over needs nobody.
            Ok(link) => drop(arrivals.send(link)),
            Err(error) => eprintln!("warning: not joined: {error}"),
        });
    }
}

#[cfg(test)]
mod tests;
