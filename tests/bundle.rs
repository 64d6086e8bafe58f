//! No bytes, however they came about, make opening a bundle panic.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use numclip::bundle::{BINS, Bundle, GOLDEN, MANIFEST};
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::common::write_bundle;

fn whole(name: &str) -> Vec<u8> {
    static BUNDLE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = BUNDLE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        write_bundle(&folder.path().join("model"));
        folder
    });
    fs::read(folder.path().join("model").join(name)).unwrap()
}

/// Opens the bundle with `bytes` in place of `name`; the manifest is told of
/// them, so that they are read and not just refused by their checksum.
fn open_with(name: &str, bytes: &[u8]) -> Result<Bundle, String> {
    let folder = tempfile::tempdir().unwrap();
    for file in ["encoder.onnx", BINS, GOLDEN, MANIFEST] {
        fs::write(folder.path().join(file), whole(file)).unwrap();
    }
    if name != MANIFEST {
        retell(folder.path(), name, bytes);
    }
    fs::write(folder.path().join(name), bytes).unwrap();
    Bundle::open(folder.path()).map_err(|error| error.to_string())
}

fn retell(folder: &Path, name: &str, bytes: &[u8]) {
    let digest = |bytes: &[u8]| -> String {
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let manifest = String::from_utf8(whole(MANIFEST)).unwrap();
    let told = manifest.replace(&digest(&whole(name)), &digest(bytes));
    fs::write(folder.join(MANIFEST), told).unwrap();
}

#[test]
fn the_untouched_bundle_opens() {
    for name in [MANIFEST, BINS, GOLDEN] {
        assert!(open_with(name, &whole(name)).is_ok(), "{name}");
    }
}

#[test]
fn cut_files_are_refused_by_name() {
    for name in [MANIFEST, BINS, GOLDEN] {
        let bytes = whole(name);
        for length in (0..bytes.len() - 2).step_by(bytes.len() / 40) {
            let error = open_with(name, &bytes[..length]).unwrap_err();
            assert!(error.starts_with(name), "{name} cut to {length}: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic(
        name in prop::sample::select(vec![MANIFEST, BINS, GOLDEN]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = whole(name);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = open_with(name, &bytes);
    }

    #[test]
    fn random_bytes_are_refused(
        name in prop::sample::select(vec![MANIFEST, BINS, GOLDEN]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(open_with(name, &bytes).is_err());
    }
}
