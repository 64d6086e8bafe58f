//! Frames that another program writes to its standard output.
//!
//! The program runs in a process group of its own and is killed with all of
//! it: a driver that hangs takes nothing of ours along.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::address::without_password;
use super::jpeg::JpegStream;
use super::stream::{lost, read_pixels, read_ppm};
use super::{Encoding, Shot, Source, SourceError, Stopper};
use crate::frame::PixelFormat;

/// The longest line of the program's complaints that is kept.
const MAX_COMPLAINT: u64 = 400;

/// How long a program's last words are waited for.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// A program that writes frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Its name and arguments.
    pub arguments: Vec<String>,
    /// What it writes.
    pub format: StreamFormat,
    /// It writes at its own pace, and its end is a fault; otherwise it waits
    /// for its reader and its end is the end of the source.
    pub live: bool,
    /// The argument that may hold a password. Where the program complains of
    /// it, the password is left out.
    pub address: Option<String>,
}

/// What a program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFormat {
    /// Plain pixels without anything between frames.
    Pixels {
        /// Width and height in pixels.
        size: (u32, u32),
        /// Layout of a pixel.
        format: PixelFormat,
    },
    /// PPM pictures.
    Ppm,
    /// JPEG pictures.
    Mjpeg,
}

/// A running program.
pub struct Command {
    name: String,
    child: Child,
    output: Output,
    complaint: Arc<Mutex<String>>,
    /// Closes when the program's standard error does.
    silent: Receiver<()>,
    live: bool,
    address: Option<String>,
}

enum Output {
    Pixels(ChildStdout, (u32, u32), PixelFormat),
    Ppm(BufReader<ChildStdout>),
    Mjpeg(JpegStream<ChildStdout>),
}

impl Command {
    /// Starts `program`.
    ///
    /// # Errors
    /// [`SourceError::Setup`] when there is no such program.
    pub fn start(program: &Program) -> Result<Self, SourceError> {
        let (name, arguments) = program
            .arguments
            .split_first()
            .ok_or_else(|| SourceError::Setup("no program to start".into()))?;
        let mut child = std::process::Command::new(name)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| SourceError::Setup(format!("{name}: {error}; is it installed?")))?;
        let complaint = Arc::default();
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("pipes were asked for");
        };
        let silent = listen(stderr, Arc::clone(&complaint));
        let output = match program.format {
            StreamFormat::Pixels { size, format } => Output::Pixels(stdout, size, format),
            StreamFormat::Ppm => Output::Ppm(BufReader::new(stdout)),
            StreamFormat::Mjpeg => Output::Mjpeg(JpegStream::new(stdout)),
        };
        Ok(Self {
            name: name.clone(),
            child,
            output,
            complaint,
            silent,
            live: program.live,
            address: program.address.clone(),
        })
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// What the end of the program means.
    fn ended(&mut self) -> SourceError {
        let status = match self.child.wait() {
            Ok(status) => status,
            Err(error) => return SourceError::Lost(format!("{}: {error}", self.name)),
        };
        if status.success() && !self.live {
            return SourceError::End;
        }
        // Its last words may still be on their way.
        let _ = self.silent.recv_timeout(LAST_WORDS);
        let complaint = self.complaint.lock();
        let complaint = complaint.unwrap_or_else(PoisonError::into_inner);
        let complaint = match &self.address {
            Some(address) => complaint.replace(address, &without_password(address)),
            None => complaint.clone(),
        };
        let reason = match complaint.as_str() {
            "" => status.to_string(),
            complaint => format!("{status}: {complaint}"),
        };
        let message = format!("{} ended, {reason}", self.name);
        match status.code() {
            // What a shell says of commands that it cannot find or start.
            Some(126 | 127) => SourceError::Setup(message),
            _ => SourceError::Lost(message),
        }
    }
}

impl Source for Command {
    fn next(&mut self, buffer: Vec<u8>) -> Result<Shot, SourceError> {
        let result = match &mut self.output {
            Output::Pixels(stdout, size, format) => read_pixels(stdout, *size, *format, buffer),
            Output::Ppm(stdout) => read_ppm(stdout, buffer),
            Output::Mjpeg(stream) => next_jpeg(stream, buffer),
        };
        match result {
            Err(SourceError::End) => Err(self.ended()),
            result => result,
        }
    }

