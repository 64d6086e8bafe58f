//! Bytes at addresses that vector loads like.

use std::ops::Range;

/// Bytes of a vector register and of a cache line.
pub const LINE: usize = 64;

/// A buffer that begins on a cache line; its length is a multiple of one.
pub struct Bytes(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

impl Bytes {
    /// At least `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        Self(vec![Line([0; LINE]); len.div_ceil(LINE)])
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: a `Line` is 64 initialised bytes without padding, and the
        // lines of a vector lie one after the other.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

/// The bytes around a range, to be read while that is written.
pub struct Around<'a> {
    before: &'a [u8],
    after: &'a [u8],
    end: usize,
}

impl<'a> Around<'a> {
    /// The range, and what is around it.
    pub fn split(bytes: &'a mut [u8], written: Range<usize>) -> (&'a mut [u8], Self) {
        let (head, after) = bytes.split_at_mut(written.end);
        let (before, written_bytes) = head.split_at_mut(written.start);
        let around = Self {
            before,
            after,
            end: written.end,
        };
        (written_bytes, around)
    }

    /// Bytes at their place in the whole.
    ///
    /// # Panics
    /// When they meet the range that is written.
    pub fn get(&self, place: Range<usize>) -> &'a [u8] {
        match place.end <= self.before.len() {
            true => &self.before[place],
            false => &self.after[place.start - self.end..place.end - self.end],
        }
    }
}

/// Bytes at the address of a float as floats, in the order of the machine.
///
/// # Panics
/// When they are not at such an address.
pub fn reals(bytes: &[u8]) -> &[f32] {
    // SAFETY: every pattern of bits is a float.
    let (before, reals, _) = unsafe { bytes.align_to() };
    assert!(before.is_empty(), "floats lie at multiples of their size");
    reals
}

/// As [`reals`].
pub fn reals_mut(bytes: &mut [u8]) -> &mut [f32] {
    // SAFETY: every pattern of bits is a float, and every float one of bytes.
    let (before, reals, _) = unsafe { bytes.align_to_mut() };
    assert!(before.is_empty(), "floats lie at multiples of their size");
    reals
}
