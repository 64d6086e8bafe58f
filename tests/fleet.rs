//! Agents and roll-outs over mosquitto, a real broker. What needs it is skipped
//! where it is not installed.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use numclip::bundle::Bundle;
use numclip::package::Package;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::broker::{Broker, Watcher};
use crate::common::{contents, outcome};
use crate::flash::{Workshop, serving};
use crate::registry;
use crate::reload::{Running, until};

/// A shop with packages, a broker, and somebody who hears everything.
struct Site {
    shop: Workshop,
    broker: Broker,
    watcher: Watcher,
}

impl Site {
    fn new() -> Option<Self> {
        let shop = Workshop::new();
        let broker = Broker::start(&shop.at(""))?;
        Some(Self {
            watcher: Watcher::start("watcher", broker.port),
            broker,
            shop,
        })
    }

    fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}/fleet", self.broker.port)
    }

    /// An agent whose store serves version 1.0.0.
    fn agent(&self, id: &str, more: &[&str]) -> Running {
        let store = self.shop.at(id);
        if !store.exists() {
            self.shop.trust(&store);
            flash(&store, self.shop.package("1.0.0").0.path());
        }
        let url = self.url();
        let first = ["agent", "--broker", &url, "--id", id, "--store", id];
        Running::start(&self.shop.at(""), &[&first[..], more].concat())
    }

    fn order(&self, id: &str, order: &Value) {
        publish(
            self.broker.port,
            &format!("fleet/{id}/order"),
            &order.to_string(),
        );
    }

    fn last(&self, id: &str) -> Value {
        let report = self.watcher.on(&format!("fleet/{id}/report")).pop();
        report.map_or(Value::Null, |report| serde_json::from_str(&report).unwrap())
    }

    fn presence(&self, id: &str) -> Option<String> {
        self.watcher.on(&format!("fleet/{id}/presence")).pop()
    }

    fn serves(&self, id: &str, version: &str) -> bool {
        let report = self.last(id);
        report["serving"]["version"] == version && report["phase"] == "settled"
    }
}

fn publish(port: u16, topic: &str, payload: &str) {
    let mut options = MqttOptions::new("orders", "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = Client::new(options, 8);
    client
        .publish(topic, QoS::AtLeastOnce, true, payload)
        .unwrap();
    for event in connection.iter() {
        if matches!(event, Ok(Event::Incoming(Packet::PubAck(_)))) {
            break;
        }
    }
}

fn flash(store: &Path, package: &Path) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
    let target = format!("dir://{}", store.display());
    command
        .arg("flash")
        .arg(package)
        .arg(target)
        .assert()
        .success();
}

fn sha256(package: &Package) -> String {
    package.header().index().bundle_sha256().into()
}

fn order(rollout: &str, package: &Package) -> Value {
    let place = format!("file://{}", package.path().display());
    json!({"rollout": rollout, "sha256": sha256(package), "package": place})
}

fn numclip(place: &Path, arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
    outcome(command.args(arguments).current_dir(place).output().unwrap())
}

#[test]
fn an_agent_follows_orders_and_goes_back() {
    let Some(mut site) = Site::new() else {
        return;
    };
    let manager = UnixDatagram::bind(site.shop.at("manager")).unwrap();
    manager.set_nonblocking(true).unwrap();
    let (new, _) = site.shop.package("1.1.0");
    let mut agent = site.agent("cam1", &["--label", "site=lab"]);
    until("the first report", || site.serves("cam1", "1.0.0"));
    assert_eq!(site.last("cam1")["labels"]["site"], "lab");
    until("presence", || {
        site.presence("cam1").as_deref() == Some("online")
    });
    let mut message = [0; 4096];
    let length = manager.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1\n");
    drop(manager);
    site.order("cam1", &order("r1", &new));
    until("the update", || site.serves("cam1", "1.1.0"));
    assert_eq!(serving(&site.shop.at("cam1")), "1.1.0");

    // The broker goes and comes; an order finds the device afterwards.
    site.broker.kill();
    thread::sleep(Duration::from_millis(300));
    site.broker.restart();
    let back = site.last("cam1")["previous"]["sha256"].clone();
    site.order("cam1", &json!({"rollout": "r2", "sha256": back}));
    until("the way back", || site.serves("cam1", "1.0.0"));

    agent.signal(Signal::KILL);
    agent.0.wait().unwrap();
    until("the last will", || {
        site.presence("cam1").as_deref() == Some("offline")
    });
    // An order that was given while it was away.
    site.order("cam1", &order("r3", &new));
    let mut agent = site.agent("cam1", &[]);
    until("the update", || site.serves("cam1", "1.1.0"));
    assert_eq!(agent.end(), 0);
    until("the farewell", || {
        site.presence("cam1").as_deref() == Some("offline")
    });
}

