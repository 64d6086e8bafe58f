//! The MQTT sink against mosquitto, a real broker. Skipped where it is not
//! installed.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rumqttc::{Client, Event, MqttOptions, Packet, Publish, QoS};
use rustix::process::Signal;
use serde_json::Value;

use crate::reload::{Running, records, until, write_version};

pub struct Broker {
    program: PathBuf,
    place: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

impl Broker {
    /// A broker in `place`, where there is one on this machine.
    pub fn start(place: &Path) -> Option<Self> {
        Self::start_with(place, "")
    }

    /// As [`Self::start`], with more listeners.
    fn start_with(place: &Path, listeners: &str) -> Option<Self> {
        let known = [
            "/usr/sbin",
            "/usr/local/sbin",
            "/usr/bin",
            "/opt/homebrew/sbin",
        ];
        let mut programs = known
            .iter()
            .map(|folder| Path::new(folder).join("mosquitto"));
        let Some(program) = programs.find(|program| program.exists()) else {
            eprintln!("skipped: no mosquitto on this machine");
            return None;
        };
        let port = free_port();
        let settings = format!(
            "per_listener_settings true\nlistener {port} 127.0.0.1\nallow_anonymous true\n\
             user root\n{listeners}\
             persistence true\npersistence_location {}/\nautosave_interval 1\n\
             autosave_on_changes true\nmax_inflight_messages 0\nmax_queued_messages 0\n",
            place.display()
        );
        fs::write(place.join("mosquitto.conf"), settings).unwrap();
        let mut broker = Self {
            program,
            place: place.into(),
            port,
            child: None,
        };
        broker.restart();
        Some(broker)
    }

