//! Media that report errors: at one call, or at every call from one on.

use std::cell::Cell;
use std::io;

use numclip::flash::torture::samples;
use numclip::flash::{Disk, Fate, SimulatedDisk, intact, state};

/// A medium of which some calls fail, counted from 0.
struct Failing {
    disk: SimulatedDisk,
    calls: Cell<usize>,
    fails: fn(call: usize, at: usize) -> bool,
    at: usize,
    /// The call that failed first.
    first: Cell<Option<&'static str>>,
}

impl Failing {
    fn new(disk: SimulatedDisk, fails: fn(usize, usize) -> bool, at: usize) -> Self {
        Self {
            disk,
            calls: Cell::new(0),
            fails,
            at,
            first: Cell::new(None),
        }
    }

    fn call(&self, name: &'static str) -> io::Result<()> {
        let call = self.calls.get();
        self.calls.set(call + 1);
        match (self.fails)(call, self.at) {
            false => Ok(()),
            true => {
                self.first.set(self.first.get().or(Some(name)));
                Err(io::Error::other("input/output error"))
            }
        }
    }
}

impl Disk for Failing {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.call("read")?;
        self.disk.read(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.call("list")?;
        self.disk.list(path)
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        self.call("len")?;
        self.disk.len(path)
    }

    fn free(&self) -> io::Result<u64> {
        self.call("free")?;
        self.disk.free()
    }

    fn chunk(&self) -> usize {
        self.disk.chunk()
    }

    fn create(&mut self, path: &str) -> io::Result<()> {
        self.call("create")?;
        self.disk.create(path)
    }

    fn append(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.call("append")?;
        self.disk.append(path, bytes)
    }

    fn allow_execution(&mut self, path: &str) -> io::Result<()> {
        self.call("allow_execution")?;
        self.disk.allow_execution(path)
    }

    fn sync(&mut self, path: &str) -> io::Result<()> {
        self.call("sync")?;
        self.disk.sync(path)
    }

    fn sync_folder(&mut self, path: &str) -> io::Result<()> {
        self.call("sync_folder")?;
        self.disk.sync_folder(path)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.call("rename")?;
        self.disk.rename(from, to)
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.call("link")?;
        self.disk.link(from, to)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.call("remove")?;
        self.disk.remove(path)
    }

    fn create_folder(&mut self, path: &str) -> io::Result<()> {
        self.call("create_folder")?;
        self.disk.create_folder(path)
    }

    fn remove_folder(&mut self, path: &str) -> io::Result<()> {
        self.call("remove_folder")?;
        self.disk.remove_folder(path)
    }
}

/// Whether one of the bundles serves, whole.
fn serves_one_of(disk: &SimulatedDisk, digests: &[String; 2]) -> bool {
    let serving = state(disk).unwrap().serving.unwrap();
    digests.contains(&serving) && intact(disk, &serving).is_ok()
}

#[test]
fn a_medium_that_fails_at_any_call_serves_the_old_model_or_the_new() {
    let [old, new] = samples();
    let serving = |disk: &SimulatedDisk| state(disk).unwrap().serving.unwrap();
    let mut before = SimulatedDisk::default();
    old.install(&mut before).unwrap();
    let before = before.powered_again(|_| Fate::Kept);
    let mut after = Failing::new(before.clone(), |_, _| false, 0);
    new.install(&mut after).unwrap();
    let (calls, digests) = (after.calls.get(), [serving(&before), serving(&after.disk)]);
    assert!(calls > 60, "{calls} calls");
    for fails in [|call, at| call == at, |call, at| call >= at] as [fn(usize, usize) -> bool; 2] {
        for at in 0..calls {
            let mut failing = Failing::new(before.clone(), fails, at);
            // Some calls can fail and be done without: a link, a file's digest.
            let outcome = new.install(&mut failing);
            let disk = failing.disk;
            if outcome.is_ok() {
                assert_eq!(serving(&disk), digests[1], "call {at}");
            }
            let cut = disk.powered_again(|_| Fate::Lost);
            for mut medium in [disk, cut] {
                assert!(serves_one_of(&medium, &digests), "call {at}");
                new.install(&mut medium).unwrap();
                assert_eq!(serving(&medium), digests[1], "call {at}");
            }
        }
    }
}

#[test]
fn what_a_medium_did_not_sync_is_written_again() {
    let [old, new] = samples();
    let mut before = SimulatedDisk::default();
    old.install(&mut before).unwrap();
    let mut unsynced = 0;
    for at in 0.. {
        let mut failing = Failing::new(before.clone(), |call, at| call == at, at);
        let outcome = new.install(&mut failing);
        if failing.first.get().is_none() {
            break;
        }
        let of_slot = matches!(&outcome, Err(error) if error.to_string().starts_with("slots/"));
        if failing.first.get() == Some("sync") && of_slot {
            // Linux takes a page that it failed to write for written.
            assert_eq!(failing.disk.list("slots").unwrap().len(), 1, "call {at}");
            unsynced += 1;
        }
    }
    assert!(unsynced > 0, "no file of the slot failed to be synced");
}
