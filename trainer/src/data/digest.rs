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
        all.update((sample.name.len() as u64).to_le_bytes());
        all.update(&sample.name);
        all.update(sample.label.to_le_bytes());
        all.update(print.sha256);
    }
    hexadecimal(&all.finalize())
}

/// Bytes in lower-case hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
