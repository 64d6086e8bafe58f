//! Packages in docker-registry, a real registry. Skipped where it is not
//! installed (Debian: `apt install docker-registry`).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::thread;

use assert_cmd::Command;
use numclip::fleet::registry::{Access, Login, Pick, Reference, Registry, RegistryError};
use numclip::package::Package;

use crate::common::outcome;
use crate::flash::Workshop;
use crate::reload::until;

/// User `me` with the password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

pub struct Store {
    program: PathBuf,
    folder: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

impl Store {
    /// A registry in `folder`, where there is one on this machine.
    pub fn start(folder: &Path, locked: bool) -> Option<Self> {
        let passwords = folder.join("registry/htpasswd");
        fs::create_dir_all(folder.join("registry")).unwrap();
        fs::write(&passwords, HTPASSWD).unwrap();
        let lock = format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            passwords.display()
        );
        Self::start_with(folder, "127.0.0.1", if locked { &lock } else { "" })
    }

    /// The same on another address of this machine, with more settings: lines
    /// of the section `http`, or sections.
    fn start_with(folder: &Path, address: &str, more: &str) -> Option<Self> {
        let program = ["/usr/bin/docker-registry", "/usr/local/bin/registry"];
        let Some(program) = program.iter().find(|path| Path::new(path).exists()) else {
            eprintln!("skipped: no docker-registry on this machine");
            return None;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let folder = folder.join("registry");
        fs::create_dir_all(&folder).unwrap();
        let settings = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}/data\nhttp:\n  addr: {address}:{port}\n{more}",
            folder.display(),
        );
        fs::write(folder.join("config.yml"), settings).unwrap();
        let mut store = Self {
            program: program.into(),
            folder,
            port,
            child: None,
        };
        store.restart();
        Some(store)
    }

    pub fn restart(&mut self) {
        let child = Process::new(&self.program)
            .arg("serve")
            .arg(self.folder.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.folder.join("log")).unwrap())
            .spawn();
        self.child = Some(child.unwrap());
        let port = self.port;
        until("the registry", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn named(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    fn open(&self, rest: &str) -> Registry {
        let reference: Reference = self.named(rest).parse().unwrap();
        Registry::new(&reference, &access(None)).unwrap()
    }

    /// The file that holds a blob.
    fn blob(&self, sha256: &str) -> PathBuf {
        let blobs = self.folder.join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&sha256[..2]).join(sha256).join("data")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop();
    }
}

/// No login of the machine's user gets in the way.
fn access(login: Option<Login>) -> Access {
    Access {
        login: Some(login.unwrap_or(Login {
            user: "nobody".into(),
            password: String::new(),
        })),
        ..Access::default()
    }
}

pub fn push(package: &Package, reference: &str) -> String {
    let registry = Registry::new(&reference.parse().unwrap(), &access(None)).unwrap();
    let beside = format!("{}.minisig", package.path().display());
    let signature = fs::read_to_string(beside).unwrap().parse().unwrap();
    let digest = registry.push(package, Some(&signature), &mut |_| ());
    digest.unwrap().to_string()
}

fn fetch(registry: &Registry, path: &Path) -> Result<Pick, RegistryError> {
    let offer = registry.offer()?;
    let signature = path.with_extension("minisig");
    let pulled = offer.fetch(path, &signature, None, &mut |_| ())?;
    Ok(pulled.digest)
}

fn numclip(arguments: &[&str]) -> (i32, Vec<serde_json::Value>, String) {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
    outcome(
        command
            .args(arguments)
            .env("HOME", "/nowhere")
            .output()
            .unwrap(),
    )
}

