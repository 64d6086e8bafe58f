//! Batches, prepared in parallel ahead of the computation.

use std::{
    borrow::Cow,
    fmt,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use numclip::{
    bins::{Bin, index_of},
    frame::{Frame, PixelFormat},
    preprocess::{Plan, PlanError},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder, prelude::*};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    augment::{Augment, AugmentError},
    dataset::Dataset,
    sampling::Sampling,
};

/// How batches are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderConfig {
    /// Images in a batch, at least 1.
    pub batch: usize,
    /// Decides order and augmentation.
    pub seed: u64,
    /// Order and frequency of the images.
    pub sampling: Sampling,
    /// Leaves out a last batch that would be smaller than the others.
    pub drop_last: bool,
    /// Batches kept ready, at least 1.
    pub prefetch: usize,
    /// Threads that decode; 0 takes one for each core.
    pub workers: usize,
    /// Images whose shorter side is longer than this, in pixels, are reduced
    /// to it before anything else; 0 leaves them as they are.
    pub reduce: u32,
    /// Memory for decoded images, MiB; 0 for none. Does not change the batches.
    pub cache_mib: usize,
    /// What to do about an image that cannot be read.
    pub unreadable: Unreadable,
}

/// What to do about an image that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unreadable {
    /// End the epoch with an error.
    #[default]
    Stop,
    /// Leave it out and say so in [`Batch::skipped`]; stop if an epoch has more
    /// than this many.
    Skip(usize),
}

/// Images with their labels, ready for the encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[N, 3, size, size]`, row-major, normalised by the plan.
    pub images: Vec<f32>,
    /// `[N]`, in the task's unit.
    pub labels: Vec<f32>,
    /// `[N]`, bin of each label.
    pub bins: Vec<usize>,
    /// `[N]`, positions in [`Dataset::samples`].
    pub indices: Vec<usize>,
    /// Images left out.
    pub skipped: Vec<Skipped>,
}

/// An image that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The image.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Why there are no (more) batches.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The preprocessing plan cannot be carried out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An augmentation setting is out of its range.
    #[error(transparent)]
    Augment(#[from] AugmentError),
    /// Batches of no images.
    #[error("loader.batch: expected at least 1, got 0")]
    BatchSize,
    /// No bins to sort labels into.
    #[error("bins: expected at least 1, got 0")]
    NoBins,
    /// Threads could not be started.
    #[error("cannot start loader threads: {0}")]
    Threads(#[from] ThreadPoolBuildError),
    /// An image cannot be read.
    #[error("{0}; replace it, remove its row, or set `unreadable` to skip such images")]
    Unreadable(Skipped),
    /// More images than allowed cannot be read.
    #[error(
        "{count} images of this epoch cannot be read, {limit} are allowed; the last one: {last}"
    )]
    TooMany {
        /// How many so far.
        count: usize,
        /// How many are allowed.
        limit: usize,
        /// The last one.
        last: Skipped,
    },
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            batch: 32,
            seed: 0,
            sampling: Sampling::Shuffle,
            drop_last: false,
            prefetch: 3,
            workers: 0,
            reduce: 0,
            cache_mib: 512,
            unreadable: Unreadable::Stop,
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// No images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Source of batches, epoch after epoch.
///
/// The batches depend on the data, the seed, the epoch and the step alone: not
/// on the number of threads, the cache, or where an earlier run stopped.
pub struct Loader {
    shared: Arc<Shared>,
}

/// Batches of one epoch, in order. Ends after an error.
pub struct Epoch {
    batches: Receiver<Result<Batch, LoadError>>,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    items: Vec<Item>,
    plan: Plan,
    augment: Augment,
    config: LoaderConfig,
    pool: ThreadPool,
    cached_bytes: AtomicUsize,
}

/// One image to show.
struct Item {
    index: usize,
    path: PathBuf,
    label: f32,
    bin: usize,
    cached: OnceLock<Frame>,
}

impl Loader {
    /// Prepares to load some samples of a data set. Nothing is read yet.
    ///
    /// For evaluation, pass [`Augment::none`] and [`Sampling::Sequential`].
    ///
    /// # Errors
    ///
    /// If a setting is out of its range or threads cannot be started.
    pub fn new(
        dataset: &Dataset,
        indices: &[usize],
        bins: &[Bin],
        plan: Plan,
        augment: Augment,
        config: LoaderConfig,
    ) -> Result<Self, LoadError> {
        plan.check()?;
        augment.check()?;
        if config.batch == 0 {
            return Err(LoadError::BatchSize);
        }
        if bins.is_empty() {
            return Err(LoadError::NoBins);
        }
        let item = |&index: &usize| {
            let sample = &dataset.samples()[index];
            Item {
                index,
                path: sample.path.clone(),
                label: sample.label,
                bin: index_of(bins, sample.label),
                cached: OnceLock::new(),
            }
        };
        Ok(Self {
            shared: Arc::new(Shared {
                items: indices.iter().map(item).collect(),
                plan,
                augment,
                pool: ThreadPoolBuilder::new()
                    .num_threads(config.workers)
                    .build()?,
                config,
                cached_bytes: AtomicUsize::new(0),
            }),
        })
    }

