//! The power cut at every step of an update, and the device looked at.
//!
//! Each step of an update (by a whole package, by a cartridge), a first
//! installation and a rollback is cut on a
//! [`SimulatedDisk`]; of the changes that were not certain then, every subset
//! survives if there are few, else all, none, all but one, only one, and a
//! draw of subsets with torn writes. Every time the store must serve a whole
//! bundle, the old or the new one, and the same update must still succeed.

use std::io::{self, Cursor, Read};

use super::disk::Disk;
use super::install::{Need, Source, install, rollback};
use super::simulated::{Fate, Lie, SimulatedDisk};
use super::store::{StoreError, intact, state};
use crate::bundle::{BINS, GOLDEN, MANIFEST, sha256};
use crate::package::{Entry, Header, Index, Required, packed};

/// Fewest changes for which subsets are drawn rather than all tried.
const MANY: usize = 6;
/// Subsets drawn for a cut, with torn writes.
const DRAWN: usize = 12;
/// Name of a sample's encoder.
const ENCODER: &str = "encoder.onnx";
/// Sequences of three cuts that begin at each step.
const TRIPLES: usize = 4;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Steps that were cut, over all scenarios.
    pub steps: usize,
    /// Media after a cut: one for every subset of changes.
    pub cuts: usize,
    /// Sequences of three cuts.
    pub triples: usize,
    /// Media that served the old bundle (or, at first, none).
    pub old: usize,
    /// Media that served the new one.
    pub new: usize,
    /// Media that served nothing whole, and updates that could not be
    /// finished, in words.
    pub bricked: Vec<String>,
}

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    First,
    Update,
    Cartridge,
    Rollback,
}

impl Action {
    const ALL: [Self; 4] = [Self::First, Self::Update, Self::Cartridge, Self::Rollback];
}

/// An action, and the medium on which it can begin.
struct Scenario {
    action: Action,
    samples: [Sample; 2],
    /// What serves before and after.
    ends: [Option<String>; 2],
    disk: SimulatedDisk,
    steps: usize,
}

/// Cuts every step of every scenario. The same seed gives the same cuts; with
/// a [`Lie`] the medium does not do what the store relies on.
pub fn torture(seed: u64, lie: Option<Lie>) -> Report {
    let mut report = Report::default();
    let mut draw = Draw(seed);
    for action in Action::ALL {
        let scenario = Scenario::new(action, lie);
        for step in 0..scenario.steps {
            report.cut_once(&scenario, step, &mut draw);
            for _ in 0..TRIPLES {
                report.cut_thrice(&scenario, step, &mut draw);
            }
        }
        report.steps += scenario.steps;
    }
    report
}

/// Two packages with a file in common, as an update of a real device has: the
/// older first.
pub fn samples() -> [Sample; 2] {
    [Sample::new("1.0.0", 2), Sample::new("1.1.0", 3)]
}

/// A made-up package in memory.
#[derive(Clone, Debug)]
pub struct Sample {
    header: Header,
    blobs: Vec<Vec<u8>>,
}

impl Report {
    fn cut_once(&mut self, scenario: &Scenario, step: usize, draw: &mut Draw) {
        let mut cut = scenario.disk.clone();
        scenario.run_cut(&mut cut, step);
        for fates in all_fates(cut.pending(), draw) {
            self.cuts += 1;
            let powered = cut.powered_again(|change| fates[change]);
            let judged = self.serves(scenario, &powered);
            let judged = judged.and_then(|()| scenario.finished(powered));
            self.note(judged, || {
                format!("{:?}, cut at step {step}", scenario.action)
            });
        }
    }

    /// Three cuts in a row, now and then the process alone dying.
    fn cut_thrice(&mut self, scenario: &Scenario, step: usize, draw: &mut Draw) {
        self.triples += 1;
        let mut disk = scenario.disk.clone();
        let steps = [step, draw.below(scenario.steps), draw.below(scenario.steps)];
        let mut judged = Ok(());
        for step in steps {
            scenario.run_cut(&mut disk, step);
            disk = match draw.below(4) {
                0 => disk.restarted(),
                _ => disk.powered_again(|_| draw.fate()),
            };
            judged = judged.and_then(|()| self.serves(scenario, &disk));
        }
        let judged = judged.and_then(|()| scenario.finished(disk));
        self.note(judged, || {
            format!("{:?}, cut at steps {steps:?}", scenario.action)
        });
    }

