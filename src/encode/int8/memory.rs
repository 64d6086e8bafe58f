//! Bytes at addresses that vector loads like.

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