    fn stopper(&self) -> Option<Stopper> {
        let group = self.group()?;
        Some(Box::new(move || kill(group)))
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if let Some(group) = self.group() {
            kill(group);
        }
        // Killed: this does not wait for long.
        let _ = self.child.wait();
    }
}

/// A group that has ended already is none the worse for it.
fn kill(group: Pid) {
    let _ = kill_process_group(group, Signal::KILL);
}

/// The next picture of `stream`, copied to `buffer`.
pub(super) fn next_jpeg(
    stream: &mut JpegStream<impl Read>,
    mut buffer: Vec<u8>,
) -> Result<Shot, SourceError> {
    let Some(picture) = stream.next_picture().map_err(lost)? else {
        return Err(SourceError::End);
    };
    buffer.clear();
    buffer.extend_from_slice(picture);
    Ok(Shot::now(buffer, Encoding::Jpeg))
}

/// Keeps the last line that the program writes to stderr; the channel closes
/// when there will be no more.
fn listen(stderr: ChildStderr, complaint: Arc<Mutex<String>>) -> Receiver<()> {
    let (silent, closed) = channel();
    thread::spawn(move || {
        let _silent: Sender<()> = silent;
        let mut lines = BufReader::new(stderr);
        let mut line = Vec::new();
        while let Ok(1..) = (&mut lines)
            .take(MAX_COMPLAINT)
            .read_until(b'\n', &mut line)
        {
            let text = String::from_utf8_lossy(&line);
            if !text.trim().is_empty() {
                let mut kept = complaint.lock().unwrap_or_else(PoisonError::into_inner);
                kept.clear();
                kept.push_str(text.trim());
            }
            line.clear();
        }
    });
    closed
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn shell(command: &str, live: bool) -> Command {
        let size = (1, 1);
        let format = PixelFormat::Rgb;
        Command::start(&Program {
            arguments: ["sh", "-c", command].map(String::from).to_vec(),
            format: StreamFormat::Pixels { size, format },
            live,
            address: None,
        })
        .unwrap()
    }

    #[test]
    fn frames_come_until_the_program_ends() {
        let mut source = shell("printf abcdef", false);
        assert_eq!(source.next(Vec::new()).unwrap().bytes, b"abc");
        assert_eq!(source.next(Vec::new()).unwrap().bytes, b"def");
        assert_eq!(source.next(Vec::new()).unwrap_err(), SourceError::End);
        let mut camera = shell("printf abc", true);
        assert!(camera.next(Vec::new()).is_ok());
        assert!(matches!(camera.next(Vec::new()), Err(SourceError::Lost(_))));
    }

    #[test]
    fn programs_that_are_not_there_are_a_fault_of_the_setup() {
        let mut source = shell("no-such-camera-program", true);
        assert!(matches!(
            source.next(Vec::new()),
            Err(SourceError::Setup(_))
        ));
        let missing = Program {
            arguments: vec!["no-such-camera-program".into()],
            format: StreamFormat::Ppm,
            live: true,
            address: None,
        };
        let error = Command::start(&missing).err().unwrap();
        assert!(error.to_string().contains("installed"), "{error}");
    }

    #[test]
    fn a_password_is_left_out_of_complaints() {
        let address = "rtsp://me:p@ss@cam/1";
        let complaint = format!("echo {address}: refused >&2; exit 1");
        let mut source = Command::start(&Program {
            arguments: ["sh", "-c", &complaint].map(String::from).to_vec(),
            format: StreamFormat::Ppm,
            live: true,
            address: Some(address.into()),
        })
        .unwrap();
        let error = source.next(Vec::new()).unwrap_err().to_string();
        assert!(error.contains("rtsp://me:…@cam/1: refused"), "{error}");
        assert!(!error.contains("p@ss"), "{error}");
    }

    #[test]
    fn a_wait_is_ended_from_another_thread() {
        let mut source = shell("sleep 60 & sleep 60", true);
        let stop = source.stopper().unwrap();
        let start = Instant::now();
        let stopper = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            stop();
        });
        assert!(source.next(Vec::new()).is_err());
        assert!(start.elapsed() < Duration::from_secs(10));
        stopper.join().unwrap();
    }
}
