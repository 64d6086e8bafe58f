//! Runs that several machines compute: processes of this one that meet on the loopback.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use numclip_trainer::config::Config;
use numclip_trainer::device::Choice;
use numclip_trainer::fit::{
    FitError, Join, Joined, Listen, MachinesError, Options, Outcome, Run, StepRecord, fit, join,
};
use numclip_trainer::study::Set;

use crate::common::{config, copy, gauges, run, task};
use crate::distill::involved;
use crate::resume::assert_same;

/// Without batch normalisation, whose statistics follow the batches of the first machine: with one
/// batch for each of two machines, sums are the same to the last bit.
const PLAIN: &str = "[model]\narchitecture = \"mobilenet-v2\"\nwidth = 0.25\nnorm = \"folded\"\n\
                     [train]\nepochs = 3\nbatch_size = 6\naccumulate = 2\nema = 0.9\n\
                     freeze = [{ path = \"encoder.features.stem\", until_epoch = 1 }]\n";
const PATIENCE: Duration = Duration::from_secs(60);

/// An address that nobody listens on yet.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn train(config: &Config, out: &Path, listen: &Listen) -> Result<Outcome, FitError> {
    let resume = Run::is_begun(out);
    let interrupt = &AtomicBool::new(false);
    let listen = Some(listen);
    fit(
        config,
        &Options {
            out,
            resume,
            listen,
            interrupt,
        },
    )
}

fn listen(address: &str, machines: usize) -> Listen {
    Listen {
        address: address.into(),
        machines,
    }
}

fn lend(address: &str, set: &[Set], interrupt: &AtomicBool) -> Result<Joined, FitError> {
    join(&Join {
        address,
        device: Choice::Cpu,
        set,
        wait: PATIENCE,
        interrupt,
    })
}

/// Another process that joins.
fn helper(address: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
    command.args(["join", address, "--device", "cpu"]);
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Measurements of a run.
fn lines(out: &Path) -> usize {
    let text = fs::read_to_string(out.join("metrics.jsonl"));
    text.unwrap_or_default().lines().count()
}

/// Waits until a run has so many measurements.
fn wait_for_lines(out: &Path, count: usize) {
    let begun = Instant::now();
    while lines(out) < count {
        assert!(begun.elapsed() < PATIENCE, "{} stands still", out.display());
        thread::sleep(Duration::from_millis(2));
    }
}

fn steps(out: &Path) -> Vec<StepRecord> {
    Run::read(out).unwrap().0.history().unwrap().0
}

fn set(key: &str, value: &Path) -> Set {
    let value = value.display().to_string().into();
    Set {
        key: key.into(),
        value,
    }
}

#[test]
fn two_machines_train_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &task(PLAIN));
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    run(&config, &alone, false).unwrap();
    let address = free();
    let child = helper(&address);
    train(&config, &shared, &listen(&address, 2)).unwrap();
    assert_same(&alone, &shared, "shared out");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    // Half of the 33 or 34 training images of each of three epochs, in batches of six.
    let shares = said.lines().filter(|line| line.contains(" images here"));
    assert_eq!(shares.count(), 3, "{said}");
    assert!(said.contains("the run is over"), "{said}");
}

#[test]
fn a_student_is_taught_on_every_machine() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = involved(folder.path());
    config.train.accumulate = 2;
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    run(&config, &alone, false).unwrap();
    let address = free();
    let child = helper(&address);
    train(&config, &shared, &listen(&address, 2)).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert_eq!(steps(&alone), steps(&shared));
}

#[test]
fn machines_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let long = PLAIN.replace("epochs = 3", "epochs = 24");
    let config = config(folder.path(), &task(&long));
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    run(&config, &alone, false).unwrap();
    let address = free();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let trained = scope.spawn(|| train(&config, &shared, &listen(&address, 1)));
        wait_for_lines(&shared, 2);
        // One that is killed, at no agreed moment.
        let mut killed = helper(&address);
        let computes = thread::spawn({
            let stderr = killed.stderr.take().unwrap();
            move || {
                let lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
                lines
                    .map_while(Result::ok)
                    .any(|l| l.contains("images here"))
            }
        });
        assert!(computes.join().unwrap(), "it computed nothing");
        killed.kill().unwrap();
        killed.wait().unwrap();
        // One that is told to leave.
        let left = scope.spawn(|| lend(&address, &[], &stop));
        thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        let left = left.join().unwrap();
        assert!(matches!(left, Ok(Joined::Left | Joined::Over)), "{left:?}");
        trained.join().unwrap().unwrap();
    });
    assert_same(&alone, &shared, "with machines that come and go");
}

