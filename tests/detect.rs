//! Detectors: tiny networks in the two published layouts, whose boxes can be
//! told from the picture by plain arithmetic.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use image::{Rgb, RgbImage};
use numclip::detect::{Detector, Layout};
use numclip::frame::Frame;
use numclip::view::{Region, Rotation, Turn, View};
use serde_json::Value;
use tempfile::TempDir;
use tract_onnx::pb::{NodeProto, TensorProto, ValueInfoProto};

use crate::common::{constant, integers, node, onnx_file, outcome, value_info, write_bundle};

/// Side of the detectors' input.
const SIDE: usize = 64;

/// What the YuNet below says of every cell: offset of the centre and
/// logarithms of the sides, in steps of the grid.
const OFFSET: [f32; 2] = [0.25, 0.75];
const SIDES: [f32; 2] = [2.0, 3.0];

fn write(place: &TempDir, bytes: Vec<u8>) -> PathBuf {
    let path = place.path().join("detector.onnx");
    fs::write(&path, bytes).unwrap();
    path
}

/// A convolution over cells of `stride` pixels to `[1, cells, channels]`: the
/// mean of each input plane by its weight, and a bias.
fn head(name: &str, stride: usize, channels: usize, planes: [f32; 3], bias: &[f32]) -> Head {
    let cells = (SIDE / stride).pow(2);
    let area = (stride * stride) as f32;
    let kernel = planes.map(|weight| vec![weight / area; stride * stride]);
    let [weights, biases, conv, flat, shape] =
        ["w", "b", "c", "f", "s"].map(|part| format!("{name}.{part}"));
    let strides = integers("strides", &[stride as i64; 2]);
    let shape_tensor = TensorProto {
        name: shape.clone(),
        dims: vec![3],
        data_type: 7,
        int64_data: vec![1, channels as i64, cells as i64],
        ..TensorProto::default()
    };
    Head {
        nodes: vec![
            node("Conv", &["image", &weights, &biases], &conv, vec![strides]),
            node("Reshape", &[&conv, &shape], &flat, vec![]),
            node(
                "Transpose",
                &[&flat],
                name,
                vec![integers("perm", &[0, 2, 1])],
            ),
        ],
        constants: vec![
            constant(
                &weights,
                &[channels, 3, stride, stride],
                &kernel.concat().repeat(channels),
            ),
            constant(&biases, &[channels], bias),
            shape_tensor,
        ],
        output: value_info(name, &[1, cells, channels]),
    }
}

struct Head {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    output: ValueInfoProto,
}