#[test]
fn the_watchdog_is_fed_only_while_work_moves_on() {
    let Some(site) = Site::new() else {
        return;
    };
    let manager = UnixDatagram::bind(site.shop.at("manager")).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let (new, _) = site.shop.package("1.1.0");
    let mut agent = site.agent("cam1", &[]);
    until("the first report", || site.serves("cam1", "1.0.0"));
    // Told in four seconds, in which nothing moves; then watched for three.
    let service = "reload = 'sleep 4'\nhealth = 'true'\nwatch_seconds = 3\n";
    fs::write(site.shop.at("cam1/device.toml"), service).unwrap();
    site.order("cam1", &order("r1", &new));
    let (mut beats, mut message) = (vec![Instant::now()], [0; 4096]);
    while !site.serves("cam1", "1.1.0") {
        let length = manager.recv(&mut message).unwrap();
        if &message[..length] == b"WATCHDOG=1\n" {
            beats.push(Instant::now());
        }
    }
    let gaps = || beats.windows(2).map(|pair| pair[1] - pair[0]);
    let hung = gaps().position(|gap| gap > Duration::from_millis(3500));
    let after = gaps().skip(hung.expect("no beat while nothing moves") + 1);
    assert!(after.clone().count() >= 2, "{beats:?}");
    assert!(after.max().unwrap() < Duration::from_secs(3), "{beats:?}");
    assert_eq!(agent.end(), 0);
}

#[test]
fn orders_that_cannot_be_followed_are_reported_and_change_nothing() {
    let Some(site) = Site::new() else {
        return;
    };
    let mut contents = contents();
    for case in &mut contents.golden.cases {
        case.value += 3.0;
    }
    let (bad, _) = site.shop.package_of("1.1.0", &contents);
    let foreign = Workshop::new();
    let (foreign, _) = foreign.package("1.2.0");
    let (older, _) = site.shop.package("0.9.0");
    let mut other = order("other", &older);
    other["sha256"] = "0".repeat(64).into();
    let _agent = site.agent("cam1", &[]);
    until("the first report", || site.serves("cam1", "1.0.0"));
    for (order, reason) in [
        (order("bad", &bad), "golden case"),
        (order("foreign", &foreign), "not trusted"),
        (order("older", &older), "older"),
        (other, "ordered is"),
        (
            json!({"rollout": "gone", "sha256": "1".repeat(64)}),
            "no longer has",
        ),
        (
            json!({"rollout": "nowhere", "sha256": "2".repeat(64), "package": "file:///none"}),
            "none",
        ),
    ] {
        site.order("cam1", &order);
        until(reason, || {
            let report = site.last("cam1");
            let fault = report["fault"].as_str().unwrap_or_default();
            report["order"]["rollout"] == order["rollout"]
                && report["phase"] == "waiting"
                && fault.contains(reason)
        });
        assert_eq!(serving(&site.shop.at("cam1")), "1.0.0");
    }
}

#[test]
fn a_place_is_looked_at_once_or_again_and_again() {
    let shop = Workshop::new();
    let [old, new] = ["1.0.0", "1.1.0"].map(|version| shop.package(version).0);
    let folder = shop.at("models");
    fs::create_dir(&folder).unwrap();
    for package in [&old, &new] {
        for ending in ["", ".minisig"] {
            let name = format!(
                "{}{ending}",
                package.path().file_name().unwrap().to_str().unwrap()
            );
            fs::copy(shop.at(&name), folder.join(&name)).unwrap();
        }
    }
    let write = |package: &Package| {
        let name = package.path().file_name().unwrap().to_str().unwrap();
        let order = json!({"rollout": "r", "sha256": sha256(package), "package": name});
        fs::write(folder.join("order.json"), order.to_string()).unwrap();
    };
    let store = shop.device();
    let [watch, store_text] = [
        format!("file://{}", folder.display()),
        store.display().to_string(),
    ];
    let once = [
        "agent",
        "--watch",
        &watch,
        "--store",
        &store_text,
        "--once",
        "--json",
    ];
    let (code, reports, stderr) = numclip(&shop.at(""), &once);
    assert_eq!((code, serving_or_none(&store)), (1, None), "{stderr}");
    assert!(reports[0]["fault"].as_str().unwrap().contains("order.json"));
    write(&old);
    assert_eq!(numclip(&shop.at(""), &once).0, 0);
    assert_eq!(serving(&store), "1.0.0");
    let every = [
        "agent",
        "--watch",
        &watch,
        "--store",
        &store_text,
        "--every",
        "1s",
    ];
    let mut agent = Running::start(&shop.at(""), &every);
    write(&new);
    until("the update", || serving(&store) == "1.1.0");
    assert_eq!(agent.end(), 0);
}

fn serving_or_none(store: &Path) -> Option<String> {
    let bundle = Bundle::open(store).ok()?;
    Some(bundle.manifest().model.version.clone())
}

