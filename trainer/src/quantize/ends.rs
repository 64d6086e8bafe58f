//! How far the values of a tensor reach.

/// Lowest and highest value of a tensor in each image, and the largest magnitude of each of its
/// channels.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Of each image, in their order.
    pub extremes: Vec<[f32; 2]>,
    /// Of each channel.
    pub peaks: Vec<f32>,
}

impl Ends {
    /// Of one image's channels, one after the other.
    pub fn of_planes(values: &[f32], channels: usize) -> Self {
        let plane = (values.len() / channels.max(1)).max(1);
        let peak = |plane: &[f32]| plane.iter().fold(0.0_f32, |peak, v| peak.max(v.abs()));
        Self {
            extremes: vec![extremes(values)],
            peaks: values.chunks_exact(plane).map(peak).collect(),
        }
    }

    /// Of one image's rows of `width` channels.
    pub fn of_rows(values: &[f32], width: usize) -> Self {
        let mut peaks = vec![0.0_f32; width];
        for row in values.chunks_exact(width.max(1)) {
            let pairs = peaks.iter_mut().zip(row);
            pairs.for_each(|(peak, value)| *peak = peak.max(value.abs()));
        }
        Self {
            extremes: vec![extremes(values)],
            peaks,
        }
    }

    /// Adds those of other images.
    pub fn add(&mut self, other: Self) {
        self.extremes.extend(other.extremes);
        let pairs = self.peaks.iter_mut().zip(other.peaks);
        pairs.for_each(|(peak, other)| *peak = peak.max(other));
    }

    /// The lowest value of all.
    pub fn low(&self) -> f32 {
        let lowest = self.extremes.iter().map(|ends| ends[0]);
        lowest.fold(f32::INFINITY, f32::min)
    }

    /// The highest value of all.
    pub fn high(&self) -> f32 {
        let highest = self.extremes.iter().map(|ends| ends[1]);
        highest.fold(f32::NEG_INFINITY, f32::max)
    }
}

fn extremes(values: &[f32]) -> [f32; 2] {
    let none = [f32::INFINITY, f32::NEG_INFINITY];
    values.iter().fold(none, |[low, high], &value| {
        [low.min(value), high.max(value)]
    })
}
