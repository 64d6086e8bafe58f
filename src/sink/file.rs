//! Files of lines: appended to, put aside when they are full, whole again after
//! a power cut.
//!
//! A line is written with its end in one go, so that one without an end was
//! torn: opening the file cuts it off. Full files get numbers, `PATH.1` is the
//! latest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use super::SinkError;
use super::units::Bytes;

/// The most files that are kept: all of them are looked at when one is put aside.
const MAX_KEEP: u32 = 1000;
const SECONDS_OF_A_DAY: u64 = 86_400;
/// Bytes that are looked at in one go for the end of the last whole line.
const BLOCK: u64 = 4096;

/// A file of estimates and when it is put aside.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// It is put aside before it grows beyond this.
    pub rotate: Option<Bytes>,
    /// It is put aside when a new day begins, in UTC.
    #[serde(default)]
    pub daily: bool,
    /// How many files that were put aside are kept.
    #[serde(default = "default_keep")]
    pub keep: u32,
    /// Seconds after which what was written is on the disk at the latest, 0 for
    /// every line at once; without it the system decides.
    pub sync: Option<f64>,
}

/// A file to which lines are added.
pub struct LineFile {
    settings: FileSettings,
    /// The first line of every file.
    header: Option<&'static str>,
    open: Option<Open>,
    synced: Instant,
}

/// What is known of the file at hand.
struct Open {
    file: File,
    /// Length up to the end of the last whole line, in bytes.
    length: u64,
    /// Day of the last line, counted from 1970.
    day: u64,
    /// There is something that may not be on the disk yet.
    dirty: bool,
    /// The line at hand, with its end.
    line: Vec<u8>,
}

fn default_keep() -> u32 {
    5
}

impl FileSettings {
    /// Settings for `path`, which grows for ever.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            rotate: None,
            daily: false,
            keep: default_keep(),
            sync: None,
        }
    }

    /// Checks what can be checked without opening the file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.keep > MAX_KEEP {
            return Err(format!("keep: expected 0 to {MAX_KEEP}, got {}", self.keep));
        }
        match self.sync {
            Some(seconds) if !(0.0..=86_400.0).contains(&seconds) => Err(format!(
                "sync: expected seconds from 0 to 86400, got {seconds}"
            )),
            _ => Ok(()),
        }
    }

    /// Whether this is standard output.
    pub fn is_stdout(&self) -> bool {
        self.path.as_os_str() == "-"
    }
}

impl LineFile {
    /// Opens the file, or makes it with its folder. Gives the number of bytes
    /// of a torn line that were cut off as well.
    ///
    /// # Errors
    /// [`SinkError`] when it cannot be written.
    pub fn open(
        settings: FileSettings,
        header: Option<&'static str>,
    ) -> Result<(Self, u64), SinkError> {
        let mut file = Self {
            settings,
            header,
            open: None,
            synced: Instant::now(),
        };
        let torn = file.reopen(today()).map_err(|error| file.fault(error))?;
        Ok((file, torn))
    }

    /// Adds `line`, which holds no line break.
    ///
    /// # Errors
    /// [`SinkError`] when it could not be written. Nothing of it remains, and
    /// the next line tries again.
    pub fn write(&mut self, line: &str) -> Result<(), SinkError> {
        self.write_on(today(), line)
            .map_err(|error| self.fault(error))
    }

    /// Brings to the disk what was written, where the time for it has come.
    ///
    /// # Errors
    /// [`SinkError`] when the disk fails.
    pub fn sync(&mut self) -> Result<(), SinkError> {
        let interval = self.settings.sync.map(Duration::from_secs_f64);
        if interval.is_some_and(|interval| self.synced.elapsed() >= interval) {
            return self.sync_now().map_err(|error| self.fault(error));
        }
        Ok(())
    }

    fn write_on(&mut self, day: u64, line: &str) -> io::Result<()> {
        if self.open.is_none() {
            self.reopen(day)?;
        }
        let added = line.len() as u64 + 1;
        if self
            .open
            .as_ref()
            .is_some_and(|open| self.is_full(open, added, day))
        {
            self.rotate()?;
            self.reopen(day)?;
        }
        let Some(open) = &mut self.open else {
            return Err(io::Error::other("the file is not open"));
        };
        if let Err(error) = open.append(line, day) {
            // Opened again, it is healed.
            self.open = None;
            return Err(error);
        }
        if self.settings.sync == Some(0.0) {
            self.sync_now()?;
        }
        Ok(())
    }

