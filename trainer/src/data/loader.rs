//! Batches, prepared in parallel ahead of the computation.

mod work;

use std::{
    fmt,
    panic::resume_unwind,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::AtomicUsize,
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use numclip::{
    bins::{Bin, index_of},
    preprocess::{Plan, PlanError},
};
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::work::{Item, Shared, Shown};
use super::{
    augment::{Augment, AugmentError},
    dataset::Dataset,
    sampling::Sampling,
    view::Views,
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
    /// than this many, or a batch nothing else.
    Skip(usize),
    /// Leave it out and say so in [`Batch::skipped`], however many there are: a
    /// batch may then be empty.
    List,
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
    /// `[N]`, numbers of the views shown; 0 of a loader without fixed views.
    pub views: Vec<u32>,
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
    #[error(
        "{0}; replace it or remove its row (data.max_unreadable lets training go on without some)"
    )]
    Unreadable(Skipped),
    /// More images than allowed cannot be read.
    #[error(
        "{count} images of this epoch cannot be read, data.max_unreadable allows {limit}; the last \
         one: {last}"
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
        augment.check()?;
        Self::build(dataset, indices, bins, plan, Shown::New(augment), config)
    }

    /// Prepares to load fixed views of some samples, whose files have the digests `sha256` (in the
    /// order of [`Dataset::samples`]): in each epoch the next of every image.
    ///
    /// # Errors
    ///
    /// If a setting is out of its range or threads cannot be started.
    pub fn of_views(
        dataset: &Dataset,
        indices: &[usize],
        bins: &[Bin],
        plan: Plan,
        (views, sha256): (Views, &[[u8; 32]]),
        config: LoaderConfig,
    ) -> Result<Self, LoadError> {
        views.augment.check()?;
        views.plan.check()?;
        let sha256 = indices.iter().map(|&index| sha256[index]).collect();
        Self::build(
            dataset,
            indices,
            bins,
            plan,
            Shown::Fixed { views, sha256 },
            config,
        )
    }

    fn build(
        dataset: &Dataset,
        indices: &[usize],
        bins: &[Bin],
        plan: Plan,
        shown: Shown,
        config: LoaderConfig,
    ) -> Result<Self, LoadError> {
        plan.check()?;
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
                shown,
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
        self.batches(epoch, (first_step..self.steps()).collect())
    }

    /// As [`epoch`](Self::epoch), for some of its batches by their numbers from 0; numbers that the
    /// epoch does not have give none.
    pub fn batches(&self, epoch: u64, mut numbers: Vec<usize>) -> Epoch {
        let (sender, batches) = sync_channel(self.shared.config.prefetch.max(1));
        let shared = Arc::clone(&self.shared);
        numbers.retain(|&number| number < self.steps());
        let worker = thread::spawn(move || shared.load_epoch(epoch, &numbers, &sender));
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

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
        let some = loader(&pictures, config()).batches(5, vec![1, 3, 9]);
        let some: Vec<Batch> = some.map(Result::unwrap).collect();
        assert_eq!(some, [whole[1].clone(), whole[3].clone()]);
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
        let frame = numclip::decode::open(&pictures.folder.path().join("7.png")).unwrap();
        assert_eq!(batches(&loader, 0, 0)[0].images, plan.tensor(&frame));
    }

    #[test]
    fn fixed_views_come_in_turn() {
        let pictures = pictures();
        let all: Vec<usize> = (0..13).collect();
        let digests: Vec<[u8; 32]> = (0..13).map(|i| [i; 32]).collect();
        let open = |indices: &[usize], seed| {
            let views = Views::new(3, &Plan::clip(16), 16, Augment::default());
            let config = LoaderConfig { seed, ..config() };
            let (set, plan) = (&pictures.dataset, Plan::clip(16));
            Loader::of_views(set, indices, &bins(), plan, (views, &digests), config).unwrap()
        };
        let shown = |loader: &Loader, epoch| -> Vec<(usize, u32, Vec<f32>)> {
            let batches = batches(loader, epoch, 0).into_iter();
            let rows = batches.flat_map(|b| {
                let images = b.images.chunks_exact(3 * 16 * 16).map(<[f32]>::to_vec);
                let rows = b.indices.into_iter().zip(b.views).zip(images);
                rows.map(|((index, view), image)| (index, view, image))
                    .collect::<Vec<_>>()
            });
            let mut rows: Vec<_> = rows.collect();
            rows.sort_by_key(|row| row.0);
            rows
        };
        let first = shown(&open(&all, 1), 0);
        assert!(first.iter().all(|row| row.1 == 0));
        let second = shown(&open(&all, 1), 1);
        assert!(second.iter().all(|row| row.1 == 1));
        assert!(first.iter().zip(&second).all(|(a, b)| a.2 != b.2));
        // Neither the seed nor the other images matter.
        assert_eq!(shown(&open(&all, 2), 3), first);
        assert_eq!(shown(&open(&[4], 1), 0), first[4..5]);
    }

    #[test]
    fn an_image_shown_again_shows_its_next_view() {
        assert_eq!(work::repeats(&[2, 0, 2, 2, 1, 0], 3), [0, 0, 1, 2, 0, 1]);
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

        let alone = LoaderConfig {
            batch: 1,
            sampling: Sampling::Sequential,
            ..skipping(1)
        };
        let last = loader(&pictures, alone.clone()).epoch(0, 0).last().unwrap();
        let error = last.unwrap_err().to_string();
        assert!(error.contains("data.max_unreadable"), "{error}");
        let listing = LoaderConfig {
            unreadable: Unreadable::List,
            ..alone
        };
        let listed = self::batches(&loader(&pictures, listing), 0, 0);
        assert_eq!((listed.len(), listed[6].len()), (13, 0));
        assert_eq!(listed[6].skipped[0].path, broken);

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
    fn batches_are_made_before_they_are_asked_for() {
        let pictures = pictures();
        let ahead = LoaderConfig {
            batch: 2,
            prefetch: 2,
            sampling: Sampling::Sequential,
            ..config()
        };
        let loader = loader(&pictures, ahead);
        let _epoch = loader.epoch(0, 0);
        let ready = || {
            let items = loader.shared.items.iter();
            items.filter(|item| item.cached.get().is_some()).count()
        };
        // Two wait, and a third is ready to follow; nothing has been taken.
        let deadline = Instant::now() + Duration::from_secs(20);
        while ready() < 6 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(20));
        assert_eq!(ready(), 6);
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
