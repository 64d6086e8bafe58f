//! The hub: every answer to every sink.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::queue::{Next, Queue};
use super::{Answer, Backlog, Sink, SinkError};
use crate::status::SinkStatus;

/// Answers that a sink may be behind.
const CAPACITY: usize = 256;
/// How often sinks are flushed.
const FLUSH: Duration = Duration::from_secs(1);

/// Hears of what happens to the sinks, on their threads.
pub type Tell = Arc<dyn Fn(String) + Send + Sync>;

/// Hands answers to any number of sinks.
pub struct Hub {
    lanes: Vec<Lane>,
}

/// One sink as the hub sees it.
struct Lane {
    name: String,
    patient: bool,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What a sink's thread shares with the hub.
struct Shared {
    queue: Queue<Arc<Answer>>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    taken: u64,
    failed: u64,
    backlog: Backlog,
    put: Option<String>,
    flush: Option<String>,
    closed: bool,
}

impl Hub {
    /// Starts a thread for each of `sinks`, which come with their names. Where
    /// the source can wait, `patient` has it wait for those that keep all.
    pub fn start(sinks: Vec<(String, Box<dyn Sink>)>, patient: bool, tell: &Tell) -> Self {
        let lane = |(name, sink): (String, Box<dyn Sink>)| Lane::start(name, sink, patient, tell);
        Self {
            lanes: sinks.into_iter().map(lane).collect(),
        }
    }

    /// Hands `answer` on.
    pub fn put(&self, answer: Answer) {
        let answer = Arc::new(answer);
        for lane in &self.lanes {
            lane.shared.queue.push(Arc::clone(&answer), lane.patient);
        }
    }

    /// How each sink is doing.
    pub fn status(&self) -> Vec<SinkStatus> {
        self.lanes.iter().map(Lane::status).collect()
    }

    /// Takes no more answers; those that wait are still dealt with.
    pub fn close(&self) {
        for lane in &self.lanes {
            lane.shared.queue.close();
        }
    }

    /// Whether every sink has ended.
    pub fn is_finished(&self) -> bool {
        self.lanes.iter().all(|lane| lane.thread.is_finished())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close();
    }
}

impl Lane {
    fn start(name: String, sink: Box<dyn Sink>, patient: bool, tell: &Tell) -> Self {
        let shared = Arc::new(Shared {
            queue: Queue::new(CAPACITY),
            tally: Mutex::default(),
        });
        let patient = patient && sink.keeps_all();
        let thread = {
            let (shared, name, tell) = (Arc::clone(&shared), name.clone(), Arc::clone(tell));
            thread::spawn(move || {
                let told = |change: &str| tell(format!("{name}: {change}"));
                shared.serve(sink, &told);
            })
        };
        Self {
            name,
            patient,
            shared,
            thread,
        }
    }

    fn status(&self) -> SinkStatus {
        let tally = self.shared.tally();
        let queue = &self.shared.queue;
        SinkStatus {
            name: self.name.clone(),
            taken: tally.taken,
            failed: tally.failed,
            dropped: queue.dropped() + tally.backlog.dropped,
            waiting: queue.len() as u64 + tally.backlog.waiting,
            fault: tally.fault().cloned(),
            closed: tally.closed || self.thread.is_finished(),
        }
    }
}

impl Shared {
    /// The thread of a sink.
    fn serve(&self, mut sink: Box<dyn Sink>, tell: &dyn Fn(&str)) {
        let mut due = Instant::now() + FLUSH;
        loop {
            let next = self.queue.pop(due);
            let ended = matches!(next, Next::End);
            if let Next::Item(answer) = next {
                let result = sink.put(&answer);
                self.note(tell, |tally| tally.count(result));
            }
            if ended || Instant::now() >= due {
                due = Instant::now() + FLUSH;
                let result = sink.flush();
                self.note(tell, |tally| tally.flushed(result));
            }
            let mut tally = self.tally();
            tally.backlog = sink.backlog();
            if ended || tally.closed {
                break;
            }
        }
        self.queue.close();
    }