#[test]
fn what_is_pulled_is_what_was_pushed() {
    let shop = Workshop::new();
    let Some(store) = Store::start(&shop.at(""), false) else {
        return;
    };
    let (package, signature) = shop.package("1.0.0");
    let path = package.path().to_str().unwrap();
    let out = shop.at("pulled");
    let trust = shop.device().join("trust.d");
    let [tagged, out_text, trust] = [
        store.named("models/tiny:1.0.0"),
        out.display().to_string(),
        trust.display().to_string(),
    ];
    let (code, pushed, stderr) = numclip(&["push", path, &tagged, "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let pinned = pushed[0]["reference"].as_str().unwrap();
    assert!(pinned.contains("/models/tiny@sha256:"));
    for reference in [&*tagged, pinned] {
        let (code, pulled, stderr) = numclip(&[
            "pull", reference, "--out", &out_text, "--trust", &trust, "--json",
        ]);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(pulled[0]["reference"], pinned);
        assert_eq!(fs::read(&out).unwrap(), fs::read(path).unwrap());
        let beside = fs::read_to_string(shop.at("pulled.minisig")).unwrap();
        assert_eq!(beside, signature.to_string());
    }
    // The same again is the same, and sends nothing.
    let mut sent = 0;
    let registry = store.open("models/tiny:again");
    registry
        .push(&package, Some(&signature), &mut |step| {
            if let numclip::flash::Progress::Sent(bytes) = step {
                sent += bytes;
            }
        })
        .unwrap();
    assert_eq!(sent, 0);
}

#[test]
fn a_pin_stays_when_the_tag_moves() {
    let shop = Workshop::new();
    let Some(store) = Store::start(&shop.at(""), false) else {
        return;
    };
    let [old, new] = ["1.0.0", "1.1.0"].map(|version| shop.package(version).0);
    let stable = store.named("tiny:stable");
    let pin = push(&old, &stable);
    assert_ne!(push(&new, &stable), pin);
    let out = shop.at("out");
    fetch(&store.open("tiny:stable"), &out).unwrap();
    assert_eq!(fs::read(&out).unwrap(), fs::read(new.path()).unwrap());
    fetch(&store.open(&format!("tiny@{pin}")), &out).unwrap();
    assert_eq!(fs::read(&out).unwrap(), fs::read(old.path()).unwrap());
}

#[test]
fn what_was_altered_in_the_registry_is_refused_and_leaves_nothing() {
    let shop = Workshop::new();
    let Some(store) = Store::start(&shop.at(""), false) else {
        return;
    };
    let (package, _) = shop.package("1.0.0");
    let pin = push(&package, &store.named("tiny:1"));
    let header = package.header();
    let mut parts = vec![header.sha256(), pin["sha256:".len()..].to_owned()];
    parts.extend(
        header
            .index()
            .files
            .iter()
            .map(|file| file.packed_sha256.clone()),
    );
    let out = shop.at("out");
    for sha256 in parts {
        let path = store.blob(&sha256);
        let whole = fs::read(&path).unwrap();
        let mut altered = whole.clone();
        altered[whole.len() / 2] ^= 1;
        fs::write(&path, altered).unwrap();
        let error = fetch(&store.open(&format!("tiny@{pin}")), &out).unwrap_err();
        assert!(matches!(error, RegistryError::Altered { .. }), "{error}");
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(fetch(&store.open(&format!("tiny@{pin}")), &out).is_err());
        fs::write(&path, whole).unwrap();
    }
    let left = fs::read_dir(shop.at(""))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let left: Vec<_> = left.filter(|path| path.is_file()).collect();
    let expected = [shop.at("tiny-1.0.0"), shop.at("tiny-1.0.0.minisig")];
    assert_eq!(left.len(), expected.len(), "{left:?}");
    fetch(&store.open("tiny:1"), &out).unwrap();
}

#[test]
fn doors_stay_shut_without_the_right_password() {
    let shop = Workshop::new();
    let Some(store) = Store::start(&shop.at(""), true) else {
        return;
    };
    let (package, signature) = shop.package("1.0.0");
    let reference: Reference = store.named("tiny:1").parse().unwrap();
    let login = |password: &str| {
        access(Some(Login {
            user: "me".into(),
            password: password.into(),
        }))
    };
    let wrong = Registry::new(&reference, &login("wrong")).unwrap();
    let error = wrong.push(&package, Some(&signature), &mut |_| ());
    assert!(
        matches!(error, Err(RegistryError::Denied { .. })),
        "{error:?}"
    );
    let right = Registry::new(&reference, &login("secret")).unwrap();
    right.push(&package, Some(&signature), &mut |_| ()).unwrap();
    // The same from docker's file, and from the environment.
    let config = shop.at("config.json");
    let auths = format!(
        r#"{{"auths": {{"127.0.0.1:{}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#,
        store.port
    );
    fs::write(&config, auths).unwrap();
    let [name, out, config] = [
        reference.to_string(),
        shop.at("out").display().to_string(),
        config.display().to_string(),
    ];
    let pull = ["pull", &name, "--out", &out, "--json"];
    let (code, _, stderr) = numclip(&pull);
    assert!(code == 1 && stderr.contains("access denied"), "{stderr}");
    assert!(!shop.at("out").exists());
    let (code, _, stderr) = numclip(&[&pull[..], &["--docker-config", &config]].concat());
    assert_eq!(code, 0, "{stderr}");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("numclip"));
    command.args(pull).env("NUMCLIP_REGISTRY_USER", "me");
    command
        .env("NUMCLIP_REGISTRY_PASSWORD", "secret")
        .assert()
        .success();
}

#[test]
fn what_is_not_there_or_no_package_is_named() {
    let shop = Workshop::new();
    let Some(mut store) = Store::start(&shop.at(""), false) else {
        return;
    };
    let error = fetch(&store.open("none:1"), &shop.at("out")).unwrap_err();
    assert!(matches!(error, RegistryError::Missing { .. }), "{error}");
    assert!(!error.may_be_repeated());
    store.stop();
    let error = fetch(&store.open("none:1"), &shop.at("out")).unwrap_err();
    assert!(error.may_be_repeated(), "{error}");
    let elsewhere: Reference = "registry.invalid/tiny:1".parse().unwrap();
    let error = Registry::new(&elsewhere, &access(None))
        .err()
        .map(|error| error.to_string());
    assert_eq!(cfg!(feature = "tls"), error.is_none(), "{error:?}");
    if let Some(error) = error {
        assert!(error.contains("--features tls"), "{error}");
    }
}

/// Stands between us and the registry, and cuts every connection after so many
/// bytes of answers in all.
fn cut_after(bytes: usize, port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut left = bytes;
        for client in listener.incoming() {
            let (mut client, mut server) = (
                client.unwrap(),
                TcpStream::connect(("127.0.0.1", port)).unwrap(),
            );
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let copied = std::io::copy(&mut (&mut server).take(left as u64), &mut client);
            left -= copied.unwrap_or(0) as usize;
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    });
    here
}

