//! A medium in memory whose power can be cut.
//!
//! It keeps for every file and folder what the medium has for certain and
//! what was done since the last sync. A cut lets any part of the latter
//! survive, each change for itself and in any order, and a write in part:
//! POSIX promises nothing more.

use std::collections::BTreeMap;
use std::io;

use super::disk::Disk;

/// What becomes of a change that was not synced when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The medium has it.
    Kept,
    /// It is lost.
    Lost,
    /// A write: the share of its bytes (of 256) that the medium has.
    Torn(u8),
    /// A write: the file has its length, but zeros for its bytes.
    Zeroed,
}

/// A medium in memory.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    nodes: Vec<Node>,
    steps: usize,
    cut: Option<usize>,
    free: u64,
    lie: Option<Lie>,
}

/// Syncs that a medium says it did and did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Those of files.
    Files,
    /// Those of folders.
    Folders,
    /// The one at this step, counted from 0.
    Step(usize),
}

#[derive(Clone, Debug)]
enum Node {
    File {
        certain: Vec<u8>,
        pending: Vec<Write>,
        seen: Vec<u8>,
    },
    Folder {
        certain: Names,
        pending: Vec<Change>,
        seen: Names,
    },
}

type Names = BTreeMap<String, usize>;

#[derive(Clone, Debug)]
struct Write {
    at: usize,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Change {
    Set(String, usize),
    Remove(String),
    Move(String, String, usize),
}

impl Default for SimulatedDisk {
    fn default() -> Self {
        Self {
            nodes: vec![Node::folder(Names::new())],
            steps: 0,
            cut: None,
            free: 1 << 30,
            lie: None,
        }
    }
}

impl SimulatedDisk {
    /// Steps taken: calls that change or sync something.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Cuts the power during step `step`, the next one being 0. All calls
    /// fail from then on.
    pub fn cut_at(&mut self, step: usize) {
        self.cut = Some(self.steps + step);
    }

    /// Sets how many bytes can be written at most.
    pub fn set_free(&mut self, bytes: u64) {
        self.free = bytes;
    }

    /// From now on some syncs do nothing.
    pub fn lie(&mut self, lie: Option<Lie>) {
        self.lie = lie;
    }

    /// Number of changes that are not certain yet.
    pub fn pending(&self) -> usize {
        self.nodes.iter().map(Node::pending).sum()
    }

    /// The medium after the cut, powered again: `fate` decides on every change
    /// that was not certain, in order.
    pub fn powered_again(&self, mut fate: impl FnMut(usize) -> Fate) -> Self {
        let mut count = 0;
        let mut next = || {
            count += 1;
            fate(count - 1)
        };
        Self {
            nodes: self
                .nodes
                .iter()
                .map(|node| node.after(&mut next))
                .collect(),
            steps: 0,
            cut: None,
            free: self.free,
            lie: self.lie,
        }
    }

    /// The same, the process alone having died: all changes stand, and none
    /// is any more certain.
    pub fn restarted(&self) -> Self {
        Self {
            cut: None,
            steps: 0,
            ..self.clone()
        }
    }

    fn step(&mut self) -> io::Result<Power> {
        let now = self.steps;
        self.steps += 1;
        match self.cut {
            Some(cut) if now > cut => Err(off()),
            Some(cut) if now == cut => Ok(Power::Failing),
            _ => Ok(Power::On),
        }
    }

