//! What is served under which path.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::access::{Access, Verdict};
use super::bucket::Bucket;
use super::fault::Fault;
use super::metrics;
use super::page::{self, Page};
use super::predict::Predictor;
use super::preview::{BOUNDARY, Picture, Preview};
use super::screen::Screen;

/// Clients that may follow events, and watch pictures, at a time.
const FOLLOWERS: usize = 256;
const VIEWERS: usize = 32;
/// Requests in a second, and at once.
const RATE: [f64; 2] = [200.0, 600.0];
/// How long a single picture is waited for.
const PICTURE: Duration = Duration::from_secs(3);

const JSON: &str = "application/json";

/// What all requests share.
pub struct Desk {
    screen: Arc<Screen>,
    preview: Preview,
    predictor: Predictor,
    access: Access,
    bucket: Bucket,
    followers: Arc<Semaphore>,
    viewers: Arc<Semaphore>,
    page: Page,
    login: Page,
    stop: watch::Receiver<bool>,
}

impl Desk {
    /// A desk that serves until `stop` says so.
    pub fn new(
        screen: Arc<Screen>,
        preview: Preview,
        access: Access,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            predictor: Predictor::start(Arc::clone(&screen)),
            screen,
            preview,
            access,
            bucket: Bucket::new(RATE[0], RATE[1]),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            viewers: Arc::new(Semaphore::new(VIEWERS)),
            page: page::dashboard(),
            login: page::login(),
            stop,
        }
    }
}

/// All paths.
pub fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/", get(dashboard))
        .route("/api/estimate", get(estimate))
        .route("/api/state", get(state))
        .route("/api/history", get(history))
        .route("/api/events", get(events))
        .route("/api/frame", get(frame))
        .route("/api/stream", get(stream))
        .route("/predict", post(predict))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .fallback(|| async { Fault::new(StatusCode::NOT_FOUND, "nothing here; try /") })
        .method_not_allowed_fallback(|| async {
            Fault::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method")
        })
        .layer(from_fn_with_state(Arc::clone(&desk), guard))
        .with_state(desk)
}

/// Lets in who may, and dresses every answer in safe headers.
async fn guard(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response {
    let mut response = match admit(&desk, &request) {
        Ok(()) => next.run(request).await,
        Err(response) => *response,
    };
    for (name, value) in SAFE_HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().entry(name).or_insert(value);
    }
    response
}

/// Whether `request` may go on; otherwise its answer.
fn admit(desk: &Desk, request: &Request) -> Result<(), Box<Response>> {
    let answer = |response: Response| Err(Box::new(response));
    if !desk.bucket.take() {
        return answer(Fault::too_fast().into_response());
    }
    // Says no more than whether all is well, to whoever watches over it.
    if request.uri().path() == "/healthz" {
        return Ok(());
    }
    match desk.access.judge(request.uri(), request.headers()) {
        Verdict::Enter => Ok(()),
        Verdict::LogIn { cookie, address } => {
            let headers = [(header::SET_COOKIE, cookie), (header::LOCATION, address)];
            answer((StatusCode::SEE_OTHER, headers).into_response())
        }
        Verdict::NoToken => answer(no_token(desk, request.headers())),
        Verdict::ForeignHost => {
            let advice = "call this machine localhost or 127.0.0.1, or start numclip with a token";
            answer(Fault::new(StatusCode::MISDIRECTED_REQUEST, advice).into_response())
        }
    }
}

const SAFE_HEADERS: [(HeaderName, &str); 7] = [
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// A browser gets a page where the token can be typed in.
fn no_token(desk: &Desk, headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok());
    let mut response = match accept.is_some_and(|accept| accept.contains("text/html")) {
        true => desk.login.response(StatusCode::UNAUTHORIZED),
        false => Fault::new(
            StatusCode::UNAUTHORIZED,
            "show the token, as in: authorization: Bearer TOKEN",
        )
        .into_response(),
    };
    let scheme = HeaderValue::from_static("Bearer realm=\"numclip\"");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, scheme);
    response
}

async fn dashboard(State(desk): State<Arc<Desk>>) -> Response {
    desk.page.response(StatusCode::OK)
}

async fn estimate(State(desk): State<Arc<Desk>>) -> Result<Response, Fault> {
    let latest = desk.screen.latest();
    let none = || Fault::busy("no estimate yet");
    let record = latest.ok_or_else(none)?.to_string();
    Ok(([(header::CONTENT_TYPE, JSON)], record).into_response())
}

