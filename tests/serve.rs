//! `numclip run --http` as browsers, scripts and monitors meet it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use numclip::capture::{Encoding, SourceAddress};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{picture, write_bundle};

const TOKEN: &str = "a-token-of-some-length";
const SLOW: Duration = Duration::from_secs(60);

/// A running `numclip run --http`.
pub struct Serving {
    child: Child,
    /// Where it listens.
    pub port: u16,
    /// Holds the bundle, and the token in `token`.
    pub place: TempDir,
}

impl Serving {
    /// Starts it, on a port that is free, with more flags.
    pub fn start(flags: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        write_bundle(&place.path().join("model"));
        fs::write(place.path().join("token"), format!("{TOKEN}\n")).unwrap();
        Self::start_in(place, 0, flags)
    }

    /// Starts it again in the same place, on the same port.
    pub fn restart(mut self, flags: &[&str]) -> Self {
        self.end();
        let place = std::mem::replace(&mut self.place, tempfile::tempdir().unwrap());
        Self::start_in(place, self.port, flags)
    }

    fn start_in(place: TempDir, port: u16, flags: &[&str]) -> Self {
        let mut child = run(place.path(), &format!("127.0.0.1:{port}"), flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            line.strip_prefix("serving http://127.0.0.1:")
                .map(String::from)
        });
        thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            port: address.unwrap().parse().unwrap(),
            place,
        }
    }

    /// The answer to a request whose head is `request`, `HTTP/1.0` and `Host`
    /// left out.
    fn ask(&self, request: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.send(request, headers, body);
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer::read(&bytes)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[], b"")
    }

    fn json(&self, path: &str) -> Value {
        self.get(path).json()
    }

    fn send(&self, request: &str, headers: &[&str], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(SLOW)).unwrap();
        let host = headers.iter().all(|header| !header.starts_with("Host:"));
        let mut head = format!("{request} HTTP/1.0\r\n");
        if host {
            head += "Host: localhost\r\n";
        }
        for header in headers {
            head += &format!("{header}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        // Who is refused at once may find the other side closed.
        let _ = stream.write_all(body);
        stream
    }

    /// The events from now on, or since the one with this number.
    fn events(&self, since: Option<u64>) -> Events {
        let since = since.map(|id| format!("Last-Event-ID: {id}"));
        let headers: Vec<&str> = since.iter().map(String::as_str).collect();
        let stream = self.send("GET /api/events", &headers, b"");
        Events(BufReader::new(stream).lines())
    }

    fn wait_for_estimate(&self) {
        until(|| self.get("/api/estimate").status == 200);
    }

    /// Ends it the hard way.
    pub fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(place: &Path, address: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
    command
        .current_dir(place)
        .args(["run", "--http", address])
        .args(flags);
    if !flags.contains(&"--model") {
        command.args(["--model", "model"]);
    }
    if !flags.contains(&"--source") {
        command.args(["--source", "synth:gauge?fps=20&size=160"]);
    }
    command
}

fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SLOW, "it does not come");
        thread::sleep(Duration::from_millis(20));
    }
}

struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, body) = bytes.split_at(end.unwrap() + 4);
        let head = std::str::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        Self {
            status: status.parse().unwrap(),
            headers: headers
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
            body: body.to_vec(),
        }
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status, and the reason in the body.
    fn fault(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().unwrap().into())
    }
}

struct Events(std::io::Lines<BufReader<TcpStream>>);

impl Events {
    /// Number and record of the next estimate.
    fn next_record(&mut self) -> (u64, Value) {
        let mut id = None;
        loop {
            let line = self.0.next().unwrap().unwrap();
            if let Some(number) = line.strip_prefix("id: ") {
                id = Some(number.parse().unwrap());
            } else if let (Some(id), Some(data)) = (id, line.strip_prefix("data: ")) {
                return (id, serde_json::from_str(data).unwrap());
            }
        }
    }
}

