//! What an agent must not forget when it is restarted.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::fleet::policy::Trial;

/// Its file in the store.
const FILE: &str = "agent.json";

/// The trial under way, also kept in a file.
pub struct Memory {
    path: PathBuf,
    /// The trial.
    pub trial: Option<Trial>,
}

impl Memory {
    /// What is kept in `store`. A file that cannot be read is no memory: at
    /// worst an update is tried again that was given up.
    pub fn read(store: &Path) -> Self {
        let path = store.join(FILE);
        let text = fs::read(&path).unwrap_or_default();
        Self {
            trial: serde_json::from_slice(&text).ok(),
            path,
        }
    }

    /// Keeps `trial`. On a medium that takes nothing, it is kept as long as
    /// the agent runs.
    pub fn keep(&mut self, trial: Option<Trial>) {
        let _ = match &trial {
            None => fs::remove_file(&self.path),
            Some(trial) => write(&self.path, trial),
        };
        self.trial = trial;
    }
}

/// Whole or not at all.
fn write(path: &Path, trial: &Trial) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(trial)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::message::Order;
    use crate::fleet::policy::begin;

    #[test]
    fn a_restart_forgets_nothing_and_a_torn_file_stops_nobody() {
        let place = tempfile::tempdir().unwrap();
        let order = Order {
            rollout: "r".into(),
            sha256: "0".repeat(64),
            package: None,
        };
        let trial = begin(&order, None);
        let mut memory = Memory::read(place.path());
        memory.keep(Some(trial.clone()));
        assert_eq!(Memory::read(place.path()).trial, Some(trial));
        fs::write(place.path().join(FILE), "{\"order\"").unwrap();
        assert_eq!(Memory::read(place.path()).trial, None);
        memory.keep(None);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }
}
