//! Pictures of every kind against what PIL makes of them, and bytes that are
//! no pictures.

use std::fs;
use std::path::{Path, PathBuf};

use image::ImageFormat;
use numclip::decode::{self, DecodeErrorKind};
use proptest::prelude::*;

/// Every picture of `tests/data/decode` and how many levels a pixel may be
/// off: none where decoding is exact, few where formats leave rounding open.
const PICTURES: &[(&str, u8)] = &[
    ("animated.png", 0),
    ("animated.webp", 0),
    ("cmyk-black.jpg", 3),
    ("cmyk.jpg", 3),
    ("cmyk.tiff", 1),
    ("exif-2.jpg", 3),
    ("exif-3.png", 0),
    ("exif-6.jpg", 3),
    ("exif-8.webp", 0),
    ("grey.jpg", 3),
    ("grey16.png", 0),
    ("lossy.webp", 3),
    ("one-bit.png", 0),
    ("one-bit.tiff", 0),
    ("one-pixel.jpg", 3),
    ("one-pixel.png", 0),
    ("orientation-5.tiff", 0),
    ("palette.bmp", 0),
    ("palette.png", 0),
    ("progressive.jpg", 3),
    ("rgb.bmp", 0),
    ("rgb16.png", 0),
    ("transparent.png", 1),
    ("wrong-extension.txt", 0),
];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/decode")
        .join(name)
}

fn kind_of(bytes: &[u8]) -> String {
    let error = decode::from_bytes(bytes, "picture").unwrap_err();
    assert!(error.to_string().starts_with("picture: "), "{error}");
    format!("{:?}", error.kind())
}

#[test]
fn pixels_are_those_of_pil() {
    for &(name, tolerance) in PICTURES {
        let frame = decode::open(&data(name)).unwrap_or_else(|error| panic!("{error}"));
        let expected = image::open(data(&format!("{name}.expected.png")))
            .unwrap()
            .into_rgb8();
        assert_eq!(
            (frame.width(), frame.height()),
            expected.dimensions(),
            "{name}"
        );
        let pairs = frame.pixels().iter().zip(expected.as_raw());
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(tolerance), "{name}: {worst:?} levels apart");
    }
}

#[test]
fn every_truncation_is_an_error() {
    for &(name, _) in PICTURES {
        let bytes = fs::read(data(name)).unwrap();
        // What follows the last pixel (checksums, a closing marker, the
        // second picture of an animation) may be missing; half of it may not.
        for length in (0..bytes.len() / 2).step_by(7) {
            let frame = decode::from_bytes(&bytes[..length], name);
            let animated = name.starts_with("animated");
            assert!(frame.is_err() || animated, "{name} cut to {length}");
        }
    }
}

#[test]
fn a_jpeg_without_its_end_is_truncated() {
    let bytes = fs::read(data("progressive.jpg")).unwrap();
    assert_eq!(kind_of(&bytes[..bytes.len() - 2]), "Truncated");
    assert_eq!(kind_of(&bytes[..bytes.len() - 40]), "Truncated");
}

#[test]
fn what_is_no_picture_says_so() {
    assert_eq!(kind_of(b""), "Empty");
    assert_eq!(kind_of(b"path,label\na.jpg,3\n"), "Format");
    assert_eq!(kind_of(b"GIF89a\x01\x00\x01\x00"), "Format");
    let missing = decode::open(&data("absent.png")).unwrap_err();
    assert!(
        missing.to_string().contains("absent.png: No such file"),
        "{missing}"
    );
    let folder = decode::open(&data("")).unwrap_err();
    assert!(
        folder
            .to_string()
            .ends_with("a folder, expected an image file"),
        "{folder}"
    );
}

#[test]
fn pictures_beyond_the_limits_are_refused_by_their_header() {
    for (format, width, height) in [
        (ImageFormat::Png, 20_000_u32, 20_000_u32),
        (ImageFormat::Bmp, 20_000, 20_000),
        (ImageFormat::Png, 16_385, 1),
        (ImageFormat::Png, 16_000, 16_000),
    ] {
        let error = decode::from_bytes(&header(format, width, height), "huge").unwrap_err();
        assert!(
            matches!(error.kind(), DecodeErrorKind::TooLarge { width: w, height: h } if (*w, *h) == (width, height)),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains(&format!("{width}×{height}")) && message.contains("16384"),
            "{message}"
        );
    }
}

/// The head of a picture of that size, with hardly anything behind it.
fn header(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(1, 1)
        .write_to(&mut bytes, format)
        .unwrap();
    let mut bytes = bytes.into_inner();
    match format {
        ImageFormat::Png => {
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            let checksum = crc32(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&checksum.to_be_bytes());
        }
        _ => {
            bytes[18..22].copy_from_slice(&width.to_le_bytes());
            bytes[22..26].copy_from_slice(&height.to_le_bytes());
        }
    }
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| {
        if crc & 1 == 1 {
            crc >> 1 ^ 0xEDB8_8320
        } else {
            crc >> 1
        }
    };
    !bytes
        .iter()
        .fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_pictures_never_panic(
        picture in 0..PICTURES.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keep in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = fs::read(data(PICTURES[picture].0)).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len()));
        }
        let _ = decode::from_bytes(&bytes, "damaged");
    }

    #[test]
    fn noise_behind_a_signature_never_panics(
        signature in prop::sample::select(vec![
            &b"\xFF\xD8\xFF"[..], b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8X", b"BM", b"II*\0", b"MM\0*",
        ]),
        noise in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = decode::from_bytes(&[signature, &noise[..]].concat(), "noise");
    }
}
