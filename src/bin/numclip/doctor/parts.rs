//! What the settings name: model, source, sinks.

#[cfg(feature = "http")]
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use numclip::bundle::Bundle;
use numclip::capture::{SourceAddress, SourceError, develop};
use numclip::device::disk_free;
use numclip::encode::Engine;
use numclip::pipeline::Pipeline;
#[cfg(feature = "http")]
use numclip::serve::Place;
use numclip::settings::Settings;
use numclip::sink::SinkSpec;
use numclip::sink::file::FileSettings;
use numclip::verify::check;

use super::Check;
#[cfg(feature = "http")]
use crate::web;

/// How long a source may take for its first frame.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long its frames are counted.
const COUNTING: Duration = Duration::from_secs(1);
/// Less free space than this is little, in bytes.
const LITTLE_SPACE: u64 = 100_000_000;
/// What helps where nothing can be written.
const OTHER_FOLDER: &str = "change its owner, or choose another folder";

/// The bundle, and each engine of this build on its golden vectors.
pub fn model(settings: &Settings) -> Vec<Check> {
    let Some(path) = &settings.model.path else {
        return vec![Check::warn("model", "none named", "name one with --model")];
    };
    let bundle = match Bundle::open(path) {
        Ok(bundle) => bundle,
        Err(error) => {
            let advice = format!("numclip verify {} says more", path.display());
            return vec![Check::fail("model", error.to_string(), advice)];
        }
    };
    let model = &bundle.manifest().model;
    let found = format!(
        "{} {} ({}…)",
        model.name,
        model.version,
        &bundle.sha256()[..12]
    );
    let mut checks = vec![Check::ok("model", found)];
    let wanted = settings.model.engine;
    let mut works = false;
    for &engine in Engine::ALL
        .iter()
        .filter(|engine| wanted.is_none_or(|wanted| wanted == **engine))
    {
        let check = match Pipeline::new(bundle.clone(), Some(engine)) {
            Ok(pipeline) => {
                let check = computes(&pipeline);
                works |= check.verdict == super::Verdict::Ok;
                check
            }
            Err(error) => Check::warn(
                &format!("engine {engine}"),
                error.to_string(),
                "another engine takes its place",
            ),
        };
        checks.push(check);
    }
    if !works {
        let advice = "export the model in a form that an engine of this build runs";
        checks.push(Check::fail("engines", "none can run this model", advice));
    }
    checks
}

/// Whether the engine computes what the trainer did, and how fast.
fn computes(pipeline: &Pipeline) -> Check {
    let name = format!("engine {}", pipeline.engine());
    let advice = "this machine or build is not to be trusted with it; try another engine";
    let checked = match check(pipeline) {
        Ok(checked) => checked,
        Err(error) => return Check::fail(&name, error.to_string(), advice),
    };
    let each = 1e3 * checked.latency.as_secs_f64();
    match checked
        .replays
        .iter()
        .filter(|replay| !replay.passed)
        .count()
    {
        0 => Check::ok(
            &name,
            format!("golden vectors agree, {each:.1} ms a picture"),
        ),
        failed => Check::fail(
            &name,
            format!("{failed} golden vectors do not agree"),
            advice,
        ),
    }
}

/// The source: opens it and takes frames.
pub fn source(settings: &Settings) -> Option<Check> {
    let address = settings.source.address.clone()?;
    let name = address.to_string();
    let (done, result) = channel();
    // It may hang for ever, and takes its thread along.
    thread::spawn(move || done.send(look(&address)));
    Some(match result.recv_timeout(PATIENCE + COUNTING) {
        Ok(Ok(found)) => Check::ok("source", format!("{name}: {found}")),
        Ok(Err(error)) => Check::fail("source", format!("{name}: {error}"), advice(&error)),
        Err(RecvTimeoutError::Disconnected) => {
            Check::fail("source", format!("{name}: broke down"), "please report it")
        }
        Err(RecvTimeoutError::Timeout) => Check::fail(
            "source",
            format!("{name}: no frame within {} s", PATIENCE.as_secs()),
            "check cable and power; is another program using it?",
        ),
    })
}

fn advice(error: &SourceError) -> &'static str {
    let text = error.to_string();
    match error {
        _ if text.to_lowercase().contains("permission") => {
            "sudo usermod -aG video \"$USER\", then log in again"
        }
        SourceError::Setup(_) => "check the address; `numclip run --help` lists the kinds",
        SourceError::End => "there is nothing in it",
        _ => "check cable, power and address",
    }
}

