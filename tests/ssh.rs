//! Many devices behind a real sshd, each on a port of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::flash::Workshop;
use crate::runtime;

const DEVICES: usize = 20;
/// Ports of one server: sshd listens on 16 at most.
const PORTS: usize = 10;

struct Server {
    folder: PathBuf,
    ports: Vec<u16>,
    children: Vec<Child>,
}

impl Server {
    /// Servers that run `numclip store …` on the store of the port they are
    /// reached by; `None` where there is no sshd.
    fn start(folder: &Path) -> Option<Self> {
        let sshd = ["/usr/sbin/sshd", "/usr/bin/sshd"];
        let sshd = sshd.iter().find(|path| Path::new(path).exists())?;
        for name in ["host", "user"] {
            let key = folder.join(name);
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(key)
                .status();
            made.ok().filter(|status| status.success())?;
        }
        // As root it wants a folder that only the package's service makes.
        let _ = fs::create_dir("/run/sshd");
        let ports = free_ports();
        fs::write(folder.join("dispatch"), DISPATCH).unwrap();
        let serve = |(index, ports): (usize, &[u16])| {
            let file = folder.join(format!("config-{index}"));
            fs::write(&file, config(folder, ports)).unwrap();
            let log = fs::File::create(folder.join(format!("log-{index}"))).unwrap();
            let mut command = Command::new(sshd);
            command.args(["-D", "-e", "-f"]).arg(file).stderr(log);
            command.spawn().unwrap()
        };
        let server = Self {
            folder: folder.into(),
            children: ports.chunks(PORTS).enumerate().map(serve).collect(),
            ports,
        };
        assert!(server.answers(), "sshd does not answer: {}", server.log());
        Some(server)
    }

    fn log(&self) -> String {
        let logs = (0..self.children.len()).map(|index| self.folder.join(format!("log-{index}")));
        logs.map(|log| fs::read_to_string(log).unwrap_or_default())
            .collect()
    }

