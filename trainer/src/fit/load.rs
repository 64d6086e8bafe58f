//! Loaders over the images of a task.

use super::{FitError, Prepared};
use crate::config::Config;
use crate::data::{Augment, Loader, LoaderConfig, Sampling, Unreadable, Views};

/// A loader over some samples for evaluation: in order, without random changes.
pub fn loader(
    config: &Config,
    prepared: &Prepared,
    indices: &[usize],
    unreadable: Unreadable,
) -> Result<Loader, FitError> {
    let loader = LoaderConfig {
        batch: config.train.batch_size,
        sampling: Sampling::Sequential,
        unreadable,
        ..loader_config(config)
    };
    let (plan, augment) = (config.preprocess.clone(), Augment::none());
    let (dataset, bins) = (&prepared.dataset, &config.bin);
    Ok(Loader::new(dataset, indices, bins, plan, augment, loader)?)
}

/// A loader of training images in batches of a size, drawn from a seed: under fixed views where
/// there are some, else under new random changes in every epoch.
pub fn training_loader(
    config: &Config,
    prepared: &Prepared,
    indices: &[usize],
    (batch, seed): (usize, u64),
    views: Option<&Views>,
) -> Result<Loader, FitError> {
    let loader = LoaderConfig {
        batch,
        seed,
        sampling: config.train.sampling,
        drop_last: indices.len() >= batch,
        unreadable: config.data.unreadable(),
        ..loader_config(config)
    };
    let plan = config.preprocess.clone();
    let (dataset, bins) = (&prepared.dataset, &config.bin);
    let loader = match views {
        Some(views) => {
            let views = (views.clone(), &prepared.sha256[..]);
            Loader::of_views(dataset, indices, bins, plan, views, loader)
        }
        None => {
            let augment = config.augment.clone();
            Loader::new(dataset, indices, bins, plan, augment, loader)
        }
    };
    Ok(loader?)
}

fn loader_config(config: &Config) -> LoaderConfig {
    LoaderConfig {
        workers: config.train.workers,
        cache_mib: config.train.cache_mib / 2,
        ..LoaderConfig::default()
    }
}