/// Size and rate of the frames.
fn look(address: &SourceAddress) -> Result<String, SourceError> {
    let mut source = address.open()?;
    let shot = loop {
        match source.next(Vec::new()) {
            Ok(shot) => break shot,
            Err(SourceError::Picture(_)) => {}
            Err(error) => return Err(error),
        }
    };
    let frame = develop(shot.bytes, shot.encoding, Vec::new())
        .map_err(|error| SourceError::Picture(error.to_string()))?
        .0;
    let size = format!("{}×{}", frame.width(), frame.height());
    if !address.is_live() {
        return Ok(size);
    }
    let (start, mut frames) = (Instant::now(), 0);
    while start.elapsed() < COUNTING && source.next(Vec::new()).is_ok() {
        frames += 1;
    }
    let rate = f64::from(frames) / start.elapsed().as_secs_f64();
    Ok(format!("{size}, {rate:.1} frames/s"))
}

/// The detector: opens it.
pub fn detector(settings: &Settings) -> Option<Check> {
    let path = settings.detector.path.as_ref()?.display().to_string();
    Some(match settings.live() {
        Ok(_) => Check::ok("detector", path),
        Err(error) => Check::fail(
            "detector",
            error.to_string(),
            "name a detector in ONNX with YuNet or UltraFace outputs",
        ),
    })
}

/// The folder of pictures for trials of later models.
pub fn kept(settings: &Settings) -> Option<Check> {
    let keep = &settings.keep;
    let name = "kept pictures";
    let folder = keep.folder.display();
    (keep.frames > 0).then(|| match may_write(&keep.folder) {
        Ok(()) => Check::ok(name, format!("{folder}: {} at most", keep.frames)),
        Err(found) => Check::fail(name, found, OTHER_FOLDER),
    })
}

/// The page: its address and its token.
#[cfg(feature = "http")]
pub fn page(settings: &Settings) -> Option<Check> {
    let Place(address) = settings.http.listen?;
    // Its own port may be taken by the very service that is asked about.
    let any_port = SocketAddr::new(address.ip(), 0);
    Some(match web::listener(&settings.http, any_port) {
        Ok(_) => Check::ok("page", format!("http://{address}")),
        Err(error) => Check::fail(
            "page",
            format!("{address}: {error:#}"),
            "correct --http and --http-token-file, or http.listen and http.token_file",
        ),
    })
}

/// Each sink, as far as it can be checked without sending anything.
pub fn sinks(settings: &Settings) -> Vec<Check> {
    let sinks = match settings.sinks() {
        Ok(sinks) => sinks,
        Err(error) => return vec![Check::fail("sink", error, "correct its settings")],
    };
    sinks.iter().filter_map(sink).collect()
}

fn sink(sink: &SinkSpec) -> Option<Check> {
    match sink {
        SinkSpec::Json(file) | SinkSpec::Csv(file) if file.is_stdout() => None,
        SinkSpec::Json(file) | SinkSpec::Csv(file) => Some(disk(file)),
        #[cfg(feature = "mqtt")]
        SinkSpec::Mqtt(mqtt) => Some(match mqtt.probe() {
            Ok(()) => Check::ok("broker", format!("{}: lets us in", mqtt.url)),
            Err(error) => Check::fail(
                "broker",
                format!("{}: {error}", mqtt.url),
                "check host, port, user and password, and that the broker runs",
            ),
        }),
        SinkSpec::Trigger(_) => Some(Check::ok("trigger", format!("{sink}, not tried"))),
    }
}

/// Room for a file and those that are put aside.
fn disk(file: &FileSettings) -> Check {
    let path = file.path.display();
    if let Err(found) = may_write(&file.path) {
        return Check::fail("file", found, OTHER_FOLDER);
    }
    let needed = file.rotate.map_or(LITTLE_SPACE, |bytes| {
        bytes.0.saturating_mul(u64::from(file.keep) + 1)
    });
    match disk_free(&file.path) {
        Some(free) if free < needed => Check::warn(
            "file",
            format!(
                "{path}: {} MB free, {} MB wanted",
                free / 1_000_000,
                needed / 1_000_000
            ),
            "make room, or set rotate and keep lower",
        ),
        Some(free) => Check::ok("file", format!("{path}: {} MB free", free / 1_000_000)),
        None => Check::ok("file", path.to_string()),
    }
}

/// Whether something may be written at `path`; says why not.
fn may_write(path: &Path) -> Result<(), String> {
    let folder = existing(path);
    rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).map_err(|_| {
        let (path, folder) = (path.display(), folder.display());
        format!("{path}: no permission to write in {folder}")
    })
}

/// The nearest that is there: the file, its folder, or one above.
fn existing(path: &Path) -> &Path {
    let mut places = path
        .ancestors()
        .map(|place| match place.as_os_str().is_empty() {
            true => Path::new("."),
            false => place,
        });
    places
        .find(|place| place.exists())
        .unwrap_or(Path::new("."))
}