    fn answers(&self) -> bool {
        let start = Instant::now();
        let answers = |port: &u16| TcpStream::connect(("127.0.0.1", *port)).is_ok();
        while !self.ports.iter().all(answers) {
            if start.elapsed() > Duration::from_secs(20) {
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn device(&self, index: usize) -> PathBuf {
        device(&self.folder, self.ports[index])
    }

    /// `numclip` with the throwaway keys, on some of the devices.
    fn numclip(&self, args: &[&str], devices: &[usize]) -> (bool, String) {
        self.numclip_by("ssh", args, devices)
    }

    /// The same by another program than ssh itself.
    fn numclip_by(&self, ssh: &str, args: &[&str], devices: &[usize]) -> (bool, String) {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let ssh = format!(
            "{ssh} -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile={} -i {}",
            at("known"),
            at("user")
        );
        let targets = devices
            .iter()
            .map(|&device| format!("127.0.0.1:{}", self.ports[device]));
        let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
            .args(args)
            .args(targets)
            .args(["--ssh", &ssh])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn knows(&self, host_key: &str) {
        let lines = self
            .ports
            .iter()
            .map(|port| format!("[127.0.0.1]:{port} {host_key}"));
        let lines: Vec<String> = lines.collect();
        fs::write(self.folder.join("known"), lines.join("\n")).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_ports() -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..DEVICES)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    listeners.iter().map(port).collect()
}

/// The store of a port, within a system of its own.
fn device(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!("device-{port}/var/lib/numclip"))
}

/// What the server runs for a port: the command that was asked for, but this
/// build's numclip and the port's store. Scripts run as they are.
const DISPATCH: &str = r#"numclip=$1 store=$2
case $SSH_ORIGINAL_COMMAND in *' sh -c '*) eval "$SSH_ORIGINAL_COMMAND"; exit ;; esac
set -- $SSH_ORIGINAL_COMMAND
shift
words=
while [ $# -gt 2 ]; do words="$words $1"; shift; done
# The device's clock, where it is not the machine's.
clock=$(dirname "$0")/clock
[ ! -e "$clock" ] || exec faketime "$(cat "$clock")" "$numclip" $words --store "$store"
exec "$numclip" $words --store "$store"
"#;

fn config(folder: &Path, ports: &[u16]) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut text = format!(
        "HostKey {}\nAuthorizedKeysFile {}\n",
        at("host"),
        at("user.pub")
    );
    text += "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n";
    text += "KbdInteractiveAuthentication no\nMaxStartups 100\nListenAddress 127.0.0.1\n";
    for port in ports {
        text += &format!("Port {port}\n");
    }
    let numclip = assert_cmd::cargo::cargo_bin!("numclip").display();
    for port in ports {
        let store = device(folder, *port);
        text += &format!(
            "Match LocalPort {port}\n  ForceCommand sh {} {numclip} {}\n",
            at("dispatch"),
            store.display()
        );
    }
    text
}

/// A server that is known by its key; `None` where there is no sshd.
fn server(shop: &Workshop) -> Option<Server> {
    let folder = shop.at("ssh");
    fs::create_dir(&folder).unwrap();
    let Some(server) = Server::start(&folder) else {
        eprintln!("skipped: no sshd here");
        return None;
    };
    server.knows(&fs::read_to_string(folder.join("host.pub")).unwrap());
    Some(server)
}

#[test]
fn twenty_devices_at_a_time() {
    let shop = Workshop::new();
    let Some(server) = server(&shop) else {
        return;
    };
    let all: Vec<usize> = (0..DEVICES).collect();
    for &index in &all[1..] {
        shop.trust(&server.device(index));
    }
    let flash = |version: &str, devices: &[usize]| {
        shop.package(version);
        let package = shop.at(&format!("tiny-{version}")).display().to_string();
        server.numclip(&["flash", &package], devices)
    };
    let count = |text: &str, words: &str| text.matches(words).count();
    // One device trusts nobody; the others do not mind.
    let (ok, text) = flash("1.0.0", &all);
    assert!(!ok && count(&text, "installed") == DEVICES - 1, "{text}");
    assert_eq!(count(&text, "no trusted keys"), 1, "{text}");
    shop.trust(&server.device(0));
    let (ok, text) = flash("1.0.0", &all);
    assert!(ok && count(&text, "already there") == DEVICES - 1, "{text}");
    let (ok, text) = flash("1.1.0", &all[..3]);
    assert!(ok && count(&text, "installed") == 3, "{text}");
    let (ok, text) = server.numclip(&["status"], &all[2..5]);
    assert!(
        ok && count(&text, "tiny") == 4 && count(&text, "1.1.0") == 1,
        "{text}"
    );
    let (ok, text) = server.numclip(&["rollback"], &all[..1]);
    assert!(ok && text.contains("1.0.0 serves"), "{text}");
    let (ok, text) = server.numclip(&["prune"], &all[..2]);
    assert!(ok && count(&text, "nothing to remove") == 2, "{text}");
    refuses_a_wrong_host(&server, &shop);
}

fn refuses_a_wrong_host(server: &Server, shop: &Workshop) {
    server.knows(&fs::read_to_string(server.folder.join("user.pub")).unwrap());
    let package = shop.at("tiny-1.1.0").display().to_string();
    let (ok, text) = server.numclip(&["flash", &package], &[3]);
    assert!(
        !ok && text.contains("Host key verification failed"),
        "{text}"
    );
}

/// An ssh that is killed after some bytes the first time, in the middle of a
/// transfer; the second time it counts what is sent.
const KILLED: &str = r#"#!/bin/sh
here=$(dirname "$0")
if [ -e "$here/killed" ]; then
  tee "$here/sent" | ssh "$@"
  exit
fi
touch "$here/killed"
exec 3<&0
{ dd bs=4096 count=400000 iflag=count_bytes status=none <&3; sleep 3; } | ssh "$@" &
sleep 2
kill -9 $!
exit 255
"#;

#[test]
fn a_connection_that_is_killed_goes_on_where_it_was() {
    let shop = Workshop::new();
    let Some(server) = server(&shop) else {
        return;
    };
    let package = shop.shipped("gauge");
    shop.trust(&server.device(0));
    let ssh = shop.at("killed-ssh");
    fs::write(&ssh, KILLED).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let flash = ["flash", &package.display().to_string()];
    let (ok, text) = server.numclip_by(&ssh.display().to_string(), &flash, &[0]);
    assert!(ok && text.contains("installed"), "{text}");
    assert!(shop.at("killed").exists());
    let whole = fs::metadata(&package).unwrap().len();
    let sent = fs::metadata(shop.at("sent")).unwrap().len();
    assert!(sent < whole - 300_000, "{sent} of {whole} bytes sent again");
    let (ok, text) = server.numclip(&["status"], &[0]);
    assert!(ok && text.contains("gauge"), "{text}");
}

#[test]
fn a_model_over_loopback_takes_no_more_than_the_device_needs_for_it() {
    let shop = Workshop::new();
    let Some(server) = server(&shop) else {
        return;
    };
    let package = shop.shipped("gauge");
    shop.trust(&server.device(0));
    let flash = ["flash", &package.display().to_string()];
    // The way there and back, with all that ssh does: something small.
    let start = Instant::now();
    assert!(!server.numclip(&["status"], &[0]).0);
    let handshake = start.elapsed();
    let start = Instant::now();
    let (ok, text) = server.numclip(&flash, &[0]);
    let flashed = start.elapsed();
    assert!(ok && text.contains("installed"), "{text}");
    let start = Instant::now();
    let proof = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .arg("verify")
        .arg(server.device(0))
        .stdout(Stdio::null())
        .status();
    assert!(proof.unwrap().success());
    let proof = start.elapsed();
    eprintln!("handshake {handshake:?}, flash {flashed:?}, golden vectors alone {proof:?}");
    // Other tests run beside this one: the machine's own pace is the measure.
    let limit = handshake + 4 * proof + Duration::from_secs(2);
    assert!(flashed < limit, "{flashed:?}, accepted are {limit:?}");
}

#[test]
fn a_device_whose_clock_is_wrong_says_so_and_keeps_serving() {
    let shop = Workshop::new();
    let Some(server) = server(&shop) else {
        return;
    };
    if Command::new("faketime").arg("--version").output().is_err() {
        return eprintln!("skipped: no faketime here");
    }
    shop.trust(&server.device(0));
    let flash = |version: &str, more: &[&str]| {
        shop.package(version);
        let package = shop.at(&format!("tiny-{version}")).display().to_string();
        server.numclip(&[&["flash", &package], more].concat(), &[0])
    };
    let (ok, text) = flash("1.0.0", &[]);
    assert!(ok, "{text}");
    fs::write(server.folder.join("clock"), "1970-01-01 00:01:00").unwrap();
    let (ok, text) = flash("1.1.0", &[]);
    let told = text.contains("clock here says 1970-01-01") && text.contains("set the clock");
    assert!(!ok && told, "{text}");
    let (ok, text) = server.numclip(&["status"], &[0]);
    assert!(ok && text.contains("1.0.0"), "{text}");
    let (ok, text) = flash("1.1.0", &["--allow-any-clock"]);
    assert!(ok && text.contains("installed"), "{text}");
}

#[test]
fn a_bare_system_becomes_a_device_over_ssh() {
    let shop = Workshop::new();
    let Some(server) = server(&shop) else {
        return;
    };
    shop.package("1.0.0");
    let store = server.device(0);
    let root = store.ancestors().nth(3).unwrap();
    runtime::system(root);
    // No systemd is there to be told.
    fs::write(store.join("device.toml"), "").unwrap();
    let package = shop.at("tiny-1.0.0").display().to_string();
    let program = assert_cmd::cargo::cargo_bin!("numclip")
        .display()
        .to_string();
    let key = shop.device().join("trust.d/release.pub");
    // The key's end travels with it.
    let signer = fs::read_to_string(&key).unwrap();
    let signer = signer.replacen('\n', " expires 2100-01-01T00:00:00Z\n", 1);
    fs::write(&key, &signer).unwrap();
    let key = key.display().to_string();
    let store = store.display().to_string();
    let flash = |program: &str| {
        let arguments = [
            "flash",
            &package,
            "--with-runtime",
            program,
            "--trust",
            &key,
            "--store",
            &store,
        ];
        server.numclip(&arguments, &[0])
    };
    let (ok, text) = flash(&program);
    assert!(ok && text.contains("installed"), "{text}");
    let installed = root.join("usr/local/bin/numclip");
    assert_eq!(fs::read(&installed).unwrap(), runtime::program());
    assert_eq!(
        fs::read_dir(Path::new(&store).join("staging"))
            .unwrap()
            .count(),
        0
    );
    let mut trusted = fs::read_dir(Path::new(&store).join("trust.d")).unwrap();
    let trusted = trusted.next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(trusted).unwrap(), signer);
    fs::remove_file(root.join("etc/systemd/system/numclip.service")).unwrap();
    let (ok, text) = flash(&program);
    assert!(ok && text.contains("already there"), "{text}");
    assert!(root.join("etc/systemd/system/numclip.service").exists());
    // For another machine: nothing travels.
    let mut foreign = runtime::program();
    foreign[18] = 243;
    let path = shop.at("foreign");
    fs::write(&path, foreign).unwrap();
    let (ok, text) = flash(&path.display().to_string());
    assert!(!ok && text.contains("the program is for riscv64"), "{text}");
}