#[test]
fn the_page_comes_whole_and_guarded() {
    let serving = Serving::start(&[]);
    let page = serving.get("/");
    assert_eq!(page.status, 200);
    assert!(page.text().starts_with("<!doctype html>") && page.text().ends_with("</html>\n"));
    let policy = &page.headers["content-security-policy"];
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
    assert_eq!(page.headers["x-content-type-options"], "nosniff");
    assert_eq!(page.headers["cache-control"], "no-store");
    let rebound = serving.ask("GET /", &["Host: evil.example"], b"");
    assert_eq!(rebound.fault().0, 421);
    assert_eq!(serving.get("/none").fault().0, 404);
    assert_eq!(serving.ask("POST /metrics", &[], b"").fault().0, 405);
    let long = format!("GET /{}", "x".repeat(100_000));
    assert!(matches!(serving.ask(&long, &[], b"").status, 414 | 431));
}

#[test]
fn noise_is_answered_or_cut_off_and_the_server_goes_on() {
    let serving = Serving::start(&[]);
    let mut state = 1_u32;
    let mut draw = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let words: [&[u8]; 12] = [
        b"GET ",
        b"POST /predict",
        b" HTTP/1.1",
        b"\r\n",
        b"\r\n\r\n",
        b"Host: localhost\r\n",
        b"Content-Length: 99999999999",
        b"Transfer-Encoding: chunked\r\n",
        b"zz\r\n",
        b"/api/events",
        b"\xFF\x00",
        b"Content-Type: image/png\r\n",
    ];
    for _ in 0..300 {
        let noise: Vec<u8> = (0..draw(12))
            .flat_map(|_| words[draw(12)])
            .copied()
            .collect();
        let mut stream = TcpStream::connect(("127.0.0.1", serving.port)).unwrap();
        // It may hang up before it has read all.
        let _ = stream.write_all(&noise);
    }
    serving.wait_for_estimate();
}

#[test]
fn estimates_and_state_are_told() {
    let serving = Serving::start(&["--roi", "25%,25%,50%,50%", "--rotate", "90"]);
    serving.wait_for_estimate();
    let record = serving.json("/api/estimate");
    assert!(record["value"].is_number() && record["model"]["name"] == "tiny");
    until(|| serving.json("/api/state")["camera"] == "running");
    assert_eq!(serving.get("/healthz").status, 200);
    let frame = serving.get("/api/frame");
    assert_eq!(
        (frame.status, frame.headers["content-type"].as_str()),
        (200, "image/jpeg")
    );
    assert_eq!(image::load_from_memory(&frame.body).unwrap().width(), 160);
    let state = serving.json("/api/state");
    assert_eq!(state["picture"], serde_json::json!([160, 160]));
    assert_eq!(state["region"], serde_json::json!([40, 40, 80, 80]));
    assert_eq!(state["task"]["bins"][2]["label"], "overripe");
    let history = serving.json("/api/history");
    assert!(history[0]["time"].is_u64() && history[0]["interval"][1].is_number());
}

#[test]
fn metrics_are_in_the_text_format() {
    let serving = Serving::start(&[]);
    let sink = "numclip_sink_taken_total{sink=\"http\"}";
    until(|| serving.get("/metrics").text().contains(sink));
    let metrics = serving.get("/metrics");
    assert!(metrics.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    let samples = samples(metrics.text());
    assert!(samples["numclip_estimates_total"] >= 0.0);
    let count = samples["numclip_latency_seconds_count"];
    assert!(count >= 1.0 && samples["numclip_latency_seconds_bucket{le=\"+Inf\"}"] == count);
    let named = |name: &str| samples.keys().any(|key| key.starts_with(name));
    assert!(named("numclip_model_info{name=\"tiny\"") && named("numclip_frames_captured_total"));
}

/// The samples of an exposition, each of a metric that was announced; checked
/// against the grammar that Prometheus publishes.
fn samples(text: &str) -> HashMap<String, f64> {
    let mut announced = String::new();
    let mut samples = HashMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# TYPE ") {
            let (name, kind) = comment.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            announced = name.into();
        } else if !line.starts_with("# HELP ") {
            let (key, value) = line.rsplit_once(' ').unwrap();
            let name = key.split('{').next().unwrap();
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            assert!(
                name.starts_with(&announced) && name.bytes().all(plain),
                "{line}"
            );
            assert!(!key.contains('{') || key.ends_with("\"}"), "{line}");
            let twice = samples.insert(key.into(), value.parse().unwrap());
            assert!(twice.is_none(), "{line}");
        }
    }
    samples
}