    pub fn restart(&mut self) {
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(self.place.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
        let port = self.port;
        until("the broker", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn sink(&self) -> String {
        format!("mqtt://127.0.0.1:{}/plant?id=cam1", self.port)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Collects everything that is published, over all breaks of the connection.
#[derive(Clone, Default)]
pub struct Watcher(Arc<Mutex<Vec<Publish>>>);

impl Watcher {
    pub fn start(name: &str, port: u16) -> Self {
        let watcher = Self::default();
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options
            .set_clean_session(false)
            .set_max_packet_size(1 << 20, 1 << 20);
        let seen = watcher.clone();
        thread::spawn(move || {
            let (client, mut connection) = Client::new(options, 64);
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        client.try_subscribe("#", QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        seen.0.lock().unwrap().push(publish);
                    }
                    Ok(_) => {}
                    Err(_) => thread::sleep(Duration::from_millis(50)),
                }
            }
        });
        watcher
    }

    pub fn on(&self, topic: &str) -> Vec<String> {
        let seen = self.0.lock().unwrap();
        let on_topic = seen.iter().filter(|publish| publish.topic == topic);
        on_topic
            .map(|publish| String::from_utf8(publish.payload.to_vec()).unwrap())
            .collect()
    }

    fn status(&self) -> Option<String> {
        self.on("plant/status").pop()
    }

    fn frames(&self) -> BTreeSet<u64> {
        let estimates = self.on("plant/estimate");
        estimates
            .iter()
            .map(|estimate| frame(&serde_json::from_str(estimate).unwrap()))
            .collect()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn frame(record: &Value) -> u64 {
    record["frame"].as_u64().unwrap()
}

#[test]
fn no_estimate_is_lost_while_the_broker_is_killed_ten_times() {
    let place = tempfile::tempdir().unwrap();
    let Some(mut broker) = Broker::start(place.path()) else {
        return;
    };
    write_version(&place.path().join("model"), "1.0.0");
    let watcher = Watcher::start("watcher", broker.port);
    until("a subscription", || {
        TcpStream::connect(("127.0.0.1", broker.port)).is_ok()
    });
    let mut running = Running::start(
        place.path(),
        &[
            "run",
            "--model",
            "model",
            "--source",
            "synth:gauge?fps=40&size=64",
            "--sink",
            "json:all.jsonl",
            "--sink",
            &broker.sink(),
        ],
    );
    until("estimates", || watcher.frames().len() > 5);
    for _ in 0..10 {
        let before = watcher.frames().len();
        broker.kill();
        thread::sleep(Duration::from_millis(150));
        broker.restart();
        until("estimates after a break", || {
            watcher.frames().len() > before + 10
        });
    }
    assert_eq!(running.end(), 0);
    let file = place.path().join("all.jsonl");
    let made: BTreeSet<u64> = records(&file).iter().map(frame).collect();
    until("the last estimate", || watcher.frames().len() >= made.len());
    assert_eq!(watcher.frames(), made);
    assert_eq!(made.len(), records(&file).len());
    until("the farewell", || {
        watcher.status().as_deref() == Some("offline")
    });

    // What the broker keeps for those who come later.
    let late = Watcher::start("late", broker.port);
    until("what was retained", || late.status().is_some());
    until("an entity", || {
        !late.on("homeassistant/sensor/cam1/value/config").is_empty()
    });
    let config = late.on("homeassistant/sensor/cam1/value/config").remove(0);
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["state_topic"], "plant/state");
    assert_eq!(config["unit_of_measurement"], "days");
    until("a state", || !late.on("plant/state").is_empty());
    let state: Value = serde_json::from_str(&late.on("plant/state")[0]).unwrap();
    assert_eq!(Some(&frame(&state)), made.last());
    assert!(late.on("plant/estimate").is_empty());
    let stderr = fs::read_to_string(place.path().join("stderr")).unwrap();
    assert!(stderr.contains("no connection to 127.0.0.1"), "{stderr}");
}

#[test]
fn the_last_will_says_that_a_killed_device_is_gone() {
    let place = tempfile::tempdir().unwrap();
    let Some(broker) = Broker::start(place.path()) else {
        return;
    };
    write_version(&place.path().join("model"), "1.0.0");
    let watcher = Watcher::start("watcher", broker.port);
    let running = Running::start(
        place.path(),
        &[
            "run",
            "--model",
            "model",
            "--source",
            "synth:gauge?fps=5&size=64",
            "--sink",
            &broker.sink(),
        ],
    );
    until("online", || watcher.status().as_deref() == Some("online"));
    until("the health", || !watcher.on("plant/health").is_empty());
    running.signal(Signal::KILL);
    until("the last will", || {
        watcher.status().as_deref() == Some("offline")
    });
}

/// A certificate authority in `place`, and a certificate for this machine.
#[cfg(feature = "tls")]
fn certify(place: &Path, authority: &str) {
    const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    fs::write(
        place.join("names"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    )
    .unwrap();
    for arguments in [
        format!(
            "req -x509 {KEY} -keyout {authority}.key -out {authority}.crt -days 2 -subj /CN={authority}"
        ),
        format!("req {KEY} -keyout server.key -out server.csr -subj /CN=localhost"),
        format!(
            "x509 -req -in server.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial \
             -out server.crt -days 2 -extfile names"
        ),
    ] {
        let openssl = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(place)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&openssl.stderr);
        assert!(openssl.status.success(), "openssl {arguments}: {said}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn an_encrypted_broker_wants_the_right_certificate_and_password() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    certify(place.path(), "other");
    certify(place.path(), "own");
    fs::write(at("secret"), "opensesame\n").unwrap();
    fs::write(at("wrong"), "guess\n").unwrap();
    let port = free_port();
    let listener = format!(
        "listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {}\n\
         certfile {}\nkeyfile {}\n",
        at("passwords"),
        at("server.crt"),
        at("server.key")
    );
    let passwords = Command::new("mosquitto_passwd")
        .args(["-b", "-c", &at("passwords"), "cam", "opensesame"])
        .status();
    if passwords.is_err() {
        eprintln!("skipped: no mosquitto_passwd on this machine");
        return;
    }
    let Some(broker) = Broker::start_with(place.path(), &listener) else {
        return;
    };
    write_version(&place.path().join("model"), "1.0.0");
    let watcher = Watcher::start("watcher", broker.port);
    let run = |authority: &str, password: &str| {
        let sink = format!(
            "mqtts://localhost:{port}/plant?user=cam&password_file={password}&ca={authority}.crt"
        );
        let source = "synth:gauge?fps=20&size=64";
        Running::start(
            place.path(),
            &[
                "run", "--model", "model", "--source", source, "--sink", &sink,
            ],
        )
    };
    for (authority, password, complaint) in [
        ("other", "secret", "certificate"),
        ("own", "wrong", "NotAuthorized"),
    ] {
        let mut running = run(authority, password);
        until("a refusal", || {
            let said = fs::read_to_string(place.path().join("stderr")).unwrap();
            said.contains(complaint)
        });
        running.end();
    }
    assert!(watcher.frames().is_empty());
    let mut running = run("own", "secret");
    until("estimates", || watcher.frames().len() > 5);
    assert_eq!(running.end(), 0);
}