    fn note(&mut self, judged: Result<(), StoreError>, place: impl Fn() -> String) {
        if let Err(fault) = judged {
            self.bricked.push(format!("{}: {fault}", place()));
        }
    }

    fn serves(&mut self, scenario: &Scenario, disk: &SimulatedDisk) -> Result<(), StoreError> {
        let serving = state(disk)?.serving;
        if let Some(digest) = &serving {
            intact(disk, digest)?;
        }
        let [old, new] = &scenario.ends;
        match serving {
            serving if serving == *new => self.new += 1,
            serving if serving == *old => self.old += 1,
            _ => return Err(StoreError::State("neither the old nor the new".into())),
        }
        Ok(())
    }
}

impl Scenario {
    fn new(action: Action, lie: Option<Lie>) -> Self {
        let mut samples = samples();
        if action == Action::Cartridge {
            samples[1] = Sample::cartridge();
        }
        let [old, new] = samples.clone().map(|sample| Some(sample.digest()));
        let ends = match action {
            Action::First => [None, old],
            Action::Update | Action::Cartridge => [old, new],
            Action::Rollback => [new, old],
        };
        let mut scenario = Self {
            action,
            samples,
            ends,
            disk: SimulatedDisk::default(),
            steps: 0,
        };
        scenario.prepare();
        scenario.disk.lie(lie);
        let mut whole = scenario.disk.clone();
        scenario
            .run(&mut whole)
            .expect("a medium in memory takes what fits");
        scenario.steps = whole.steps();
        scenario
    }

    /// Installs what serves before; all of it is certain.
    fn prepare(&mut self) {
        let [old, new] = self.samples.clone();
        let installed = match self.action {
            Action::First => vec![],
            // The update is to remove what served long ago.
            Action::Cartridge => vec![old],
            Action::Update => vec![Sample::new("0.8.0", 8), Sample::new("0.9.0", 9), old],
            Action::Rollback => vec![old, new],
        };
        for sample in installed {
            sample
                .install(&mut self.disk)
                .expect("a medium in memory takes what fits");
        }
        self.disk = self.disk.powered_again(|_| Fate::Kept);
    }

    fn run(&self, disk: &mut SimulatedDisk) -> Result<(), StoreError> {
        let [old, new] = &self.samples;
        match self.action {
            Action::First => old.install(disk),
            Action::Update | Action::Cartridge => new.install(disk),
            Action::Rollback => rollback(disk, &mut |_| Ok(())).map(drop),
        }
    }

    fn run_cut(&self, disk: &mut SimulatedDisk, step: usize) {
        disk.cut_at(step);
        // It fails, unless earlier cuts left it less to do than that.
        let _ = self.run(disk);
    }

    /// Whether the action still succeeds. A torn file on its way costs one
    /// attempt, as it does on a device.
    fn finished(&self, mut disk: SimulatedDisk) -> Result<(), StoreError> {
        let new = &self.ends[1];
        for attempt in 0..4 {
            if state(&disk)?.serving == *new {
                break;
            }
            match self.run(&mut disk) {
                Err(StoreError::Package(_)) if attempt < 3 => {}
                result => result?,
            }
        }
        match state(&disk)?.serving {
            Some(digest) if Some(&digest) == new.as_ref() => intact(&disk, &digest),
            _ => Err(StoreError::State("the new bundle does not serve".into())),
        }
    }
}

impl Sample {
    fn new(version: &str, seed: u64) -> Self {
        // The bins are the same in every version.
        Self::made(version, 1, seed, false)
    }

    /// A task for the encoder of the older sample, without it.
    fn cartridge() -> Self {
        Self::made("1.2.0", 4, 2, true)
    }

