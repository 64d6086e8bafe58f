//! The hub: every answer to every sink.

use std::sync::atomic::{AtomicU64, Ordering};
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
/// A sink that is at one estimate for longer is in trouble.
const LONG: Duration = Duration::from_secs(10);
/// How often the end of a sink is looked for.
const NAP: Duration = Duration::from_millis(2);

/// Hears of what happens to the sinks, on their threads.
pub type Tell = Arc<dyn Fn(String) + Send + Sync>;

/// Hands answers to any number of sinks, which may come and go.
pub struct Hub {
    patient: bool,
    tell: Tell,
    /// How many sinks there have been.
    count: AtomicU64,
    /// A list is never changed, only replaced: nobody waits for a lock while a
    /// sink is waited for.
    lanes: Mutex<Lanes>,
}

type Lanes = Arc<Vec<Arc<Lane>>>;

/// One sink as the hub sees it.
struct Lane {
    number: u64,
    name: String,
    patient: bool,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What a sink's thread shares with the hub.
struct Shared {
    queue: Queue<Answer>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    taken: u64,
    failed: u64,
    backlog: Backlog,
    /// Since when it has been at one answer.
    busy: Option<Instant>,
    put: Option<String>,
    flush: Option<String>,
    closed: bool,
}

impl Hub {
    /// A hub without sinks; `tell` hears of their troubles. Where the source
    /// can wait, `patient` has it wait for those that keep all.
    pub fn new(patient: bool, tell: Tell) -> Self {
        Self {
            patient,
            tell,
            count: AtomicU64::new(0),
            lanes: Mutex::default(),
        }
    }

    /// Starts a thread for `sink`; gives the number by which it can be
    /// [removed](Self::remove). A name that another sink has gets a number too.
    pub fn add(&self, name: String, sink: Box<dyn Sink>) -> u64 {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let mut lanes = self.lock();
        let name = unlike(&lanes, name);
        let lane = Lane::start(number, name, sink, self.patient, &self.tell);
        *lanes = Arc::new(lanes.iter().cloned().chain([Arc::new(lane)]).collect());
        number
    }

    /// Gives sink `number` no more answers, and waits until it has dealt with
    /// those it has, but no longer than `limit`.
    pub fn remove(&self, number: u64, limit: Duration) {
        let left: Vec<Arc<Lane>> = {
            let mut lanes = self.lock();
            let (left, kept) = lanes
                .iter()
                .cloned()
                .partition(|lane| lane.number == number);
            *lanes = Arc::new(kept);
            left
        };
        let deadline = Instant::now() + limit;
        for lane in left {
            lane.shared.queue.close();
            while !lane.thread.is_finished() && Instant::now() < deadline {
                thread::sleep(NAP);
            }
        }
    }

    /// Hands `answer` on.
    pub fn put(&self, answer: Answer) {
        for lane in self.lanes().iter() {
            lane.shared.queue.push(answer.clone(), lane.patient);
        }
    }

    /// How each sink is doing.
    pub fn status(&self) -> Vec<SinkStatus> {
        self.lanes().iter().map(|lane| lane.status()).collect()
    }

    /// Takes no more answers; those that wait are still dealt with.
    pub fn close(&self) {
        for lane in self.lanes().iter() {
            lane.shared.queue.close();
        }
    }

    /// Whether every sink has ended.
    pub fn is_finished(&self) -> bool {
        self.lanes().iter().all(|lane| lane.thread.is_finished())
    }

    fn lanes(&self) -> Lanes {
        Arc::clone(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close();
    }
}

/// `name`, or `name #2` and so on where there is a sink of that name.
fn unlike(lanes: &[Arc<Lane>], name: String) -> String {
    let is_free = |name: &String| lanes.iter().all(|lane| lane.name != *name);
    let others = (2..).map(|number| format!("{name} #{number}"));
    let mut names = std::iter::once(name.clone()).chain(others);
    names.find(is_free).unwrap_or(name)
}

impl Lane {
    fn start(number: u64, name: String, sink: Box<dyn Sink>, patient: bool, tell: &Tell) -> Self {
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
            number,
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
            fault: tally.fault().cloned().or_else(|| tally.hangs()),
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
                self.tally().busy = Some(Instant::now());
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
        self.busy = None;
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

    fn hangs(&self) -> Option<String> {
        let busy = self.busy?.elapsed();
        (busy > LONG).then(|| format!("has been at one estimate for {} s", busy.as_secs()))
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

    fn quiet() -> Tell {
        Arc::new(|_| ())
    }

    /// A patient hub with `sinks`, named by their position.
    fn hub(sinks: Vec<Fake>, tell: Tell) -> Hub {
        let hub = Hub::new(true, tell);
        for (index, sink) in sinks.into_iter().enumerate() {
            hub.add(index.to_string(), Box::new(sink));
        }
        hub
    }

    fn finish(hub: &Hub) -> Vec<SinkStatus> {
        hub.close();
        while !hub.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        hub.status()
    }

    #[test]
    fn sinks_of_one_name_are_told_apart() {
        let gate = Arc::default();
        let hub = Hub::new(true, quiet());
        for _ in 0..3 {
            hub.add("exec:x".into(), Box::new(fake(&gate).0));
        }
        let names: Vec<String> = finish(&hub).into_iter().map(|sink| sink.name).collect();
        assert_eq!(names, ["exec:x", "exec:x #2", "exec:x #3"]);
    }

    #[test]
    fn a_sink_that_hangs_is_named() {
        let busy_for = |time: Duration| Tally {
            busy: Instant::now().checked_sub(time),
            ..Tally::default()
        };
        assert_eq!(busy_for(LONG / 2).hangs(), None);
        let said = busy_for(LONG + Duration::from_secs(1)).hangs().unwrap();
        assert!(said.contains("11 s"), "{said}");
        let mut tally = busy_for(2 * LONG);
        tally.count(Ok(()));
        assert_eq!(tally.hangs(), None);
    }

    #[test]
    fn a_sink_that_hangs_holds_nobody_up_and_loses_the_oldest() {
        let (gate, open) = (Arc::default(), Arc::default());
        let (stuck, late) = fake(&gate);
        let (quick, frames) = fake(&open);
        let hub = hub(vec![stuck, quick], quiet());
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
        let hub = hub(vec![slow], quiet());
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
        let hub = hub(vec![faulty], tell);
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
        let hub = hub(vec![left], quiet());
        hub.put(answer(0, 1.0));
        while !hub.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(hub.status()[0].closed);
    }

    #[test]
    fn a_sink_that_is_removed_keeps_what_it_was_given() {
        let (gate, open) = (Arc::default(), Arc::default());
        let (leaving, early) = fake(&gate);
        let (staying, all) = fake(&open);
        let hub = hub(vec![leaving, staying], quiet());
        let shut = gate.lock().unwrap();
        (0..5).for_each(|frame| hub.put(answer(frame, 1.0)));
        thread::scope(|scope| {
            let removed = scope.spawn(|| hub.remove(0, Duration::from_secs(20)));
            while hub.status().len() > 1 {
                thread::sleep(Duration::from_millis(1));
            }
            hub.put(answer(5, 1.0));
            drop(shut);
            removed.join().unwrap();
        });
        finish(&hub);
        assert_eq!(early.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(all.iter().count(), 6);
    }
}
