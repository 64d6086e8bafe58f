//! Weight files as named tensors, read one by one when they are asked for.
//!
//! ```text
//! safetensors ─┐
//! PyTorch zip ─┼─ index: name → type, shape, place in the file → f32 values
//! PyTorch old ─┘
//! ```
//!
//! Opening a file reads its index alone; nothing in it is ever executed. A tensor is never larger
//! than the file, so what a damaged or hostile file can cost is bounded by its size.

mod index;
mod pickle;
mod torch;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use burn::tensor::{bf16, f16};
pub use pickle::PickleError;
pub use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// A weight file, opened.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    file: RefCell<File>,
    container: Container,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

/// The kinds of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    /// Safetensors.
    Safetensors,
    /// What `torch.save` writes: a zip archive of a pickle and raw values.
    Torch,
    /// What `torch.save` wrote before PyTorch 1.6.
    TorchLegacy,
    /// What `torch.jit.save` writes: OpenAI's own CLIP files are of this kind.
    TorchScript,
}

/// A tensor of the file, not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Type of the values.
    pub dtype: Dtype,
    /// Lengths of the axes, as PyTorch has them.
    pub shape: Vec<usize>,
    /// Values between neighbours along each axis.
    strides: Vec<usize>,
    /// Place of the first value in the file, in bytes.
    start: u64,
}

/// A weight file that cannot be used.
#[derive(Debug, Error)]
#[error("{}: {kind}", path.display())]
pub struct CheckpointError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: CheckpointErrorKind,
}

/// What is wrong with a weight file.
#[derive(Debug, Error)]
pub enum CheckpointErrorKind {
    /// The system cannot read it.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// It is of no kind that is known.
    #[error("not a weight file; expected safetensors or a PyTorch file (.pt, .pth, .bin)")]
    Unknown,
    /// Its index is damaged, or beyond what can be read.
    #[error("not a readable {container} file: {problem}")]
    Index {
        /// The kind of file.
        container: Container,
        /// What is wrong.
        problem: String,
    },
    /// Tensors are not there.
    #[error("missing {}", list(names))]
    Missing {
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors are there that belong to nothing.
    #[error("not part of {what}: {}", list(names))]
    Extra {
        /// What the file should hold.
        what: &'static str,
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor has another shape than the rest of the file calls for.
    #[error("{name} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor does not hold floating-point numbers.
    #[error("{name} is {got:?}, expected f16, bf16, f32 or f64")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        got: Dtype,
    },
    /// A tensor holds NaN or infinity.
    #[error("{name} holds values that are not finite; the file is damaged")]
    NotFinite {
        /// The tensor.
        name: String,
    },
    /// The tensors make no model of the kind asked for.
    #[error("{0}")]
    Model(String),
}

/// The result of reading one file.
pub type Result<T, E = CheckpointErrorKind> = std::result::Result<T, E>;

impl Checkpoint {
    /// Opens a file and reads its index.
    ///
    /// Of a nested PyTorch file (`{"state_dict": {"module.…"}}`) the tensors of the model remain,
    /// without the names of the wrappers around it.
    ///
    /// # Errors
    /// The file cannot be read, is of no known kind, or is damaged.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::index(path).map_err(|kind| CheckpointError {
            path: path.into(),
            kind,
        })
    }

    fn index(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let index = index::read(&mut file)?;
        Ok(Self {
            path: path.into(),
            file: RefCell::new(file),
            container: index.container,
            tensors: index.tensors,
            metadata: index.metadata,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kind of file.
    pub fn container(&self) -> Container {
        self.container
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// The file's own notes (source, licence, …); only safetensors has any.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Adds the file to what went wrong with it.
    pub fn error(&self, kind: CheckpointErrorKind) -> CheckpointError {
        CheckpointError {
            path: self.path.clone(),
            kind,
        }
    }

    /// The values of a tensor, row-major, in single precision.
    ///
    /// # Errors
    /// There is no such tensor, it does not hold floating-point numbers, one is not finite, or the
    /// file cannot be read.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let stored = decode(tensor.dtype, &self.bytes(tensor)?);
        let stored = stored.ok_or_else(|| CheckpointErrorKind::Type {
            name: name.into(),
            got: tensor.dtype,
        })?;
        let values = tensor.gather(stored);
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(CheckpointErrorKind::NotFinite { name: name.into() }),
        }
    }

    /// The stored bytes of a tensor whose values lie one after the other.
    ///
    /// # Errors
    /// There is no such tensor, or the file cannot be read.
    pub fn raw(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.bytes(self.tensor(name)?)?)
    }

    /// SHA-256 of the whole file, in hexadecimal.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(0))?;
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                length => digest.update(&buffer[..length]),
            }
        }
        let digest = digest.finalize();
        Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Name of the file, without its folder, and its SHA-256: what tells it from any other.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn identity(&self) -> Result<(String, String), CheckpointError> {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        let sha256 = self.sha256().map_err(|kind| self.error(kind))?;
        Ok((name.to_string_lossy().into_owned(), sha256))
    }

    fn tensor(&self, name: &str) -> Result<&Tensor> {
        let tensor = self.tensors.get(name);
        tensor.ok_or_else(|| CheckpointErrorKind::Missing {
            names: vec![name.into()],
        })
    }

    fn bytes(&self, tensor: &Tensor) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; tensor.extent() * tensor.dtype.bitsize() / 8];
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(tensor.start))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Tensor {
    /// Number of values.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of values from the first to the last in the file.
    fn extent(&self) -> usize {
        if self.count() == 0 {
            return 0;
        }
        let steps = self.shape.iter().zip(&self.strides);
        steps
            .map(|(length, stride)| (length - 1) * stride)
            .sum::<usize>()
            + 1
    }

    /// Brings values from the order of the file into that of the axes.
    fn gather(&self, stored: Vec<f32>) -> Vec<f32> {
        if self.strides == index::row_major(&self.shape) {
            return stored;
        }
        let mut places = vec![0; self.count().min(1)];
        for (length, stride) in self.shape.iter().zip(&self.strides) {
            let along = |place: &usize| {
                let place = *place;
                (0..*length).map(move |step| place + step * stride)
            };
            places = places.iter().flat_map(along).collect();
        }
        places.into_iter().map(|place| stored[place]).collect()
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Torch => "PyTorch",
            Self::TorchLegacy => "PyTorch (before 1.6)",
            Self::TorchScript => "TorchScript",
        })
    }
}

/// Stored values as f32; none for types that are no floating-point numbers.
fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(bytes: &[u8], value: fn([u8; N]) -> f32) -> Vec<f32> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|chunk| value(*chunk)).collect()
    }
    match dtype {
        Dtype::F16 => Some(each(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Some(each(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::F32 => Some(each(bytes, f32::from_le_bytes)),
        Dtype::F64 => Some(each(bytes, |b| f64::from_le_bytes(b) as f32)),
        _ => None,
    }
}

/// The first few names, and how many more.
fn list(names: &[String]) -> String {
    let shown = names[..names.len().min(4)].join(", ");
    match names.len() {
        0..=4 => shown,
        count => format!("{shown} and {} more", count - 4),
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
