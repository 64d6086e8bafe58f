//! The batches of training, each with what a teacher says of it.

use std::sync::atomic::AtomicBool;

use super::load::training_loader;
use super::meter::Meter;
use super::progress::Progress;
use super::teacher::{self, Beside, Lesson, Lessons, Teacher};
use super::{FitError, Prepared};
use crate::config::Config;
use crate::data::loader::Epoch;
use crate::data::{Batch, Loader};

/// A batch, and what a teacher says of it.
pub type Taught = (Batch, Option<Lesson>);

/// Where the batches of a run come from.
///
/// A batch depends on the data, the seed, the epoch and its number alone, so that any machine that
/// has the data can compute any of them.
pub struct Feed<'a> {
    prepared: &'a Prepared,
    loader: Loader,
    lessons: Option<Lessons>,
}

/// Some batches of an epoch, in their order.
pub struct Batches<'a> {
    feed: &'a Feed<'a>,
    batches: Epoch,
    beside: Option<Beside<'a>>,
}

impl<'a> Feed<'a> {
    /// The training images of `prepared`, under new random changes or under the views that
    /// `teacher` was asked about.
    ///
    /// # Errors
    /// [`FitError`] when images cannot be loaded, or the teacher cannot answer.
    pub fn new(
        config: &Config,
        prepared: &'a Prepared,
        teacher: Option<&Teacher>,
        interrupt: &AtomicBool,
    ) -> Result<Self, FitError> {
        let images = (config.train.batch_size, config.train.seed);
        let views = teacher.and_then(|teacher| teacher::views(config, teacher));
        let train = &prepared.splits.train;
        let ask = |teacher| Lessons::new(config, prepared, teacher, interrupt);
        Ok(Self {
            prepared,
            loader: training_loader(config, prepared, train, images, views.as_ref())?,
            lessons: teacher.map(ask).transpose()?,
        })
    }

    /// What a person should know of the teacher's answers.
    pub fn warnings(&self) -> &[String] {
        self.lessons.as_ref().map_or(&[], Lessons::warnings)
    }

    /// Batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.loader.steps()
    }

    /// The batches of an epoch (from 0) with these numbers; they are loaded ahead.
    pub fn batches(&self, epoch: usize, numbers: Vec<usize>) -> Batches<'_> {
        let shown = (epoch * self.batches_per_epoch()) as u64;
        let beside = numbers.iter().map(|&number| shown + number as u64);
        Batches {
            beside: self.lessons.as_ref().and_then(|l| l.beside(beside)),
            batches: self.loader.batches(epoch as u64, numbers),
            feed: self,
        }
    }

    /// Adds what the teacher says of a batch and of unlabelled images beside it.
    fn taught(&self, mut batch: Batch, beside: Option<Batch>) -> Result<Taught, FitError> {
        let Some(lessons) = &self.lessons else {
            return Ok((batch, None));
        };
        let skipped = beside.iter().flat_map(|beside| &beside.skipped);
        batch.skipped.extend(skipped.cloned());
        let lesson = lessons.about(self.prepared, &batch, beside)?;
        Ok((batch, Some(lesson)))
    }
}

impl Batches<'_> {
    /// The next `count` of them. The wait for them is timed, and what they leave out is named.
    pub fn few(
        &mut self,
        count: usize,
        meter: &mut Meter<'_>,
        progress: &Progress,
    ) -> impl Iterator<Item = Result<Taught, FitError>> {
        let mut batches = self.take(count);
        std::iter::from_fn(move || {
            let taught = meter.wait(|| batches.next());
            if let Some(Ok((batch, _))) = &taught {
                progress.skipped(batch);
            }
            taught
        })
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Taught, FitError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        let beside = self.beside.as_mut().and_then(Iterator::next).transpose();
        let taught = batch.and_then(|batch| Ok((batch, beside?)));
        Some(match taught {
            Ok((batch, beside)) => self.feed.taught(batch, beside),
            Err(error) => Err(error.into()),
        })
    }
}
