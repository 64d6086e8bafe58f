//! What an image file is and what it looks like, kept beside the table.
//!
//! Hashing and decoding every image costs minutes on a large set, so the
//! result is written to `TABLE.fingerprints` and taken from there while size
//! and time of a file stay the same. Without the right to write, it is
//! computed anew each time.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use numclip::{decode, frame::Frame};
use rayon::prelude::*;
use safetensors::{
    SafeTensors, serialize,
    tensor::{Dtype, TensorView},
};
use sha2::{Digest, Sha256};

use super::{dataset::Dataset, error::DataError};
use crate::file::write_whole;

/// Side of a [`Look`], in pixels.
pub const SIDE: usize = 16;

/// An image in grey, `[SIDE, SIDE]`, row-major; all zero for an image that
/// cannot be decoded.
pub type Look = [u8; SIDE * SIDE];

/// What an image file is and what it looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// SHA-256 of the file.
    pub sha256: [u8; 32],
    /// The image, much reduced.
    pub look: Look,
}

/// A file younger than this is hashed again next time: it may still change
/// within the resolution of its time.
const SETTLED: Duration = Duration::from_secs(2);

/// Fingerprints of all images, in the order of [`Dataset::samples`].
///
/// # Errors
///
/// If an image cannot be read. One that cannot be decoded has a blank look.
pub fn fingerprints(dataset: &Dataset) -> Result<Vec<Fingerprint>, DataError> {
    let path = cache_path(dataset.table());
    let known = read_cache(&path).unwrap_or_default();
    let missing = |name: &str, stamp| known.get(name).is_none_or(|entry| entry.stamp != stamp);
    let stamped: Vec<(&str, &Path, Stamp)> = dataset
        .samples()
        .iter()
        .map(|s| (s.name.as_str(), s.path.as_path(), Stamp::of(&s.path)))
        .collect();
    let todo = stamped.iter().filter(|(n, _, s)| missing(n, *s)).count();
    let bar = progress(todo);
    let entries: Vec<Entry> = stamped
        .par_iter()
        .map(|&(name, path, stamp)| match known.get(name) {
            Some(entry) if entry.stamp == stamp && stamp != Stamp::default() => Ok(entry.clone()),
            _ => {
                let print = compute(path).map_err(|e| DataError::new(path, None, e))?;
                bar.inc(1);
                Ok(Entry { stamp, print })
            }
        })
        .collect::<Result<_, DataError>>()?;
    bar.finish_and_clear();
    if todo > 0 {
        let named = stamped.iter().map(|(name, ..)| *name).zip(&entries);
        // Only speed is lost where this fails.
        let _ = write_cache(&path, named.collect());
    }
    Ok(entries.into_iter().map(|entry| entry.print).collect())
}

/// The image in grey, reduced by the mean of its pixels.
pub fn look(frame: &Frame) -> Look {
    let grey: Vec<u8> = frame
        .pixels()
        .chunks_exact(3)
        .map(|p| ((77 * u32::from(p[0]) + 150 * u32::from(p[1]) + 29 * u32::from(p[2])) >> 8) as u8)
        .collect();
    let side = SIDE as u32;
    let mut small = Image::new(side, side, PixelType::U8);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Box));
    let reduced = ImageRef::new(frame.width(), frame.height(), &grey, PixelType::U8)
        .is_ok_and(|grey| Resizer::new().resize(&grey, &mut small, &options).is_ok());
    let mut look = [0; SIDE * SIDE];
    if reduced {
        look.copy_from_slice(small.buffer());
    }
    look
}

fn compute(path: &Path) -> io::Result<Fingerprint> {
    let bytes = fs::read(path)?;
    let frame = decode::from_bytes(&bytes, "");
    Ok(Fingerprint {
        sha256: Sha256::digest(&bytes).into(),
        look: frame.map_or([0; SIDE * SIDE], |frame| look(&frame)),
    })
}

fn progress(images: usize) -> ProgressBar {
    let target = match io::stderr().is_terminal() && images > 500 {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(images as u64), target);
    if let Ok(style) =
        ProgressStyle::with_template("looking at images {bar:30} {pos}/{len} ({eta} left)")
    {
        bar.set_style(style);
    }
    bar
}

/// By what a file is known to be unchanged; zero if that is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    nanoseconds: u64,
}

#[derive(Clone)]
struct Entry {
    stamp: Stamp,
    print: Fingerprint,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let stamp = || -> Option<Self> {
            let metadata = fs::metadata(path).ok()?;
            let modified = metadata.modified().ok()?;
            let settled = SystemTime::now().duration_since(modified).ok()? > SETTLED;
            let age = modified.duration_since(UNIX_EPOCH).ok()?;
            settled.then_some(Self {
                bytes: metadata.len(),
                nanoseconds: u64::try_from(age.as_nanos()).ok()?,
            })
        };
        stamp().unwrap_or_default()
    }
}

fn cache_path(table: &Path) -> PathBuf {
    let mut name = OsString::from(table);
    name.push(".fingerprints");
    name.into()
}

const NAMES: &str = "names";
const STAMPS: &str = "stamps";
const SHA256: &str = "sha256";
const LOOKS: &str = "looks";

/// Safetensors: names, one in a line; per image size and time (u64 each), its
/// digest and its look.
fn write_cache(path: &Path, entries: Vec<(&str, &Entry)>) -> io::Result<()> {
    let rows = entries.len();
    let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
    let names = names.join("\n").into_bytes();
    let of = |part: &dyn Fn(&Entry) -> Vec<u8>| -> Vec<u8> {
        entries.iter().flat_map(|(_, entry)| part(entry)).collect()
    };
    let stamps = of(&|e| {
        [
            e.stamp.bytes.to_le_bytes(),
            e.stamp.nanoseconds.to_le_bytes(),
        ]
        .concat()
    });
    let hashes = of(&|e| e.print.sha256.to_vec());
    let looks = of(&|e| e.print.look.to_vec());
    let view = |shape, bytes| TensorView::new(Dtype::U8, shape, bytes).map_err(io::Error::other);
    let bytes = serialize(
        [
            (NAMES, view(vec![names.len()], &names)?),
            (STAMPS, view(vec![rows, 16], &stamps)?),
            (SHA256, view(vec![rows, 32], &hashes)?),
            (LOOKS, view(vec![rows, SIDE * SIDE], &looks)?),
        ],
        None::<HashMap<String, String>>,
    )
    .map_err(io::Error::other)?;
    write_whole(path, &bytes)
}

/// None where there is no such file, or a damaged one.
fn read_cache(path: &Path) -> Option<HashMap<String, Entry>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut File::open(path).ok()?, &mut bytes).ok()?;
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let part = |name: &str| file.tensor(name).ok().map(|tensor| tensor.data());
    let names = std::str::from_utf8(part(NAMES)?).ok()?;
    let stamps = part(STAMPS)?.chunks_exact(16);
    let hashes = part(SHA256)?.chunks_exact(32);
    let looks = part(LOOKS)?.chunks_exact(SIDE * SIDE);
    let rows = names.lines().zip(stamps).zip(hashes).zip(looks);
    rows.map(|(((name, stamp), sha256), look)| {
        let entry = Entry {
            stamp: Stamp {
                bytes: u64::from_le_bytes(stamp[..8].try_into().ok()?),
                nanoseconds: u64::from_le_bytes(stamp[8..].try_into().ok()?),
            },
            print: Fingerprint {
                sha256: sha256.try_into().ok()?,
                look: look.try_into().ok()?,
            },
        };
        Some((name.to_owned(), entry))
    })
    .collect()
}