#[test]
fn a_stopped_run_is_joined_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &task(PLAIN));
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    run(&config, &alone, false).unwrap();
    let address = free();
    let listen = listen(&address, 2);
    let mut stops = 0;
    loop {
        let stop = AtomicBool::new(false);
        let never = AtomicBool::new(false);
        let (outcome, joined) = thread::scope(|scope| {
            let joined = scope.spawn(|| lend(&address, &[], &never));
            scope.spawn(|| {
                wait_for_lines(&shared, lines(&shared) + 1);
                stop.store(true, Ordering::Relaxed);
            });
            let outcome = fit(
                &config,
                &Options {
                    out: &shared,
                    resume: Run::is_begun(&shared),
                    listen: Some(&listen),
                    interrupt: &stop,
                },
            );
            (outcome.unwrap(), joined.join().unwrap().unwrap())
        });
        if !outcome.interrupted {
            assert_eq!(joined, Joined::Over);
            break;
        }
        assert_eq!(joined, Joined::Stopped);
        stops += 1;
        assert!(stops < 50, "the run does not advance");
    }
    assert!(stops > 0);
    assert_same(&alone, &shared, "stopped and resumed");
}

#[test]
fn strangers_are_not_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), &task(PLAIN));
    let [alone, shared] = ["alone", "shared"].map(|name| folder.path().join(name));
    run(&config, &alone, false).unwrap();
    // The same images elsewhere, and one of them with another label.
    let [same, other] = ["same", "other"].map(|name| folder.path().join(name));
    copy(&gauges().join("set"), &same);
    copy(&gauges().join("set"), &other);
    let table = fs::read_to_string(other.join("labels.csv")).unwrap();
    let mut lines: Vec<String> = table.lines().map(str::to_owned).collect();
    let (path, _) = lines[1].split_once(',').unwrap();
    let rest = lines[1].splitn(3, ',').nth(2).map(|r| format!(",{r}"));
    lines[1] = format!("{path},12.5{}", rest.unwrap_or_default());
    fs::write(other.join("labels.csv"), lines.join("\n") + "\n").unwrap();

    let address = free();
    let never = AtomicBool::new(false);
    thread::scope(|scope| {
        let trained = scope.spawn(|| train(&config, &shared, &listen(&address, 2)));
        let refused = lend(
            &address,
            &[set("data.table", &other.join("labels.csv"))],
            &never,
        );
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("images or labels"), "{message}");
        let mut browser = TcpStream::connect(&address).unwrap();
        browser
            .write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            .unwrap();
        let joined = lend(
            &address,
            &[set("data.table", &same.join("labels.csv"))],
            &never,
        );
        assert_eq!(joined.unwrap(), Joined::Over);
        trained.join().unwrap().unwrap();
    });
    assert_same(&alone, &shared, "with strangers at the door");
}

#[test]
fn what_a_machine_cannot_do_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let never = AtomicBool::new(false);
    let address = free();
    let rate = [set("train.optimizer.lr", Path::new("1"))];
    let error = lend(&address, &rate, &never).unwrap_err();
    assert!(matches!(error, FitError::Machines(MachinesError::Key(_))));
    assert!(error.to_string().contains("data.table"), "{error}");
    let nobody = join(&Join {
        address: &address,
        device: Choice::Cpu,
        set: &[],
        wait: Duration::ZERO,
        interrupt: &never,
    });
    let message = nobody.unwrap_err().to_string();
    assert!(
        message.contains(&address) && message.contains("--listen"),
        "{message}"
    );
    // One batch in a step is nothing to share out.
    let one = config(folder.path(), &task(&PLAIN.replace("accumulate = 2\n", "")));
    let error = train(&one, &folder.path().join("run"), &listen(&address, 2)).unwrap_err();
    assert!(error.to_string().contains("accumulate"), "{error}");
    // TEST-NET-1 (RFC 5737) belongs to nobody.
    let two = config(folder.path(), &task(PLAIN));
    let error = train(&two, &folder.path().join("two"), &listen("192.0.2.1:0", 2)).unwrap_err();
    assert!(!folder.path().join("two").exists());
    assert!(
        matches!(error, FitError::Machines(MachinesError::Listen { .. })),
        "{error}"
    );
}
