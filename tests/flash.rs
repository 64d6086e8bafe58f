//! Devices that take packages, on folders of this machine and over pipes.

use std::fs;
use std::io::{self, BufReader, Write, pipe};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use jiff::Timestamp;
use numclip::bundle::{Bundle, Contents};
use numclip::decode;
use numclip::flash::torture::samples;
use numclip::flash::{
    Allow, Delivery, Device, DeviceError, Health, Progress, SendError, SimulatedDisk, StoreError,
    place, receive, send, status,
};
use numclip::package::{Package, ShadowBudget, cartridge, limit, pack, write};
use numclip::pipeline::Pipeline;
use numclip::signature::{SecretKey, Signature, Term, sign_package};
use numclip::verify::replay;
use tempfile::TempDir;

use crate::common::{Weights, contents, golden_case, picture, write_version};

/// A signer, and a device that trusts it.
pub struct Workshop {
    folder: TempDir,
    key: SecretKey,
}

/// Signed now, and for ever.
pub fn signed_now() -> Term {
    Term {
        signed: Timestamp::now(),
        expires: None,
    }
}

/// Places a package on a device that takes nothing it need not.
pub fn place_on(
    device: &Path,
    (package, signature): (&Package, &Signature),
) -> Result<Delivery, DeviceError> {
    let allow = Allow::default();
    place(device, package, signature, None, allow, &mut |_| ())
}

/// The version that serves on a device.
pub fn serving(device: &Path) -> String {
    let bundle = Bundle::open(device).unwrap();
    bundle.manifest().model.version.clone()
}

impl Workshop {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let workshop = Self { folder, key };
        workshop.trust(&workshop.device());
        workshop
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn device(&self) -> PathBuf {
        self.at("device")
    }

    pub fn trust(&self, device: &Path) {
        fs::create_dir_all(device.join("trust.d")).unwrap();
        let text = self.key.public().to_string();
        fs::write(device.join("trust.d/release.pub"), text).unwrap();
    }

    /// A signed package of the tiny bundle.
    pub fn package(&self, version: &str) -> (Package, Signature) {
        self.package_of(version, &contents())
    }

    pub fn package_of(&self, version: &str, contents: &Contents) -> (Package, Signature) {
        let model = self.at(&format!("model-{version}"));
        write_version(&model, version, contents);
        let path = self.at(&format!("tiny-{version}"));
        let package = write(&path, &pack(&model).unwrap()).unwrap();
        let signature = self.sign(&package);
        let beside = self.at(&format!("tiny-{version}.minisig"));
        fs::write(beside, signature.to_string()).unwrap();
        (package, signature)
    }

    pub fn sign(&self, package: &Package) -> Signature {
        self.sign_for(package, signed_now())
    }

    /// A signature with a trusted comment of any kind.
    pub fn sign_as(&self, package: &Package, comment: &str) -> Signature {
        let bytes = fs::read(package.path()).unwrap();
        self.key.sign(&bytes, comment).unwrap()
    }

    pub fn sign_for(&self, package: &Package, term: Term) -> Signature {
        sign_package(package, &self.key, term).unwrap()
    }

    /// The signed package of a model that ships; its path.
    pub fn shipped(&self, name: &str) -> PathBuf {
        let model = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("models")
            .join(name);
        let path = self.at(name);
        let package = write(&path, &pack(&model).unwrap()).unwrap();
        let signature = self.sign(&package);
        fs::write(self.at(&format!("{name}.minisig")), signature.to_string()).unwrap();
        path
    }

    pub fn place(
        &self,
        (package, signature): &(Package, Signature),
    ) -> Result<Delivery, DeviceError> {
        place_on(&self.device(), (package, signature))
    }

    pub fn serving(&self) -> String {
        serving(&self.device())
    }

    fn slot(&self, (package, _): &(Package, Signature)) -> PathBuf {
        let digest = package.header().index().bundle_sha256();
        self.device().join("slots").join(digest)
    }
}