    /// Changes the tally, and tells when trouble comes or goes.
    fn note(&self, tell: &dyn Fn(&str), change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally();
        let before = tally.fault().cloned();
        change(&mut tally);
        let after = tally.fault().cloned();
        drop(tally);
        match (before, after) {
            (None, Some(fault)) => tell(&fault),
            (Some(_), None) => tell("works again"),
            _ => {}
        }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tally {
    fn count(&mut self, result: Result<(), SinkError>) {
        match &result {
            Ok(()) => self.taken += 1,
            Err(_) => self.failed += 1,
        }
        self.closed |= matches!(result, Err(SinkError::Closed));
        self.put = fault_of(result);
    }

    fn flushed(&mut self, result: Result<(), SinkError>) {
        self.closed |= matches!(result, Err(SinkError::Closed));
        self.flush = fault_of(result);
    }

    fn fault(&self) -> Option<&String> {
        self.put.as_ref().or(self.flush.as_ref())
    }
}

/// Nobody is told of a reader that left: that was its choice.
fn fault_of(result: Result<(), SinkError>) -> Option<String> {
    match result {
        Ok(()) | Err(SinkError::Closed) => None,
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread;

    use super::super::samples::answer;
    use super::*;

    /// Says what it was given, once the gate lets it.
    struct Fake {
        gate: Arc<Mutex<()>>,
        seen: Sender<u64>,
        fault: Option<u64>,
        keeps_all: bool,
    }

    impl Sink for Fake {
        fn put(&mut self, answer: &Answer) -> Result<(), SinkError> {
            drop(self.gate.lock().unwrap());
            let frame = answer.reading.frame;
            if self.fault == Some(frame) {
                return Err(SinkError::Away("gone".into()));
            }
            self.seen.send(frame).map_err(|_| SinkError::Closed)
        }

        fn keeps_all(&self) -> bool {
            self.keeps_all
        }
    }

    fn fake(gate: &Arc<Mutex<()>>) -> (Fake, Receiver<u64>) {
        let (seen, frames) = channel();
        let gate = Arc::clone(gate);
        let fake = Fake {
            gate,
            seen,
            fault: None,
            keeps_all: false,
        };
        (fake, frames)
    }

    fn named(sinks: Vec<Fake>) -> Vec<(String, Box<dyn Sink>)> {
        let boxed = |(index, sink): (usize, Fake)| -> (String, Box<dyn Sink>) {
            (index.to_string(), Box::new(sink))
        };
        sinks.into_iter().enumerate().map(boxed).collect()
    }

    fn finish(hub: &Hub) -> Vec<SinkStatus> {
        hub.close();
        while !hub.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        hub.status()
    }

    #[test]
    fn a_sink_that_hangs_holds_nobody_up_and_loses_the_oldest() {
        let (gate, open) = (Arc::default(), Arc::default());
        let (stuck, late) = fake(&gate);
        let (quick, frames) = fake(&open);
        let hub = Hub::start(named(vec![stuck, quick]), true, &(Arc::new(|_| ()) as Tell));
        let shut = gate.lock().unwrap();
        for frame in 0..1000 {
            hub.put(answer(frame, 1.0));
            assert_eq!(frames.recv(), Ok(frame));
        }
        let stuck = &hub.status()[0];
        assert_eq!(stuck.dropped + stuck.waiting + 1, 1000);
        drop(shut);
        let status = finish(&hub);
        assert_eq!((status[1].taken, status[1].dropped), (1000, 0));
        assert_eq!(status[0].taken + status[0].dropped, 1000);
        assert_eq!(late.iter().last(), Some(999));
    }

    #[test]
    fn a_source_that_can_wait_loses_nothing() {
        let (mut slow, frames) = fake(&Arc::default());
        slow.keeps_all = true;
        let hub = Hub::start(named(vec![slow]), true, &(Arc::new(|_| ()) as Tell));
        let all = CAPACITY as u64 * 20;
        (0..all).for_each(|frame| hub.put(answer(frame, 1.0)));
        assert_eq!(finish(&hub)[0].taken, all);
        assert_eq!(
            frames.iter().collect::<Vec<_>>(),
            (0..all).collect::<Vec<_>>()
        );
    }

    #[test]
    fn trouble_is_told_when_it_comes_and_when_it_goes() {
        let (mut faulty, frames) = fake(&Arc::default());
        faulty.fault = Some(1);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell: Tell = {
            let told = Arc::clone(&told);
            Arc::new(move |change| told.lock().unwrap().push(change))
        };
        let hub = Hub::start(named(vec![faulty]), false, &tell);
        (0..4).for_each(|frame| hub.put(answer(frame, 1.0)));
        let status = finish(&hub);
        assert_eq!((status[0].taken, status[0].failed), (3, 1));
        assert_eq!(*told.lock().unwrap(), ["0: gone", "0: works again"]);
        assert_eq!(frames.iter().collect::<Vec<_>>(), [0, 2, 3]);
    }

    #[test]
    fn a_sink_without_readers_ends() {
        let (left, frames) = fake(&Arc::default());
        drop(frames);
        let hub = Hub::start(named(vec![left]), true, &(Arc::new(|_| ()) as Tell));
        hub.put(answer(0, 1.0));
        while !hub.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(hub.status()[0].closed);
    }
}
