//! The power cut at every step of an update, and the device looked at.
//!
//! Each step of an update, a first installation and a rollback is cut on a
//! [`SimulatedDisk`]; of the changes that were not certain then, every subset
//! survives if there are few, else all, none, all but one, only one, and a
//! draw of subsets with torn writes. Every time the store must serve a whole
//! bundle, the old or the new one, and the same update must still succeed.

use std::io::{self, Cursor, Read};

use super::disk::Disk;
use super::install::{Need, Source, install, rollback};
use super::simulated::{Fate, Lie, SimulatedDisk};
use super::store::{StoreError, intact, state};
use crate::bundle::{MANIFEST, sha256};
use crate::package::{Entry, Header, Index, packed};

/// Fewest changes for which subsets are drawn rather than all tried.
const MANY: usize = 6;
/// Subsets drawn for a cut, with torn writes.
const DRAWN: usize = 12;
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
    Rollback,
}

/// Cuts every step of every scenario. The same seed gives the same cuts; with
/// a [`Lie`] the medium does not do what the store relies on.
pub fn torture(seed: u64, lie: Option<Lie>) -> Report {
    let mut report = Report::default();
    let mut draw = Draw(seed);
    for action in [Action::First, Action::Update, Action::Rollback] {
        let mut disk = action.prepared();
        disk.lie(lie);
        let steps = action.steps(&disk);
        for step in 0..steps {
            let mut cut = disk.clone();
            action.run_cut(&mut cut, step);
            for fates in all_fates(cut.pending(), &mut draw) {
                let powered = cut.powered_again(|change| fates[change]);
                let place = format!("{action:?}, cut at step {step} of {steps}");
                report.judge(action, powered, &place);
            }
            for _ in 0..TRIPLES {
                report.triple(action, &disk, step, steps, &mut draw);
            }
        }
        report.steps += steps;
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
    fn judge(&mut self, action: Action, disk: SimulatedDisk, place: &str) {
        self.cuts += 1;
        if let Err(fault) = self.serves(action, &disk) {
            self.bricked.push(format!("{place}: {fault}"));
        } else if let Err(fault) = action.finished(disk) {
            self.bricked.push(format!("{place}, tried again: {fault}"));
        }
    }

    /// Three cuts in a row, now and then the process alone dying.
    fn triple(
        &mut self,
        action: Action,
        disk: &SimulatedDisk,
        step: usize,
        steps: usize,
        draw: &mut Draw,
    ) {
        self.triples += 1;
        let mut disk = disk.clone();
        let mut place = format!("{action:?}, cut at steps");
        for step in [step, draw.below(steps), draw.below(steps)] {
            place += &format!(" {step}");
            action.run_cut(&mut disk, step);
            disk = match draw.below(4) {
                0 => disk.restarted(),
                _ => disk.powered_again(|_| draw.fate()),
            };
            if let Err(fault) = self.serves(action, &disk) {
                return self.bricked.push(format!("{place}: {fault}"));
            }
        }
        if let Err(fault) = action.finished(disk) {
            self.bricked.push(format!("{place}, tried again: {fault}"));
        }
    }

    fn serves(&mut self, action: Action, disk: &SimulatedDisk) -> Result<(), StoreError> {
        let serving = state(disk)?.serving;
        if let Some(digest) = &serving {
            intact(disk, digest)?;
        }
        let [old, new] = action.ends();
        match serving {
            serving if serving == new => self.new += 1,
            serving if serving == old => self.old += 1,
            _ => return Err(StoreError::State("neither the old nor the new".into())),
        }
        Ok(())
    }
}

impl Action {
    /// What serves before and after.
    fn ends(self) -> [Option<String>; 2] {
        let [old, new] = samples().map(|sample| Some(sample.digest()));
        match self {
            Self::First => [None, old],
            Self::Update => [old, new],
            Self::Rollback => [new, old],
        }
    }

    /// A medium on which the action can begin, all of it certain.
    fn prepared(self) -> SimulatedDisk {
        let mut disk = SimulatedDisk::default();
        let [old, new] = samples();
        // What served long ago: the update is to remove it.
        let installed = match self {
            Self::First => vec![],
            Self::Update => vec![Sample::new("0.8.0", 8), Sample::new("0.9.0", 9), old],
            Self::Rollback => vec![old, new],
        };
        for sample in installed {
            sample
                .install(&mut disk)
                .expect("a medium in memory takes what fits");
        }
        disk.powered_again(|_| Fate::Kept)
    }

    fn steps(self, disk: &SimulatedDisk) -> usize {
        let mut disk = disk.clone();
        self.run(&mut disk)
            .expect("a medium in memory takes what fits");
        disk.steps()
    }

    fn run(self, disk: &mut SimulatedDisk) -> Result<(), StoreError> {
        let [old, new] = samples();
        match self {
            Self::First => old.install(disk),
            Self::Update => new.install(disk),
            Self::Rollback => rollback(disk, &mut |_| Ok(())).map(drop),
        }
    }

    fn run_cut(self, disk: &mut SimulatedDisk, step: usize) {
        disk.cut_at(step);
        // It fails, unless three cuts left it less to do than that.
        let _ = self.run(disk);
    }

    /// Whether the action still succeeds. A torn file on its way costs one
    /// attempt, as it does on a device.
    fn finished(self, mut disk: SimulatedDisk) -> Result<(), StoreError> {
        let [_, new] = self.ends();
        for attempt in 0..4 {
            if state(&disk)?.serving == new {
                break;
            }
            match self.run(&mut disk) {
                Err(StoreError::Package(_)) if attempt < 3 => {}
                result => result?,
            }
        }
        let state = state(&disk)?;
        match &state.serving {
            serving if *serving == new => intact(&disk, serving.as_deref().unwrap_or_default()),
            _ => Err(StoreError::State("the new bundle does not serve".into())),
        }
    }
}

impl Sample {
    fn new(version: &str, seed: u64) -> Self {
        let noise = |seed: u64, length: usize| -> Vec<u8> {
            let mut draw = Draw(seed);
            (0..length).map(|_| draw.next() as u8).collect()
        };
        let mut contents = vec![
            // The same in every version.
            ("bins.safetensors", noise(1, 60)),
            ("encoder.onnx", noise(seed, 130)),
            ("golden.safetensors", noise(seed + 100, 40)),
        ];
        let mut manifest =
            format!("[model]\nname = \"sample\"\nversion = \"{version}\"\n\n[files]\n");
        for (name, bytes) in &contents {
            manifest += &format!("\"{name}\" = \"{}\"\n", sha256(bytes));
        }
        contents.insert(1, (MANIFEST, manifest.into_bytes()));
        let parts = contents.iter().map(|(name, bytes)| packed(name, bytes));
        let (files, blobs) = parts.unzip();
        let (name, version) = ("sample".into(), version.into());
        let header = Header::new(Index {
            name,
            version,
            files,
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
}
