//! Asking a teacher about every view of every image.

use std::collections::HashMap;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use numclip::decode;
use numclip::frame::Frame;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::cache::Cache;
use super::{Asker, Teacher, TeacherError};
use crate::data::Views;
use crate::data::loader::Skipped;
use crate::data::view;

/// An image that a teacher is asked about.
pub struct Question<'a> {
    /// Its position in the data set.
    pub index: usize,
    /// Where it is.
    pub path: &'a Path,
    /// SHA-256 of the file.
    pub sha256: &'a [u8; 32],
}

/// How a teacher is asked.
pub struct Asking<'a> {
    /// Fixed views; the image as the teacher's own plan makes it, if none.
    pub views: Option<&'a Views>,
    /// Folder of the answers kept.
    pub cache: &'a Path,
    /// Images that may be unreadable.
    pub unreadable: usize,
    /// Set from outside to stop.
    pub interrupt: &'a AtomicBool,
}

/// What a teacher makes of a view.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `[D]`, of any length.
    pub embedding: Vec<f32>,
    /// `[M]`: cosines with the bins times the teacher's logit scale.
    pub logits: Vec<f32>,
    /// In the task's unit.
    pub value: f32,
}

/// What a teacher makes of every view of many images.
#[derive(Default)]
pub struct Answers {
    /// By the image's position in the data set.
    views: HashMap<usize, Vec<Answer>>,
    /// What a person should know of it.
    pub warnings: Vec<String>,
}

impl Answers {
    /// The answer about a view of an image; none about an image that could not be read.
    pub fn of(&self, index: usize, view: u32) -> Option<&Answer> {
        self.views.get(&index)?.get(view as usize)
    }
}

impl Teacher {
    /// Asks about all images, or takes what was kept.
    ///
    /// # Errors
    /// Too many images cannot be read, the teacher fails on one, or the user stops it.
    pub fn ask<'a>(
        &'a self,
        questions: &[Question<'_>],
        asking: &Asking<'_>,
    ) -> Result<Answers, TeacherError> {
        let dim = self.bins.dim;
        let cache = Cache::new(asking.cache, &self.identity(asking.views), dim);
        let bar = progress(questions.len());
        let answer = |asker: &mut Option<Asker<'a>>, question: &Question<'_>| {
            if asking.interrupt.load(Ordering::Relaxed) {
                return Err(TeacherError::Interrupted);
            }
            let embeddings = self.embeddings(asker, question, asking.views, &cache);
            bar.inc(1);
            match embeddings {
                Ok(embeddings) => Ok((question.index, Ok(self.answers(embeddings)))),
                Err(TeacherError::Unreadable(skipped)) if asking.unreadable > 0 => {
                    Ok((question.index, Err(skipped)))
                }
                Err(error) => Err(error),
            }
        };
        let all: Result<Vec<_>, _> = questions
            .par_iter()
            .map_init(|| None, |asker, question| answer(asker, question))
            .collect();
        bar.finish_and_clear();
        gather(all?, asking.unreadable, &cache)
    }

    /// Everything that an embedding hangs on beside the image.
    fn identity(&self, views: Option<&Views>) -> String {
        let seen = views.map(|views| (&views.plan, &views.augment));
        let seen = serde_json::to_string(&(&self.plan, seen)).unwrap_or_default();
        format!("1 {} {seen}", self.key)
    }

    /// Embeddings of all views of an image.
    fn embeddings<'a>(
        &'a self,
        asker: &mut Option<Asker<'a>>,
        question: &Question<'_>,
        views: Option<&Views>,
        cache: &Cache,
    ) -> Result<Vec<Vec<f32>>, TeacherError> {
        let wanted = views.map_or(1, |views| views.count);
        let mut embeddings = cache.read(question.sha256);
        if embeddings.len() < wanted as usize {
            let frame = open(question)?;
            for number in embeddings.len() as u32..wanted {
                let tensor = self.tensor(&frame, question.sha256, views, number);
                embeddings.push(self.embed(asker, question.path, tensor)?);
            }
            cache.write(question.sha256, &embeddings);
        }
        embeddings.truncate(wanted as usize);
        Ok(embeddings)
    }

    fn tensor(
        &self,
        frame: &Frame,
        sha256: &[u8; 32],
        views: Option<&Views>,
        number: u32,
    ) -> Vec<f32> {
        let Some(views) = views else {
            return self.plan.tensor(frame);
        };
        let mut tensor = vec![0.0; self.plan.pixel_len()];
        view::normalize(&views.show(frame, sha256, number), &self.plan, &mut tensor);
        tensor
    }

    fn embed<'a>(
        &'a self,
        asker: &mut Option<Asker<'a>>,
        image: &Path,
        tensor: Vec<f32>,
    ) -> Result<Vec<f32>, TeacherError> {
        let asker = match asker {
            Some(asker) => asker,
            None => asker.insert(self.asker()?),
        };
        let embedding = asker
            .embed(tensor, self.plan.size as usize)
            .map_err(|error| TeacherError::Failed {
                image: image.into(),
                error,
            })?;
        match embedding.iter().all(|value| value.is_finite()) {
            true => Ok(embedding),
            false => Err(TeacherError::NotFinite(image.into())),
        }
    }

    fn answers(&self, embeddings: Vec<Vec<f32>>) -> Vec<Answer> {
        let answer = |embedding: Vec<f32>| {
            let scale = self.logit_scale as f32;
            let cosines = self.estimator.bins().cosines(&embedding);
            let logits: Vec<f32> = cosines.map(|cosine| cosine * scale).collect();
            Answer {
                value: self.estimator.estimate_logits(&logits).value,
                embedding,
                logits,
            }
        };
        embeddings.into_iter().map(answer).collect()
    }
}

/// The picture, if its file still is the one that was fingerprinted.
fn open(question: &Question<'_>) -> Result<Frame, TeacherError> {
    let unreadable = |reason: String| {
        TeacherError::Unreadable(Skipped {
            path: question.path.into(),
            reason,
        })
    };
    let bytes = fs::read(question.path).map_err(|error| unreadable(error.to_string()))?;
    if Sha256::digest(&bytes)[..] != question.sha256[..] {
        return Err(TeacherError::Changed(PathBuf::from(question.path)));
    }
    decode::from_bytes(&bytes, "").map_err(|error| unreadable(error.kind().to_string()))
}

type Outcome = (usize, Result<Vec<Answer>, Skipped>);

fn gather(all: Vec<Outcome>, limit: usize, cache: &Cache) -> Result<Answers, TeacherError> {
    let mut answers = Answers::default();
    let mut skipped = Vec::new();
    for (index, outcome) in all {
        match outcome {
            Ok(views) => drop(answers.views.insert(index, views)),
            Err(image) => skipped.push(image),
        }
    }
    let count = skipped.len();
    match skipped.pop() {
        Some(last) if count > limit => return Err(TeacherError::TooMany { count, limit, last }),
        Some(last) => answers.warnings.push(format!(
            "the teacher cannot read {count} image(s), among them {last}"
        )),
        None => {}
    }
    let failure = cache.failure();
    answers.warnings.extend(
        failure.map(|failure| {
            format!("the teacher's outputs are not kept for the next run: {failure}")
        }),
    );
    Ok(answers)
}

fn progress(images: usize) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(images as u64), target);
    let template = "asking the teacher {bar:30} {pos}/{len} images ({per_sec}, {eta} left)";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
