//! A folder of rendered gauges with their labels.

use std::{
    fmt::Write as _,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use image::{
    ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder,
};
use numclip::synth::gauge::{GaugeSpec, render};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Raised whenever the same seed would give other pictures.
pub const GENERATOR_VERSION: u32 = 1;

/// Quality of the JPEG files, 1–100.
const JPEG_QUALITY: u8 = 92;

/// File format of the pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// JPEG at quality 92.
    #[default]
    Jpeg,
    /// PNG, lossless.
    Png,
}

/// Names a data set completely; written to `dataset.toml` inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaugeSet {
    /// Number of pictures.
    pub count: u64,
    /// Seed of the whole set.
    pub seed: u64,
    /// Side of the square pictures, pixels, 16–2048.
    pub size: u32,
    /// File format.
    #[serde(default)]
    pub format: ImageFormat,
}

/// Why a data set could not be written.
#[derive(Debug, Error)]
pub enum SynthError {
    /// The folder holds something already.
    #[error("{}: expected a new or empty folder, found files in it; name another folder or remove it", .0.display())]
    NotEmpty(PathBuf),
    /// Nothing to render.
    #[error("a data set needs at least one picture; ask for more than 0")]
    NoPictures,
    /// Side out of range.
    #[error("pictures of {0} pixels a side: expected 16 to 2048")]
    Size(u32),
    /// A file could not be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// Contents of `dataset.toml`.
#[derive(Serialize)]
struct Manifest<'a> {
    generator: &'static str,
    version: u32,
    unit: &'static str,
    #[serde(flatten)]
    set: &'a GaugeSet,
}

/// Renders a data set into `out`: pictures under `images/`, `labels.csv` with
/// `path,label` (percent of scale, three decimals), and `dataset.toml`.
///
/// Pictures are rendered in parallel; the result depends on `set` alone.
/// `progress` is called once for each finished picture, from any thread.
///
/// The set is written beside `out` and renamed at the end, so `out` never
/// holds part of a set.
///
/// # Errors
///
/// If `out` is not empty, `set` is out of range, or a file cannot be written.
pub fn write_dataset(
    out: &Path,
    set: &GaugeSet,
    progress: impl Fn() + Sync,
) -> Result<(), SynthError> {
    check(out, set)?;
    let parent = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|e| cannot_write(parent, e))?;
    let draft = tempfile::Builder::new()
        .prefix(".synth-")
        .tempdir_in(parent)
        .map_err(|e| cannot_write(parent, e))?;
    let root = draft.path().join("set");
    write_files(&root, set, progress)?;
    if out.exists() {
        fs::remove_dir(out).map_err(|e| cannot_write(out, e))?;
    }
    fs::rename(&root, out).map_err(|e| cannot_write(out, e))
}

fn check(out: &Path, set: &GaugeSet) -> Result<(), SynthError> {
    if set.count == 0 {
        return Err(SynthError::NoPictures);
    }
    if !(16..=2048).contains(&set.size) {
        return Err(SynthError::Size(set.size));
    }
    match fs::read_dir(out) {
        Ok(entries) => match entries.count() {
            0 => Ok(()),
            _ => Err(SynthError::NotEmpty(out.into())),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(cannot_write(out, e)),
    }
}

fn write_files(root: &Path, set: &GaugeSet, progress: impl Fn() + Sync) -> Result<(), SynthError> {
    let images = root.join("images");
    fs::create_dir_all(&images).map_err(|e| cannot_write(&images, e))?;
    let labels: Vec<f32> = (0..set.count)
        .into_par_iter()
        .map(|index| {
            let spec = GaugeSpec::nth(set.seed, index);
            let path = root.join(picture_name(index, set.format));
            let file =
                encode(&render(&spec, set.size), set.format).map_err(|e| cannot_write(&path, e))?;
            fs::write(&path, file).map_err(|e| cannot_write(&path, e))?;
            progress();
            Ok(spec.value)
        })
        .collect::<Result<_, _>>()?;
    let table =
        (0..)
            .zip(labels)
            .fold(String::from("path,label\n"), |mut table, (index, label)| {
                let _ = writeln!(table, "{},{label:.3}", picture_name(index, set.format));
                table
            });
    write(&root.join("labels.csv"), &table)?;
    write(&root.join("dataset.toml"), &manifest(set))
}

fn picture_name(index: u64, format: ImageFormat) -> String {
    let extension = match format {
        ImageFormat::Jpeg => "jpg",
        ImageFormat::Png => "png",
    };
    format!("images/{index:06}.{extension}")
}

fn encode(picture: &RgbImage, format: ImageFormat) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    let (width, height) = picture.dimensions();
    match format {
        ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY).write_image(
            picture,
            width,
            height,
            ExtendedColorType::Rgb8,
        ),
        ImageFormat::Png => {
            PngEncoder::new(&mut file).write_image(picture, width, height, ExtendedColorType::Rgb8)
        }
    }
    .map_err(io::Error::other)?;
    Ok(file)
}

