//! Cameras that speak HTTP: an endless stream of JPEG pictures
//! (`multipart/x-mixed-replace`), or a picture that is fetched again and again.
//!
//! The stream is not taken apart by its boundaries, which cameras get wrong in
//! many ways, but by the pictures in it.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding as _};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::{TcpStream, lookup_host};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};

use super::command::next_jpeg;
use super::jpeg::JpegStream;
use super::{Encoding, Shot, Source, SourceError, Stopper};

/// How long the camera may take to answer, and to go on.
const ANSWER: Duration = Duration::from_secs(8);
const SILENCE: Duration = Duration::from_secs(10);
/// The longest single picture, in bytes.
const MAX_PICTURE: usize = 32 << 20;
/// How often a camera may point elsewhere.
const REDIRECTS: usize = 3;
/// Pictures in a second that are fetched one by one, unless `fps` says
/// otherwise.
const FETCHES: f32 = 5.0;

/// A camera behind `http://`.
#[derive(Clone, PartialEq)]
pub struct WebCamera {
    target: Target,
    login: Option<Login>,
    interval: Duration,
}

/// Whom to ask for what.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    host: String,
    port: u16,
    path: String,
}

/// How to get in.
#[derive(Clone, PartialEq)]
enum Login {
    /// User and password.
    Given(String),
    /// A file that holds `user:password`.
    File(PathBuf),
}

impl WebCamera {
    /// The camera at `address`: `http://[user:password@]host[:port]/path[?query]`.
    /// The query is the camera's; its `fps`, if any, is also the pace at which
    /// single pictures are fetched. Behind a `#`, which no camera ever sees,
    /// `login=FILE` names a file with `user:password`.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn parse(address: &str) -> Result<Self, String> {
        let (address, fragment) = address.split_once('#').unwrap_or((address, ""));
        let expected = || "expected http://[user:password@]host[:port]/path".to_owned();
        let uri: Uri = address.parse().map_err(|_| expected())?;
        let authority = uri.authority().ok_or_else(expected)?;
        let userinfo = authority.as_str().rsplit_once('@').map(|(user, _)| user);
        let file = match fragment.split_once('=') {
            None if fragment.is_empty() => None,
            Some(("login", file)) if !file.is_empty() => Some(Login::File(file.into())),
            _ => return Err("behind the # can only stand login=FILE".into()),
        };
        let login = match (userinfo, file) {
            (Some(_), Some(_)) => return Err("the login is given twice".into()),
            (Some(user), None) => Some(Login::Given(decoded(user)?)),
            (None, file) => file,
        };
        Ok(Self {
            interval: Duration::from_secs_f32(1.0 / fps(uri.query().unwrap_or_default())?),
            target: Target::of(&uri).ok_or_else(expected)?,
            login,
        })
    }

    /// Asks the camera for pictures.
    ///
    /// # Errors
    /// [`SourceError::Setup`] when there is no file with the login,
    /// [`SourceError::Lost`] when the camera does not give any.
    pub fn open(&self) -> Result<WebSource, SourceError> {
        let authorization = self.login.as_ref().map(Login::authorization).transpose()?;
        let client = Arc::new(Client::new(self.target.clone(), authorization)?);
        let (answer, kind) = client.fetch()?;
        let feed = match kind {
            Kind::Stream => Feed::Stream(JpegStream::new(Reader {
                client: Arc::clone(&client),
                body: answer.into_body(),
                chunk: Bytes::new(),
            })),
            Kind::Picture(encoding) => {
                let picture = client.picture(answer)?;
                Feed::Pictures(Some((picture, encoding)))
            }
        };
        Ok(WebSource {
            client,
            feed,
            interval: self.interval,
            due: Instant::now(),
        })
    }
}

/// A camera that gives pictures.
pub struct WebSource {
    client: Arc<Client>,
    feed: Feed,
    interval: Duration,
    due: Instant,
}

enum Feed {
    /// One answer without end.
    Stream(JpegStream<Reader>),
    /// An answer for each picture, the first of which is already there.
    Pictures(Option<(Bytes, Encoding)>),
}

impl Source for WebSource {
    fn next(&mut self, mut buffer: Vec<u8>) -> Result<Shot, SourceError> {
        let first = match &mut self.feed {
            Feed::Stream(stream) => {
                return next_jpeg(stream, buffer).map_err(|error| match error {
                    SourceError::End => SourceError::Lost("the camera ended the stream".into()),
                    error => error,
                });
            }
            Feed::Pictures(first) => first.take(),
        };
        let (picture, encoding) = match first {
            Some(first) => first,
            None => self.fetch_next()?,
        };
        self.due = (self.due + self.interval).max(Instant::now());
        buffer.clear();
        buffer.extend_from_slice(&picture);
        Ok(Shot::now(buffer, encoding))
    }

