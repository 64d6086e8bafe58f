//! An update, from the first byte to the switch.

use std::io::{self, Read};

use semver::Version;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::store::{
    NEXT, SLOTS, STAGING, StoreError, at, intact, listing, remove, state, switch, write_file,
};
use crate::bundle::{State, sha256, slot};
use crate::package::{Entry, Header, Index, Required};

/// Room that is left on the medium, in bytes: names and folders take some.
const MARGIN: u64 = 64 << 10;

/// A file that the store does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Position of the file in the package.
    pub position: usize,
    /// Bytes of its blob that are there already, from an earlier attempt.
    pub offset: u64,
}

/// Where the missing files come from.
pub trait Source {
    /// Hears which files are missing, before they are asked for in that order.
    ///
    /// # Errors
    /// When nobody can be told.
    fn announce(&mut self, needs: &[Need]) -> io::Result<()>;

    /// The blob of a missing file from its offset to its end.
    ///
    /// # Errors
    /// When it cannot be had.
    fn blob(&mut self, need: Need, entry: &Entry) -> io::Result<Box<dyn Read + '_>>;
}

/// How an update ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The bundle serves; what served until now is in `before`.
    Installed {
        /// The state before the switch.
        before: State,
    },
    /// It served already and every byte of it is right.
    AlreadyThere,
}

/// Installs the bundle of a package whose header is trusted.
///
/// `check` is to prove the bundle in a slot, whose SHA-256 it gets, before it
/// serves. Interrupted anywhere it can be called again and goes on. Files that
/// another slot has are linked or copied, the others come from `source`.
///
/// # Errors
/// [`StoreError`]; the store then serves what it did before.
pub fn install(
    disk: &mut dyn Disk,
    header: &Header,
    source: &mut dyn Source,
    allow_downgrade: bool,
    check: &mut dyn FnMut(&str) -> Result<(), StoreError>,
) -> Result<Outcome, StoreError> {
    let before = settled_state(disk)?;
    let digest = header.index().bundle_sha256();
    if !allow_downgrade {
        refuse_downgrade(disk, &before, header)?;
    }
    clear(disk, &before, Some(header))?;
    if before.serving.as_deref() == Some(digest) && intact(disk, digest).is_ok() {
        return Ok(Outcome::AlreadyThere);
    }
    make_folders(disk, digest)?;
    let needs = gather(disk, header, &before)?;
    refuse_overflow(disk, header, &needs)?;
    source.announce(&needs).map_err(at("package"))?;
    for need in needs {
        fetch(disk, header, need, source)?;
    }
    if let Err(failure) = seal(disk, digest) {
        // What was not written may read well until the power goes: the next
        // attempt is not to rely on it.
        if ![&before.serving, &before.previous].contains(&&Some(digest.into())) {
            let _ = remove_slot(disk, &slot(digest));
        }
        return Err(failure);
    }
    intact(disk, digest)?;
    refuse_other_model(disk, header)?;
    check(digest)?;
    switch(disk, &after(&before, digest))?;
    Ok(Outcome::Installed { before })
}

/// Lets the bundle serve that did before, after `check` has proved it.
///
/// # Errors
/// [`StoreError`]; the store then serves what it did before.
pub fn rollback(
    disk: &mut dyn Disk,
    check: &mut dyn FnMut(&str) -> Result<(), StoreError>,
) -> Result<State, StoreError> {
    let before = settled_state(disk)?;
    let digest = before.previous.as_deref().ok_or(StoreError::NoPrevious)?;
    intact(disk, digest)?;
    check(digest)?;
    let after = after(&before, digest);
    switch(disk, &after)?;
    Ok(after)
}

/// Restores an earlier state: the way back when a new model proves bad.
///
/// # Errors
/// [`StoreError`].
pub(super) fn restore(disk: &mut dyn Disk, before: &State) -> Result<(), StoreError> {
    switch(disk, before)
}

/// Removes everything but the bundle that serves and the one before it:
/// slots, files on their way. Says what was removed.
///
/// # Errors
/// [`StoreError`].
pub fn prune(disk: &mut dyn Disk) -> Result<Vec<String>, StoreError> {
    let state = settled_state(disk)?;
    clear(disk, &state, None)
}

/// The state, after the medium has it for certain: what it does not name is
/// free to go.
fn settled_state(disk: &mut dyn Disk) -> Result<State, StoreError> {
    disk.sync_folder("").map_err(at(""))?;
    state(disk)
}

fn after(before: &State, digest: &str) -> State {
    let serving = before.serving.as_deref();
    State {
        serving: Some(digest.into()),
        previous: match serving == Some(digest) {
            true => before.previous.clone(),
            false => before.serving.clone(),
        },
    }
}

