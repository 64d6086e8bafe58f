//! Cameras as they are met: each a socket that answers as it was told to.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use proptest::prelude::*;

use super::*;

/// Answers each request with `answer(request)`; gives the requests back.
fn camera(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (requests, asked) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request = head(&mut stream);
            // A client that has seen enough hangs up.
            let _ = stream.write_all(&answer(&request));
            if requests.send(request).is_err() {
                return;
            }
        }
    });
    (port, asked)
}

fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn jpeg(seed: u8) -> Vec<u8> {
    let image = RgbImage::from_pixel(16 + u32::from(seed), 12, image::Rgb([seed, 90, 200]));
    let mut bytes = Vec::new();
    image
        .write_with_encoder(JpegEncoder::new(&mut bytes))
        .unwrap();
    bytes
}

fn open(address: &str) -> Result<WebSource, SourceError> {
    WebCamera::parse(address).unwrap().open()
}

/// The pictures until the camera is lost, and why.
fn pictures(source: &mut WebSource) -> (Vec<Vec<u8>>, String) {
    let mut pictures = Vec::new();
    loop {
        match source.next(Vec::new()) {
            Ok(shot) => pictures.push(shot.bytes),
            Err(error) => return (pictures, error.to_string()),
        }
    }
}

fn ok(head: &str, body: &[u8]) -> Vec<u8> {
    [
        format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes(),
        body,
    ]
    .concat()
}

fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let mut all: Vec<u8> = body.chunks(size).flat_map(chunk).collect();
    all.extend(b"0\r\n\r\n");
    all
}

#[test]
fn streams_are_read_whatever_lies_between_the_pictures() {
    let expected: Vec<_> = (1..=3).map(jpeg).collect();
    let part = |before: String, jpeg: &[u8]| [before.as_bytes(), jpeg, b"\r\n"].concat();
    let proper: Vec<u8> = expected
        .iter()
        .flat_map(|jpeg| {
            let length = jpeg.len();
            part(
                format!("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"),
                jpeg,
            )
        })
        .collect();
    let sloppy: Vec<u8> = expected
        .iter()
        .flat_map(|jpeg| part("\n----other\nX-Timestamp:1.0\n\n".into(), jpeg))
        .collect();
    let multipart = "Content-Type: multipart/x-mixed-replace; boundary=frame";
    for answer in [
        ok(multipart, &proper),
        ok(
            "Content-Type: multipart/x-mixed-replace;boundary=\"--frame\"",
            &sloppy,
        ),
        ok(
            &format!("{multipart}\r\nTransfer-Encoding: chunked"),
            &chunked(&proper, 7),
        ),
        ok(
            &format!("{multipart}\r\nTransfer-Encoding: chunked"),
            &chunked(&sloppy, 1 << 16),
        ),
        ok("Server: no type at all", &sloppy),
        ok(
            "Content-Type : video/x-motion-jpeg\r\nBad Header\r\n folded: 1",
            &proper,
        ),
        [b"HTTP/1.0 200 OK\r\n\r\n", &proper[..]].concat(),
    ] {
        let shown = String::from_utf8_lossy(&answer[..60]).into_owned();
        let (port, _asked) = camera(move |_| answer.clone());
        let mut source = open(&format!("http://127.0.0.1:{port}/")).unwrap();
        let (pictures, error) = pictures(&mut source);
        assert_eq!(pictures, expected, "{shown}: {error}");
    }
}

#[test]
fn single_pictures_are_fetched_again_and_again() {
    let (port, asked) = camera(|request| {
        let query = request.split(' ').nth(1).unwrap().to_owned();
        assert_eq!(query, "/snap.jpg?fps=200&channel=1");
        ok("Content-Type: image/jpeg; x", &jpeg(1))
    });
    let mut source = open(&format!(
        "http://127.0.0.1:{port}/snap.jpg?fps=200&channel=1"
    ))
    .unwrap();
    for _ in 0..4 {
        let shot = source.next(Vec::new()).unwrap();
        assert_eq!((shot.bytes, shot.encoding), (jpeg(1), Encoding::Jpeg));
    }
    assert_eq!(asked.try_iter().count(), 4);
}

#[test]
fn the_login_goes_to_the_camera_alone() {
    let (other, others) = camera(|_| ok("Content-Type: image/jpeg", &jpeg(1)));
    let (port, asked) = camera(move |request| {
        let place = match request.split(' ').nth(1).unwrap() {
            "/a/b" => "c?d".to_owned(),
            "/a/c?d" => "/e".to_owned(),
            _ => format!("http://127.0.0.1:{other}/x"),
        };
        format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n").into()
    });
    open(&format!("http://me:p%40ss%3A@127.0.0.1:{port}/a/b")).unwrap();
    let asked: Vec<String> = asked.iter().take(3).collect();
    // From `printf 'me:p@ss:' | base64`.
    let authorization = "authorization: Basic bWU6cEBzczo=";
    for (request, path) in asked.iter().zip(["/a/b", "/a/c?d", "/e"]) {
        assert!(
            request.starts_with(&format!("GET {path} HTTP/1.1\r\n")),
            "{request}"
        );
        assert!(request.contains(authorization), "{request}");
    }
    assert!(!others.recv().unwrap().contains("authorization"));
}