    fn made(version: &str, bins: u64, encoder: u64, is_cartridge: bool) -> Self {
        let mut contents = vec![
            (BINS, noise(bins, 60)),
            (ENCODER, noise(encoder, 130)),
            (GOLDEN, noise(encoder + bins + 100, 40)),
        ];
        let mut manifest =
            format!("[model]\nname = \"sample\"\nversion = \"{version}\"\n\n[files]\n");
        for (name, bytes) in &contents {
            manifest += &format!("\"{name}\" = \"{}\"\n", sha256(bytes));
        }
        contents.insert(1, (MANIFEST, manifest.into_bytes()));
        let left_out = contents.extract_if(.., |(name, _)| is_cartridge && *name == ENCODER);
        let requires = left_out.map(|(name, bytes)| Required {
            name: name.into(),
            size: bytes.len() as u64,
            sha256: sha256(&bytes),
        });
        let requires = requires.collect();
        let parts = contents.iter().map(|(name, bytes)| packed(name, bytes));
        let (files, blobs) = parts.unzip();
        let (name, version) = ("sample".into(), version.into());
        let header = Header::new(Index {
            name,
            version,
            files,
            requires,
            shadow: None,
        });
        Self {
            header: header.expect("the sample keeps the rules"),
            blobs,
        }
    }

    /// SHA-256 of its bundle.
    pub fn digest(&self) -> String {
        self.header.index().bundle_sha256().into()
    }

    /// Installs it on `disk`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn install(&self, disk: &mut dyn Disk) -> Result<(), StoreError> {
        let mut blobs = Blobs(&self.blobs);
        install(disk, &self.header, &mut blobs, true, &mut |_| Ok(())).map(drop)
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut draw = Draw(seed);
    (0..length).map(|_| draw.next() as u8).collect()
}

struct Blobs<'a>(&'a [Vec<u8>]);

impl Source for Blobs<'_> {
    fn announce(&mut self, _: &[Need]) -> io::Result<()> {
        Ok(())
    }

    fn blob(&mut self, need: Need, _: &Entry) -> io::Result<Box<dyn Read + '_>> {
        let mut blob = Cursor::new(&self.0[need.position]);
        blob.set_position(need.offset);
        Ok(Box::new(blob))
    }
}

/// Fates for `count` changes: every subset, or a choice of them.
fn all_fates(count: usize, draw: &mut Draw) -> Vec<Vec<Fate>> {
    let chosen = |kept: &dyn Fn(usize) -> bool| -> Vec<Fate> {
        let fate = |change| match kept(change) {
            true => Fate::Kept,
            false => Fate::Lost,
        };
        (0..count).map(fate).collect()
    };
    let mut all: Vec<Vec<Fate>> = if count < MANY {
        let subsets = 0..1_usize << count;
        subsets
            .map(|subset| chosen(&|change| subset >> change & 1 == 1))
            .collect()
    } else {
        let mut some = vec![chosen(&|_| true), chosen(&|_| false)];
        some.extend((0..count).map(|one| chosen(&|change| change == one)));
        some.extend((0..count).map(|one| chosen(&|change| change != one)));
        some
    };
    all.extend((0..DRAWN).map(|_| (0..count).map(|_| draw.fate()).collect()));
    all
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn fate(&mut self) -> Fate {
        match self.below(8) {
            0..=2 => Fate::Kept,
            3..=5 => Fate::Lost,
            6 => Fate::Torn(self.next() as u8),
            _ => Fate::Zeroed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cut_at_any_step_bricks_a_device() {
        let report = torture(1, None);
        assert_eq!(report.bricked, Vec::<String>::new(), "{report:?}");
        assert!(
            report.steps > 60 && report.old > 0 && report.new > 0,
            "{report:?}"
        );
    }

    #[test]
    fn a_medium_that_does_not_sync_is_found_out() {
        for lie in [Lie::Files, Lie::Folders] {
            assert!(!torture(1, Some(lie)).bricked.is_empty(), "{lie:?}");
        }
    }

    #[test]
    fn every_sync_ahead_of_the_switch_is_needed() {
        let mut draw = Draw(1);
        let needed = |step: usize, draw: &mut Draw| {
            let scenario = Scenario::new(Action::First, Some(Lie::Step(step)));
            let mut report = Report::default();
            for cut in step..scenario.steps {
                report.cut_once(&scenario, cut, draw);
            }
            !report.bricked.is_empty()
        };
        let steps = Scenario::new(Action::First, None).steps;
        let needed: Vec<usize> = (0..steps).filter(|&step| needed(step, &mut draw)).collect();
        // Four files, their folder, the folder of slots, the store; then the
        // file that says what serves.
        let seal: Vec<usize> = (needed[0]..needed[0] + 7).collect();
        assert_eq!(needed[..7], seal);
        assert_eq!(needed.len(), 8);
    }
}
