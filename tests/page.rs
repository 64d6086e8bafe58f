//! The page in a browser, where Chromium is installed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::serve::Serving;

const PATIENCE: Duration = Duration::from_secs(90);

/// The gauge that ships: its estimates follow the needle.
const FLAGS: [&str; 2] = [
    "--model",
    concat!(env!("CARGO_MANIFEST_DIR"), "/models/gauge"),
];

/// A browser without a window, driven by the DevTools protocol over pipes.
struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    last: u64,
    session: Option<String>,
    /// What the page complained about.
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    /// `None` where there is no Chromium.
    fn start() -> Option<Self> {
        let profile = tempfile::tempdir().unwrap();
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let version = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        let name = names.iter().find(version)?;
        // The protocol is spoken on the descriptors 3 and 4.
        let command = format!(
            "exec {name} --headless --no-sandbox --disable-gpu --no-first-run \
             --disable-background-networking --remote-debugging-pipe --user-data-dir={} \
             3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null",
            profile.path().display()
        );
        let mut child = Command::new("sh")
            .args(["-c", &command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut browser = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            last: 0,
            session: None,
            complaints: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(String::from);
        for domain in ["Runtime", "Log", "Page"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        write!(self.input, "{message}\0").unwrap();
        loop {
            let mut bytes = Vec::new();
            self.output.read_until(0, &mut bytes).unwrap();
            bytes.pop();
            let message: Value = serde_json::from_slice(&bytes).unwrap();
            match message["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Log.entryAdded") => {
                    self.complaints.push(message["params"].to_string());
                }
                _ if message["id"] == self.last => return message["result"].clone(),
                _ => {}
            }
        }
    }

    fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        self.call("Runtime.evaluate", params)["result"]["value"].clone()
    }

    fn text(&mut self, id: &str) -> String {
        let text = self.eval(&format!("document.getElementById('{id}')?.textContent"));
        text.as_str().unwrap_or_default().into()
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: {:?}", self.complaints);
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn value_moves(&mut self) {
        let is_number = |text: &str| text.parse::<f32>().is_ok();
        self.until("a value", |browser| is_number(&browser.text("value")));
        let first = self.text("value");
        self.until("another value", |browser| browser.text("value") != first);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_page_shows_what_happens_and_comes_back_by_itself() {
    let Some(mut browser) = Browser::start() else {
        return println!("skipped: there is no Chromium");
    };
    let serving = Serving::start(&FLAGS);
    let address = format!("http://127.0.0.1:{}/", serving.port);
    browser.call("Page.navigate", json!({ "url": address }));
    browser.value_moves();
    assert_eq!(
        browser.eval("document.querySelectorAll('#bins li').length"),
        10
    );
    let width = "document.getElementById('picture').naturalWidth";
    browser.until("a picture", |browser| browser.eval(width) == 160);
    browser.until("live", |browser| browser.text("pill") == "Live");
    assert_eq!(browser.complaints, Vec::<String>::new());

    let restarted = {
        let lost = "document.body.classList.contains('lost')";
        let mut serving = serving;
        serving.end();
        browser.until("lost", |browser| browser.eval(lost) == true);
        serving.restart(&FLAGS)
    };
    browser.until("live again", |browser| browser.text("pill") == "Live");
    browser.value_moves();
    drop(restarted);
}
