//! Messages over a connection: a line of JSON with its tensors behind it.
//!
//! ```text
//! u32 LE  length of the header
//! u64 LE  length of the body
//! header  JSON, a [`Message`]
//! body    a record of the model, a safetensors file, or nothing
//! ```

use std::io::{self, Read, Write};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::fit::run::Provenance;

/// Changes with every message that changes.
pub const PROTOCOL: u32 = 1;

/// The longest header: that of an epoch names its batches.
const HEADER: u32 = 64 << 20;
/// The longest body: the weights of a model, or their gradients.
const BODY: u64 = 16 << 30;

/// What machines say to each other.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// First of a machine that comes.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Version of the trainer.
        trainer: String,
    },
    /// The answer to it: the resolved task file of the run.
    Task {
        /// As TOML.
        config: String,
    },
    /// The machine has everything that the task names.
    Ready {
        /// What it found.
        provenance: Box<Provenance>,
        /// Number of its devices.
        devices: usize,
        /// Their name.
        device: String,
    },
    /// It takes part.
    Welcome,
    /// It does not.
    Refused {
        /// Why.
        reason: String,
    },
    /// An epoch begins, or its batches are shared out anew. Body: a record of the whole model.
    Epoch {
        /// From 0.
        epoch: usize,
        /// Batches of the machine, step by step.
        shares: Vec<Range<usize>>,
    },
    /// The next of these steps. Body: the weights that learn.
    Step,
    /// What a step gave. Body: losses, values, labels and gradients.
    Part,
    /// The machine cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
    /// The run needs the machine no more.
    Done {
        /// Whether it is over, or was stopped to be resumed.
        over: bool,
    },
}

/// Sends a message.
pub fn send(stream: &mut impl Write, message: &Message, body: &[u8]) -> io::Result<()> {
    let header = serde_json::to_vec(message)?;
    let length = u32::try_from(header.len()).map_err(io::Error::other)?;
    let mut start = Vec::with_capacity(12 + header.len());
    start.extend(length.to_le_bytes());
    start.extend((body.len() as u64).to_le_bytes());
    start.extend(header);
    stream.write_all(&start)?;
    stream.write_all(body)?;
    stream.flush()
}

/// Receives a message and its body.
pub fn receive(stream: &mut impl Read) -> io::Result<(Message, Vec<u8>)> {
    let (mut header, mut body) = ([0; 4], [0; 8]);
    stream.read_exact(&mut header)?;
    stream.read_exact(&mut body)?;
    let (header, body) = (u32::from_le_bytes(header), u64::from_le_bytes(body));
    if header > HEADER || body > BODY {
        return Err(invalid("this is no message of a trainer"));
    }
    let header = exactly(stream, header.into())?;
    let message = serde_json::from_slice(&header)
        .map_err(|error| invalid(&format!("a message of another trainer: {error}")))?;
    Ok((message, exactly(stream, body)?))
}

/// So many bytes; memory grows with what comes, whatever was promised.
fn exactly(stream: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let got = stream.take(length).read_to_end(&mut bytes)?;
    match got as u64 == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..80), header in 0..70_u8) {
            let _ = receive(&mut &bytes[..]);
            // The same as a header and a body of lengths that may be right.
            let start = [header, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0];
            let _ = receive(&mut &[&start[..], &bytes].concat()[..]);
        }
    }

    fn sent(message: &Message, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, message, body).unwrap();
        bytes
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let epoch = Message::Epoch {
            epoch: 3,
            shares: vec![0..2, 4..6],
        };
        let bytes = [sent(&epoch, b"weights"), sent(&Message::Step, b"")].concat();
        let mut stream = &bytes[..];
        let (message, body) = receive(&mut stream).unwrap();
        assert!(matches!(message, Message::Epoch { epoch: 3, shares } if shares == [0..2, 4..6]));
        assert_eq!(body, b"weights");
        assert!(matches!(receive(&mut stream), Ok((Message::Step, body)) if body.is_empty()));
        assert!(stream.is_empty());
    }

    #[test]
    fn what_breaks_off_or_is_foreign_is_an_error() {
        let whole = sent(&Message::Welcome, b"body");
        for end in 0..whole.len() {
            let error = receive(&mut &whole[..end]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
        let foreign: [&[u8]; 3] = [
            b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
            b"\x02\0\0\0\0\0\0\0\0\0\0\0{}",
            b"\x02\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}",
        ];
        for bytes in foreign {
            let error = receive(&mut &bytes[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
