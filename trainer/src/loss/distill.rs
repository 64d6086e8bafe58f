//! What a student is taught by a teacher with the same bins.
//!
//! All functions return a `[1]` tensor, the mean over the N images. The third part, the value, is
//! [`absolute_error`](super::absolute_error) against the teacher's.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;

/// `1 − cosine` between the embeddings of student and teacher, `[N, D]` each of any length.
///
/// The squared distance of the two unit vectors is twice that.
pub fn embedding_distance(student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    let unit = |rows: Tensor<2>| {
        let length = rows.clone().square().sum_dim(1).add_scalar(1e-24).sqrt();
        rows / length
    };
    let cosines = (unit(student) * unit(teacher)).sum_dim(1);
    cosines.mean().neg().add_scalar(1.0)
}

/// Divergence of the student's distribution over the bins from the teacher's, both softened by a
/// temperature: `T² · KL(softmax(teacher / T) ‖ softmax(student / T))` over `[N, M]` logits.
///
/// The factor T² keeps gradients of the same size at every temperature (Hinton, Vinyals, Dean,
/// "Distilling the Knowledge in a Neural Network", 2015, section 2).
pub fn softened_divergence(student: Tensor<2>, teacher: Tensor<2>, temperature: f64) -> Tensor<1> {
    let soften = |logits: Tensor<2>| log_softmax(logits.div_scalar(temperature), 1);
    let (student, teacher) = (soften(student), soften(teacher));
    let divergence = teacher.clone().exp() * (teacher - student);
    let factor = temperature * temperature;
    divergence.sum_dim(1).mean().mul_scalar(factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// `tests/reference/distillation.py`: PyTorch's losses and their gradients.
    const REFERENCE: &str = include_str!("../../tests/reference/distillation.json");

    fn rows(value: &serde_json::Value, device: &Device) -> Tensor<2> {
        let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
        let shape = [rows.len(), rows[0].len()];
        Tensor::from_data(TensorData::new(rows.concat(), shape), device)
    }

    #[test]
    fn losses_and_gradients_equal_pytorch() {
        let reference: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
        let device = Device::flex().autodiff();
        let cases = reference.as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let student = rows(&case["student"], &device).require_grad();
            let teacher = rows(&case["teacher"], &device);
            let loss = match case["temperature"].as_f64() {
                Some(t) => softened_divergence(student.clone(), teacher, t),
                None => embedding_distance(student.clone(), teacher),
            };
            let value: f64 = loss.clone().into_scalar::<f32>().into();
            let expected = case["loss"].as_f64().unwrap();
            assert!(
                (value - expected).abs() < 1e-5 * expected.max(0.1),
                "{case} {value}"
            );
            let gradient = student.grad(&loss.backward()).unwrap();
            let wanted = rows(&case["gradient"], &gradient.device());
            let worst: f32 = (gradient - wanted).abs().max().into_scalar();
            assert!(worst < 1e-5, "{case}: gradient off by {worst}");
        }
    }

    #[test]
    fn equal_outputs_cost_nothing_and_extremes_stay_finite() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1e4, -1e4, 0.0], [3.0, 2.0, 1.0]], &device);
        let other = logits.clone().flip([1]);
        let scalar = |loss: Tensor<1>| loss.into_scalar::<f32>();
        assert!(scalar(softened_divergence(logits.clone(), logits.clone(), 2.0)).abs() < 1e-6);
        assert!(scalar(embedding_distance(logits.clone(), logits.clone() * 7.0)).abs() < 1e-6);
        assert!(scalar(softened_divergence(logits.clone(), other, 0.5)).is_finite());
        let zero = Tensor::zeros([2, 3], &device);
        assert_eq!(scalar(embedding_distance(zero, logits)), 1.0);
    }
}
