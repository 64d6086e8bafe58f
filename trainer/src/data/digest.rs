//! Fingerprint of a data set.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{dataset::Sample, error::DataError};

/// See [`super::Dataset::digest`].
pub(super) fn digest(samples: &[Sample]) -> Result<String, DataError> {
    let mut rows: Vec<(&str, f32, Vec<u8>)> = samples
        .par_iter()
        .map(|s| Ok((s.name.as_str(), s.label, hash_file(s)?)))
        .collect::<Result<_, DataError>>()?;
    rows.sort_by_key(|&(name, ..)| name);
    let mut all = Sha256::new();
    for (name, label, contents) in rows {
        all.update((name.len() as u64).to_le_bytes());
        all.update(name);
        all.update(label.to_le_bytes());
        all.update(contents);
    }
    Ok(all.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// Reads in pieces, so that a file may be larger than memory.
fn hash_file(sample: &Sample) -> Result<Vec<u8>, DataError> {
    let unreadable = |e: io::Error| DataError::new(&sample.path, None, e);
    let mut file = File::open(&sample.path).map_err(unreadable)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => return Ok(hash.finalize().to_vec()),
            read => hash.update(&piece[..read]),
        }
    }
}