#[test]
fn an_update_switches_and_keeps_the_way_back() {
    let shop = Workshop::new();
    let versions = ["1.0.0", "1.1.0", "2.0.0"].map(|version| shop.package(version));
    for (package, version) in versions.iter().zip(["1.0.0", "1.1.0", "2.0.0"]) {
        assert_eq!(shop.place(package).unwrap(), Delivery::Installed);
        assert_eq!(shop.serving(), version);
        assert_eq!(shop.place(package).unwrap(), Delivery::AlreadyThere);
    }
    // The oldest has gone; what did not change is one file with two names.
    assert!(!shop.slot(&versions[0]).exists());
    let inode = |package| {
        fs::metadata(shop.slot(package).join("encoder.onnx"))
            .unwrap()
            .ino()
    };
    assert_eq!(inode(&versions[1]), inode(&versions[2]));
    let mut device = Device::open(&shop.device()).unwrap();
    device.rollback(&mut |_| ()).unwrap();
    drop(device);
    assert_eq!(shop.serving(), "1.1.0");
    let status = status(&shop.device()).unwrap();
    assert_eq!(status.previous.unwrap().version, "2.0.0");
    assert_eq!(status.serving.unwrap().fault, None);
    assert_eq!(status.health, Health::Unwatched);
}

#[test]
fn an_older_version_is_refused_unless_allowed() {
    let shop = Workshop::new();
    shop.place(&shop.package("1.10.0")).unwrap();
    let old = shop.package("1.9.0");
    let error = shop.place(&old).unwrap_err().to_string();
    assert!(error.contains("--allow-downgrade"), "{error}");
    assert_eq!(shop.serving(), "1.10.0");
    let allow = Allow {
        downgrade: true,
        ..Allow::default()
    };
    place(&shop.device(), &old.0, &old.1, None, allow, &mut |_| ()).unwrap();
    assert_eq!(shop.serving(), "1.9.0");
}

#[test]
fn a_model_that_this_device_computes_otherwise_never_serves() {
    let shop = Workshop::new();
    shop.place(&shop.package("1.0.0")).unwrap();
    let mut other = contents();
    for case in &mut other.golden.cases {
        case.value += 3.0;
    }
    let error = shop.place(&shop.package_of("1.1.0", &other)).unwrap_err();
    assert!(error.to_string().contains("golden case 0"), "{error}");
    assert_eq!(shop.serving(), "1.0.0");
}

#[test]
fn a_service_that_is_not_well_gets_the_old_model_back() {
    let shop = Workshop::new();
    let [old, new] = ["1.0.0", "1.1.0"].map(|version| shop.package(version));
    let bad = new.0.header().index().bundle_sha256();
    let log = shop.at("reloads");
    let service = format!(
        "reload = \"echo reload >> {}\"\nhealth = \"! grep -q 'serving\\\":\\\"{bad}' {}\"\nwatch_seconds = 0.0\n",
        log.display(),
        shop.device().join("current").display()
    );
    fs::write(shop.device().join("device.toml"), service).unwrap();
    shop.place(&old).unwrap();
    assert_eq!(status(&shop.device()).unwrap().health, Health::Well);
    let error = shop.place(&new).unwrap_err().to_string();
    assert!(error.contains("serves again"), "{error}");
    assert_eq!(shop.serving(), "1.0.0");
    assert_eq!(fs::read_to_string(log).unwrap().lines().count(), 3);
    fs::write(shop.device().join("device.toml"), "reboot = true").unwrap();
    let error = shop.place(&new).unwrap_err().to_string();
    assert!(
        error.contains("device.toml") && error.contains("reboot"),
        "{error}"
    );
}

#[test]
fn what_rots_is_seen_and_mended() {
    let shop = Workshop::new();
    let package = shop.package("1.0.0");
    shop.place(&package).unwrap();
    let file = shop.slot(&package).join("encoder.onnx");
    fs::write(&file, "rot").unwrap();
    let status = status(&shop.device()).unwrap();
    assert!(
        status
            .serving
            .unwrap()
            .fault
            .unwrap()
            .contains("encoder.onnx")
    );
    assert_eq!(shop.place(&package).unwrap(), Delivery::Installed);
    assert_eq!(shop.serving(), "1.0.0");
}

#[test]
fn one_update_at_a_time_and_only_trusted_ones() {
    let shop = Workshop::new();
    let package = shop.package("1.0.0");
    let held = Device::open(&shop.device()).unwrap();
    assert!(matches!(
        shop.place(&package),
        Err(DeviceError::Busy { .. })
    ));
    drop(held);
    let stranger = SecretKey::generate().unwrap();
    let foreign = sign_package(&package.0, &stranger, signed_now()).unwrap();
    let error = shop.place(&(package.0, foreign)).unwrap_err().to_string();
    assert!(error.contains("not trusted"), "{error}");
    assert!(status(&shop.device()).is_err());
}