    /// Batches in an epoch.
    pub fn steps(&self) -> usize {
        let (images, batch) = (self.shared.items.len(), self.shared.config.batch);
        if self.shared.config.drop_last {
            images / batch
        } else {
            images.div_ceil(batch)
        }
    }

    /// Batches of an epoch from step `first_step` on; loading begins at once
    /// and runs ahead by a few batches. Dropping the iterator ends it.
    pub fn epoch(&self, epoch: u64, first_step: usize) -> Epoch {
        let (sender, batches) = sync_channel(self.shared.config.prefetch.max(1));
        let shared = Arc::clone(&self.shared);
        let steps = first_step..self.steps();
        let worker = thread::spawn(move || shared.load_epoch(epoch, steps, &sender));
        Epoch {
            batches,
            worker: Some(worker),
        }
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(batch) = self.batches.recv() {
            return Some(batch);
        }
        // A panic must not look like the end of the epoch.
        if let Some(Err(panic)) = self.worker.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
        None
    }
}

impl Shared {
    fn load_epoch(
        &self,
        epoch: u64,
        steps: std::ops::Range<usize>,
        sender: &SyncSender<Result<Batch, LoadError>>,
    ) {
        let bins: Vec<usize> = self.items.iter().map(|item| item.bin).collect();
        let order = self.config.sampling.order(&bins, self.config.seed, epoch);
        let mut unreadable = 0;
        for step in steps {
            let first = step * self.config.batch;
            let chosen = &order[first..(first + self.config.batch).min(order.len())];
            let batch = self.load_batch(epoch, first, chosen);
            unreadable += batch.skipped.len();
            let result = self.judge(batch, unreadable);
            let failed = result.is_err();
            if sender.send(result).is_err() || failed {
                return;
            }
        }
    }

    /// Decides whether images that could not be read are tolerable.
    fn judge(&self, batch: Batch, unreadable: usize) -> Result<Batch, LoadError> {
        let Some(last) = batch.skipped.last().cloned() else {
            return Ok(batch);
        };
        match self.config.unreadable {
            Unreadable::Stop => Err(LoadError::Unreadable(last)),
            Unreadable::Skip(limit) if unreadable > limit => Err(LoadError::TooMany {
                count: unreadable,
                limit,
                last,
            }),
            Unreadable::Skip(_) if batch.is_empty() => Err(LoadError::Unreadable(last)),
            Unreadable::Skip(_) => Ok(batch),
        }
    }

    /// Loads the items at `chosen`; `first` is the place of the first one in
    /// the epoch.
    fn load_batch(&self, epoch: u64, first: usize, chosen: &[usize]) -> Batch {
        let len = self.plan.pixel_len();
        let mut images = vec![0.0; chosen.len() * len];
        let load = |(tensor, (place, &item)): (&mut [f32], (usize, &usize))| {
            self.load(&self.items[item], epoch, first + place, tensor)
        };
        let loaded: Vec<Result<(), Skipped>> = self.pool.install(|| {
            let places = chosen.par_iter().enumerate();
            images.par_chunks_mut(len).zip(places).map(load).collect()
        });
        let mut batch = Batch::default();
        for (place, outcome) in loaded.into_iter().enumerate() {
            match outcome {
                Ok(()) => {
                    let item = &self.items[chosen[place]];
                    images.copy_within(place * len..(place + 1) * len, batch.len() * len);
                    batch.labels.push(item.label);
                    batch.bins.push(item.bin);
                    batch.indices.push(item.index);
                }
                Err(skipped) => batch.skipped.push(skipped),
            }
        }
        images.truncate(batch.len() * len);
        batch.images = images;
        batch
    }

    /// Decodes, augments and normalises one image into `tensor`
    /// (`[3, size, size]`). `place` is its place in the epoch: an image shown
    /// twice is changed in two ways.
    fn load(
        &self,
        item: &Item,
        epoch: u64,
        place: usize,
        tensor: &mut [f32],
    ) -> Result<(), Skipped> {
        let frame = self.frame(item)?;
        let mut rng = ChaCha8Rng::seed_from_u64(mix(self.config.seed, epoch));
        rng.set_stream(place as u64);
        let pixels = self.augment.apply(&frame, &self.plan, &mut rng);
        self.plan.normalize(&pixels, tensor);
        Ok(())
    }

