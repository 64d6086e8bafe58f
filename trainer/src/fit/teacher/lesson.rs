//! What a step learns of the teacher: its answers about the batch, and about unlabelled images
//! beside it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::super::load::training_loader;
use super::super::{FitError, Prepared};
use super::ask::{Asking, Question};
use super::{Answers, Teacher, TeacherError};
use crate::config::{Config, ViewPlan};
use crate::data::loader::{Epoch, LoadError};
use crate::data::{Batch, Loader, Views};

/// The teacher's answers about the labelled images of a batch, and about unlabelled ones behind
/// them: N images in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lesson {
    /// The unlabelled images, `[3, size, size]` each, as in a batch.
    pub images: Vec<f32>,
    /// `[N, D]`, of any length.
    pub embeddings: Vec<f32>,
    /// `[N, M]`.
    pub logits: Vec<f32>,
    /// `[N]`, in the task's unit.
    pub values: Vec<f32>,
}

/// Everything a student learns of its teacher.
pub struct Lessons {
    answers: Answers,
    unlabelled: Option<Loader>,
}

/// Batches of unlabelled images.
pub struct Beside<'a> {
    loader: &'a Loader,
    /// Passes over the unlabelled images that are still to come, with the numbers of their batches.
    passes: std::vec::IntoIter<(u64, Vec<usize>)>,
    batches: Option<Epoch>,
}

/// The fixed views that teacher and student share, where the task has some.
pub fn views(config: &Config, teacher: &Teacher) -> Option<Views> {
    match config.teacher.as_ref()?.views {
        ViewPlan::Clean(_) => None,
        ViewPlan::Fixed(count) => Some(Views::new(
            count,
            &config.preprocess,
            teacher.plan().size,
            config.augment.clone(),
        )),
    }
}

impl Lessons {
    /// Asks the teacher about all images that training will show.
    ///
    /// # Errors
    /// [`FitError`] when it cannot answer, or images cannot be loaded.
    pub fn new(
        config: &Config,
        prepared: &Prepared,
        teacher: &Teacher,
        interrupt: &AtomicBool,
    ) -> Result<Self, FitError> {
        let views = views(config, teacher);
        let splits = &prepared.splits;
        let shown = splits.train.iter().chain(&splits.unlabelled);
        let questions: Vec<Question<'_>> = shown
            .map(|&index| Question {
                index,
                path: &prepared.dataset.samples()[index].path,
                sha256: &prepared.sha256[index],
            })
            .collect();
        let asking = Asking {
            views: views.as_ref(),
            cache: &cache_folder(config),
            unreadable: config.data.max_unreadable,
            interrupt,
        };
        let answers = teacher.ask(&questions, &asking)?;
        let batch = config.teacher.as_ref().and_then(|t| t.unlabelled_batch);
        let batch = batch.unwrap_or(config.train.batch_size);
        // Other changes than those of the labelled image at the same place.
        let seed = config.train.seed.wrapping_add(1);
        let unlabelled = (!splits.unlabelled.is_empty()).then(|| {
            let images = &splits.unlabelled;
            training_loader(config, prepared, images, (batch, seed), views.as_ref())
        });
        Ok(Self {
            answers,
            unlabelled: unlabelled.transpose()?,
        })
    }

    /// What a person should know.
    pub fn warnings(&self) -> &[String] {
        &self.answers.warnings
    }

    /// The unlabelled batches that stand beside some of all batches that training shows, which are
    /// counted from 0 over its epochs.
    pub fn beside(&self, shown: impl IntoIterator<Item = u64>) -> Option<Beside<'_>> {
        let loader = self.unlabelled.as_ref()?;
        let steps = loader.steps() as u64;
        let mut passes: Vec<(u64, Vec<usize>)> = Vec::new();
        for number in shown {
            let (pass, step) = (number / steps, (number % steps) as usize);
            match passes.last_mut() {
                Some((last, steps)) if *last == pass => steps.push(step),
                _ => passes.push((pass, vec![step])),
            }
        }
        Some(Beside {
            loader,
            passes: passes.into_iter(),
            batches: None,
        })
    }

    /// The lesson about a batch and unlabelled images beside it.
    ///
    /// # Errors
    /// The teacher was not asked about one of them.
    pub fn about(
        &self,
        prepared: &Prepared,
        batch: &Batch,
        beside: Option<Batch>,
    ) -> Result<Lesson, TeacherError> {
        let mut lesson = Lesson::default();
        let unlabelled = beside.unwrap_or_default();
        for shown in [batch, &unlabelled] {
            for (&index, &view) in shown.indices.iter().zip(&shown.views) {
                let answer = self.answers.of(index, view).ok_or_else(|| {
                    TeacherError::NotAsked(prepared.dataset.samples()[index].path.clone())
                })?;
                lesson.embeddings.extend(&answer.embedding);
                lesson.logits.extend(&answer.logits);
                lesson.values.push(answer.value);
            }
        }
        lesson.images = unlabelled.images;
        Ok(lesson)
    }
}

impl Iterator for Beside<'_> {
    type Item = Result<Batch, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.batches.as_mut().and_then(Iterator::next) {
                return Some(batch);
            }
            let (pass, steps) = self.passes.next()?;
            self.batches = Some(self.loader.batches(pass, steps));
        }
    }
}

fn cache_folder(config: &Config) -> PathBuf {
    let given = config.teacher.as_ref().and_then(|t| t.cache.clone());
    given.unwrap_or_else(|| {
        let mut name = config.data.table.clone().into_os_string();
        name.push(".teacher");
        name.into()
    })
}
