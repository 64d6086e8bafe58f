//! The loss of a batch: the terms that the task file weights, of the labels and of a teacher.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::teacher::Lesson;
use crate::config::{Config, LossWeights, TeacherLoss};
use crate::data::{Batch, Weighting};
use crate::loss::{
    absolute_error, cross_entropy, embedding_distance, fcrc_image_to_text, fcrc_text_to_image,
    kl_text_to_image, softened_divergence,
};
use crate::model::numclip::Output;

/// Weighted sum of the loss terms.
pub struct Objective {
    weights: LossWeights,
    /// Weight of each bin, where the task file asks for it.
    bin_weights: Option<Vec<f32>>,
    /// Whether the labels are learned.
    supervised: bool,
    teacher: TeacherLoss,
}

type Term<'a> = (f64, &'a dyn Fn() -> Tensor<1>);

impl Objective {
    /// The objective for training images of which `counts` fall into each bin.
    pub fn new(config: &Config, counts: &[usize]) -> Self {
        let weighting = config.train.weighting;
        let bin_weights = (weighting != Weighting::None).then(|| weighting.weights(counts));
        Self {
            weights: config.train.loss,
            bin_weights,
            supervised: config.teacher.as_ref().is_none_or(|t| t.supervised),
            teacher: config.teacher.as_ref().map(|t| t.loss).unwrap_or_default(),
        }
    }

    /// The loss of `output`, against the labels of `batch` for its images and against `lesson` for
    /// these and the ones behind them: `[1]`.
    pub fn loss(
        &self,
        output: Output,
        batch: &Batch,
        lesson: Option<&Lesson>,
        device: &Device,
    ) -> Tensor<1> {
        let Some(lesson) = lesson else {
            return self.of_labels(output, batch, device);
        };
        let labels = self
            .supervised
            .then(|| self.of_labels(output.first(batch.len()), batch, device));
        let taught = self.of_teacher(output, lesson, device);
        labels.into_iter().fold(taught, |sum, term| sum + term)
    }

    fn of_teacher(&self, output: Output, lesson: &Lesson, device: &Device) -> Tensor<1> {
        let Output {
            embeddings,
            logits,
            values,
        } = output;
        let weights = &self.teacher;
        let rows = |values: &[f32], like: &Tensor<2>| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), like.dims()), device)
        };
        sum(
            &[
                (weights.embedding, &|| {
                    let teacher = rows(&lesson.embeddings, &embeddings);
                    embedding_distance(embeddings.clone(), teacher)
                }),
                (weights.distribution, &|| {
                    let teacher = rows(&lesson.logits, &logits);
                    softened_divergence(logits.clone(), teacher, weights.temperature)
                }),
                (weights.value, &|| {
                    absolute_error(values.clone(), vector(&lesson.values, device), None)
                }),
            ],
            device,
        )
    }

    fn of_labels(&self, output: Output, batch: &Batch, device: &Device) -> Tensor<1> {
        let Output { logits, values, .. } = output;
        let bins: Vec<i32> = batch.bins.iter().map(|&bin| bin as i32).collect();
        let bins = Tensor::<1, Int>::from_data(TensorData::new(bins, [batch.len()]), device);
        let labels = vector(&batch.labels, device);
        let per_bin = self.bin_weights.as_ref();
        let per_image = per_bin.map(|w| batch.bins.iter().map(|&bin| w[bin]).collect::<Vec<_>>());
        let weights = &self.weights;
        let terms: [Term<'_>; 5] = [
            (weights.image_to_text, &|| {
                fcrc_image_to_text(logits.clone(), bins.clone())
            }),
            (weights.text_to_image, &|| {
                fcrc_text_to_image(logits.clone(), bins.clone())
            }),
            (weights.cross_entropy, &|| {
                cross_entropy(
                    logits.clone(),
                    bins.clone(),
                    per_bin.map(|w| vector(w, device)),
                )
            }),
            (weights.kl, &|| {
                kl_text_to_image(logits.clone(), bins.clone())
            }),
            (weights.value, &|| {
                let per_image = per_image.as_ref().map(|w| vector(w, device));
                absolute_error(values.clone(), labels.clone(), per_image)
            }),
        ];
        sum(&terms, device)
    }
}

/// The weighted sum of the terms that have a weight.
fn sum(terms: &[Term<'_>], device: &Device) -> Tensor<1> {
    let used = terms.iter().filter(|(weight, _)| *weight > 0.0);
    used.map(|(weight, term)| term().mul_scalar(*weight))
        .reduce(|sum, term| sum + term)
        .unwrap_or_else(|| Tensor::zeros([1], device))
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(teacher: &str) -> Objective {
        let text = format!(
            r#"
            task = {{ name = "t", range = [0, 10] }}
            bin = [{{ label = "a", start = 0, end = 5 }}, {{ label = "b", start = 5, end = 10 }}]
            data = {{ table = "none.csv" }}
            train = {{ loss = {{ image_to_text = 0, text_to_image = 0, cross_entropy = 1, value = 2 }} }}
            teacher = {{ run = "none", {teacher} }}
            "#
        );
        Objective::new(&toml::from_str(&text).unwrap(), &[1, 1])
    }

    /// Two labelled images and one without a label; every term worked out by hand.
    #[test]
    fn labels_count_for_labelled_images_and_the_teacher_for_all() {
        let device = Device::flex();
        let output = || Output {
            embeddings: Tensor::from_floats([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]], &device),
            logits: Tensor::from_floats([[0.0, 0.0], [2.0, 2.0], [1.0, 1.0]], &device),
            values: Tensor::from_floats([4.0, 8.0, 1.0], &device),
        };
        let batch = Batch {
            labels: vec![3.0, 6.0],
            bins: vec![0, 1],
            ..Batch::default()
        };
        let lesson = Lesson {
            images: Vec::new(),
            // Cosines 1, 0 and 1 / √2.
            embeddings: vec![2.0, 0.0, 1.0, 0.0, 0.0, 1.0],
            // Shares at temperature 2: 1/2 and 1/2; 3/4 and 1/4; 1/2 and 1/2.
            logits: vec![0.0, 0.0, 2.0 * 3f32.ln(), 0.0, 5.0, 5.0],
            values: vec![4.0, 6.0, 5.0],
        };
        let labels = 2f64.ln() + 2.0 * 1.5;
        let embedding = 1.0 - (1.0 + 0.5f64.sqrt()) / 3.0;
        let divergence = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let distribution = 4.0 * divergence / 3.0;
        let value = (0.0 + 2.0 + 4.0) / 3.0;
        for (settings, expected) in [
            (
                "loss = { embedding = 3, distribution = 0, value = 0 }",
                labels + 3.0 * embedding,
            ),
            (
                "loss = { embedding = 0, distribution = 5, value = 0.5 }",
                labels + 5.0 * distribution + 0.5 * value,
            ),
            (
                "supervised = false, loss = { embedding = 1, distribution = 1, value = 1 }",
                embedding + distribution + value,
            ),
            (
                "loss = { embedding = 0, distribution = 0, value = 0 }",
                labels,
            ),
        ] {
            let objective = objective(settings);
            let loss = objective.loss(output(), &batch, Some(&lesson), &device);
            let loss: f64 = loss.into_scalar::<f32>().into();
            assert!(
                (loss - expected).abs() < 1e-5,
                "{settings}: {loss}, expected {expected}"
            );
        }
        let alone = objective("supervised = false").loss(output().first(2), &batch, None, &device);
        let alone: f64 = alone.into_scalar::<f32>().into();
        assert!((alone - labels).abs() < 1e-5);
    }
}