#[test]
fn a_download_that_is_cut_leaves_nothing() {
    let shop = Workshop::new();
    let Some(store) = Store::start(&shop.at(""), false) else {
        return;
    };
    let (package, _) = shop.package("1.0.0");
    push(&package, &store.named("tiny:1"));
    let folder = shop.at("pulled");
    fs::create_dir(&folder).unwrap();
    let whole = package.header().package_len() as usize;
    for share in 0..8 {
        let port = cut_after(whole * share / 8, store.port);
        let reference: Reference = format!("127.0.0.1:{port}/tiny:1").parse().unwrap();
        let registry = Registry::new(&reference, &access(None)).unwrap();
        let error = fetch(&registry, &folder.join("out")).unwrap_err();
        assert!(error.may_be_repeated(), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

/// A server that answers each request, of which it sees the head, by a rule.
fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let text = answer(&String::from_utf8_lossy(&head).to_lowercase());
            let _ = client.write_all(text.as_bytes());
        }
    });
    port
}

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[test]
fn a_token_is_fetched_where_the_registry_says() {
    let tokens = serve(|head| {
        assert!(head.starts_with("get /token?"), "{head}");
        assert!(head.contains("scope=repository%3atiny%3apull") && head.contains("service=a%2cb"));
        match head.contains("authorization: basic bwu6c2vjcmv0") {
            true => http(
                "200 OK",
                "",
                r#"{"access_token": "pass", "expires_in": 60}"#,
            ),
            false => http(
                "401 Unauthorized",
                "",
                r#"{"errors": [{"message": "who are you"}]}"#,
            ),
        }
    });
    let registry = serve(
        move |head| match head.contains("authorization: bearer pass\r\n") {
            true => http("404 Not Found", "", "{}"),
            false => {
                let realm = format!("http://127.0.0.1:{tokens}/token");
                let wanted =
                    format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"a,b\"\r\n");
                http("401 Unauthorized", &wanted, "")
            }
        },
    );
    let reference: Reference = format!("127.0.0.1:{registry}/tiny:1").parse().unwrap();
    let ask = |login: Option<Login>| {
        let registry = Registry::new(&reference, &access(login)).unwrap();
        fetch(&registry, Path::new("/nowhere/out")).unwrap_err()
    };
    let me = Login {
        user: "me".into(),
        password: "secret".into(),
    };
    assert!(matches!(ask(Some(me)), RegistryError::Missing { .. }));
    let error = ask(None).to_string();
    assert!(error.contains("who are you"), "{error}");
}