/// A bundle that can no longer be read sets no limit: it is to be replaced.
fn refuse_downgrade(disk: &dyn Disk, state: &State, header: &Header) -> Result<(), StoreError> {
    let serving = state.serving.as_deref();
    let Some(Ok(installed)) = serving.map(|digest| listing(disk, digest)) else {
        return Ok(());
    };
    let (installed, offered) = (installed.model, header.index());
    let versions = [&installed.version, &offered.version].map(|text| Version::parse(text).ok());
    match versions {
        [Some(old), Some(new)] if installed.name == offered.name && new < old => {
            Err(StoreError::Downgrade {
                name: installed.name,
                installed: installed.version,
                offered: offered.version.clone(),
            })
        }
        _ => Ok(()),
    }
}

/// What the index says, on which the downgrade was judged, is what the bundle is.
fn refuse_other_model(disk: &dyn Disk, header: &Header) -> Result<(), StoreError> {
    let (index, digest) = (header.index(), header.index().bundle_sha256());
    let model = listing(disk, digest)?.model;
    match (&index.name, &index.version) == (&model.name, &model.version) {
        true => Ok(()),
        false => Err(StoreError::Damaged {
            bundle: format!("{} {}", index.name, index.version),
            message: format!("its manifest says {} {}", model.name, model.version),
        }),
    }
}

fn refuse_overflow(disk: &dyn Disk, header: &Header, needs: &[Need]) -> Result<(), StoreError> {
    let files = &header.index().files;
    let entries = || needs.iter().map(|need| (need, &files[need.position]));
    let whole: u64 = entries().map(|(_, entry)| entry.size).sum();
    let staged = entries().map(|(need, entry)| entry.packed_size.saturating_sub(need.offset));
    let needed = whole + staged.max().unwrap_or(0) + MARGIN;
    match disk.free().map_err(at(""))? {
        free if free < needed => Err(StoreError::Space { needed, free }),
        _ => Ok(()),
    }
}

/// Removes slots that `state` does not name, but for the slot and the files on
/// their way of the package `coming`.
fn clear(
    disk: &mut dyn Disk,
    state: &State,
    coming: Option<&Header>,
) -> Result<Vec<String>, StoreError> {
    let mut removed = Vec::new();
    if disk.len(NEXT).map_err(at(NEXT))?.is_some() {
        remove(disk, NEXT)?;
    }
    let coming_digest = coming.map(|header| header.index().bundle_sha256());
    let kept = [
        state.serving.as_deref(),
        state.previous.as_deref(),
        coming_digest,
    ];
    for name in disk.list(SLOTS).map_err(at(SLOTS))? {
        if !kept.contains(&Some(name.as_str())) {
            remove_slot(disk, &slot(&name))?;
            removed.push(slot(&name));
        }
    }
    let awaited = |name: &String| {
        let mut files = coming.iter().flat_map(|header| &header.index().files);
        files.any(|entry| entry.packed_sha256 == *name)
    };
    for name in disk.list(STAGING).map_err(at(STAGING))? {
        if !awaited(&name) {
            let path = format!("{STAGING}/{name}");
            remove(disk, &path)?;
            removed.push(path);
        }
    }
    Ok(removed)
}

fn remove_slot(disk: &mut dyn Disk, path: &str) -> Result<(), StoreError> {
    for name in disk.list(path).map_err(at(path))? {
        remove(disk, &format!("{path}/{name}"))?;
    }
    disk.remove_folder(path).map_err(at(path))
}

fn make_folders(disk: &mut dyn Disk, digest: &str) -> Result<(), StoreError> {
    for path in [SLOTS, STAGING, &slot(digest)] {
        if disk.len(path).map_err(at(path))?.is_none() {
            disk.create_folder(path).map_err(at(path))?;
        }
    }
    Ok(())
}

/// Fills the slot with all that the store has; what it has not is returned.
fn gather(disk: &mut dyn Disk, header: &Header, before: &State) -> Result<Vec<Need>, StoreError> {
    let slot = slot(header.index().bundle_sha256());
    let Index {
        files, requires, ..
    } = header.index();
    let required: Vec<File> = requires.iter().map(File::from).collect();
    let carried: Vec<File> = files.iter().map(File::from).collect();
    for name in disk.list(&slot).map_err(at(&slot))? {
        if !required
            .iter()
            .chain(&carried)
            .any(|file| file.name == name)
        {
            remove(disk, &format!("{slot}/{name}"))?;
        }
    }
    for file in required {
        let path = format!("{slot}/{}", file.name);
        if !holds(disk, &path, file) && !adopt(disk, &path, file, before)? {
            return Err(StoreError::Missing {
                name: file.name.into(),
                sha256: file.sha256.into(),
            });
        }
    }
    let mut needs = Vec::new();
    for (position, (entry, file)) in files.iter().zip(carried).enumerate() {
        let path = format!("{slot}/{}", file.name);
        if !holds(disk, &path, file) && !adopt(disk, &path, file, before)? {
            remove(disk, &path)?;
            let offset = staged(disk, entry)?;
            needs.push(Need { position, offset });
        }
    }
    Ok(needs)
}