    /// Whether the file is to be put aside before a line of `added` bytes.
    fn is_full(&self, open: &Open, added: u64, day: u64) -> bool {
        let header = self.header.map_or(0, |header| header.len() as u64 + 1);
        let limit = self.settings.rotate.map_or(u64::MAX, |bytes| bytes.0);
        let too_long = open.length + added > limit;
        let too_old = self.settings.daily && day > open.day;
        open.length > header && (too_long || too_old)
    }

    /// Opens the file and heals it; one with another header is put aside.
    fn reopen(&mut self, day: u64) -> io::Result<u64> {
        if let Some(folder) = self.settings.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let (mut open, mut torn) = Open::heal(&self.settings.path)?;
        if open.length > 0 && !self.has_header(&open)? {
            self.rotate()?;
            (open, torn) = Open::heal(&self.settings.path)?;
        }
        if open.length == 0 {
            open.day = day;
            if let Some(header) = self.header {
                open.append(header, day)?;
            }
        }
        self.open = Some(open);
        Ok(torn)
    }

    fn has_header(&self, open: &Open) -> io::Result<bool> {
        let Some(header) = self.header else {
            return Ok(true);
        };
        let mut first = Vec::new();
        let mut file = &open.file;
        file.seek(SeekFrom::Start(0))?;
        let limit = header.len() as u64 + 1;
        BufReader::new(file)
            .take(limit)
            .read_until(b'\n', &mut first)?;
        Ok(first.strip_suffix(b"\n") == Some(header.as_bytes()))
    }

    /// Puts the file aside.
    fn rotate(&mut self) -> io::Result<()> {
        if self.settings.sync.is_some() {
            self.sync_now()?;
        }
        self.open = None;
        let path = &self.settings.path;
        for number in (1..self.settings.keep).rev() {
            ignore_missing(fs::rename(
                numbered(path, number),
                numbered(path, number + 1),
            ))?;
        }
        match self.settings.keep {
            0 => fs::remove_file(path),
            _ => fs::rename(path, numbered(path, 1)),
        }
    }

    fn sync_now(&mut self) -> io::Result<()> {
        self.synced = Instant::now();
        match &mut self.open {
            Some(open) if open.dirty => {
                open.dirty = false;
                open.file.sync_data()
            }
            _ => Ok(()),
        }
    }

    fn fault(&self, error: io::Error) -> SinkError {
        SinkError::Io {
            name: self.settings.path.display().to_string(),
            error,
        }
    }
}

impl Drop for LineFile {
    fn drop(&mut self) {
        if self.settings.sync.is_some() {
            // Nobody is left to hear of a fault.
            let _ = self.sync_now();
        }
    }
}

impl Open {
    /// Opens the file at `path` and cuts off what follows its last whole line;
    /// gives the number of those bytes as well.
    fn heal(path: &Path) -> io::Result<(Self, u64)> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let found = file.metadata()?;
        let length = whole_lines(&mut file, found.len())?;
        if length < found.len() {
            file.set_len(length)?;
        }
        let open = Self {
            file,
            length,
            day: found.modified().map_or(0, day_of),
            line: Vec::new(),
            dirty: false,
        };
        Ok((open, found.len() - length))
    }

    fn append(&mut self, line: &str, day: u64) -> io::Result<()> {
        // All at once, so that nobody sees a line without its end.
        self.line.clear();
        self.line.extend_from_slice(line.as_bytes());
        self.line.push(b'\n');
        self.file.write_all(&self.line)?;
        self.length += self.line.len() as u64;
        self.day = self.day.max(day);
        self.dirty = true;
        Ok(())
    }
}

/// Length of `file`, which has `length` bytes, up to its last line break.
fn whole_lines(file: &mut File, length: u64) -> io::Result<u64> {
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        if let Some(at) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// `PATH.number`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn today() -> u64 {
    day_of(SystemTime::now())
}