#[test]
fn no_password_follows_a_blob_to_another_machine() {
    let elsewhere = serve(|head| {
        assert!(!head.contains("authorization"), "{head}");
        http("200 OK", "", "{}")
    });
    let registry = serve(move |head| match head.contains("authorization: basic") {
        false => http(
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=\"x\"\r\n",
            "",
        ),
        true => {
            let there = format!("Location: http://localhost:{elsewhere}/blob\r\n");
            http("307 Temporary Redirect", &there, "")
        }
    });
    let reference: Reference = format!("127.0.0.1:{registry}/tiny:1").parse().unwrap();
    let registry = Registry::new(&reference, &access(None)).unwrap();
    let error = fetch(&registry, Path::new("/nowhere/out")).unwrap_err();
    assert!(matches!(error, RegistryError::Foreign { .. }), "{error}");
}

#[cfg(feature = "tls")]
#[test]
fn an_encrypted_registry_is_trusted_by_its_certificate() {
    use numclip::fleet::Transport;
    use std::net::ToSocketAddrs as _;

    // The name of this machine, as seen from outside: not its loopback.
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim();
    if (host, 1).to_socket_addrs().is_err() {
        eprintln!("skipped: {host} has no address");
        return;
    }
    let shop = Workshop::new();
    let place = shop.at("");
    let made = Process::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=test",
        ])
        .args(["-addext", &format!("subjectAltName=DNS:{host}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .current_dir(&place)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("skipped: no openssl on this machine");
        return;
    }
    let more = format!(
        "  tls:\n    certificate: {0}/cert.pem\n    key: {0}/key.pem\n",
        place.display()
    );
    let Some(store) = Store::start_with(&place, "0.0.0.0", &more) else {
        return;
    };
    let (package, signature) = shop.package("1.0.0");
    let name = format!("{host}:{}/tiny:1", store.port);
    let reference: Reference = name.parse().unwrap();
    let with = |ca: Option<PathBuf>| Access {
        transport: Transport {
            ca,
            plain_http: false,
        },
        ..access(None)
    };
    let trusting = Registry::new(&reference, &with(Some(shop.at("cert.pem")))).unwrap();
    trusting
        .push(&package, Some(&signature), &mut |_| ())
        .unwrap();
    fetch(&trusting, &shop.at("out")).unwrap();
    let doubting = Registry::new(&reference, &with(None)).unwrap();
    let error = doubting.offer().map(drop).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
}
