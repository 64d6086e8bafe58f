//! PyTorch's files: a pickle that describes tensors, and the raw values beside it.

use std::collections::BTreeMap;
use std::fs::File;

use rawzip::{CompressionMethod, MAX_CENTRAL_DIRECTORY_RECORD_SIZE, ZipArchive};

use super::index::{Index, MAX_INDEX, read_at, row_major, width};
use super::pickle::{Pickle, Place, Value};
use super::{CheckpointErrorKind, Container, Dtype, Result, Tensor};

/// First value of a file written before PyTorch 1.6.
pub(super) const LEGACY_MAGIC: &[u8] = &[
    0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.',
];
/// Files that an archive may have, and values that its pickle may lead to.
const MAX_ENTRIES: usize = 1_000_000;
/// Names on the way from the root to a tensor.
const MAX_DEPTH: usize = 64;
/// Keys under which training programs keep the model among other things.
const MODEL_KEYS: [&str; 4] = ["state_dict", "model_state_dict", "model", "ema_state_dict"];
/// What wrappers of a model add to its names.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Place of values in the file: first byte and number of bytes.
type Range = (u64, u64);

/// A tensor as the pickle describes it: part of a storage.
struct View {
    storage: String,
    dtype: Dtype,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Reads the index of a zip archive.
pub(super) fn archive(file: &mut File, length: u64) -> Result<Index> {
    let entries = entries(file, length)?;
    let stem = entries
        .keys()
        .find_map(|name| name.strip_suffix("data.pkl"));
    let stem = stem
        .ok_or_else(|| damaged("no data.pkl in the archive"))?
        .to_owned();
    let container = match entries.contains_key(&format!("{stem}constants.pkl")) {
        true => Container::TorchScript,
        false => Container::Torch,
    };
    if let Some(order) = entries.get(&format!("{stem}byteorder"))
        && read_range(file, *order)? != b"little"
    {
        return Err(damaged("values with the highest byte first"));
    }
    let pickle = read_range(file, entries[&format!("{stem}data.pkl")])?;
    let pickle = Pickle::read(&pickle).map_err(|error| damaged(&error.to_string()))?;
    let storage = |key: &str| entries.get(&format!("{stem}data/{key}")).copied();
    index(container, &pickle, storage)
}

/// Reads the index of a file written before PyTorch 1.6: five pickles (magic number, version,
/// system, object, keys of the storages), then each storage with its length ahead.
pub(super) fn legacy(file: &mut File, length: u64) -> Result<Index> {
    let bytes = read_at(file, 0, length.min(MAX_INDEX) as usize)?;
    if !bytes.starts_with(LEGACY_MAGIC) {
        return Err(CheckpointErrorKind::Unknown);
    }
    let mut at = LEGACY_MAGIC.len();
    let mut next = || {
        let pickle = Pickle::read(&bytes[at..]).map_err(|error| damaged(&error.to_string()))?;
        at += pickle.len();
        Ok::<_, CheckpointErrorKind>(pickle)
    };
    let (_version, _system, object, keys) = (next()?, next()?, next()?, next()?);
    let types = storage_types(&object);
    let mut ranges = BTreeMap::new();
    let mut start = at as u64;
    for key in keys.sequence(keys.root()).unwrap_or_default() {
        let key = keys
            .text(*key)
            .ok_or_else(|| damaged("a storage without a name"))?;
        let dtype = types
            .get(key)
            .ok_or_else(|| damaged("a storage that no tensor uses"))?;
        let count = legacy_count(file, start, length)?;
        let size = count.checked_mul(width(*dtype));
        let size = size.filter(|size| length - start - 8 >= *size);
        let size = size.ok_or_else(|| damaged("a storage is cut short"))?;
        ranges.insert(key.to_owned(), (start + 8, size));
        start += 8 + size;
    }
    index(Container::TorchLegacy, &object, |key| {
        ranges.get(key).copied()
    })
}

fn legacy_count(file: &mut File, start: u64, length: u64) -> Result<u64> {
    if length - start < 8 {
        return Err(damaged("a storage is cut short"));
    }
    let bytes = read_at(file, start, 8)?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// Type of every storage that the pickle names.
fn storage_types(pickle: &Pickle) -> BTreeMap<String, Dtype> {
    let storages = pickle.values().filter_map(|value| match value {
        Value::Persistent(id) => storage(pickle, *id),
        _ => None,
    });
    storages.collect()
}

/// All uncompressed files of an archive with their places; of PyTorch's own, all are.
fn entries(file: &File, length: u64) -> Result<BTreeMap<String, Range>> {
    let fail = |error: rawzip::Error| damaged(&error.to_string());
    let mut buffer = vec![0; MAX_CENTRAL_DIRECTORY_RECORD_SIZE];
    let archive = ZipArchive::from_file(file.try_clone()?, &mut buffer).map_err(fail)?;
    let mut entries = BTreeMap::new();
    let mut records = archive.entries(&mut buffer);
    while let Some(record) = records.next_entry().map_err(fail)? {
        if entries.len() == MAX_ENTRIES {
            return Err(damaged("more files in the archive than any checkpoint has"));
        }
        if record.compression_method() != CompressionMethod::STORE {
            continue;
        }
        let name = String::from_utf8_lossy(record.file_path().as_bytes()).into_owned();
        let entry = archive.get_entry(record.wayfinder()).map_err(fail)?;
        let (start, end) = entry.compressed_data_range();
        if start > end || end > length {
            return Err(damaged("a file of the archive is cut short"));
        }
        entries.insert(name, (start, end - start));
    }
    Ok(entries)
}

fn read_range(file: &mut File, (start, length): Range) -> Result<Vec<u8>> {
    match length <= MAX_INDEX {
        true => Ok(read_at(file, start, length as usize)?),
        false => Err(damaged("a pickle of more than 64 MiB")),
    }
}

fn index(
    container: Container,
    pickle: &Pickle,
    storage: impl Fn(&str) -> Option<Range>,
) -> Result<Index> {
    let mut views = BTreeMap::new();
    let mut left = MAX_ENTRIES;
    collect(
        pickle,
        pickle.root(),
        &mut Vec::new(),
        &mut left,
        &mut views,
    )?;
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        let range = storage(&view.storage);
        let range = range.ok_or_else(|| damaged(&format!("the values of {name} are not there")))?;
        let tensor = view.place(range);
        let tensor = tensor.ok_or_else(|| damaged(&format!("{name} reaches past its values")))?;
        tensors.insert(name, tensor);
    }
    Ok(Index {
        container,
        tensors: unwrapped(tensors),
        metadata: BTreeMap::new(),
    })
}

/// Finds the tensors at and below a place.
fn collect<'a>(
    pickle: &'a Pickle,
    place: Place,
    path: &mut Vec<&'a str>,
    left: &mut usize,
    views: &mut BTreeMap<String, View>,
) -> Result<()> {
    *left = left
        .checked_sub(1)
        .ok_or_else(|| damaged("more values than any checkpoint has"))?;
    if path.len() > MAX_DEPTH {
        return Err(damaged("names nested deeper than in any checkpoint"));
    }
    let items = match pickle.get(place) {
        Value::Dict(items) => items,
        Value::Object(object) => {
            if let Some(view) = view(pickle, place)? {
                views.insert(path.join("."), view);
                return Ok(());
            }
            if let Some(state) = object.state {
                collect_state(pickle, state, path, left, views)?;
            }
            &object.items
        }
        _ => return Ok(()),
    };
    for (key, value) in items {
        if let Some(key) = pickle.text(*key) {
            path.push(key);
            collect(pickle, *value, path, left, views)?;
            path.pop();
        }
    }
    Ok(())
}

