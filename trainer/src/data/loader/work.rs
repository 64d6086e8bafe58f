//! From paths to batches: what the loading threads do.

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::SyncSender,
    },
};

use fast_image_resize::{
    FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use numclip::{
    decode,
    frame::{Frame, PixelFormat},
    preprocess::Plan,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::{ThreadPool, prelude::*};

use super::{Augment, Batch, LoadError, LoaderConfig, Skipped, Unreadable, Views};
use crate::data::view;

/// What the loading threads work from.
pub(super) struct Shared {
    pub(super) items: Vec<Item>,
    pub(super) plan: Plan,
    pub(super) shown: Shown,
    pub(super) config: LoaderConfig,
    pub(super) pool: ThreadPool,
    pub(super) cached_bytes: AtomicUsize,
}

/// What is shown of an image.
pub(super) enum Shown {
    /// Something new every time.
    New(Augment),
    /// One of its views; its items' files have the digests `sha256`.
    Fixed { views: Views, sha256: Vec<[u8; 32]> },
}

/// One image to show.
pub(super) struct Item {
    pub(super) index: usize,
    pub(super) path: PathBuf,
    pub(super) label: f32,
    pub(super) bin: usize,
    pub(super) cached: OnceLock<Frame>,
}

impl Shared {
    /// Sends the batches of some steps, until one fails or nobody listens.
    pub(super) fn load_epoch(
        &self,
        epoch: u64,
        steps: &[usize],
        sender: &SyncSender<Result<Batch, LoadError>>,
    ) {
        let bins: Vec<usize> = self.items.iter().map(|item| item.bin).collect();
        let order = self.config.sampling.order(&bins, self.config.seed, epoch);
        let repeats = repeats(&order, self.items.len());
        let mut unreadable = 0;
        for &step in steps {
            let first = step * self.config.batch;
            let chosen = &order[first..(first + self.config.batch).min(order.len())];
            let batch = self.load_batch(epoch, first, chosen, &repeats[first..]);
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
            Unreadable::Skip(_) | Unreadable::List => Ok(batch),
        }
    }

    /// Loads the items at `chosen`; `first` is the place of the first one in
    /// the epoch, `repeats` says how often each was shown in it before.
    fn load_batch(&self, epoch: u64, first: usize, chosen: &[usize], repeats: &[u32]) -> Batch {
        let len = self.plan.pixel_len();
        let mut images = vec![0.0; chosen.len() * len];
        let load = |(tensor, (place, &item)): (&mut [f32], (usize, &usize))| {
            self.load(item, (epoch, first + place, repeats[place]), tensor)
        };
        let loaded: Vec<Result<u32, Skipped>> = self.pool.install(|| {
            let places = chosen.par_iter().enumerate();
            images.par_chunks_mut(len).zip(places).map(load).collect()
        });
        let mut batch = Batch::default();
        for (place, outcome) in loaded.into_iter().enumerate() {
            match outcome {
                Ok(view) => {
                    let item = &self.items[chosen[place]];
                    images.copy_within(place * len..(place + 1) * len, batch.len() * len);
                    batch.labels.push(item.label);
                    batch.bins.push(item.bin);
                    batch.indices.push(item.index);
                    batch.views.push(view);
                }
                Err(skipped) => batch.skipped.push(skipped),
            }
        }
        images.truncate(batch.len() * len);
        batch.images = images;
        batch
    }

    /// Decodes, augments and normalises one image into `tensor`
    /// (`[3, size, size]`), and gives the number of its view. `place` is its
    /// place in the epoch, `repeat` says how often it was shown before: an
    /// image shown twice is changed in two ways.
    fn load(
        &self,
        item: usize,
        (epoch, place, repeat): (u64, usize, u32),
        tensor: &mut [f32],
    ) -> Result<u32, Skipped> {
        let frame = self.frame(&self.items[item])?;
        match &self.shown {
            Shown::New(augment) => {
                let mut rng = ChaCha8Rng::seed_from_u64(mix(self.config.seed, epoch));
                rng.set_stream(place as u64);
                let pixels = augment.apply(&frame, &self.plan, &mut rng);
                self.plan.normalize(&pixels, tensor);
                Ok(0)
            }
            Shown::Fixed { views, sha256 } => {
                let number = (epoch + u64::from(repeat)) % u64::from(views.count.max(1));
                let view = views.show(&frame, &sha256[item], number as u32);
                view::normalize(&view, &self.plan, tensor);
                Ok(number as u32)
            }
        }
    }

    fn frame<'a>(&self, item: &'a Item) -> Result<Cow<'a, Frame>, Skipped> {
        if let Some(frame) = item.cached.get() {
            return Ok(Cow::Borrowed(frame));
        }
        let frame = decode::open(&item.path).map_err(|error| Skipped {
            path: item.path.clone(),
            reason: error.kind().to_string(),
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

/// How often each of `order` occurred before; there are `items` different ones.
pub(super) fn repeats(order: &[usize], items: usize) -> Vec<u32> {
    let mut seen = vec![0; items];
    let count = |&item: &usize| {
        seen[item] += 1;
        seen[item] - 1
    };
    order.iter().map(count).collect()
}

/// Another seed for every epoch (odd multiplier of Fibonacci hashing).
fn mix(seed: u64, epoch: u64) -> u64 {
    seed.wrapping_add((epoch + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
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
    use super::*;

    #[test]
    fn reducing_keeps_proportions() {
        let frame = Frame::new(40, 60, PixelFormat::Grey, vec![90; 2400]).unwrap();
        let small = reduce(frame.clone(), 20);
        assert_eq!((small.width(), small.height()), (20, 30));
        assert!(small.pixels().iter().all(|p| p.abs_diff(90) <= 1));
        assert_eq!(reduce(frame.clone(), 40), frame);
        assert_eq!(reduce(frame.clone(), 0), frame);
    }
}