fn day_of(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / SECONDS_OF_A_DAY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Everything that was kept, the oldest first.
    fn kept(path: &Path, keep: u32) -> Vec<String> {
        let aside = (1..=keep + 1).rev().map(|number| numbered(path, number));
        let files = aside.chain([path.to_path_buf()]);
        files.map(|file| read(&file)).collect()
    }

    #[test]
    fn a_new_day_begins_a_new_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b.csv");
        let mut settings = FileSettings::new(&path);
        (settings.daily, settings.keep) = (true, 2);
        let (mut file, _) = LineFile::open(settings, Some("h")).unwrap();
        let today = today();
        for (day, line) in [
            (0, "x"),
            (0, "y"),
            (1, "z"),
            (0, "back"),
            (3, "q"),
            (4, "r"),
        ] {
            file.write_on(today + day, line).unwrap();
        }
        assert_eq!(
            kept(&path, 2),
            ["", "h\nz\nback\n", "h\nq\n", "h\nr\n"].map(String::from)
        );
    }

    #[test]
    fn a_file_with_another_header_is_put_aside() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.csv");
        for (before, aside) in [("h\n1\n", ""), ("old\n1\n", "old\n1\n"), ("h2\n", "h2\n")] {
            let _ = fs::remove_file(numbered(&path, 1));
            fs::write(&path, before).unwrap();
            LineFile::open(FileSettings::new(&path), Some("h")).unwrap();
            assert_eq!(read(&numbered(&path, 1)), aside);
            assert!(read(&path).starts_with("h\n"));
        }
    }

    #[test]
    fn a_file_that_goes_is_made_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("full");
        let full = Path::new("/dev/full");
        if full.exists() {
            std::os::unix::fs::symlink(full, &path).unwrap();
            let (mut file, _) = LineFile::open(FileSettings::new(&path), None).unwrap();
            let error = file.write("lost").unwrap_err().to_string();
            assert!(error.contains("full: No space left"), "{error}");
            fs::remove_file(&path).unwrap();
            file.write("kept").unwrap();
            assert_eq!(read(&path), "kept\n");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn rotation_keeps_the_latest_lines_whole_and_in_order(
            lengths in prop::collection::vec(0..40_usize, 1..60),
            limit in 1..200_u64,
            keep in 0..4_u32,
        ) {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("log");
            let mut settings = FileSettings::new(&path);
            (settings.rotate, settings.keep) = (Some(Bytes(limit)), keep);
            let (mut file, _) = LineFile::open(settings, None).unwrap();
            let mut all = String::new();
            for (number, length) in lengths.iter().enumerate() {
                let line = format!("{number}{}", "x".repeat(*length));
                file.write(&line).unwrap();
                all += &format!("{line}\n");
            }
            let files = kept(&path, keep);
            prop_assert_eq!(&files[0], "", "more than asked for");
            prop_assert!(all.ends_with(&files.concat()));
            for (file, newer) in files.iter().zip(&files[1..]) {
                let next = newer.lines().next().map_or(0, |line| line.len() as u64 + 1);
                let full = file.len() as u64 + next > limit;
                prop_assert!(file.is_empty() || full, "put aside too early");
            }
            for file in &files {
                prop_assert!(file.len() as u64 <= limit || file.lines().count() == 1);
            }
        }

        #[test]
        fn a_torn_line_is_cut_off_wherever_it_was_torn(
            lengths in prop::collection::vec(0..6000_usize, 0..8),
            cut in 0.0..1.0_f64,
            zeros in 0..5000_usize,
        ) {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("log");
            let whole: String = lengths.iter().map(|&length| "é".repeat(length / 2) + "\n").collect();
            let torn = (whole.len() as f64 * cut) as usize;
            // After a power cut a file may end in zeros.
            let mut bytes = whole.as_bytes()[..torn].to_vec();
            bytes.resize(torn + zeros, 0);
            fs::write(&path, &bytes).unwrap();
            let (mut file, lost) = LineFile::open(FileSettings::new(&path), None).unwrap();
            file.write("new").unwrap();
            let expected = whole[..whole.as_bytes()[..torn]
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1)].to_owned();
            prop_assert_eq!(lost as usize, bytes.len() - expected.len());
            prop_assert_eq!(read(&path), expected + "new\n");
        }
    }
}