/// Attributes of an object stand in a dictionary; anything else holds no tensors.
fn collect_state<'a>(
    pickle: &'a Pickle,
    state: Place,
    path: &mut Vec<&'a str>,
    left: &mut usize,
    views: &mut BTreeMap<String, View>,
) -> Result<()> {
    match pickle.get(state) {
        Value::Dict(_) => collect(pickle, state, path, left, views),
        _ => Ok(()),
    }
}

/// The tensor that a call would have made, if it is one of PyTorch's that do.
fn view(pickle: &Pickle, place: Place) -> Result<Option<View>> {
    let Value::Object(object) = pickle.get(place) else {
        return Ok(None);
    };
    let arguments = pickle.sequence(object.arguments).unwrap_or_default();
    match (pickle.global(object.callable), arguments) {
        (Some("torch._utils._rebuild_parameter"), [data, ..]) if *data != place => {
            match pickle.get(*data) {
                Value::Object(inner) if inner.callable != object.callable => view(pickle, *data),
                _ => Ok(None),
            }
        }
        (Some("torch._utils._rebuild_tensor_v2"), [source, offset, shape, strides, ..]) => {
            let view = || {
                let Value::Persistent(id) = pickle.get(*source) else {
                    return None;
                };
                let (storage, dtype) = storage(pickle, *id)?;
                Some(View {
                    storage,
                    dtype,
                    offset: usize::try_from(pickle.int(*offset)?).ok()?,
                    shape: sizes(pickle, *shape)?,
                    strides: sizes(pickle, *strides)?,
                })
            };
            let view = view().ok_or_else(|| damaged("a tensor of an unknown form"))?;
            Ok(Some(view))
        }
        _ => Ok(None),
    }
}

