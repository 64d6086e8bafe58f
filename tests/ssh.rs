//! Many devices behind a real sshd, each on a port of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::flash::Workshop;

const DEVICES: usize = 20;

struct Server {
    folder: PathBuf,
    ports: Vec<u16>,
    child: Child,
}

impl Server {
    /// A server that runs `numclip store …` on the store of the port it is
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
        fs::write(folder.join("config"), config(folder, &ports)).unwrap();
        fs::write(folder.join("dispatch"), DISPATCH).unwrap();
        let child = Command::new(sshd)
            .args(["-D", "-e", "-f"])
            .arg(folder.join("config"))
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .ok()?;
        let server = Self {
            folder: folder.into(),
            ports,
            child,
        };
        server.answers().then_some(server)
    }

    fn answers(&self) -> bool {
        let start = Instant::now();
        let last = self.ports[DEVICES - 1];
        while start.elapsed() < Duration::from_secs(10) {
            if TcpStream::connect(("127.0.0.1", last)).is_ok() {
                return true;
            }
            thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn device(&self, index: usize) -> PathBuf {
        device(&self.folder, self.ports[index])
    }

    /// `numclip` with the throwaway keys, on some of the devices.
    fn numclip(&self, args: &[&str], devices: &[usize]) -> (bool, String) {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let ssh = format!(
            "ssh -F none -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile={} -i {}",
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
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_ports() -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..DEVICES)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    listeners.iter().map(port).collect()
}

fn device(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!("device-{port}"))
}

/// What the server runs for a port: the command that was asked for, but this
/// build's numclip and the port's store.
const DISPATCH: &str = r#"numclip=$1 store=$2
set -- $SSH_ORIGINAL_COMMAND
shift
words=
while [ $# -gt 2 ]; do words="$words $1"; shift; done
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

#[test]
fn twenty_devices_at_a_time() {
    let shop = Workshop::new();
    let folder = shop.at("ssh");
    fs::create_dir(&folder).unwrap();
    let Some(server) = Server::start(&folder) else {
        return eprintln!("skipped: no sshd here");
    };
    server.knows(&fs::read_to_string(folder.join("host.pub")).unwrap());
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