fn network(heads: Vec<Head>) -> Vec<u8> {
    let (mut nodes, mut constants, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for head in heads {
        nodes.extend(head.nodes);
        constants.extend(head.constants);
        outputs.push(head.output);
    }
    onnx_file(
        nodes,
        constants,
        value_info("image", &[1, 3, SIDE, SIDE]),
        outputs,
    )
}

/// A YuNet whose score of a cell of 8 pixels is how red it is.
fn yunet() -> Vec<u8> {
    let none = [0.0; 3];
    let [x, y] = OFFSET;
    let [width, height] = SIDES.map(f32::ln);
    let mut heads = Vec::new();
    for stride in [8, 16, 32] {
        // Blue comes first; the finest grid alone sees anything.
        let red = if stride == 8 {
            [0.0, 0.0, 1.0 / 255.0]
        } else {
            none
        };
        heads.push(head(&format!("cls_{stride}"), stride, 1, red, &[0.0]));
        heads.push(head(&format!("obj_{stride}"), stride, 1, red, &[0.0]));
        heads.push(head(
            &format!("bbox_{stride}"),
            stride,
            4,
            none,
            &[x, y, width, height],
        ));
        heads.push(head(&format!("kps_{stride}"), stride, 10, none, &[0.0; 10]));
    }
    network(heads)
}

/// An UltraFace whose every box is the same, and whose score is how red the
/// middle of its cell of 32 pixels is.
fn ultra_face() -> Vec<u8> {
    // (x − 127) / 128 to x / 255, less the share of background.
    let (scale, shift) = (128.0 / 255.0, 127.0 / 255.0);
    let scores = head("scores", 32, 2, [scale, 0.0, 0.0], &[shift, shift]);
    let boxes = head("boxes", 32, 4, [0.0; 3], &[0.25, 0.5, 0.75, 1.0]);
    network(vec![scores, boxes])
}

/// A black picture with red 16-pixel cells: as many cells as the input has,
/// each twice as large.
fn red_cells(cells: &[(u32, u32)]) -> RgbImage {
    RgbImage::from_fn(128, 128, |x, y| match cells.contains(&(x / 16, y / 16)) {
        true => Rgb([255, 0, 0]),
        false => Rgb([0, 0, 255]),
    })
}

/// Where the YuNet above sees the cell, in a picture of twice its size: left,
/// top, right, bottom.
fn expected(column: u32, row: u32) -> [f32; 4] {
    let x = (column as f32 + OFFSET[0]) * 16.0;
    let y = (row as f32 + OFFSET[1]) * 16.0;
    let [half_width, half_height] = SIDES.map(|side| side * 16.0 / 2.0);
    [
        x - half_width,
        y - half_height,
        x + half_width,
        y + half_height,
    ]
}

fn close(got: &[f32; 4], expected: &[f32; 4]) -> bool {
    got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.05)
}

fn places(detector: &Detector, view: &View<'_>) -> Vec<[f32; 4]> {
    let mut finder = detector.finder().unwrap();
    let found = finder.find(view).unwrap().iter();
    found
        .map(|d| [d.place.left, d.place.top, d.place.right, d.place.bottom])
        .collect()
}

#[test]
fn yunet_boxes_lie_where_its_formula_puts_them() {
    let place = tempfile::tempdir().unwrap();
    let detector = Detector::open(&write(&place, yunet()), 0.6).unwrap();
    assert_eq!(
        (detector.layout(), detector.size()),
        (Layout::YuNet, (64, 64))
    );
    let frame = Frame::from(red_cells(&[(1, 2), (6, 5)]));
    let found = places(&detector, &View::whole(&frame));
    assert_eq!(found.len(), 2, "{found:?}");
    for cell in [expected(1, 2), expected(6, 5)] {
        assert!(
            found.iter().any(|place| close(place, &cell)),
            "{found:?}, {cell:?}"
        );
    }
}

#[test]
fn a_turned_picture_and_a_part_of_one_are_searched_as_they_look() {
    let place = tempfile::tempdir().unwrap();
    let detector = Detector::open(&write(&place, yunet()), 0.6).unwrap();
    let upright = red_cells(&[(1, 2)]);
    let frame = Frame::from(image::imageops::rotate270(&upright));
    let view = View::turned(&frame, Turn::new(Rotation::Right, None));
    assert!(close(&places(&detector, &view)[0], &expected(1, 2)));
    // Half as high, so that half of the input stays black; twice as large.
    let region = Region {
        left: 0,
        top: 32,
        width: 64,
        height: 32,
    };
    let part = places(&detector, &view.part(region).unwrap());
    // The cell's 16 pixels are four cells of the input now.
    assert!(
        part.iter().all(|place| place[0] < 32.0 && place[1] < 32.0),
        "{part:?}"
    );
    assert!(!part.is_empty());
}

#[test]
fn ultra_face_boxes_are_shares_of_the_input() {
    let place = tempfile::tempdir().unwrap();
    let detector = Detector::open(&write(&place, ultra_face()), 0.9).unwrap();
    assert_eq!(detector.layout(), Layout::UltraFace);
    let red = Frame::from(RgbImage::from_pixel(640, 320, Rgb([255, 0, 0])));
    // The picture fills the upper half of the input: 64 × 32.
    let found = places(&detector, &View::whole(&red));
    assert_eq!(found.len(), 1, "one subject, however often it is found");
    assert!(close(&found[0], &[160.0, 320.0, 480.0, 640.0]), "{found:?}");
    let blue = Frame::from(RgbImage::from_pixel(640, 320, Rgb([0, 0, 255])));
    assert!(places(&detector, &View::whole(&blue)).is_empty());
}