/// Name and type of the storage with the persistent id `("storage", type, name, …)`.
fn storage(pickle: &Pickle, id: Place) -> Option<(String, Dtype)> {
    let [kind, class, name, ..] = pickle.sequence(id)? else {
        return None;
    };
    let class = pickle.global(*class)?.strip_prefix("torch.")?;
    let dtype = match class.strip_suffix("Storage")? {
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Float" => Dtype::F32,
        "Double" => Dtype::F64,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::BOOL,
        _ => return None,
    };
    (pickle.text(*kind)? == "storage").then_some((pickle.text(*name)?.to_owned(), dtype))
}

fn sizes(pickle: &Pickle, place: Place) -> Option<Vec<usize>> {
    let places = pickle.sequence(place)?.iter();
    places
        .map(|size| usize::try_from(pickle.int(*size)?).ok())
        .collect()
}

impl View {
    /// The tensor's place in the file, if its storage at `range` holds all of it.
    fn place(self, (start, length): Range) -> Option<Tensor> {
        let width = width(self.dtype);
        let stored = length / width;
        if self.shape.len() != self.strides.len() {
            return None;
        }
        let count = self
            .shape
            .iter()
            .try_fold(1u64, |n, size| n.checked_mul(*size as u64))?;
        let mut end = self.offset as u64;
        for (size, stride) in self.shape.iter().zip(&self.strides) {
            let reach = (*size as u64)
                .saturating_sub(1)
                .checked_mul(*stride as u64)?;
            end = end.checked_add(reach)?;
        }
        // A value that stands for many (stride 0) would make a tensor larger than its file.
        let fits = count == 0 || (count <= stored && end < stored);
        let strides = match count {
            0 => row_major(&self.shape),
            _ => self.strides,
        };
        fits.then(|| Tensor {
            dtype: self.dtype,
            shape: self.shape,
            strides,
            start: start + self.offset as u64 * width * u64::from(count > 0),
        })
    }
}

/// The tensors of the model alone, by its own names.
fn unwrapped(mut tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    for key in MODEL_KEYS {
        let prefix = format!("{key}.");
        if tensors.keys().any(|name| name.starts_with(&prefix)) {
            tensors.retain(|name, _| name.starts_with(&prefix));
            tensors = stripped(tensors, &prefix);
            break;
        }
    }
    while let Some(prefix) = WRAPPERS
        .iter()
        .find(|prefix| !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(**prefix)))
    {
        tensors = stripped(tensors, prefix);
    }
    tensors
}

fn stripped(tensors: BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let strip = |(name, tensor): (String, Tensor)| (name[prefix.len()..].to_owned(), tensor);
    tensors.into_iter().map(strip).collect()
}

fn damaged(problem: &str) -> CheckpointErrorKind {
    CheckpointErrorKind::Index {
        container: Container::Torch,
        problem: problem.into(),
    }
}
