//! `numclip run` with a settings file, as a service manager meets it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use numclip::bundle::{self, BundleError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{contents, manifest};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A running `numclip`, killed with its test.
pub struct Running(pub Child);

impl Running {
    /// Starts `numclip` in `place`, with the service manager at `socket`.
    pub fn start(place: &Path, arguments: &[&str]) -> Self {
        let child = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
            .current_dir(place)
            .args(arguments)
            .env("NOTIFY_SOCKET", place.join("manager"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(place.join("stderr")).unwrap())
            .spawn();
        Self(child.unwrap())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_child(&self.0);
        kill_process(id, signal).unwrap();
    }

    /// Asks it to end, and gives its exit code.
    pub fn end(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.0.wait().unwrap().code().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Writes the tiny bundle with this version.
pub fn write_version(directory: &Path, version: &str) {
    let mut manifest = manifest();
    manifest.model.version = version.into();
    bundle::write(directory, manifest, &contents(), |_| {
        Ok::<(), BundleError>(())
    })
    .unwrap();
}

/// The estimates in a file so far.
pub fn records(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Waits until something holds.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "{what} never came");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_reload_swaps_the_model_between_two_frames_and_refuses_what_is_bad() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    let manager = UnixDatagram::bind(place.join("manager")).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let heard = |wanted: &str| {
        let mut message = [0; 4096];
        loop {
            let length = manager.recv(&mut message).expect(wanted);
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    for (name, version) in [("one", "1.0.0"), ("two", "2.0.0"), ("torn", "3.0.0")] {
        write_version(&place.join(name), version);
    }
    let encoder = place.join("torn/encoder.onnx");
    fs::write(&encoder, &fs::read(&encoder).unwrap()[1..]).unwrap();
    let configure = |text: &str| {
        let source = "[source]\naddress = 'synth:gauge?fps=200&size=64'\n";
        let sink = "[output]\nstdout = 'none'\n[[sink.json]]\npath = 'all.jsonl'\n";
        fs::write(
            place.join("numclip.toml"),
            format!("{text}\n{source}{sink}"),
        )
        .unwrap();
    };
    let file = place.join("all.jsonl");
    let version_of = |record: &Value| record["model"]["version"].as_str().unwrap().to_owned();
    let more = |count: usize| {
        let seen = records(&file).len();
        until("more estimates", || records(&file).len() >= seen + count);
    };

    configure("[model]\npath = 'one'");
    let mut running = Running::start(place, &["run", "--config", "numclip.toml"]);
    heard("READY=1");
    more(20);
    for (text, reason) in [
        ("[model]\npath = 'torn'", "encoder.onnx"),
        (
            "[model]\npath = 'two'\n[pace]\nfsp = 3",
            "did you mean fps?",
        ),
        (
            "[model]\npath = 'two'\n[pace]\nevery_frame = true",
            "start numclip again",
        ),
    ] {
        configure(text);
        running.signal(Signal::HUP);
        let reloading = heard("RELOADING=1");
        assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        let ready = heard("READY=1");
        assert!(
            ready.contains("refused") && ready.contains(reason),
            "{ready}"
        );
        more(5);
    }
    configure("[model]\npath = 'two'\n[filter]\nsmooth = 'median:3'");
    running.signal(Signal::HUP);
    let ready = heard("READY=1");
    assert!(ready.contains("tiny 2.0.0 ("), "{ready}");
    until("the new model", || {
        records(&file)
            .last()
            .is_some_and(|last| version_of(last) == "2.0.0")
    });
    more(5);
    assert_eq!(running.end(), 0);

    let records = records(&file);
    for (expected, record) in records.iter().enumerate() {
        assert_eq!(record["frame"], expected, "an estimate is missing");
    }
    let swap = records
        .iter()
        .position(|record| version_of(record) == "2.0.0");
    let (old, new) = records.split_at(swap.unwrap());
    assert!(old.iter().all(|record| version_of(record) == "1.0.0"));
    assert!(new.iter().all(|record| version_of(record) == "2.0.0"));
    assert!(new.iter().all(|record| record["smoothed"].is_object()));
    let stderr = fs::read_to_string(place.join("stderr")).unwrap();
    assert_eq!(stderr.matches("reload refused").count(), 3, "{stderr}");
}

#[test]
fn sinks_come_and_go_with_a_reload() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    write_version(&place.join("model"), "1.0.0");
    let configure = |sink: &str| {
        let start = "[model]\npath = 'model'\n[source]\naddress = 'synth:gauge?fps=100&size=64'";
        fs::write(place.join("numclip.toml"), format!("{start}\n{sink}")).unwrap();
    };
    let [a, b, c] = ["a", "b", "c"].map(|name| place.join(name));
    configure("[[sink.json]]\npath = 'a'\n[[sink.json]]\npath = 'b'");
    let mut running = Running::start(place, &["run", "--config", "numclip.toml"]);
    until("estimates", || records(&b).len() > 10);
    configure("[[sink.json]]\npath = 'b'\n[[sink.json]]\npath = 'c'");
    running.signal(Signal::HUP);
    until("the new sink", || records(&c).len() > 10);
    assert_eq!(running.end(), 0);
    let frames = |file| -> Vec<u64> {
        let records = records(file).into_iter();
        records
            .map(|record| record["frame"].as_u64().unwrap())
            .collect()
    };
    let all = frames(&b);
    assert_eq!(all, (0..all.len() as u64).collect::<Vec<_>>());
    assert!(all.starts_with(&frames(&a)) && all.ends_with(&frames(&c)));
    assert!(frames(&a).len() < all.len());
}