#[test]
fn events_go_on_where_they_broke_off() {
    let serving = Serving::start(&[]);
    let mut events = serving.events(None);
    let (first, record) = events.next_record();
    let (second, _) = events.next_record();
    assert!(second == first + 1 && record["value"].is_number());
    drop(events);
    thread::sleep(Duration::from_millis(500));
    let mut again = serving.events(Some(second));
    for missed in 1..=5 {
        assert_eq!(again.next_record().0, second + missed);
    }
}

#[test]
fn hundreds_may_follow_and_a_slow_one_harms_nobody() {
    let serving = Serving::start(&["--source", "synth:gauge?fps=30&size=64"]);
    serving.wait_for_estimate();
    let slow: Vec<_> = (0..56)
        .map(|_| serving.send("GET /api/events", &[], b""))
        .collect();
    let mut quick: Vec<Events> = (0..200).map(|_| serving.events(None)).collect();
    for events in &mut quick {
        let (first, _) = events.next_record();
        assert!(events.next_record().0 > first);
    }
    assert_eq!(serving.get("/api/events").fault().0, 503);
    let samples = samples(serving.get("/metrics").text());
    assert_eq!(samples["numclip_http_clients{kind=\"events\"}"], 256.0);
    let dropped = samples.get("numclip_sink_dropped_total{sink=\"http\"}");
    assert_eq!(dropped.copied().unwrap_or_default(), 0.0);
    assert_eq!(samples["numclip_estimates_unread_total"], 0.0);
    drop((slow, quick));
    until(|| {
        serving
            .get("/metrics")
            .text()
            .contains("{kind=\"events\"} 0\n")
    });
}

#[test]
fn the_stream_is_a_source_again() {
    let serving = Serving::start(&[]);
    for path in ["api/stream", "api/frame?fps=50"] {
        let address = format!("http://127.0.0.1:{}/{path}", serving.port);
        let address: SourceAddress = address.parse().unwrap();
        let mut source = address.open().unwrap();
        for _ in 0..3 {
            let shot = source.next(Vec::new()).unwrap();
            assert_eq!(shot.encoding, Encoding::Jpeg);
            let picture = image::load_from_memory(&shot.bytes).unwrap();
            assert_eq!((picture.width(), picture.height()), (160, 160));
        }
    }
    until(|| {
        serving
            .get("/metrics")
            .text()
            .contains("{kind=\"stream\"} 0\n")
    });
}

