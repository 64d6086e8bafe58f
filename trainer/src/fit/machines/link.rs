//! The connection to a machine that joined, as the one that trains sees it.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use super::wire::{self, Message, PROTOCOL};
use super::{MachinesError, Task};
use crate::fit::run::{Provenance, changes};

/// A stranger has so long for its first words, and for every part of them.
const GREETING: Duration = Duration::from_secs(10);

/// A machine that is gone without a word is missed after this long without data, and some more.
const SILENCE: Duration = Duration::from_secs(15);

/// A machine that takes part.
pub struct Link {
    stream: TcpStream,
    name: String,
    device: String,
    devices: usize,
    open: bool,
}

impl Link {
    /// Tells whoever came what the task is, and lets it in if it has what the task needs.
    ///
    /// # Errors
    /// [`MachinesError`] when it is no trainer, or has other data.
    pub fn greet(stream: TcpStream, peer: SocketAddr, task: &Task) -> Result<Self, MachinesError> {
        let mut link = Self {
            stream,
            name: peer.to_string(),
            device: String::new(),
            devices: 0,
            open: true,
        };
        let prepare = || {
            link.stream.set_nonblocking(false)?;
            link.stream.set_read_timeout(Some(GREETING))?;
            tune(&link.stream)
        };
        prepare().map_err(|error| link.broken(&error))?;
        let version = env!("CARGO_PKG_VERSION");
        match link.receive()?.0 {
            Message::Hello { protocol, trainer } if protocol == PROTOCOL && trainer == version => {}
            Message::Hello { trainer, .. } => {
                let reason = format!("it runs trainer {trainer}, the run {version}");
                return Err(link.refuse(reason));
            }
            other => return Err(link.unexpected(&other)),
        }
        let config = task.config.clone();
        link.send(&Message::Task { config }, &[])?;
        // It now reads all its images.
        let patient = link.stream.set_read_timeout(None);
        patient.map_err(|error| link.broken(&error))?;
        match link.receive()?.0 {
            Message::Ready {
                provenance,
                devices,
                device,
            } => {
                (link.devices, link.device) = (devices.max(1), device);
                // Rounding differs between processors.
                let ordinality = task.provenance.ordinality;
                let here = Provenance {
                    ordinality,
                    ..*provenance
                };
                let others = changes(&task.provenance, &here);
                if !others.is_empty() {
                    return Err(link.refuse(format!("it has other {}", others.join(", "))));
                }
            }
            Message::Failed { reason } => return Err(link.wrong(reason)),
            other => return Err(link.unexpected(&other)),
        }
        link.send(&Message::Welcome, &[])?;
        Ok(link)
    }

    /// Address of the machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its devices in words.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Number of its devices.
    pub fn devices(&self) -> usize {
        self.devices
    }

    /// Whether nobody has closed it yet.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Gives up the connection.
    pub fn close(&mut self) {
        self.open = false;
        // It may be gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Begins an epoch with a record of the model.
    pub fn begin_epoch(
        &mut self,
        epoch: usize,
        shares: Vec<Range<usize>>,
        model: &[u8],
    ) -> Result<(), MachinesError> {
        self.send(&Message::Epoch { epoch, shares }, model)
    }

    /// Asks for the next share, under these weights.
    pub fn step(&mut self, weights: &[u8]) -> Result<(), MachinesError> {
        self.send(&Message::Step, weights)
    }

    /// Waits for what the machine computed.
    pub fn part(&mut self) -> Result<Vec<u8>, MachinesError> {
        match self.receive()? {
            (Message::Part, body) => Ok(body),
            (Message::Failed { reason }, _) => Err(self.wrong(reason)),
            (other, _) => Err(self.unexpected(&other)),
        }
    }

    /// Says goodbye.
    pub fn done(&mut self, over: bool) -> Result<(), MachinesError> {
        self.send(&Message::Done { over }, &[])
    }

    /// The error of a machine that says something wrong.
    pub fn wrong(&self, message: String) -> MachinesError {
        MachinesError::Protocol {
            peer: self.name.clone(),
            message,
        }
    }

    fn refuse(&mut self, reason: String) -> MachinesError {
        let refused = Message::Refused {
            reason: reason.clone(),
        };
        // The reason is told here in any case.
        let _ = self.send(&refused, &[]);
        self.wrong(reason)
    }

    fn send(&mut self, message: &Message, body: &[u8]) -> Result<(), MachinesError> {
        let sent = wire::send(&mut self.stream, message, body);
        sent.map_err(|error| self.broken(&error))
    }

    fn receive(&mut self) -> Result<(Message, Vec<u8>), MachinesError> {
        wire::receive(&mut self.stream).map_err(|error| self.broken(&error))
    }

    fn unexpected(&self, message: &Message) -> MachinesError {
        self.wrong(format!("unexpected message {message:?}"))
    }

    fn broken(&self, error: &io::Error) -> MachinesError {
        self.wrong(said(error))
    }
}

/// What a broken connection is, in words.
pub fn said(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection ended".into(),
        io::ErrorKind::WouldBlock => "nothing was said in time".into(),
        _ => error.to_string(),
    }
}

/// Small messages go at once; a machine that lost its power or its cable is noticed.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let alive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(SILENCE / 3)
        .with_retries(3);
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(2 * SILENCE))?;
    socket.set_tcp_keepalive(&alive)
}