async fn state(State(desk): State<Arc<Desk>>) -> Result<Response, Fault> {
    json(&desk.screen.state())
}

async fn history(State(desk): State<Arc<Desk>>) -> Result<Response, Fault> {
    json(&desk.screen.history())
}

fn json(value: &impl Serialize) -> Result<Response, Fault> {
    let failed =
        |error: serde_json::Error| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let text = serde_json::to_string(value).map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, JSON)], text).into_response())
}

async fn healthz(State(desk): State<Arc<Desk>>) -> Response {
    let camera = desk.screen.camera();
    let status = match camera.is_well() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = serde_json::json!({ "camera": camera }).to_string();
    (status, [(header::CONTENT_TYPE, JSON)], body).into_response()
}

async fn metrics(State(desk): State<Arc<Desk>>) -> Response {
    let clients = [
        ("events", FOLLOWERS - desk.followers.available_permits()),
        ("stream", VIEWERS - desk.viewers.available_permits()),
    ];
    let text = metrics::text(&desk.screen.state(), &clients);
    ([(header::CONTENT_TYPE, metrics::MEDIA_TYPE)], text).into_response()
}

async fn predict(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Fault> {
    let record = desk.predictor.predict(&headers, body).await?;
    Ok(([(header::CONTENT_TYPE, JSON)], record).into_response())
}

/// Server-Sent Events: every record as it comes, and the state each second.
async fn events(State(desk): State<Arc<Desk>>, headers: HeaderMap) -> Result<Response, Fault> {
    let seat = seat(&desk.followers)?;
    let since = headers.get("last-event-id");
    let since = since.and_then(|id| id.to_str().ok()?.parse().ok());
    let (mut missed, coming) = desk.screen.follow(since);
    missed.push_front(desk.screen.state_event());
    missed.push_front(Bytes::from_static(b"retry: 1000\n\n"));
    let follower = Follower {
        screen: Arc::clone(&desk.screen),
        missed,
        coming,
        _seat: seat,
    };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((event, follower))
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream")];
    Ok((kind, endless(&desk, events)).into_response())
}

/// Someone who follows the events.
struct Follower {
    screen: Arc<Screen>,
    missed: VecDeque<Bytes>,
    coming: broadcast::Receiver<Bytes>,
    _seat: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event; who is too far behind goes on with the newest.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.missed.pop_front() {
                return Some(event);
            }
            match self.coming.recv().await {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(_)) => {
                    (self.missed, self.coming) = self.screen.follow(None);
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// One picture.
async fn frame(State(desk): State<Arc<Desk>>) -> Result<Response, Fault> {
    let _seat = seat(&desk.viewers)?;
    let mut pictures = desk.preview.watch();
    let none = || Fault::busy("the camera gives no pictures");
    let came = timeout(PICTURE, pictures.changed()).await;
    came.ok().and_then(Result::ok).ok_or_else(none)?;
    let jpeg = pictures.borrow().jpeg();
    Ok(([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response())
}

/// Pictures one after the other, as cameras serve them.
async fn stream(State(desk): State<Arc<Desk>>) -> Result<Response, Fault> {
    let seat = seat(&desk.viewers)?;
    let viewer = (desk.preview.watch(), seat);
    let first = stream::iter([Bytes::from(format!("--{BOUNDARY}\r\n"))]);
    let parts = stream::unfold(viewer, |(mut pictures, seat)| async {
        let part = next_part(&mut pictures).await?;
        Some((part, (pictures, seat)))
    });
    let kind = format!("multipart/x-mixed-replace; boundary={BOUNDARY}");
    let body = endless(&desk, first.chain(parts));
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

async fn next_part(pictures: &mut watch::Receiver<Picture>) -> Option<Bytes> {
    pictures.changed().await.ok()?;
    Some(pictures.borrow_and_update().part())
}

fn seat(seats: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Fault> {
    let full = |_| Fault::busy("too many are watching; close another window");
    Arc::clone(seats).try_acquire_owned().map_err(full)
}

/// A body that goes on until the server stops.
fn endless(desk: &Desk, chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    let mut stop = desk.stop.clone();
    // The server that is gone has stopped as well.
    let stopped = async move { _ = stop.wait_for(|&stop| stop).await };
    let chunks = chunks.map(Ok::<_, Infallible>);
    Body::from_stream(chunks.take_until(Box::pin(stopped)))
}