fn manifest(set: &GaugeSet) -> String {
    let manifest = Manifest {
        generator: "synth gauge",
        version: GENERATOR_VERSION,
        unit: "% of scale",
        set,
    };
    toml::to_string(&manifest).expect("plain values always serialise")
}

fn write(path: &Path, text: &str) -> Result<(), SynthError> {
    fs::write(path, text).map_err(|e| cannot_write(path, e))
}

fn cannot_write(path: &Path, source: io::Error) -> SynthError {
    SynthError::Write {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const SET: GaugeSet = GaugeSet {
        count: 6,
        seed: 9,
        size: 32,
        format: ImageFormat::Jpeg,
    };

    fn files(root: &Path) -> Vec<Vec<u8>> {
        let images = (0..SET.count).map(|i| root.join(picture_name(i, SET.format)));
        let tables = ["labels.csv", "dataset.toml"].map(|name| root.join(name));
        images
            .chain(tables)
            .map(|path| fs::read(path).unwrap())
            .collect()
    }

    #[test]
    fn same_set_on_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let written = [1, 3].map(|threads| {
            let out = folder.path().join(format!("with-{threads}"));
            let done = AtomicU64::new(0);
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| write_dataset(&out, &SET, || _ = done.fetch_add(1, Ordering::Relaxed)))
                .unwrap();
            assert_eq!(done.into_inner(), SET.count);
            files(&out)
        });
        assert_eq!(written[0], written[1]);
    }

    #[test]
    fn labels_are_the_readings() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("set");
        fs::create_dir(&out).unwrap();
        write_dataset(&out, &SET, || ()).unwrap();
        let table = fs::read_to_string(out.join("labels.csv")).unwrap();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "path,label");
        assert_eq!(lines.len(), 7);
        for (index, line) in lines[1..].iter().enumerate() {
            let (path, label) = line.split_once(',').unwrap();
            assert!(out.join(path).is_file());
            assert_eq!(
                label.parse::<f32>().unwrap(),
                GaugeSpec::nth(9, index as u64).value
            );
        }
    }

    #[test]
    fn a_used_folder_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine.txt"), "keep").unwrap();
        let error = write_dataset(folder.path(), &SET, || ()).unwrap_err();
        assert!(matches!(error, SynthError::NotEmpty(_)), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn impossible_sets_are_refused() {
        let out = Path::new("never-created");
        let none = GaugeSet { count: 0, ..SET };
        assert!(matches!(
            write_dataset(out, &none, || ()),
            Err(SynthError::NoPictures)
        ));
        let tiny = GaugeSet { size: 4, ..SET };
        assert!(matches!(
            write_dataset(out, &tiny, || ()),
            Err(SynthError::Size(4))
        ));
        assert!(!out.exists());
    }
}