fn run(place: &Path, arguments: &[&str]) -> (i32, Vec<Value>, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(place)
        .args(["run", "--model", "model", "--json", "--source", "photos"])
        .args(arguments)
        .output()
        .unwrap();
    outcome(output)
}

#[test]
fn every_subject_gets_estimates_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    write_bundle(&place.path().join("model"));
    write(&place, yunet());
    let photos = place.path().join("photos");
    fs::create_dir(&photos).unwrap();
    // One stays, one comes, moves and goes.
    let shots: [&[(u32, u32)]; 4] = [&[(1, 2)], &[(1, 2), (5, 5)], &[(1, 2), (6, 5)], &[(1, 2)]];
    for (index, cells) in shots.iter().enumerate() {
        red_cells(cells)
            .save(photos.join(format!("{index}.png")))
            .unwrap();
    }
    let flags = [
        "--detector",
        "detector.onnx",
        "--margin",
        "0",
        "--smooth",
        "median:3",
    ];
    let (code, records, stderr) = run(place.path(), &flags);
    assert_eq!(code, 0, "{stderr}");
    let seen = |record: &Value| {
        let id = record["subject"]["id"].as_u64().unwrap();
        (record["frame"].as_u64().unwrap(), id)
    };
    let mut seen: Vec<_> = records.iter().map(seen).collect();
    seen.sort_unstable();
    assert_eq!(seen, [(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]);
    // A square as wide as the box is high, around the same centre, within the picture.
    assert_eq!(
        records[0]["subject"]["region"],
        serde_json::json!([0, 20, 48, 48])
    );
    assert!(
        records
            .iter()
            .all(|record| record["smoothed"]["value"].is_number())
    );
    let table = Command::new(assert_cmd::cargo::cargo_bin!("numclip"))
        .current_dir(place.path())
        .args(["run", "--model", "model", "--source", "photos"])
        .args(flags)
        .output()
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.matches("  subject 2\n").count(), 2, "{table}");
}

#[test]
fn a_network_that_is_no_such_detector_is_refused() {
    let place = tempfile::tempdir().unwrap();
    write_bundle(&place.path().join("model"));
    fs::create_dir(place.path().join("photos")).unwrap();
    let other = network(vec![head("output", 8, 7, [0.0; 3], &[0.0; 7])]);
    for (bytes, reason) in [
        (other, "got [1, 64, 7]"),
        (b"no network".to_vec(), "detector.onnx: "),
    ] {
        write(&place, bytes);
        let (code, _, stderr) = run(place.path(), &["--detector", "detector.onnx"]);
        assert!(code == 2 && stderr.contains(reason), "{code}: {stderr}");
    }
    let (code, _, stderr) = run(place.path(), &["--detector", "missing.onnx"]);
    assert!(
        code == 2 && stderr.contains("missing.onnx"),
        "{code}: {stderr}"
    );
}

#[test]
fn a_region_that_leaves_the_pictures_is_said_at_once() {
    let place = tempfile::tempdir().unwrap();
    write_bundle(&place.path().join("model"));
    let photos = place.path().join("photos");
    fs::create_dir(&photos).unwrap();
    red_cells(&[]).save(photos.join("0.png")).unwrap();
    let (code, records, stderr) = run(place.path(), &["--roi", "100,0,64,64"]);
    assert_eq!((code, records.len()), (2, 0));
    assert!(stderr.contains("128×128"), "{stderr}");
    let (code, records, stderr) = run(place.path(), &["--roi", "50%,0,50%,0.5", "--rotate", "90"]);
    assert_eq!((code, records.len()), (0, 1), "{stderr}");
}
