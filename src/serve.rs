//! A running camera on the network: page, API, events, pictures, metrics.
//!
//! ```text
//! sinks ─ estimate ─→ Screen ─→ GET /api/estimate, /api/state, /api/history, /api/events
//! live ── frame, if somebody watches ─→ Preview ─→ /api/frame, /api/stream
//! POST /predict ─→ Predictor, a worker of its own
//! ```
//!
//! The server has a thread of its own and never touches those of the pipeline.
//! Only this machine reaches it, unless there is a token.

mod access;
mod bucket;
mod fault;
mod health;
mod metrics;
mod page;
mod place;
mod predict;
mod preview;
mod routes;
mod screen;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::live::Tap;
use access::Access;
use preview::Preview;
use routes::Desk;

pub use access::{Token, TokenError};
pub use health::Camera;
pub use place::Place;
pub use screen::{Notice, Point, Screen, State, Task};

/// Connections at a time.
const CONNECTIONS: usize = 512;
/// How long the head of a request may take, and a connection may idle.
const HEAD: Duration = Duration::from_secs(10);
/// The longest head of a request, in bytes.
const HEAD_BYTES: usize = 16 << 10;
/// How long answers under way may take once the end has come.
const GRACE: Duration = Duration::from_millis(300);
/// How often the state is told.
const BEAT: Duration = Duration::from_secs(1);

/// An address that listens, where nobody is served yet.
pub struct Listener {
    listener: StdListener,
    address: SocketAddr,
    access: Access,
}

/// A running server; it stops when this is dropped.
pub struct Server {
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Why nothing can be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Others could reach it, and nothing would keep them out.
    #[error(
        "{0} can be reached from other machines, so there must be a token: write one to a file (head -c 24 /dev/urandom | base64 > FILE) and name it, or serve on 127.0.0.1"
    )]
    Unguarded(SocketAddr),
    /// The address is taken or not of this machine.
    #[error("cannot serve on {address}: {error}; {}", advice(.error))]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// The system gives no sockets or threads.
    #[error("cannot serve: {0}")]
    System(#[from] std::io::Error),
}

impl Listener {
    /// Takes `address`; port 0 takes any that is free. Who comes in must show
    /// `token`, where there is one.
    ///
    /// # Errors
    /// [`ServeError`] when the address is not to be had, or can be reached from
    /// other machines and there is no token.
    pub fn bind(address: SocketAddr, token: Option<Token>) -> Result<Self, ServeError> {
        if token.is_none() && !address.ip().is_loopback() {
            return Err(ServeError::Unguarded(address));
        }
        let listener =
            StdListener::bind(address).map_err(|error| ServeError::Address { address, error })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            access: Access::new(token, address.port()),
            address,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts serving what `screen` shows, with pictures from `tap`.
    ///
    /// # Errors
    /// [`ServeError::System`] when the system gives no sockets or threads.
    pub fn serve(self, screen: Arc<Screen>, tap: Arc<Tap>) -> Result<Server, ServeError> {
        let (stop, stopped) = watch::channel(false);
        let preview = Preview::start(tap, Arc::clone(&screen));
        let desk = Desk::new(Arc::clone(&screen), preview, self.access, stopped.clone());
        let router = routes::router(Arc::new(desk));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(serve_all(self.listener, router, screen, stopped));
            // Whoever has not taken the answer by now gets none.
            runtime.shutdown_background();
        })?;
        Ok(Server { stop, thread })
    }
}

impl Server {
    /// Takes no more requests and lets those under way finish, which takes less
    /// than half a second.
    pub fn stop(self) {
        self.stop.send_replace(true);
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < 2 * GRACE {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "another program listens there; choose another port",
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 127.0.0.1 serves itself, 0.0.0.0 all its networks"
        }
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose 8080",
        _ => "choose another address",
    }
}

/// Serves until it is told to stop.
async fn serve_all(
    listener: StdListener,
    router: Router,
    screen: Arc<Screen>,
    stop: watch::Receiver<bool>,
) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let seats = Arc::new(Semaphore::new(CONNECTIONS));
    let work = async {
        tokio::join!(accept_all(&listener, &router, &seats, &stop), beat(&screen));
    };
    let mut stopping = stop.clone();
    tokio::select! {
        () = work => {}
        _ = stopping.wait_for(|&stop| stop) => {}
    }
    drop(listener);
    let connections = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(GRACE, seats.acquire_many(connections)).await;
}

/// Tells those who follow how things are, each second.
async fn beat(screen: &Screen) {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        beat.tick().await;
        screen.beat();
    }
}

async fn accept_all(
    listener: &TcpListener,
    router: &Router,
    seats: &Arc<Semaphore>,
    stop: &watch::Receiver<bool>,
) {
    while let Ok(seat) = Arc::clone(seats).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = serve_one(stream, router.clone(), stop.clone(), seat);
                tokio::spawn(connection);
            }
            // Out of sockets, most likely: they become free again.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Serves one connection, until it is told to stop.
async fn serve_one(
    stream: TcpStream,
    router: Router,
    mut stop: watch::Receiver<bool>,
    _seat: OwnedSemaphorePermit,
) {
    tune(&stream);
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // How a connection ends is of no concern to anybody but its client.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|&stop| stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// Small events go out at once, and who reads nothing is cut off.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        const MILLISECONDS: u32 = 20_000;
        let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, MILLISECONDS);
    }
}
