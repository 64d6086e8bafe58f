//! One block of memory for all activations, planned when the model is loaded.

use std::ops::Range;

use super::memory::LINE;

/// A buffer that is needed from one step to another.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Bytes.
    pub len: usize,
    /// First step that writes it, to the last step that reads it.
    pub steps: Range<usize>,
}

/// Kernels may read this far beyond a buffer, never write.
const SLACK: usize = 8;

/// A place for each of `buffers`, [`SLACK`] and the rounding to whole lines
/// included, and the bytes of the whole. Buffers share bytes where no step
/// needs both.
///
/// The largest come first, each at the lowest place that is free.
pub fn place(buffers: &[Buffer]) -> (Vec<Range<usize>>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(buffers[index].len));
    let mut places = vec![0..0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    for index in order {
        let mut rivals: Vec<Range<usize>> = placed
            .iter()
            .filter(|&&other| meet(&buffers[index].steps, &buffers[other].steps))
            .map(|&other| places[other].clone())
            .collect();
        rivals.sort_by_key(|place| place.start);
        places[index] = first_gap(&rivals, (buffers[index].len + SLACK).next_multiple_of(LINE));
        placed.push(index);
    }
    let total = places.iter().map(|place| place.end).max().unwrap_or(0);
    (places, total)
}

fn first_gap(taken: &[Range<usize>], len: usize) -> Range<usize> {
    let mut start = 0;
    for place in taken {
        if start + len <= place.start {
            break;
        }
        start = start.max(place.end);
    }
    start..start + len
}

fn meet(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start <= b.end && b.start <= a.end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_chain_needs_two_buffers() {
        let buffers: Vec<Buffer> = (0..6)
            .map(|i| Buffer {
                len: LINE - SLACK,
                steps: i..i + 1,
            })
            .collect();
        assert_eq!(place(&buffers).1, 2 * LINE);
    }

    proptest! {
        #[test]
        fn buffers_of_one_time_lie_apart(sizes in prop::collection::vec((0_usize..500, 0_usize..9, 0_usize..5), 1..20)) {
            let buffers: Vec<Buffer> = sizes.iter().map(|&(len, start, steps)| Buffer { len, steps: start..start + steps }).collect();
            let (places, total) = place(&buffers);
            for (i, a) in places.iter().enumerate() {
                prop_assert!(a.len() >= buffers[i].len + SLACK && a.end <= total && a.start % LINE == 0);
                for (j, b) in places.iter().enumerate().skip(i + 1) {
                    prop_assert!(a.end <= b.start || b.end <= a.start || !meet(&buffers[i].steps, &buffers[j].steps));
                }
            }
        }
    }
}
