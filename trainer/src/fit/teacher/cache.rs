//! What a teacher said, kept in files.
//!
//! One file for each image, named by the digest of its bytes: the embeddings of its views in order,
//! little-endian, then a SHA-256 over them, the image and everything else they hang on. A file that
//! is damaged, cut short or of something else does not pass, and the teacher is asked again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};

use crate::data::digest::hexadecimal;
use crate::file::write_swiftly;

const DIGEST: usize = 32;

/// The embeddings of one teacher for one kind of views.
pub struct Cache {
    folder: PathBuf,
    key: [u8; DIGEST],
    dim: usize,
    /// Why something could not be written.
    failure: OnceLock<String>,
}

impl Cache {
    /// Those below `folder` of embeddings that hang on `identity` and are `dim` wide.
    pub fn new(folder: &Path, identity: &str, dim: usize) -> Self {
        let key: [u8; DIGEST] = Sha256::digest(identity).into();
        Self {
            folder: folder.join(&hexadecimal(&key)[..16]),
            key,
            dim,
            failure: OnceLock::new(),
        }
    }

    /// The embeddings of the first views of an image; none if there is no sound file.
    pub fn read(&self, image: &[u8; DIGEST]) -> Vec<Vec<f32>> {
        let sound = |bytes: Vec<u8>| -> Option<Vec<Vec<f32>>> {
            let (rows, digest) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST)?)?;
            let whole = rows.len().is_multiple_of(self.dim * 4);
            (whole && digest == self.digest(image, rows)).then(|| self.rows(rows))
        };
        let bytes = fs::read(self.path(image)).ok();
        bytes.and_then(sound).unwrap_or_default()
    }

    /// Keeps the embeddings of the first views of an image. Only speed is lost where this fails.
    pub fn write(&self, image: &[u8; DIGEST], views: &[Vec<f32>]) {
        let values = views.iter().flatten();
        let mut bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
        let digest = self.digest(image, &bytes);
        bytes.extend(digest);
        if let Err(error) = write_swiftly(&self.path(image), &bytes) {
            let folder = self.folder.display();
            let _ = self.failure.set(format!("{folder}: {error}"));
        }
    }

    /// Why something could not be kept, if so.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    fn path(&self, image: &[u8; DIGEST]) -> PathBuf {
        let name = hexadecimal(image);
        self.folder.join(&name[..2]).join(name)
    }

    fn digest(&self, image: &[u8; DIGEST], rows: &[u8]) -> [u8; DIGEST] {
        let mut digest = Sha256::new_with_prefix(self.key);
        digest.update(image);
        digest.update(rows);
        digest.finalize().into()
    }

    fn rows(&self, bytes: &[u8]) -> Vec<Vec<f32>> {
        let (values, _) = bytes.as_chunks::<4>();
        let rows = values.chunks_exact(self.dim);
        rows.map(|row| row.iter().map(|v| f32::from_le_bytes(*v)).collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: [u8; DIGEST] = [7; DIGEST];

    fn views() -> Vec<Vec<f32>> {
        vec![vec![1.0, -2.5, f32::MIN_POSITIVE], vec![0.1, 0.2, 0.3]]
    }

    #[test]
    fn what_was_kept_comes_back_and_only_for_what_it_was_kept_for() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "teacher a", 3);
        assert!(cache.read(&IMAGE).is_empty());
        cache.write(&IMAGE, &views());
        assert_eq!(cache.read(&IMAGE), views());
        assert_eq!(cache.read(&[8; DIGEST]), [[0f32; 0]; 0]);
        let other = Cache::new(folder.path(), "teacher b", 3);
        assert!(other.read(&IMAGE).is_empty());
        // Copied to the place of another image or teacher, it does not pass.
        for target in [cache.path(&[8; DIGEST]), other.path(&IMAGE)] {
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(cache.path(&IMAGE), target).unwrap();
        }
        assert!(cache.read(&[8; DIGEST]).is_empty() && other.read(&IMAGE).is_empty());
        assert!(cache.failure().is_none());
    }

    #[test]
    fn no_damaged_byte_passes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path(), "teacher", 3);
        cache.write(&IMAGE, &views());
        let path = cache.path(&IMAGE);
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len(), 24 + DIGEST);
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x40;
            fs::write(&path, &bad).unwrap();
            assert!(cache.read(&IMAGE).is_empty(), "byte {place}");
            fs::write(&path, &good[..place]).unwrap();
            assert!(cache.read(&IMAGE).is_empty(), "cut at {place}");
        }
        cache.write(&IMAGE, &views());
        assert_eq!(cache.read(&IMAGE), views());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let cache = Cache::new(&file, "teacher", 3);
        cache.write(&IMAGE, &views());
        assert!(cache.failure().unwrap().contains("file"));
        assert!(cache.read(&IMAGE).is_empty());
    }
}
