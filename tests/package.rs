//! Packages and signatures: what is made, and all that is refused.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use numclip::bundle::{Bundle, State};
use numclip::package::{
    Cartridge, Entry, Header, Index, MAX_FILE, MAX_FILES, Package, Required, ShadowBudget,
    cartridge, limit, pack, unpack, write,
};
use numclip::signature::{
    KeyId, PublicKey, SecretKey, Signature, SignatureError, Strength, Term, Trust, check_package,
    sign_package, time,
};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::common::write_bundle;
use crate::flash::signed_now;

// Made with Debian's minisign 0.11: `minisign -G -W`, then
// `minisign -S -W -m f -t 'fixed comment'` and `-S -l -W` for the old form.
const SIGNED: &[u8] = b"hello, device\n";
const PUBLIC: &str = "untrusted comment: minisign public key F565DEAB7B0D7EF9
RWT5fg17q95l9fECXcErV+7W8KhvCUsmwfmLbwH1CjfLC0dpY+QwR3DQ
";
const SECRET: &str = "untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA+X4Ne6veZfW7qnAjD5BGo0NhXNiYva5J1CZJLaTdBRFT98JUYGY1qPECXcErV+7W8KhvCUsmwfmLbwH1CjfLC0dpY+QwR3DQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
";
const SIGNATURE: &str = "untrusted comment: signature from minisign secret key
RUT5fg17q95l9eMWiKKCbEOfjtQVSmzJBsCCmgsh6+9qrmqzmhar52jwWqEOWqcOgwpF0dBPyRfqsPbnbqqltd9Emze+rbHkYAc=
trusted comment: fixed comment
+qQ3s0coEp6YBVnaKXQ+p7LyqQqxPtA2xZLV1b7qI0zlTXhd+YW2397BiE50NPJ0x4VRCTHCt46zA5W/biVoCg==
";
const OLD_SIGNATURE: &str = "untrusted comment: signature from minisign secret key
RWT5fg17q95l9T5nFCejCNXOAnQn8/qQRqaORWVUiUXUsDI8wqSp5di9ncD7tVWZd0b2rIeAVzlm6vFDUQzlRjKBvM+bVKOlzQg=
trusted comment: timestamp:1795438991	file:f
mFixjUKLbjeJirg9Z9DClwCN8p8O377BcpSqNdks41Qd+Tid5UVt214mw19LRXyht+jQoXYP3fwnWQTjeF/tDQ==
";

/// A folder with the tiny bundle in `model` and its package.
fn packed() -> (TempDir, Package) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_bundle(&model);
    let package = write(&folder.path().join("tiny"), &pack(&model).unwrap()).unwrap();
    (folder, package)
}

fn trusting(key: &SecretKey) -> Trust {
    Trust::new(vec![key.public()], BTreeSet::new(), Some(Timestamp::now()))
}

#[test]
fn a_package_is_the_bundle_and_always_the_same_bytes() {
    let (folder, package) = packed();
    let model = folder.path().join("model");
    fs::write(model.join("notes.txt"), "mine").unwrap();
    assert_eq!(pack(&model).unwrap(), fs::read(package.path()).unwrap());
    let copy = folder.path().join("copy");
    let unpacked = unpack(&package, &copy).unwrap();
    assert_eq!(unpacked.sha256(), Bundle::open(&model).unwrap().sha256());
    assert_eq!(unpacked.sha256(), package.header().index().bundle_sha256());
    assert!(!copy.join("notes.txt").exists());
    assert!(
        unpack(&package, &copy)
            .unwrap_err()
            .to_string()
            .contains("exists")
    );
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    let (folder, package) = packed();
    let key = SecretKey::generate().unwrap();
    let signature = sign_package(&package, &key, signed_now()).unwrap();
    let trust = trusting(&key);
    check_package(&package, &signature, &trust).unwrap();
    let bytes = fs::read(package.path()).unwrap();
    let path = folder.path().join("flipped");
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        let refused = Package::open(&path).is_err()
            || check_package(&Package::open(&path).unwrap(), &signature, &trust).is_err();
        assert!(refused, "byte {at}");
        // To unpack waits for the medium: a few must do.
        if at % 97 != 0 {
            continue;
        }
        assert!(
            Package::open(&path)
                .and_then(|package| unpack(&package, &folder.path().join("no")))
                .is_err()
        );
        assert!(!folder.path().join("no").exists());
    }
    let text = signature.to_string();
    let comment = text.find('\n').unwrap() + 1;
    for at in comment..text.len() {
        let mut flipped = text.clone().into_bytes();
        flipped[at] ^= 1;
        let parsed = String::from_utf8(flipped).unwrap().parse::<Signature>();
        let refused = parsed.map_or(true, |signature| {
            check_package(&package, &signature, &trust).is_err()
        });
        assert!(refused, "byte {at} of the signature");
    }
}