#[test]
fn the_login_may_stand_in_a_file() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("login");
    fs::write(&file, "me:p@ss:\n").unwrap();
    let (port, asked) = camera(|_| ok("Content-Type: image/jpeg", &jpeg(1)));
    open(&format!(
        "http://127.0.0.1:{port}/#login={}",
        file.display()
    ))
    .unwrap();
    let request = asked.recv().unwrap();
    assert!(
        request.starts_with("GET / ") && request.contains("Basic bWU6cEBzczo="),
        "{request}"
    );
    let missing = open(&format!("http://127.0.0.1:{port}/#login=/none/such"));
    assert!(matches!(missing.err(), Some(SourceError::Setup(_))));
}

#[test]
fn what_gives_no_pictures_says_why() {
    for (answer, reason) in [
        (ok("Content-Type: text/html", b"<html>"), "gives text/html"),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
            "404",
        ),
        (
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n".into(),
            "user:password@host",
        ),
        (
            b"HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm=x\r\nContent-Length: 0\r\n\r\n"
                .into(),
            "rtsp://",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".into(),
            "again and again",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://x/\r\nContent-Length: 0\r\n\r\n".into(),
            "not http://",
        ),
        (b"SSH-2.0-OpenSSH\r\n".into(), "127.0.0.1"),
        (Vec::new(), "127.0.0.1"),
    ] {
        let (port, _asked) = camera(move |_| answer.clone());
        let error = open(&format!("http://me:secret@127.0.0.1:{port}/"))
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(matches!(error, SourceError::Lost(_)), "{text}");
        assert!(text.contains(reason) && !text.contains("secret"), "{text}");
    }
}

#[test]
fn a_camera_that_falls_silent_can_be_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        head(&mut stream);
        let answer = ok("Content-Type: multipart/x-mixed-replace", &jpeg(1));
        stream.write_all(&answer).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let mut source = open(&format!("http://127.0.0.1:{port}/")).unwrap();
    assert!(source.next(Vec::new()).is_ok());
    let stop = source.stopper().unwrap();
    let start = Instant::now();
    let stopper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        stop();
    });
    let error = source.next(Vec::new()).unwrap_err();
    assert!(matches!(error, SourceError::Lost(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    stopper.join().unwrap();
    drop(source);
    silent.join().unwrap();
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    for (address, reason) in [
        ("http://", "expected http://"),
        ("http:///x", "expected http://"),
        ("http://a b/", "expected http://"),
        ("http://h:99999/", "expected http://"),
        ("http://h/?fps=0", "fps"),
        ("http://h/#password=x", "login=FILE"),
        ("http://u:p@h/#login=x", "twice"),
        ("http://%ff:p@h/", "UTF-8"),
    ] {
        let error = WebCamera::parse(address).unwrap_err();
        assert!(error.contains(reason), "{address}: {error}");
    }
    let camera = WebCamera::parse("http://u:secret@[::1]:81/a?b").unwrap();
    assert_eq!(
        (camera.target.authority(), camera.target.path.as_str()),
        ("[::1]:81".into(), "/a?b")
    );
    assert!(!format!("{camera:?}").contains("secret"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_makes_it_stumble(
        status in "HTTP/1\\.[01] (200|302|401|999) ?[a-z]{0,4}",
        headers in prop::collection::vec("(Content-Type|Location|Transfer-Encoding|Content-Length|x): ?(image/jpeg|image/|multipart/x|chunked|[0-9]{1,20}|/|http://|\\PC{0,6})", 0..4),
        body in prop::collection::vec(prop_oneof![Just(0xFF_u8), any::<u8>()], 0..80),
    ) {
        let head = format!("{status}\r\n{}\r\n\r\n", headers.join("\r\n"));
        let answer = [head.as_bytes(), &body].concat();
        let (port, _asked) = camera(move |_| answer.clone());
        if let Ok(mut source) = open(&format!("http://127.0.0.1:{port}/?fps=1000")) {
            for _ in 0..3 {
                let _ = source.next(Vec::new());
            }
        }
    }

    #[test]
    fn addresses_never_panic(text in "\\PC{0,30}") {
        let _ = WebCamera::parse(&format!("http://{text}"));
    }
}
