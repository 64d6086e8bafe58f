//! The flags of `numclip run` that open it to browsers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use numclip::live::Tap;
use numclip::pipeline::Pipeline;
use numclip::serve::{Listener, Place, Screen, ServeError, Server, Token};
use numclip::settings::HttpSettings;
use numclip::status::Board;

use crate::exit::UsageError;

/// Whether and how to serve.
#[derive(Clone, clap::Args)]
pub struct WebArgs {
    /// Serve a page, an API and metrics, as in 127.0.0.1:8080; a port alone
    /// serves this machine.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<Place>,
    /// File with the token that lets people in; needed to serve other machines.
    #[arg(long, value_name = "FILE")]
    http_token_file: Option<PathBuf>,
}

/// An address that listens, and what will be seen there.
pub struct Web {
    listener: Listener,
    screen: Arc<Screen>,
}

impl WebArgs {
    /// Writes what was asked for over `settings`.
    pub fn apply(&self, settings: &mut HttpSettings) {
        settings.listen = self.http.or(settings.listen);
        if let Some(file) = &self.http_token_file {
            settings.token_file = Some(file.clone());
        }
    }
}

/// Takes the address; `None` where nothing is to be served. A source that is
/// silent for longer than `silence` counts as stalled.
///
/// # Errors
/// When the address is not to be had, or needs a token.
pub fn open(
    settings: &HttpSettings,
    pipeline: &Arc<Pipeline>,
    board: &Arc<Board>,
    silence: Option<Duration>,
) -> Result<Option<Web>> {
    let Some(Place(address)) = settings.listen else {
        return Ok(None);
    };
    let listener = listener(settings, address)?;
    let screen = Screen::new(Arc::clone(pipeline), Arc::clone(board), silence);
    Ok(Some(Web {
        listener,
        screen: Arc::new(screen),
    }))
}

/// Takes `address`, with the token of the settings.
///
/// # Errors
/// As [`open`].
pub fn listener(settings: &HttpSettings, address: SocketAddr) -> Result<Listener> {
    let file = settings.token_file.as_deref();
    let token = file.map(Token::read).transpose()?;
    Listener::bind(address, token).map_err(usage)
}

impl Web {
    /// What estimates and notices are to be shown on.
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
