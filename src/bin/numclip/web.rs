//! The flags of `numclip run` that open it to browsers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use numclip::live::Tap;
use numclip::pipeline::Pipeline;
use numclip::serve::{Listener, Screen, ServeError, Server, Token};
use numclip::sink::Sink;
use numclip::status::Board;

use crate::exit::UsageError;

/// Whether and how to serve.
#[derive(clap::Args)]
pub struct WebArgs {
    /// Serve a page, an API and metrics, as in 127.0.0.1:8080; a port alone
    /// serves this machine.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<Place>,
    /// File with the token that lets people in; needed to serve other machines.
    #[arg(long, value_name = "FILE", requires = "http")]
    http_token_file: Option<PathBuf>,
}

/// An address to serve on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place(SocketAddr);

/// An address that listens, and what will be seen there.
pub struct Web {
    listener: Listener,
    screen: Arc<Screen>,
}

impl WebArgs {
    /// Takes the address; `None` where nothing is to be served. A source that
    /// is silent for longer than `silence` counts as stalled.
    ///
    /// # Errors
    /// When the address is not to be had, or needs a token.
    pub fn open(
        &self,
        pipeline: &Arc<Pipeline>,
        board: &Arc<Board>,
        silence: Option<Duration>,
    ) -> Result<Option<Web>> {
        let Some(Place(address)) = self.http else {
            return Ok(None);
        };
        let file = self.http_token_file.as_deref();
        let token = file.map(Token::read).transpose()?;
        let listener = Listener::bind(address, token).map_err(usage)?;
        let screen = Screen::new(Arc::clone(pipeline), Arc::clone(board), silence);
        Ok(Some(Web {
            listener,
            screen: Arc::new(screen),
        }))
    }
}

impl Web {
    /// What estimates are to be put into.
    pub fn sink(&self) -> (String, Box<dyn Sink>) {
        ("http".into(), Box::new(Arc::clone(&self.screen)))
    }

    /// What notices are to be shown on.
    pub fn screen(&self) -> Arc<Screen> {
        Arc::clone(&self.screen)
    }

    /// Starts to serve, with pictures from `tap`, and says on stderr where.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn serve(self, tap: Arc<Tap>) -> Result<Server> {
        anstream::eprintln!("serving http://{}", self.listener.address());
        Ok(self.listener.serve(self.screen, tap)?)
    }
}

fn usage(error: ServeError) -> anyhow::Error {
    match error {
        error @ ServeError::Unguarded(_) => {
            UsageError(format!("{error} with --http-token-file FILE")).into()
        }
        error => error.into(),
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (host, port) = text.rsplit_once(':').unwrap_or(("localhost", text));
        let port = || port.parse().map(|port| SocketAddr::new(here, port));
        let address = match host {
            "localhost" => port().ok(),
            _ => text.parse().ok(),
        };
        let expected = || "expected an address and a port, as in 127.0.0.1:8080".into();
        address.map(Self).ok_or_else(expected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_this_machine() {
        let place = |text: &str| text.parse::<Place>().map(|place| place.0.to_string());
        for (text, address) in [
            ("8080", "127.0.0.1:8080"),
            ("localhost:80", "127.0.0.1:80"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(place(text).as_deref(), Ok(address));
        }
        for text in ["", ":", "host:80", "127.0.0.1", "1.2.3.4:99999", "::1"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
