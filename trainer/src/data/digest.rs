//! Fingerprint of a data set.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{dataset::Sample, fingerprint::Fingerprint};

/// See [`super::Dataset::digest`].
pub(super) fn digest(samples: &[Sample], prints: &[Fingerprint]) -> String {
    let mut rows: Vec<(&Sample, &Fingerprint)> = samples.iter().zip(prints).collect();
    rows.sort_by_key(|(sample, _)| sample.name.as_str());
    let mut all = Sha256::new();
    for (sample, print) in rows {
        add(&mut all, sample, &print.sha256);
    }
    hexadecimal(&all.finalize())
}

/// SHA-256, in hexadecimal, over lists of images in their order; `sha256` are those of all files.
pub fn of_lists(samples: &[Sample], sha256: &[[u8; 32]], lists: &[&[usize]]) -> String {
    let mut all = Sha256::new();
    for list in lists {
        all.update((list.len() as u64).to_le_bytes());
        for &index in *list {
            add(&mut all, &samples[index], &sha256[index]);
        }
    }
    hexadecimal(&all.finalize())
}

fn add(all: &mut Sha256, sample: &Sample, file: &[u8; 32]) {
    all.update((sample.name.len() as u64).to_le_bytes());
    all.update(&sample.name);
    all.update(sample.label.to_le_bytes());
    all.update(file);
}

/// Bytes in lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