/// A file as it is to lie in a slot.
#[derive(Clone, Copy)]
struct File<'a> {
    name: &'a str,
    size: u64,
    sha256: &'a str,
}

impl<'a> From<&'a Entry> for File<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            name: &entry.name,
            size: entry.size,
            sha256: &entry.sha256,
        }
    }
}

impl<'a> From<&'a Required> for File<'a> {
    fn from(required: &'a Required) -> Self {
        Self {
            name: &required.name,
            size: required.size,
            sha256: &required.sha256,
        }
    }
}

/// Whether what lies at `path` is the file, byte for byte.
fn holds(disk: &dyn Disk, path: &str, file: File<'_>) -> bool {
    disk.len(path).ok().flatten() == Some(file.size)
        && disk
            .read(path)
            .is_ok_and(|bytes| sha256(&bytes) == file.sha256)
}

/// Takes the file from another slot, where there is one that has it.
fn adopt(
    disk: &mut dyn Disk,
    path: &str,
    file: File<'_>,
    before: &State,
) -> Result<bool, StoreError> {
    for digest in [&before.serving, &before.previous].into_iter().flatten() {
        let donor = format!("{}/{}", slot(digest), file.name);
        if donor == path || !holds(disk, &donor, file) {
            continue;
        }
        remove(disk, path)?;
        if disk.link(&donor, path).is_err() {
            let bytes = disk.read(&donor).map_err(at(&donor))?;
            write_file(disk, path, &bytes)?;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Bytes of the entry's blob that came with an earlier attempt.
fn staged(disk: &mut dyn Disk, entry: &Entry) -> Result<u64, StoreError> {
    let path = staging(entry);
    match disk.len(&path).map_err(at(&path))? {
        Some(length) if length <= entry.packed_size => Ok(length),
        _ => {
            remove(disk, &path)?;
            disk.create(&path).map_err(at(&path))?;
            Ok(0)
        }
    }
}

fn staging(entry: &Entry) -> String {
    format!("{STAGING}/{}", entry.packed_sha256)
}

/// Receives one file and unpacks it into the slot.
fn fetch(
    disk: &mut dyn Disk,
    header: &Header,
    need: Need,
    source: &mut dyn Source,
) -> Result<(), StoreError> {
    let entry = &header.index().files[need.position];
    let staging = staging(entry);
    let expected = entry.packed_size - need.offset;
    let blob = source.blob(need, entry).map_err(at("package"))?;
    if receive(disk, &staging, &mut blob.take(expected))? < expected {
        return Err(StoreError::Cut {
            name: entry.name.clone(),
        });
    }
    let packed = disk.read(&staging).map_err(at(&staging))?;
    let bytes = match entry.unpacked(&packed) {
        Ok(bytes) => bytes,
        // What an earlier attempt left may be torn: the next starts afresh.
        Err(error) => {
            remove(disk, &staging)?;
            return Err(error.into());
        }
    };
    let path = format!("{}/{}", slot(header.index().bundle_sha256()), entry.name);
    write_file(disk, &path, &bytes)?;
    remove(disk, &staging)
}

/// Adds what comes to the file at `path`; returns how many bytes came.
fn receive(disk: &mut dyn Disk, path: &str, reader: &mut dyn Read) -> Result<u64, StoreError> {
    let mut buffer = vec![0; disk.chunk()];
    let mut received = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(received),
            Ok(length) => {
                disk.append(path, &buffer[..length]).map_err(at(path))?;
                received += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(at("package")(error)),
        }
    }
}

/// Waits until the medium has the slot: its files, their names, its name.
fn seal(disk: &mut dyn Disk, digest: &str) -> Result<(), StoreError> {
    let slot = slot(digest);
    for name in disk.list(&slot).map_err(at(&slot))? {
        let path = format!("{slot}/{name}");
        disk.sync(&path).map_err(at(&path))?;
    }
    for folder in [&slot, SLOTS, ""] {
        disk.sync_folder(folder).map_err(at(folder))?;
    }
    Ok(())
}