#[test]
fn a_picture_that_is_posted_gives_what_predict_gives() {
    let serving = Serving::start(&[]);
    let file = serving.place.path().join("a.png");
    picture(90, 60, 3).save(&file).unwrap();
    let predict = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .args(["predict", "--json", "--model", "model", "a.png"])
        .current_dir(serving.place.path())
        .output()
        .unwrap();
    let expected: Value = serde_json::from_slice(&predict.stdout).unwrap();
    let post = |kind: &str, body: &[u8]| {
        serving.ask("POST /predict", &[&format!("Content-Type: {kind}")], body)
    };
    let record = post("image/png", &fs::read(&file).unwrap()).json();
    for field in ["value", "unit", "interval", "bin", "probabilities", "model"] {
        assert_eq!(record[field], expected[field], "{field}");
    }
    assert_eq!(post("text/plain", b"x").fault().0, 415);
    assert_eq!(post("image/jpeg", b"no picture").fault().0, 415);
    assert_eq!(post("image/jpeg", b"").fault().0, 422);
    assert_eq!(
        post("image/png", &fs::read(&file).unwrap()[..200])
            .fault()
            .0,
        422
    );
    assert_eq!(post("image/jpeg", &vec![0; (16 << 20) + 1]).fault().0, 413);
    assert_eq!(post("image/bmp", &huge_bitmap()).fault().0, 413);
    let statuses: Vec<u16> = (0..60).map(|_| post("image/png", b"x").status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
}

/// The head of a picture of 20,000 × 20,000 pixels.
fn huge_bitmap() -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    let words: [u32; 13] = [
        54,
        0,
        54,
        40,
        20_000,
        20_000,
        1 | 24 << 16,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[test]
fn a_token_keeps_others_out() {
    let serving = Serving::start(&["--http-token-file", "token"]);
    assert_eq!(serving.get("/api/state").fault().0, 401);
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(serving.ask("GET /api/state", &[&bearer], b"").status, 200);
    assert_eq!(
        serving
            .ask("GET /", &["Authorization: Bearer no"], b"")
            .status,
        401
    );
    let page = serving.ask("GET /", &["Accept: text/html"], b"");
    assert!(page.status == 401 && page.text().contains("<form"));
    assert_ne!(serving.get("/healthz").status, 401);
    let login = serving.get(&format!("/?token={TOKEN}"));
    assert_eq!(
        (login.status, login.headers["location"].as_str()),
        (303, "/")
    );
    let cookie = login.headers["set-cookie"].split(';').next().unwrap();
    let cookie = format!("Cookie: {cookie}");
    assert_eq!(serving.ask("GET /", &[&cookie], b"").status, 200);
    assert!(!cookie.contains(TOKEN));
}

#[test]
fn an_address_that_is_not_to_be_had_is_said_before_the_camera_opens() {
    let taken = Serving::start(&[]);
    let place = taken.place.path();
    for (address, code, reason) in [
        (
            format!("127.0.0.1:{}", taken.port),
            1,
            "another program listens there",
        ),
        ("0.0.0.0:0".into(), 2, "there must be a token"),
        ("192.0.2.1:80".into(), 2, "there must be a token"),
    ] {
        let flags = ["--source", "cmd:touch opened"];
        let output = run(place, &address, &flags).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(code) && error.contains(reason),
            "{error}"
        );
    }
    let flags = ["--source", "cmd:touch opened", "--http-token-file", "token"];
    let output = run(place, "192.0.2.1:0", &flags).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("this machine has no such address"),
        "{error}"
    );
    assert!(!place.join("opened").exists());
}

#[test]
fn it_ends_within_a_second_whoever_watches() {
    let mut serving = Serving::start(&[]);
    serving.wait_for_estimate();
    let watching: Vec<_> = ["GET /api/events", "GET /api/stream", "GET /healthz"]
        .map(|request| serving.send(request, &[], b""))
        .into();
    let start = Instant::now();
    let pid = serving.child.id().to_string();
    Command::new("kill").arg(pid).status().unwrap();
    let status = serving.child.wait().unwrap();
    assert!(
        start.elapsed() < Duration::from_millis(1500),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(status.code(), Some(0));
    drop(watching);
}

#[test]
fn a_camera_that_is_gone_shows_in_its_health() {
    let flags = ["--stall", "0.2", "--source", "cmd:sleep 60"];
    let serving = Serving::start(&flags);
    let camera = || serving.json("/healthz")["camera"].clone();
    assert_ne!(camera(), "running");
    until(|| camera() == "stalled");
    assert_eq!(serving.get("/healthz").status, 503);
    let quiet = Serving::start(&["--source", "dir://.?watch"]);
    until(|| quiet.get("/healthz").status == 200);
}