    fn frame<'a>(&self, item: &'a Item) -> Result<Cow<'a, Frame>, Skipped> {
        if let Some(frame) = item.cached.get() {
            return Ok(Cow::Borrowed(frame));
        }
        let frame = read(&item.path).map_err(|reason| Skipped {
            path: item.path.clone(),
            reason,
        })?;
        let frame = reduce(frame, self.config.reduce);
        let bytes = frame.pixels().len();
        let held = self.cached_bytes.fetch_add(bytes, Ordering::Relaxed);
        if held + bytes > self.config.cache_mib << 20 {
            self.cached_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Ok(Cow::Owned(frame));
        }
        Ok(Cow::Borrowed(item.cached.get_or_init(|| frame)))
    }
}

/// Another seed for every epoch (odd multiplier of Fibonacci hashing).
fn mix(seed: u64, epoch: u64) -> u64 {
    seed.wrapping_add((epoch + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn read(path: &Path) -> Result<Frame, String> {
    let image = image::ImageReader::open(path)
        .and_then(image::ImageReader::with_guessed_format)
        .map_err(|e| e.to_string())?
        .decode()
        .map_err(|e| e.to_string())?;
    Ok(Frame::from(image.into_rgb8()))
}

/// Scales a frame down until its shorter side is `side` pixels.
fn reduce(frame: Frame, side: u32) -> Frame {
    let shorter = frame.width().min(frame.height());
    if side == 0 || shorter <= side {
        return frame;
    }
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(shorter)) as u32;
    let (width, height) = (scaled(frame.width()), scaled(frame.height()));
    let source = ImageRef::new(
        frame.width(),
        frame.height(),
        frame.pixels(),
        PixelType::U8x3,
    );
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let resized = source.is_ok_and(|s| Resizer::new().resize(&s, &mut target, &options).is_ok());
    if !resized {
        return frame;
    }
    Frame::new(width, height, PixelFormat::Rgb, target.into_vec()).unwrap_or(frame)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{Rgb, RgbImage};

    use super::*;
    use crate::data::Columns;

    /// Thirteen small pictures of different colours; sizes differ too.
    struct Pictures {
        folder: tempfile::TempDir,
        dataset: Dataset,
    }

    fn pictures() -> Pictures {
        let folder = tempfile::tempdir().unwrap();
        let mut table = String::from("path,label\n");
        for i in 0..13_u8 {
            let color = |x: u32, y: u32| Rgb([i * 19, (x * 9) as u8, (y * 9) as u8]);
            let picture = RgbImage::from_fn(20 + u32::from(i), 28, color);
            picture
                .save(folder.path().join(format!("{i}.png")))
                .unwrap();
            table += &format!("{i}.png,{i}\n");
        }
        let path = folder.path().join("labels.csv");
        fs::write(&path, table).unwrap();
        let dataset = Dataset::open(&path, &Columns::default(), [0.0, 12.0]).unwrap();
        Pictures { folder, dataset }
    }

    fn bins() -> Vec<Bin> {
        [("low", 0.0, 9.0), ("high", 10.0, 12.0)]
            .map(|(label, start, end)| Bin {
                label: label.into(),
                start,
                end,
            })
            .to_vec()
    }

    fn loader(pictures: &Pictures, config: LoaderConfig) -> Loader {
        let all: Vec<usize> = (0..13).collect();
        let augment = Augment::default();
        Loader::new(
            &pictures.dataset,
            &all,
            &bins(),
            Plan::clip(16),
            augment,
            config,
        )
        .unwrap()
    }

    fn config() -> LoaderConfig {
        LoaderConfig {
            batch: 4,
            workers: 2,
            ..LoaderConfig::default()
        }
    }

    fn batches(loader: &Loader, epoch: u64, step: usize) -> Vec<Batch> {
        loader.epoch(epoch, step).map(Result::unwrap).collect()
    }

    #[test]
    fn every_image_once_with_its_label() {
        let pictures = pictures();
        let batches = batches(&loader(&pictures, config()), 0, 0);
        assert_eq!(
            batches.iter().map(Batch::len).collect::<Vec<_>>(),
            [4, 4, 4, 1]
        );
        let mut seen: Vec<usize> = batches.iter().flat_map(|b| b.indices.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..13).collect::<Vec<_>>());
        for batch in &batches {
            assert_eq!(batch.images.len(), batch.len() * 3 * 16 * 16);
            for (n, &index) in batch.indices.iter().enumerate() {
                assert_eq!(batch.labels[n], index as f32);
                assert_eq!(batch.bins[n], usize::from(index >= 10));
            }
        }
    }

    #[test]
    fn the_last_small_batch_may_be_dropped() {
        let config = LoaderConfig {
            drop_last: true,
            ..config()
        };
        let pictures = pictures();
        let loader = loader(&pictures, config);
        assert_eq!(loader.steps(), 3);
        assert_eq!(batches(&loader, 0, 0).len(), 3);
    }

    #[test]
    fn resuming_gives_the_same_batches() {
        let pictures = pictures();
        let whole = batches(&loader(&pictures, config()), 5, 0);
        let rest = batches(&loader(&pictures, config()), 5, 2);
        assert_eq!(whole[2..], rest);
        assert_ne!(whole, batches(&loader(&pictures, config()), 6, 0));
        assert!(batches(&loader(&pictures, config()), 5, 9).is_empty());
    }

    #[test]
    fn threads_and_cache_do_not_matter() {
        let pictures = pictures();
        let with = |workers, cache_mib| {
            let config = LoaderConfig {
                workers,
                cache_mib,
                reduce: 18,
                ..config()
            };
            let loader = loader(&pictures, config);
            let first = batches(&loader, 1, 0);
            assert_eq!(first, batches(&loader, 1, 0));
            first
        };
        assert_eq!(with(1, 0), with(3, 0));
        assert_eq!(with(1, 0), with(2, 64));
    }

    #[test]
    fn without_augmentation_the_plan_decides() {
        let pictures = pictures();
        let config = LoaderConfig {
            sampling: Sampling::Sequential,
            ..config()
        };
        let plan = Plan::clip(16);
        let augment = Augment::none();
        let loader = Loader::new(
            &pictures.dataset,
            &[7],
            &bins(),
            plan.clone(),
            augment,
            config,
        )
        .unwrap();
        let frame = read(&pictures.folder.path().join("7.png")).unwrap();
        assert_eq!(batches(&loader, 0, 0)[0].images, plan.tensor(&frame));
    }

    #[test]
    fn an_unreadable_image_stops_or_is_skipped() {
        let pictures = pictures();
        let broken = pictures.folder.path().join("6.png");
        fs::write(&broken, "no picture").unwrap();
        let results: Vec<_> = loader(&pictures, config()).epoch(0, 0).collect();
        let error = results.last().unwrap().as_ref().unwrap_err();
        assert!(error.to_string().contains("6.png"), "{error}");

        let skipping = |limit| LoaderConfig {
            unreadable: Unreadable::Skip(limit),
            ..config()
        };
        let batches = batches(&loader(&pictures, skipping(1)), 0, 0);
        assert_eq!(batches.iter().map(Batch::len).sum::<usize>(), 12);
        let skipped: Vec<_> = batches.iter().flat_map(|b| &b.skipped).collect();
        assert_eq!(skipped.len(), 1);
        assert_eq!(skipped[0].path, broken);
        for batch in &batches {
            assert_eq!(batch.images.len(), batch.len() * 3 * 16 * 16);
        }

        let last = loader(&pictures, skipping(0)).epoch(0, 0).last().unwrap();
        assert!(matches!(
            last,
            Err(LoadError::TooMany {
                count: 1,
                limit: 0,
                ..
            })
        ));
    }

    #[test]
    fn an_epoch_may_be_left_early() {
        let pictures = pictures();
        let loader = loader(&pictures, config());
        let mut epoch = loader.epoch(0, 0);
        assert!(epoch.next().unwrap().is_ok());
        drop(epoch);
        assert_eq!(batches(&loader, 1, 0).len(), 4);
    }

    #[test]
    fn reducing_keeps_proportions() {
        let frame = Frame::new(40, 60, PixelFormat::Grey, vec![90; 2400]).unwrap();
        let small = reduce(frame.clone(), 20);
        assert_eq!((small.width(), small.height()), (20, 30));
        assert!(small.pixels().iter().all(|p| p.abs_diff(90) <= 1));
        assert_eq!(reduce(frame.clone(), 40), frame);
        assert_eq!(reduce(frame.clone(), 0), frame);
    }

    #[test]
    fn useless_settings_are_refused() {
        let pictures = pictures();
        let open = |bins: &[Bin], config| {
            Loader::new(
                &pictures.dataset,
                &[0],
                bins,
                Plan::clip(16),
                Augment::none(),
                config,
            )
            .err()
        };
        let no_batch = LoaderConfig {
            batch: 0,
            ..config()
        };
        assert!(matches!(
            open(&bins(), no_batch),
            Some(LoadError::BatchSize)
        ));
        assert!(matches!(open(&[], config()), Some(LoadError::NoBins)));
    }
}
