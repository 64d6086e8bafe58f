//! The conversation between sender and device, over any pair of streams.
//!
//! Sender: one line of JSON ([`Offer`]), the package's header, and the blobs
//! that are asked for. Device: lines of JSON ([`Message`]).

use std::cell::RefCell;
use std::io::{self, BufRead, Read, Write};
use std::path::Path;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::device::{Allow, Device, DeviceError, Stage};
use super::install::{Need, Outcome, Source};
use super::store::StoreError;
use crate::package::{Entry, Header, Package, PackageError};
use crate::signature::{Signature, SignatureError};

/// Version of the conversation.
pub const PROTOCOL: u32 = 1;
/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// What a sender offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offer {
    protocol: u32,
    allow_downgrade: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    allow_any_clock: bool,
    signature: String,
}

/// What a device says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Message {
    /// Files that are to be sent, in this order.
    Needs(Vec<Need>),
    /// Something is about to happen.
    Stage(Stage),
    /// The end, and a good one.
    Done(Delivery),
    /// The end: refused. `again` says whether another attempt may succeed.
    Failed { message: String, again: bool },
}

/// How a package arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// It serves now.
    Installed,
    /// It served already.
    AlreadyThere,
}

/// What a sender can show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// Bytes that will be sent.
    Total(u64),
    /// Bytes that were sent just now.
    Sent(u64),
    /// What the device does.
    Stage(Stage),
}

/// Why a package did not arrive.
#[derive(Debug, Error)]
pub enum SendError {
    /// The device refused; it serves what it did before.
    #[error("{message}")]
    Refused {
        /// Its reason.
        message: String,
        /// Whether another attempt may succeed.
        again: bool,
    },
    /// The connection broke, or something else than a device answers.
    #[error("{message}")]
    Connection {
        /// What is known of it.
        message: String,
        /// Whether the device had answered before.
        begun: bool,
    },
    /// The package cannot be read.
    #[error(transparent)]
    Package(#[from] PackageError),
}

impl SendError {
    /// Whether another attempt may succeed.
    pub fn may_be_repeated(&self) -> bool {
        match self {
            Self::Refused { again, .. } => *again,
            Self::Connection { begun, .. } => *begun,
            Self::Package(_) => false,
        }
    }
}

impl From<&Outcome> for Delivery {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Installed { .. } => Self::Installed,
            Outcome::AlreadyThere => Self::AlreadyThere,
        }
    }
}

/// The device's side: takes a package into the store at `root`, at the time
/// `now` by the device's clock.
///
/// # Errors
/// [`DeviceError`], of which the sender has been told.
pub fn receive(
    root: &Path,
    now: Timestamp,
    reader: &mut dyn BufRead,
    writer: &mut dyn Write,
) -> Result<Delivery, DeviceError> {
    let result = receive_offer(root, now, reader, writer);
    let message = match &result {
        Ok(delivery) => Message::Done(*delivery),
        Err(error) => Message::Failed {
            message: error.to_string(),
            again: may_be_repeated(error),
        },
    };
    // A sender that has gone hears nothing, and needs nothing.
    let _ = tell(writer, &message);
    result
}

fn receive_offer(
    root: &Path,
    now: Timestamp,
    reader: &mut dyn BufRead,
    writer: &mut dyn Write,
) -> Result<Delivery, DeviceError> {
    let offer: Offer = hear(reader).map_err(unclear)?;
    if offer.protocol != PROTOCOL {
        let message = format!(
            "the sender speaks version {} of the protocol, this device {PROTOCOL}; update the older one",
            offer.protocol
        );
        return Err(unclear(io::Error::other(message)));
    }
    let signature: Signature = offer.signature.parse()?;
    let header = Header::read(&mut &mut *reader).map_err(StoreError::from)?;
    let mut device = Device::open(root)?;
    let allow = Allow {
        downgrade: offer.allow_downgrade,
        any_clock: offer.allow_any_clock,
    };
    let trust = device.trust(allow.clock(now))?;
    let writer = RefCell::new(writer);
    let mut source = Stream {
        reader,
        writer: &writer,
    };
    let mut stage = |stage| {
        // The sender's absence shows when it is asked for the next blob.
        let _ = tell(*writer.borrow_mut(), &Message::Stage(stage));
    };
    let outcome = device.install(
        &header,
        &signature,
        &trust,
        allow.downgrade,
        &mut source,
        &mut stage,
    )?;
    Ok(Delivery::from(&outcome))
}