#[test]
fn a_package_cut_or_lengthened_is_refused() {
    let (folder, package) = packed();
    let bytes = fs::read(package.path()).unwrap();
    let path = folder.path().join("cut");
    for length in (0..bytes.len()).step_by(7) {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(Package::open(&path).is_err(), "{length} bytes");
    }
    fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
    let error = Package::open(&path).unwrap_err().to_string();
    assert!(error.contains("lengthened"), "{error}");
    assert!(error.starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn hostile_indexes_are_refused() {
    let entry = |name: &str| Entry {
        name: name.into(),
        size: 1,
        sha256: "0".repeat(64),
        packed_size: 1,
        packed_sha256: "0".repeat(64),
    };
    let index = |names: &[&str]| Index {
        name: "m".into(),
        version: "1.0.0".into(),
        files: names.iter().map(|name| entry(name)).collect(),
        requires: Vec::new(),
        shadow: None,
    };
    let refused = |index: Index, words: &str| {
        let error = Header::new(index).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    Header::new(index(&["a", "bundle.toml"])).unwrap();
    for name in [
        "../a", "/a", "a/b", "a\\b", "", ".", "..", ".a", "-a", "a b", "ä", "a\0",
    ] {
        refused(index(&[name, "bundle.toml"]), "plain file name");
    }
    refused(index(&["a", "a", "bundle.toml"]), "twice");
    refused(index(&["A", "a", "bundle.toml"]), "twice");
    refused(index(&["b", "a", "bundle.toml"]), "out of order");
    refused(index(&["a"]), "no bundle.toml");
    let many: Vec<String> = (0..MAX_FILES).map(|n| format!("a{n:03}")).collect();
    let many: Vec<&str> = many
        .iter()
        .map(String::as_str)
        .chain(["bundle.toml"])
        .collect();
    refused(index(&many), "65 files");
    let mut large = index(&["bundle.toml"]);
    large.files[0].size = MAX_FILE + 1;
    refused(large, "larger than");
    let mut foreign = index(&["bundle.toml"]);
    foreign.files[0].sha256 = "../../etc/passwd".into();
    refused(foreign, "SHA-256");
    let mut named = index(&["bundle.toml"]);
    named.name = "../m".into();
    refused(named, "plain name");
    let mut version = index(&["bundle.toml"]);
    version.version = "latest".into();
    refused(version, "semantic version");
}

#[test]
fn an_index_has_one_spelling() {
    let (_folder, package) = packed();
    let header = package.header().bytes();
    let json = std::str::from_utf8(&header[12..]).unwrap();
    for other in [
        json.replacen(',', ", ", 1),
        json.replacen('{', "{\"x\":1,", 1),
    ] {
        let length = (other.len() as u32).to_le_bytes();
        let bytes = [&header[..8], &length, other.as_bytes()].concat();
        assert!(Header::read(&mut &bytes[..]).is_err(), "{other}");
    }
    let mut newer = header.to_vec();
    newer[7] = 2;
    let error = Header::read(&mut &newer[..]).unwrap_err().to_string();
    assert!(error.contains("update numclip"), "{error}");
}

#[test]
fn a_bomb_does_not_go_off() {
    // A blob that unpacks to more than its entry says.
    let (_folder, package) = packed();
    let mut entry = package.header().index().files[0].clone();
    entry.size = 10;
    let mut packed = Vec::new();
    std::io::Read::read_to_end(&mut package.blob(0, 0).unwrap(), &mut packed).unwrap();
    let error = entry.unpacked(&packed).unwrap_err().to_string();
    assert!(error.contains("not 10 bytes"), "{error}");
}

#[test]
fn signatures_are_those_of_minisign() {
    let public: PublicKey = PUBLIC.parse().unwrap();
    assert_eq!(public.id().to_string(), "F565DEAB7B0D7EF9");
    assert_eq!(public.to_string(), PUBLIC);
    let signature: Signature = SIGNATURE.parse().unwrap();
    public.verify(SIGNED, &signature).unwrap();
    assert_eq!(signature.trusted_comment(), "fixed comment");
    assert!(public.verify(b"hello, tampered\n", &signature).is_err());
    let secret = SecretKey::parse(SECRET, None).unwrap();
    assert_eq!(secret.public(), public);
    // ed25519 draws nothing at random: the same key, the same signature.
    assert_eq!(secret.sign(SIGNED, "fixed comment").unwrap(), signature);
    let error = OLD_SIGNATURE.parse::<Signature>().unwrap_err().to_string();
    assert!(error.contains("sign it again"), "{error}");
}

#[test]
fn debians_minisign_agrees() {
    if Command::new("minisign").arg("-v").output().is_err() {
        return eprintln!("skipped: minisign is not installed");
    }
    let (folder, package) = packed();
    let key = SecretKey::generate().unwrap();
    let text = key.to_text(Some("soup"), Strength::INTERACTIVE).unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a.key"), text.as_bytes()).unwrap();
    fs::write(at("a.pub"), key.public().to_string()).unwrap();
    let signature = sign_package(&package, &key, signed_now()).unwrap();
    fs::write(at("tiny.minisig"), signature.to_string()).unwrap();
    let minisign = |args: &[&str]| {
        let mut child = Command::new("minisign")
            .args(args)
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Only who needs the passphrase reads it.
        let _ = child.stdin.take().unwrap().write_all(b"soup\n");
        assert!(child.wait().unwrap().success(), "minisign {args:?}");
    };
    minisign(&["-V", "-m", "tiny", "-p", "a.pub"]);
    // It opens our encrypted key, and we verify what it signs.
    minisign(&[
        "-S", "-s", "a.key", "-m", "tiny", "-x", "theirs", "-t", "by them",
    ]);
    let theirs: Signature = fs::read_to_string(at("theirs")).unwrap().parse().unwrap();
    let bytes = fs::read(package.path()).unwrap();
    key.public().verify(&bytes, &theirs).unwrap();
    // A good signature of the bytes, but it does not say of which package.
    let error = check_package(&package, &theirs, &trusting(&key)).unwrap_err();
    assert!(error.to_string().contains("by them"), "{error}");
}

#[test]
fn a_secret_key_opens_with_its_passphrase_alone() {
    let key = SecretKey::generate().unwrap();
    let text = key.to_text(Some("right"), Strength::INTERACTIVE).unwrap();
    assert!(SecretKey::is_encrypted(&text));
    let opened = SecretKey::parse(&text, Some("right")).unwrap();
    assert_eq!(opened.public(), key.public());
    let refused = |passphrase| SecretKey::parse(&text, passphrase).err().unwrap();
    assert!(matches!(refused(Some("wrong")), SignatureError::Passphrase));
    assert!(matches!(refused(None), SignatureError::NoPassphrase));
    let plain = key.to_text(None, Strength::INTERACTIVE).unwrap();
    assert!(!SecretKey::is_encrypted(&plain));
    assert_eq!(
        SecretKey::parse(&plain, None).unwrap().public(),
        key.public()
    );
}

#[test]
fn keys_rotate_and_are_revoked() {
    let (folder, package) = packed();
    let keys = [(); 3].map(|()| SecretKey::generate().unwrap());
    let trusted = folder.path().join("trust.d");
    fs::create_dir(&trusted).unwrap();
    assert!(matches!(
        Trust::read(&trusted, Some(Timestamp::now())),
        Err(SignatureError::NoKeys { .. })
    ));
    for (name, key) in [("old.pub", &keys[0]), ("new.pub", &keys[1])] {
        fs::write(trusted.join(name), key.public().to_string()).unwrap();
    }
    let checked = |key: &SecretKey| {
        let trust = Trust::read(&trusted, Some(Timestamp::now()))?;
        check_package(
            &package,
            &sign_package(&package, key, signed_now())?,
            &trust,
        )
        .map(PublicKey::id)
    };
    for key in &keys[..2] {
        assert_eq!(checked(key).unwrap(), key.public().id());
    }
    assert!(matches!(
        checked(&keys[2]),
        Err(SignatureError::Foreign { .. })
    ));
    let list = format!("# lost on the train\n{} # old\n", keys[0].public().id());
    fs::write(trusted.join("revoked"), list).unwrap();
    assert!(matches!(
        checked(&keys[0]),
        Err(SignatureError::Revoked { .. })
    ));
    checked(&keys[1]).unwrap();
    fs::write(trusted.join("torn.pub"), "untrusted comment: x\nRWT5").unwrap();
    let error = checked(&keys[1]).unwrap_err().to_string();
    assert!(error.contains("torn.pub"), "{error}");
}

#[test]
fn keys_and_signatures_end_and_clocks_may_be_wrong() {
    let (folder, package) = packed();
    let at = |text: &str| time(text).unwrap();
    let (secret, path) = (SecretKey::generate().unwrap(), folder.path().join("a.pub"));
    let key = secret.public().until(Some(at("2028-01-01")));
    fs::write(&path, key.to_string()).unwrap();
    let term = Term {
        signed: at("2027-03-01T10:00:00Z"),
        expires: Some(at("2027-06-01")),
    };
    let signature = sign_package(&package, &secret, term).unwrap();
    let checked = |now: Option<&str>| {
        let trust = Trust::read(&path, now.map(at)).unwrap();
        check_package(&package, &signature, &trust).map(PublicKey::expires)
    };
    for now in [Some("2027-03-02"), None] {
        assert_eq!(checked(now).unwrap(), Some(at("2028-01-01")));
    }
    let refused = |now| checked(Some(now)).unwrap_err();
    let early = refused("1970-01-01");
    assert!(matches!(early, SignatureError::Clock { .. }), "{early}");
    let late = refused("2027-07-01");
    assert!(matches!(late, SignatureError::Expired { .. }), "{late}");
    let too_late = refused("2028-07-01");
    let over = matches!(too_late, SignatureError::KeyExpired { .. });
    assert!(over, "{too_late}");
    // Nobody but the signer makes it hold longer.
    let text = signature.to_string().replace("2027-06-01", "2029-06-01");
    let longer: Signature = text.parse().unwrap();
    let trust = Trust::read(&path, Some(at("2027-03-02"))).unwrap();
    let error = check_package(&package, &longer, &trust).unwrap_err();
    assert!(matches!(error, SignatureError::Wrong { .. }), "{error}");
    // A key whose end cannot be read is not taken for one without an end.
    let text = key.to_string().replace("2028-01-01T", "soon");
    fs::write(&path, text).unwrap();
    let error = Trust::read(&path, None).unwrap_err().to_string();
    assert!(error.contains("a.pub") && error.contains("soon"), "{error}");
}

#[test]
fn a_good_signature_of_another_package_is_refused() {
    let (folder, package) = packed();
    let other = folder.path().join("other");
    crate::common::write_version(&other, "0.2.0", &crate::common::contents());
    let other = write(&folder.path().join("two"), &pack(&other).unwrap()).unwrap();
    let key = SecretKey::generate().unwrap();
    let signature = sign_package(&other, &key, signed_now()).unwrap();
    let error = check_package(&package, &signature, &trusting(&key)).unwrap_err();
    assert!(error.to_string().contains("tiny 0.2.0"), "{error}");
}

#[test]
fn keys_that_anybody_can_sign_for_are_refused() {
    // The neutral element of the curve.
    let weak = "RWQAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let error = weak.parse::<PublicKey>().unwrap_err().to_string();
    assert!(error.contains("weak"), "{error}");
}

fn parse_all(bytes: &[u8]) {
    let _ = Header::read(&mut &*bytes);
    let _ = State::parse(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = text.parse::<PublicKey>();
    let _ = text.parse::<Signature>();
    let _ = text.parse::<KeyId>();
    let _ = SecretKey::parse(&text, None);
    let _ = SecretKey::is_encrypted(&text);
}

/// Bytes written over a good text, at places.
fn damaged(good: &[u8], damage: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for &(at, byte) in damage {
        let at = at % bytes.len();
        bytes[at] = byte;
    }
    bytes
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        parse_all(&bytes);
        parse_all(&[b"NUMCLIP\x01\x20\0\0\0", &bytes[..]].concat());
    }

    #[test]
    fn damaged_texts_never_pass_for_the_good_ones(
        damage in prop::collection::vec((0_usize..400, any::<u8>()), 1..4),
    ) {
        let key: PublicKey = PUBLIC.parse().unwrap();
        for good in [PUBLIC, SECRET, SIGNATURE, OLD_SIGNATURE] {
            parse_all(&damaged(good.as_bytes(), &damage));
        }
        let bytes = damaged(SIGNATURE.as_bytes(), &damage);
        if let Ok(signature) = String::from_utf8_lossy(&bytes).parse::<Signature>() {
            let good: Signature = SIGNATURE.parse().unwrap();
            prop_assert!(signature == good || key.verify(SIGNED, &signature).is_err());
        }
    }

    #[test]
    fn a_damaged_header_is_refused_or_keeps_every_rule(
        damage in prop::collection::vec((0_usize..2000, any::<u8>()), 1..4),
    ) {
        let index = Index {
            name: "m".into(),
            version: "1.0.0".into(),
            files: vec![],
            requires: vec![],
            shadow: Some(ShadowBudget { difference: 0.25, frames: 8 }),
        };
        let file = |name: &str| (name.to_owned(), "a".repeat(64));
        let (name, sha256) = file("bundle.toml");
        let entry = Entry { name, size: 9, packed_size: 7, packed_sha256: sha256.clone(), sha256 };
        let (name, sha256) = file("encoder.onnx");
        let required = Required { name, size: 99, sha256 };
        let good = Header::new(Index { files: vec![entry], requires: vec![required], ..index }).unwrap();
        let bytes = damaged(good.bytes(), &damage);
        if let Ok(header) = Header::read(&mut &bytes[..]) {
            prop_assert_eq!(header.bytes(), &bytes[..header.bytes().len()]);
            prop_assert_eq!(&Header::new(header.index().clone()).unwrap(), &header);
        }
    }

    #[test]
    fn any_index_that_keeps_the_rules_reads_back(
        names in prop::collection::btree_set("[a-y0-9]{1,9}", 0..9),
        size in 0..MAX_FILE,
        difference in 0.0_f32..1e30,
    ) {
        let entry = |name: &str| Entry {
            name: name.into(),
            size,
            sha256: "a".repeat(64),
            packed_size: size / 2,
            packed_sha256: "b".repeat(64),
        };
        let names: BTreeSet<String> = names.into_iter().chain(["bundle.toml".into()]).collect();
        let files = names.iter().map(|name| entry(name)).collect();
        let index = Index {
            name: "m".into(),
            version: "1.2.3-rc.1".into(),
            files,
            requires: vec![Required { name: "zz".into(), size, sha256: "c".repeat(64) }],
            shadow: Some(ShadowBudget { difference, frames: 1 }),
        };
        let header = Header::new(index).unwrap();
        prop_assert_eq!(&Header::read(&mut header.bytes()).unwrap(), &header);
    }
}

#[test]
fn the_shipped_models_pack_and_as_cartridges_into_twenty_kilobytes() {
    for name in ["gauge", "tomato-freshness"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("models")
            .join(name);
        let folder = tempfile::tempdir().unwrap();
        let package = write(&folder.path().join("whole"), &pack(&model).unwrap()).unwrap();
        assert!(package.header().package_len() < 4 << 20);
        let Cartridge { bytes, shift } = cartridge(&model).unwrap();
        assert!(bytes.len() <= 20_000, "{name}: {} bytes", bytes.len());
        let manifest = Bundle::open(&model).unwrap().manifest().clone();
        let [low, high] = manifest.task.range;
        assert!(shift < 1e-3 * (high - low), "{name}: {shift}");
        let package = write(&folder.path().join("cartridge"), &bytes).unwrap();
        let [encoder] = &package.header().index().requires[..] else {
            panic!("one file is left out");
        };
        assert_eq!(encoder.sha256, manifest.files["encoder.onnx"]);
        let error = unpack(&package, &folder.path().join("no")).unwrap_err();
        assert!(error.to_string().contains(&encoder.sha256), "{error}");
    }
}

#[test]
fn a_limit_is_part_of_what_is_signed() {
    let (folder, package) = packed();
    let key = SecretKey::generate().unwrap();
    let signature = sign_package(&package, &key, signed_now()).unwrap();
    let bytes = fs::read(package.path()).unwrap();
    let budget = |difference, frames| ShadowBudget { difference, frames };
    let limited = limit(&bytes, budget(0.5, 8)).unwrap();
    let limited = write(&folder.path().join("limited"), &limited).unwrap();
    assert_eq!(limited.header().index().shadow, Some(budget(0.5, 8)));
    assert!(check_package(&limited, &signature, &trusting(&key)).is_err());
    let signature = sign_package(&limited, &key, signed_now()).unwrap();
    check_package(&limited, &signature, &trusting(&key)).unwrap();
    for senseless in [budget(f32::NAN, 8), budget(-1.0, 8), budget(1.0, 0)] {
        assert!(limit(&bytes, senseless).is_err(), "{senseless:?}");
    }
}

#[test]
fn a_file_is_carried_or_required() {
    let (_folder, package) = packed();
    let mut index = package.header().index().clone();
    index.requires.push(Required {
        name: "Encoder.onnx".into(),
        size: 1,
        sha256: "0".repeat(64),
    });
    let error = Header::new(index.clone()).unwrap_err().to_string();
    assert!(error.contains("both carried and required"), "{error}");
    index.requires[0].name = "../encoder".into();
    let error = Header::new(index).unwrap_err().to_string();
    assert!(error.contains("plain file name"), "{error}");
}