    fn stopper(&self) -> Option<Stopper> {
        let stop = self.client.stop.clone();
        Some(Box::new(move || _ = stop.send_replace(true)))
    }
}

impl WebSource {
    fn fetch_next(&self) -> Result<(Bytes, Encoding), SourceError> {
        let due = self.due.into();
        let wait = async {
            sleep_until(due).await;
            Ok(())
        };
        self.client.run(Duration::MAX, wait)?;
        match self.client.fetch()? {
            (answer, Kind::Picture(encoding)) => Ok((self.client.picture(answer)?, encoding)),
            _ => Err(SourceError::Lost(
                "the camera gave a stream all at once".into(),
            )),
        }
    }
}

/// What an answer holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Stream,
    Picture(Encoding),
}

/// Asks one camera, from one thread, until it is stopped.
struct Client {
    target: Target,
    authorization: Option<HeaderValue>,
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
}

impl Client {
    fn new(target: Target, authorization: Option<HeaderValue>) -> Result<Self, SourceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| SourceError::Lost(error.to_string()))?;
        Ok(Self {
            target,
            authorization,
            runtime: Some(runtime),
            stop: watch::Sender::new(false),
        })
    }

    /// The camera's answer, and what is in it.
    fn fetch(&self) -> Result<(Response<Incoming>, Kind), SourceError> {
        let ask = ask(&self.target, self.authorization.as_ref());
        self.run(ANSWER, ask)
    }

    /// The picture in `answer`.
    fn picture(&self, answer: Response<Incoming>) -> Result<Bytes, SourceError> {
        let body = Limited::new(answer.into_body(), MAX_PICTURE);
        let collect = async {
            let collected = body.collect().await.map_err(|error| error.to_string())?;
            Ok(collected.to_bytes())
        };
        self.run(SILENCE, collect)
    }

    /// Does `work` within `limit`, unless it is stopped.
    fn run<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, SourceError> {
        let Some(runtime) = &self.runtime else {
            unreachable!("it is taken away at the end only");
        };
        let mut stopped = self.stop.subscribe();
        let done = runtime.block_on(async {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|&stop| stop) => Err("stopped".into()),
                done = timeout(limit, work) => done.unwrap_or_else(|_| {
                    Err(format!("no answer within {} s", limit.as_secs()))
                }),
            }
        });
        done.map_err(|error| SourceError::Lost(format!("{}: {error}", self.target.host)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A name that is still looked up must not be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The bytes of an answer.
struct Reader {
    client: Arc<Client>,
    body: Incoming,
    chunk: Bytes,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let body = &mut self.body;
            let next = async {
                body.frame()
                    .await
                    .transpose()
                    .map_err(|error| reason(&error))
            };
            let frame = self.client.run(SILENCE, next).map_err(io::Error::other)?;
            match frame.map(|frame| frame.into_data().unwrap_or_default()) {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(into.len());
        into[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

/// Asks for pictures, wherever the camera points.
async fn ask(
    target: &Target,
    authorization: Option<&HeaderValue>,
) -> Result<(Response<Incoming>, Kind), String> {
    let mut here = target.clone();
    for _ in 0..=REDIRECTS {
        // The login is for the camera, and for nobody that it points to.
        let is_camera = here.host == target.host && here.port == target.port;
        let answer = send(&here, authorization.filter(|_| is_camera)).await?;
        let status = answer.status();
        if status.is_redirection() {
            let place = answer.headers().get(header::LOCATION);
            let place = place.and_then(|place| place.to_str().ok());
            here = here.join(place.ok_or("points elsewhere, but not where")?)?;
        } else if status.is_success() {
            let kind = kind_of(&answer)?;
            return Ok((answer, kind));
        } else {
            return Err(refusal(&answer));
        }
    }
    Err("points elsewhere again and again".into())
}

async fn send(
    target: &Target,
    authorization: Option<&HeaderValue>,
) -> Result<Response<Incoming>, String> {
    let stream = TokioIo::new(connect(target).await.map_err(|error| error.to_string())?);
    let (mut sender, connection) = http1::Builder::new()
        .ignore_invalid_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .handshake(stream)
        .await
        .map_err(|error| reason(&error))?;
    // What goes wrong with the connection shows in the answer.
    tokio::spawn(connection);
    let mut request = Request::get(&target.path)
        .header(header::HOST, target.authority())
        .header(
            header::USER_AGENT,
            concat!("numclip/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::ACCEPT, "multipart/x-mixed-replace, image/jpeg, */*")
        .header(header::CONNECTION, "close");
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    sender
        .send_request(request)
        .await
        .map_err(|error| reason(&error))
}

async fn connect(target: &Target) -> io::Result<TcpStream> {
    let host = target.host.trim_matches(['[', ']']);
    let addresses: Vec<SocketAddr> = lookup_host((host, target.port)).await?.collect();
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn kind_of(answer: &Response<Incoming>) -> Result<Kind, String> {
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind.to_ascii_lowercase().as_str() {
        "image/jpeg" | "image/jpg" => Ok(Kind::Picture(Encoding::Jpeg)),
        picture if picture.starts_with("image/") => Ok(Kind::Picture(Encoding::File)),
        text if text.starts_with("text/") || text.ends_with("/json") => Err(format!(
            "gives {text}, not pictures; is this the address of the stream itself?"
        )),
        _ => Ok(Kind::Stream),
    }
}

fn refusal(answer: &Response<Incoming>) -> String {
    let challenge = answer.headers().get(header::WWW_AUTHENTICATE);
    let challenge = challenge.and_then(|it| it.to_str().ok());
    let digest = challenge.is_some_and(|it| it.to_ascii_lowercase().starts_with("digest"));
    match answer.status() {
        StatusCode::UNAUTHORIZED if digest => {
            "wants a digest login, which is not spoken here; let it take basic logins, or use its rtsp:// address".into()
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "refuses the login; write http://user:password@host/…".into()
        }
        status => format!("answers {status}"),
    }
}

/// An error with what lies behind it.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl Target {
    fn of(uri: &Uri) -> Option<Self> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        (uri.scheme_str() == Some("http") && !uri.host()?.is_empty()).then_some(())?;
        Some(Self {
            host: uri.host()?.into(),
            port: port(uri)?,
            path: path.into(),
        })
    }

    fn authority(&self) -> String {
        match self.port {
            80 => self.host.clone(),
            port => format!("{}:{port}", self.host),
        }
    }

    /// Where `place`, seen from here, lies.
    fn join(&self, place: &str) -> Result<Self, String> {
        if place.contains("://") {
            let target = place.parse().ok().and_then(|uri| Self::of(&uri));
            return target.ok_or_else(|| "points to an address that is not http://".into());
        }
        let path = match place.starts_with('/') {
            true => place.to_owned(),
            false => {
                let path = self.path.split('?').next().unwrap_or_default();
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                format!("{folder}/{place}")
            }
        };
        let path = path.split('#').next().unwrap_or_default().to_owned();
        Ok(Self {
            path,
            ..self.clone()
        })
    }
}

impl Login {
    /// The header that lets in.
    fn authorization(&self) -> Result<HeaderValue, SourceError> {
        let login = match self {
            Self::Given(login) => login.clone(),
            Self::File(path) => fs::read_to_string(path)
                .map_err(|error| SourceError::Setup(format!("{}: {error}", path.display())))?
                .trim()
                .to_owned(),
        };
        let value = HeaderValue::from_str(&format!(
            "Basic {}",
            Base64::encode_string(login.as_bytes())
        ));
        let mut value = value.map_err(|error| SourceError::Setup(error.to_string()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// Without the login.
impl fmt::Debug for WebCamera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { host, port, .. } = &self.target;
        write!(f, "WebCamera({host}:{port})")
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded
        .map(String::from)
        .map_err(|_| "user and password are not UTF-8".into())
}

/// 80 where there is none; one that is no port is not the same as none.
fn port(uri: &Uri) -> Option<u16> {
    let authority = uri.authority()?.as_str();
    let place = authority
        .rsplit_once('@')
        .map_or(authority, |(_, place)| place);
    match place == uri.host()? {
        true => Some(80),
        false => uri.port_u16(),
    }
}

/// The pace that the query asks for.
fn fps(query: &str) -> Result<f32, String> {
    let fps = query.split('&').find_map(|pair| pair.strip_prefix("fps="));
    match fps.map(str::parse) {
        None => Ok(FETCHES),
        Some(Ok(fps)) if (0.001..=1000.0).contains(&fps) => Ok(fps),
        Some(_) => Err("fps: expected a number from 0.001 to 1000".into()),
    }
}

#[cfg(test)]
mod tests;