    fn find(&self, path: &str) -> io::Result<usize> {
        let parts = path.split('/').filter(|part| !part.is_empty());
        let mut at = 0;
        for part in parts {
            at = *self.names(at)?.get(part).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn names(&self, node: usize) -> io::Result<&Names> {
        match &self.nodes[node] {
            Node::Folder { seen, .. } => Ok(seen),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// The folder that holds `path`, and the name in it.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(usize, &'a str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(folder)?, name))
    }

    fn change(&mut self, folder: usize, change: Change) -> io::Result<()> {
        let power = self.step()?;
        if let Node::Folder { pending, seen, .. } = &mut self.nodes[folder] {
            change.apply(seen);
            pending.push(change);
        }
        power.held()
    }

    fn settle(&mut self, path: &str, unless: Lie) -> io::Result<()> {
        let node = self.find(path)?;
        let step = self.steps;
        self.step()?.held()?;
        if self.lie != Some(unless) && self.lie != Some(Lie::Step(step)) {
            self.nodes[node].settle();
        }
        Ok(())
    }

    fn add(&mut self, path: &str, node: Node) -> io::Result<()> {
        let (folder, name) = self.parent(path)?;
        if self.names(folder)?.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        self.change(folder, Change::Set(name.into(), self.nodes.len() - 1))
    }
}

impl Disk for SimulatedDisk {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        match &self.nodes[self.find(path)?] {
            Node::File { seen, .. } => Ok(seen.clone()),
            Node::Folder { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        match self.find(path) {
            Ok(node) => Ok(self.names(node)?.keys().cloned().collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn len(&self, path: &str) -> io::Result<Option<u64>> {
        match self.find(path) {
            Ok(node) => Ok(Some(match &self.nodes[node] {
                Node::File { seen, .. } => seen.len() as u64,
                Node::Folder { .. } => 0,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn free(&self) -> io::Result<u64> {
        Ok(self.free)
    }

    fn chunk(&self) -> usize {
        48
    }

    fn create(&mut self, path: &str) -> io::Result<()> {
        self.add(path, Node::file(Vec::new()))
    }

    fn append(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let node = self.find(path)?;
        let power = self.step()?;
        if bytes.len() as u64 > self.free {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.free -= bytes.len() as u64;
        if let Node::File { pending, seen, .. } = &mut self.nodes[node] {
            pending.push(Write {
                at: seen.len(),
                bytes: bytes.into(),
            });
            seen.extend(bytes);
        }
        power.held()
    }

    fn allow_execution(&mut self, path: &str) -> io::Result<()> {
        self.find(path)?;
        self.step()?.held()
    }

    fn sync(&mut self, path: &str) -> io::Result<()> {
        self.settle(path, Lie::Files)
    }

    fn sync_folder(&mut self, path: &str) -> io::Result<()> {
        self.settle(path, Lie::Folders)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let node = self.find(from)?;
        let ((folder, from), (other, to)) = (self.parent(from)?, self.parent(to)?);
        if folder != other {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.change(folder, Change::Move(from.into(), to.into(), node))
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        let node = self.find(from)?;
        let (folder, name) = self.parent(to)?;
        if self.names(folder)?.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(folder, Change::Set(name.into(), node))
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.find(path)?;
        let (folder, name) = self.parent(path)?;
        self.change(folder, Change::Remove(name.into()))
    }

    fn create_folder(&mut self, path: &str) -> io::Result<()> {
        self.add(path, Node::folder(Names::new()))
    }

    fn remove_folder(&mut self, path: &str) -> io::Result<()> {
        let node = self.find(path)?;
        if !self.names(node)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.remove(path)
    }
}

enum Power {
    On,
    Failing,
}

impl Power {
    fn held(self) -> io::Result<()> {
        match self {
            Self::On => Ok(()),
            Self::Failing => Err(off()),
        }
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl Node {
    fn file(bytes: Vec<u8>) -> Self {
        Self::File {
            certain: bytes.clone(),
            pending: Vec::new(),
            seen: bytes,
        }
    }

    fn folder(names: Names) -> Self {
        Self::Folder {
            certain: names.clone(),
            pending: Vec::new(),
            seen: names,
        }
    }

    fn pending(&self) -> usize {
        match self {
            Self::File { pending, .. } => pending.len(),
            Self::Folder { pending, .. } => pending.len(),
        }
    }

    fn settle(&mut self) {
        *self = match self {
            Self::File { seen, .. } => Self::file(std::mem::take(seen)),
            Self::Folder { seen, .. } => Self::folder(std::mem::take(seen)),
        };
    }

    fn after(&self, fate: &mut impl FnMut() -> Fate) -> Self {
        match self {
            Self::File {
                certain, pending, ..
            } => {
                let mut bytes = certain.clone();
                for write in pending {
                    write.apply(&mut bytes, fate());
                }
                Self::file(bytes)
            }
            Self::Folder {
                certain, pending, ..
            } => {
                let mut names = certain.clone();
                for change in pending {
                    // A name is changed or it is not; nothing lies between.
                    if fate() != Fate::Lost {
                        change.apply(&mut names);
                    }
                }
                Self::folder(names)
            }
        }
    }
}

impl Write {
    fn apply(&self, file: &mut Vec<u8>, fate: Fate) {
        let length = self.bytes.len();
        let kept = match fate {
            Fate::Kept | Fate::Zeroed => length,
            Fate::Lost => return,
            Fate::Torn(share) => length * usize::from(share) / 256,
        };
        let end = self.at + kept;
        if file.len() < end {
            file.resize(end, 0);
        }
        if fate != Fate::Zeroed {
            file[self.at..end].copy_from_slice(&self.bytes[..kept]);
        }
    }
}

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Set(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Move(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}