#[test]
fn an_agent_watches_a_tag_through_an_outage() {
    let shop = Workshop::new();
    let Some(mut store) = registry::Store::start(&shop.at(""), false) else {
        return;
    };
    let [old, new] = ["1.0.0", "1.1.0"].map(|version| shop.package(version).0);
    let stable = store.named("tiny:stable");
    registry::push(&old, &stable);
    let device = shop.device();
    let text = device.display().to_string();
    let arguments = [
        "agent", "--watch", &stable, "--store", &text, "--every", "1s",
    ];
    let mut agent = Running::start(&shop.at(""), &arguments);
    until("the first model", || {
        serving_or_none(&device).as_deref() == Some("1.0.0")
    });
    store.stop();
    thread::sleep(Duration::from_millis(1500));
    store.restart();
    registry::push(&new, &stable);
    until("the update", || serving(&device) == "1.1.0");
    assert_eq!(agent.end(), 0);
}

#[test]
fn a_rollout_goes_through_its_stages_and_back() {
    let Some(site) = Site::new() else {
        return;
    };
    let place = site.shop.at("");
    let (new, _) = site.shop.package("1.1.0");
    let plan = format!(
        "package = 'file://{}'\n[broker]\nurl = '{}'\n[[stage]]\nname = 'lab'\nlabels = {{ site = 'lab' }}\n\
         wait = '1s'\n[[stage]]\nname = 'all'\n",
        new.path().display(),
        site.url()
    );
    fs::write(place.join("plan.toml"), plan).unwrap();
    let ids = ["cam1", "cam2", "cam3"];
    let labels = [&["--label", "site=lab"][..], &[], &[]];
    let agents: Vec<Running> = ids
        .iter()
        .zip(labels)
        .map(|(id, label)| site.agent(id, label))
        .collect();
    until("all devices", || {
        ids.iter().all(|id| site.serves(id, "1.0.0"))
    });

    let (code, devices, stderr) = numclip(&place, &["rollout", "plan.toml", "--dry-run", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let stages: Vec<&Value> = devices.iter().map(|device| &device["stage"]).collect();
    assert_eq!(stages, ["lab", "all", "all"]);
    assert!(!place.join("plan.toml.state.json").exists());

    let (code, steps, stderr) = numclip(&place, &["rollout", "plan.toml", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(ids.iter().all(|id| site.serves(id, "1.1.0")));
    for step in &steps {
        // Nobody else is asked before the lab is done.
        let others = &step["stages"][1];
        let untouched = others["asked"] == 0 && others["done"] == 0;
        assert!(untouched || step["stages"][0]["done"] == 1, "{step}");
    }
    assert_eq!(steps.last().unwrap()["status"], "done");
    let told = site.watcher.on("fleet/rollout").pop().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&told).unwrap()["status"],
        "done"
    );

    let (code, steps, stderr) = numclip(&place, &["rollout", "plan.toml", "--go-back", "--json"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(steps.last().unwrap()["status"], "back");
    until("the way back", || {
        ids.iter().all(|id| site.serves(id, "1.0.0"))
    });
    drop(agents);
}

#[test]
fn a_rollout_halts_and_says_why() {
    let Some(site) = Site::new() else {
        return;
    };
    let place = site.shop.at("");
    let mut contents = contents();
    contents.golden.cases[0].value += 3.0;
    let (bad, _) = site.shop.package_of("1.1.0", &contents);
    let plan = format!(
        "package = 'file://{}'\n[broker]\nurl = '{}'\n[limits]\npatience = '5s'\n[[stage]]\n",
        bad.path().display(),
        site.url()
    );
    fs::write(place.join("plan.toml"), plan).unwrap();
    let ids = ["cam1", "cam2"];
    let agents = ids.map(|id| site.agent(id, &[]));
    until("all devices", || {
        ids.iter().all(|id| site.serves(id, "1.0.0"))
    });
    let (code, steps, stderr) = numclip(&place, &["rollout", "plan.toml", "--json"]);
    assert_eq!(code, 1, "{stderr}");
    let last = &steps.last().unwrap()["stages"][0];
    assert_eq!((&last["failed"], &last["waiting"]), (&json!(1), &json!(1)));
    let (code, _, _) = numclip(&place, &["rollout", "plan.toml", "--status", "--json"]);
    assert_eq!(code, 1);
    until("the order is taken back", || site.serves("cam1", "1.0.0"));
    assert!(site.watcher.on("fleet/cam2/order").is_empty());
    drop(agents);
}

#[test]
fn a_plan_is_tried_on_ten_thousand_devices() {
    let place = tempfile::tempdir().unwrap();
    let (code, _, stderr) = numclip(place.path(), &["rollout", "--init", "plan.toml"]);
    assert_eq!(code, 0, "{stderr}");
    let simulate = ["rollout", "plan.toml", "--simulate", "10000", "--json"];
    let (code, lines, stderr) = numclip(place.path(), &simulate);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(lines[0]["status"], "done");
    assert_eq!(lines[0]["violations"], json!([]));
    let (code, lines, _) = numclip(
        place.path(),
        &[&simulate[..], &["--failing", "30"]].concat(),
    );
    assert_eq!((code, &lines[0]["status"]), (0, &json!("halted")));
}