#[test]
fn a_medium_that_is_too_full_is_told_beforehand() {
    let [old, new] = samples();
    let mut disk = SimulatedDisk::default();
    old.install(&mut disk).unwrap();
    disk.set_free(100);
    let error = new.install(&mut disk).unwrap_err();
    assert!(matches!(error, StoreError::Space { .. }), "{error}");
    disk.set_free(1 << 20);
    new.install(&mut disk).unwrap();
}

/// A connection that breaks after some bytes.
struct Breaking<W> {
    writer: Option<W>,
    left: usize,
}

impl<W: Write> Write for Breaking<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(self.left);
        self.left -= length;
        match &mut self.writer {
            Some(writer) if length > 0 => writer.write(&bytes[..length]),
            writer => {
                *writer = None;
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends over pipes that break after `limit` bytes; says how many bytes of
/// blobs were to be sent.
fn over_pipes(
    shop: &Workshop,
    package: &(Package, Signature),
    limit: usize,
) -> (Result<Delivery, SendError>, u64) {
    over_pipes_at(Timestamp::now(), shop, package, Allow::default(), limit)
}

/// The same to a device whose clock says `now`.
pub fn over_pipes_at(
    now: Timestamp,
    shop: &Workshop,
    (package, signature): &(Package, Signature),
    allow: Allow,
    limit: usize,
) -> (Result<Delivery, SendError>, u64) {
    let (device_in, host_out) = pipe().unwrap();
    let (host_in, mut device_out) = pipe().unwrap();
    let root = shop.device();
    let device = thread::spawn(move || {
        let mut reader = BufReader::new(device_in);
        receive(&root, now, &mut reader, &mut device_out)
    });
    let mut announced = 0;
    let mut writer = Breaking {
        writer: Some(host_out),
        left: limit,
    };
    let mut show = |progress| {
        if let Progress::Total(bytes) = progress {
            announced = bytes;
        }
    };
    let mut reader = BufReader::new(host_in);
    let sent = send(
        package,
        signature,
        allow,
        &mut reader,
        &mut writer,
        &mut show,
    );
    drop(writer);
    assert_eq!(device.join().unwrap().is_ok(), sent.is_ok());
    (sent, announced)
}

#[test]
fn a_broken_connection_goes_on_where_it_was() {
    let shop = Workshop::new();
    let package = shop.package("1.0.0");
    let (whole, head) = {
        let header = package.0.header();
        (header.package_len() as usize, header.bytes().len())
    };
    let mut last = u64::MAX;
    let mut limit = 0;
    // Ever a little more than the offer and the header.
    let delivered = loop {
        let (sent, announced) = over_pipes(&shop, &package, limit);
        match sent {
            Ok(delivery) => break delivery,
            Err(error) => assert!(error.may_be_repeated() || limit < 900 + head, "{error}"),
        }
        if announced > 0 {
            assert!(announced <= last, "{announced} bytes after {last}");
            last = announced;
        }
        limit += 97;
    };
    assert_eq!(delivered, Delivery::Installed);
    // All of it in one go would have taken more than the last attempt did.
    assert!(limit < whole + 900, "{limit} of {whole}");
    assert!(last < (whole - head) as u64);
    assert_eq!(shop.serving(), "1.0.0");
    assert_eq!(
        over_pipes(&shop, &package, 1 << 20).0.unwrap(),
        Delivery::AlreadyThere
    );
    assert_eq!(
        fs::read_dir(shop.device().join("staging")).unwrap().count(),
        0
    );
}

#[test]
fn only_files_that_changed_are_sent() {
    let shop = Workshop::new();
    shop.place(&shop.package("1.0.0")).unwrap();
    let new = shop.package("1.1.0");
    let (sent, announced) = over_pipes(&shop, &new, 1 << 20);
    sent.unwrap();
    let files = &new.0.header().index().files;
    let manifest = files
        .iter()
        .find(|file| file.name == "bundle.toml")
        .unwrap();
    assert_eq!(announced, manifest.packed_size);
}

#[test]
fn a_cartridge_brings_a_task_to_the_encoder_that_is_there() {
    let shop = Workshop::new();
    shop.package("1.0.0");
    let small = |version: &str| {
        let model = shop.at(&format!("model-{version}"));
        let bytes = cartridge(&model).unwrap().bytes;
        let package = write(&shop.at("cartridge"), &bytes).unwrap();
        let signature = shop.sign(&package);
        (package, signature)
    };
    let first = small("1.0.0");
    let error = shop.place(&first).unwrap_err().to_string();
    assert!(error.contains("flash the whole package"), "{error}");
    assert!(error.contains(&first.0.header().index().requires[0].sha256));
    shop.place(&shop.package("1.0.0")).unwrap();
    shop.package("1.1.0");
    let second = small("1.1.0");
    assert_eq!(shop.place(&second).unwrap(), Delivery::Installed);
    assert_eq!(shop.place(&second).unwrap(), Delivery::AlreadyThere);
    assert_eq!(shop.serving(), "1.1.0");
    let bundle = Bundle::open(&shop.device()).unwrap();
    assert_eq!(bundle.sha256(), second.0.header().index().bundle_sha256());
    // Its one golden picture is enough to notice another task.
    let pipeline = Pipeline::new(bundle, None).unwrap();
    assert!(replay(&pipeline).unwrap().iter().all(|case| case.passed));
    // Another encoder is there now: the first task no longer fits.
    let mut other = contents();
    other
        .encoders
        .insert("encoder.onnx".into(), Weights::other().onnx());
    other.golden.cases = (0..2)
        .map(|seed| golden_case(&Weights::other(), seed))
        .collect();
    shop.place(&shop.package_of("2.0.0", &other)).unwrap();
    shop.place(&shop.package_of("2.1.0", &other)).unwrap();
    shop.package("3.0.0");
    let third = small("3.0.0");
    assert!(matches!(
        shop.place(&third),
        Err(DeviceError::Store(StoreError::Missing { .. }))
    ));
    assert_eq!(shop.serving(), "2.1.0");
}

#[test]
fn a_model_that_differs_too_much_on_the_devices_own_pictures_is_refused() {
    let shop = Workshop::new();
    let limited = |version: &str, contents: &Contents, difference: f32| {
        shop.package_of(version, contents);
        let bytes = pack(&shop.at(&format!("model-{version}"))).unwrap();
        let budget = ShadowBudget {
            difference,
            frames: 3,
        };
        let package = write(&shop.at("limited"), &limit(&bytes, budget).unwrap()).unwrap();
        let signature = shop.sign(&package);
        (package, signature)
    };
    // Nothing serves: there is nothing to compare with.
    shop.place(&limited("1.0.0", &contents(), 0.0)).unwrap();
    let kept = shop.at("kept");
    let service = format!("pictures = {kept:?}\n");
    fs::write(shop.device().join("device.toml"), service).unwrap();
    let mut other = contents();
    let weights = Weights::other();
    other.encoders.insert("encoder.onnx".into(), weights.onnx());
    other.golden.cases = (0..2).map(|seed| golden_case(&weights, seed)).collect();
    let error = shop.place(&limited("1.1.0", &other, 9.0)).unwrap_err();
    assert!(error.to_string().contains("0 pictures are kept"), "{error}");
    fs::create_dir(&kept).unwrap();
    let mut pictures = Vec::new();
    for seed in 0..3 {
        let picture = picture(20, 16, seed);
        let path = kept.join(format!("picture-{seed}.png"));
        picture.save(&path).unwrap();
        pictures.push(decode::open(&path).unwrap());
    }
    fs::write(kept.join("picture-3.jpg"), "about to be replaced").unwrap();
    // What the two models differ by, found another way.
    let values = |version: &str| -> Vec<f32> {
        let bundle = Bundle::open(&shop.at(&format!("model-{version}"))).unwrap();
        let pipeline = Pipeline::new(bundle, None).unwrap();
        let mut worker = pipeline.worker().unwrap();
        let values = pictures
            .iter()
            .map(|picture| worker.estimate(picture).unwrap());
        values.map(|timed| timed.estimate.value).collect()
    };
    let (old, new) = (values("1.0.0"), values("1.1.0"));
    let apart = old
        .iter()
        .zip(&new)
        .map(|(a, b)| (a - b).abs())
        .sum::<f32>()
        / 3.0;
    assert!(apart > 1e-3, "{apart}");
    let error = shop
        .place(&limited("1.1.0", &other, apart * 0.99))
        .unwrap_err();
    assert!(error.to_string().contains("on average"), "{error}");
    assert_eq!(shop.serving(), "1.0.0");
    shop.place(&limited("1.1.0", &other, apart * 1.01)).unwrap();
    assert_eq!(shop.serving(), "1.1.0");
}

#[cfg(feature = "live")]
#[test]
fn a_running_camera_keeps_its_latest_pictures_for_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_version(&at("model"), "1.0.0", &contents());
    let settings = "model.path = \"model\"\nsource.address = \"synth:gauge?fps=50\"\noutput.stdout = \"json\"\n\n[keep]\nframes = 3\nevery = 0.1\nfolder = \"kept\"\n";
    fs::write(at("numclip.toml"), settings).unwrap();
    fs::create_dir(at("kept")).unwrap();
    fs::write(at("kept/picture-0007.jpg"), "of an earlier run").unwrap();
    let mut run = std::process::Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .args(["run", "--config"])
        .arg(at("numclip.toml"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let last = at("kept/picture-0002.jpg");
    let written = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let start = Instant::now();
    let mut first = None;
    // The ring has come round when a picture is replaced.
    while first.is_none() || written(&last) == first {
        assert!(start.elapsed() < Duration::from_secs(30), "no pictures");
        first = first.or_else(|| written(&last));
        thread::sleep(Duration::from_millis(20));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let mut names: Vec<_> = fs::read_dir(at("kept"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".jpg"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["picture-0000.jpg", "picture-0001.jpg", "picture-0002.jpg"]
    );
    let mode = fs::metadata(&last).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
    let picture = decode::open(&last).unwrap();
    assert!(picture.width() > 100 && picture.height() > 100);
}

#[test]
fn whatever_a_sender_says_the_device_answers_and_keeps_serving() {
    let shop = Workshop::new();
    shop.place(&shop.package("1.0.0")).unwrap();
    for words in [
        &b""[..],
        b"hello\n",
        b"{\"protocol\":9,\"allow_downgrade\":false,\"signature\":\"\"}\n",
        b"{\"protocol\":1,\"allow_downgrade\":false,\"signature\":\"\"}\n",
        &[b'{'; 100_000],
    ] {
        let mut answer = Vec::new();
        assert!(receive(&shop.device(), Timestamp::now(), &mut &*words, &mut answer).is_err());
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("{\"failed\":{\"message\":"), "{answer}");
    }
    assert_eq!(shop.serving(), "1.0.0");
}

fn numclip(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(folder)
        .args(args)
        .env_remove("NUMCLIP_PASSPHRASE")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[test]
fn from_a_bundle_to_a_card_on_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for version in ["1.0.0", "1.1.0"] {
        write_version(&at(version), version, &contents());
    }
    let run = |args: &str| {
        let args: Vec<&str> = args.split(' ').collect();
        numclip(folder.path(), &args)
    };
    let done = |args: &str| {
        let (code, stdout, stderr) = run(args);
        assert_eq!(code, 0, "{args}: {stdout}{stderr}");
        stdout
    };
    done("keygen release --no-passphrase");
    assert_eq!(
        fs::metadata(at("release.key"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    assert_eq!(run("keygen release --no-passphrase").0, 1);
    for version in ["1.0.0", "1.1.0"] {
        done(&format!("pack {version}"));
        done(&format!("sign tiny-{version}.numclip --key release.key"));
    }
    done("verify tiny-1.0.0.numclip --trust release.pub");
    let card = format!("dir://{}", at("card").display());
    let flash = |version: &str| format!("flash tiny-{version}.numclip {card} --trust release.pub");
    assert!(done(&flash("1.0.0")).contains("installed"));
    assert!(done(&flash("1.0.0")).contains("already there"));
    assert!(done(&flash("1.1.0")).contains("installed"));
    assert!(run(&flash("1.0.0")).1.contains("--allow-downgrade"));
    let table = done(&format!("status {card}"));
    assert!(
        table.contains("1.1.0") && table.contains("tiny 1.0.0"),
        "{table}"
    );
    assert!(done(&format!("rollback {card}")).contains("1.0.0 serves"));
    assert!(done(&format!("prune {card}")).contains("nothing"));
    done("verify card");
    done("unpack tiny-1.1.0.numclip -o out");
    assert!(at("out/bundle.toml").exists());
    // Tampered with: exit code 3, and the card serves what it did.
    let mut bytes = fs::read(at("tiny-1.1.0.numclip")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(at("tiny-1.1.0.numclip"), bytes).unwrap();
    assert_eq!(run("verify tiny-1.1.0.numclip").0, 3);
    assert_eq!(run("verify tiny-1.0.0.numclip --trust nowhere").0, 1);
    assert!(
        run("flash tiny-1.0.0.numclip -- -oProxyCommand=x")
            .2
            .contains("expected dir:")
    );
}

#[test]
fn killed_at_every_step_on_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) =
        numclip(folder.path(), &["torture", "flash", "--dir", ".", "--json"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["steps"].as_u64().unwrap() > 8, "{report}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