/// The sender's side: brings `package` to a device.
///
/// # Errors
/// [`SendError`].
pub fn send(
    package: &Package,
    signature: &Signature,
    allow: Allow,
    reader: &mut dyn BufRead,
    writer: &mut dyn Write,
    show: &mut dyn FnMut(Progress),
) -> Result<Delivery, SendError> {
    let offer = Offer {
        protocol: PROTOCOL,
        allow_downgrade: allow.downgrade,
        allow_any_clock: allow.any_clock,
        signature: signature.to_string(),
    };
    let offered = tell(writer, &offer)
        .and_then(|()| writer.write_all(package.header().bytes()))
        .and_then(|()| writer.flush());
    let mut broken = offered.err().map(|error| lost(error, false));
    let mut begun = false;
    loop {
        let message = hear(reader);
        let message = message.map_err(|error| broken.take().unwrap_or_else(|| lost(error, begun)));
        begun = true;
        match message? {
            Message::Needs(needs) => match send_blobs(package, &needs, writer, show) {
                // The device's last words say more than a broken pipe.
                Err(error @ SendError::Connection { .. }) => broken = Some(error),
                result => result?,
            },
            Message::Stage(stage) => show(Progress::Stage(stage)),
            Message::Done(delivery) => return Ok(delivery),
            Message::Failed { message, again } => {
                return Err(SendError::Refused { message, again });
            }
        }
    }
}

fn send_blobs(
    package: &Package,
    needs: &[Need],
    writer: &mut dyn Write,
    show: &mut dyn FnMut(Progress),
) -> Result<(), SendError> {
    let files = &package.header().index().files;
    let sizes = needs.iter().map(|need| {
        let entry = files.get(need.position);
        entry.and_then(|entry| entry.packed_size.checked_sub(need.offset))
    });
    let total: Option<u64> = sizes.sum();
    let foreign = || lost(io::Error::other("asks for what no package has"), false);
    let total = total.ok_or_else(foreign)?;
    show(Progress::Total(total));
    let mut buffer = vec![0; 1 << 16];
    for need in needs {
        let mut blob = package.blob(need.position, need.offset)?;
        loop {
            let length = package.read_some(&mut blob, &mut buffer)?;
            if length == 0 {
                break;
            }
            let written = writer.write_all(&buffer[..length]);
            written.map_err(|error| lost(error, true))?;
            show(Progress::Sent(length as u64));
        }
    }
    writer.flush().map_err(|error| lost(error, true))
}

/// Blobs as they come from the sender.
struct Stream<'a, 'b> {
    reader: &'a mut dyn BufRead,
    writer: &'a RefCell<&'b mut dyn Write>,
}

impl Source for Stream<'_, '_> {
    fn announce(&mut self, needs: &[Need]) -> io::Result<()> {
        tell(*self.writer.borrow_mut(), &Message::Needs(needs.to_vec()))
    }

    fn blob(&mut self, need: Need, entry: &Entry) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(
            (&mut *self.reader).take(entry.packed_size - need.offset),
        ))
    }
}

fn tell(writer: &mut dyn Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

fn hear<T: DeserializeOwned>(reader: &mut dyn BufRead) -> io::Result<T> {
    let mut line = String::new();
    reader.take(MAX_LINE).read_line(&mut line)?;
    match line.is_empty() {
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => serde_json::from_str(&line).map_err(|_| {
            let start: String = line.trim_end().chars().take(200).collect();
            io::Error::other(format!("not an answer of numclip: {start}"))
        }),
    }
}

/// What another attempt may mend: a connection, a torn file.
fn may_be_repeated(error: &DeviceError) -> bool {
    let torn = |error: &PackageError| matches!(error, PackageError::Damaged { .. });
    match error {
        DeviceError::Busy { .. } => true,
        DeviceError::Store(StoreError::Cut { .. }) => true,
        DeviceError::Store(StoreError::Package(error)) => torn(error),
        DeviceError::Signature(SignatureError::Package(error)) => torn(error),
        _ => false,
    }
}

fn unclear(error: io::Error) -> DeviceError {
    DeviceError::File {
        path: "sender".into(),
        message: error.to_string(),
    }
}

fn lost(error: io::Error, begun: bool) -> SendError {
    let message = match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => "the connection ended".into(),
        _ => error.to_string(),
    };
    SendError::Connection { message, begun }
}
