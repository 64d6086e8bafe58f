//! How far the values of a tensor reach.

/// How the channels of a tensor lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// One after the other, so many.
    Planes(usize),
    /// Side by side in rows, so many.
    Rows(usize),
}

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
    /// Of one image's values.
    pub fn of(values: &[f32], channels: Channels) -> Self {
        Self {
            extremes: vec![extremes(values)],
            peaks: match channels {
                Channels::Planes(count) => peaks_of_planes(values, count),
                Channels::Rows(width) => peaks_of_rows(values, width),
            },
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

fn peaks_of_planes(values: &[f32], channels: usize) -> Vec<f32> {
    let plane = (values.len() / channels.max(1)).max(1);
    let peak = |plane: &[f32]| plane.iter().fold(0.0_f32, |peak, v| peak.max(v.abs()));
    values.chunks_exact(plane).map(peak).collect()
}

fn peaks_of_rows(values: &[f32], width: usize) -> Vec<f32> {
    let mut peaks = vec![0.0_f32; width];
    for row in values.chunks_exact(width.max(1)) {
        let pairs = peaks.iter_mut().zip(row);
        pairs.for_each(|(peak, value)| *peak = peak.max(value.abs()));
    }
    peaks
}
