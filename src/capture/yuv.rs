//! Cameras' own pixels: luma for every pixel, chroma for every second one.
//!
//! Made RGB by the matrix of ITU-R BT.601 with levels 16 to 235 (luma) and 16
//! to 240 (chroma), as USB cameras send them, in 16.16 fixed point.

use super::DevelopError;
use crate::frame::{Frame, PixelFormat};

/// How luma and chroma lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YuvLayout {
    /// Y₀ U Y₁ V for each pair of pixels.
    Yuyv,
    /// U Y₀ V Y₁ for each pair of pixels.
    Uyvy,
    /// All luma, then U V for each square of four pixels.
    Nv12,
}

/// Where in a row's bytes the parts of a pair of pixels are.
struct Pair {
    luma: [usize; 2],
    u: usize,
    v: usize,
}

const YUYV: Pair = Pair {
    luma: [0, 2],
    u: 1,
    v: 3,
};
const UYVY: Pair = Pair {
    luma: [1, 3],
    u: 0,
    v: 2,
};

impl YuvLayout {
    /// Bytes of a picture without padding, whose sides are taken for even.
    pub fn bytes(self, width: u32, height: u32) -> usize {
        let (width, height) = (width as usize, height as usize);
        match self {
            Self::Yuyv | Self::Uyvy => width * height * 2,
            Self::Nv12 => width * height + width * height / 2,
        }
    }

    /// Makes an RGB frame in the memory of `pixels`.
    ///
    /// # Errors
    /// When the size is odd or zero, or the bytes do not fit it.
    pub fn develop(
        self,
        (width, height): (u32, u32),
        bytes: &[u8],
        mut pixels: Vec<u8>,
    ) -> Result<Frame, DevelopError> {
        let expected = self.bytes(width, height);
        let is_even = width % 2 == 0 && (height % 2 == 0 || self != Self::Nv12);
        if !is_even || bytes.len() != expected || expected == 0 {
            return Err(DevelopError(format!(
                "a {width}×{height} {self:?} frame takes even sides and {expected} bytes, got {}",
                bytes.len()
            )));
        }
        pixels.clear();
        let rows = bytes.chunks_exact(2 * width as usize);
        match self {
            Self::Yuyv => rows.for_each(|row| packed(row, &YUYV, &mut pixels)),
            Self::Uyvy => rows.for_each(|row| packed(row, &UYVY, &mut pixels)),
            Self::Nv12 => planar(bytes, width as usize, height as usize, &mut pixels),
        }
        Frame::new(width, height, PixelFormat::Rgb, pixels)
            .map_err(|error| DevelopError(error.to_string()))
    }
}

fn packed(row: &[u8], pair: &Pair, pixels: &mut Vec<u8>) {
    for bytes in row.chunks_exact(4) {
        for luma in pair.luma {
            pixels.extend(rgb(bytes[luma], bytes[pair.u], bytes[pair.v]));
        }
    }
}

fn planar(bytes: &[u8], width: usize, height: usize, pixels: &mut Vec<u8>) {
    let (luma, chroma) = bytes.split_at(width * height);
    for (y, row) in luma.chunks_exact(width).enumerate() {
        let chroma = &chroma[y / 2 * width..][..width];
        for (pair, uv) in row.chunks_exact(2).zip(chroma.chunks_exact(2)) {
            for &luma in pair {
                pixels.extend(rgb(luma, uv[0], uv[1]));
            }
        }
    }
}

fn rgb(y: u8, u: u8, v: u8) -> [u8; 3] {
    // 255/219, and the chroma weights times 255/224, in 65536ths.
    let luma = 76_309 * (i32::from(y) - 16) + 32_768;
    let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
    [
        luma + 104_597 * v,
        luma - 25_675 * u - 53_279 * v,
        luma + 132_201 * u,
    ]
    .map(|level| (level >> 16).clamp(0, 255) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BT.601 from its definition: Kr = 0.299, Kb = 0.114.
    fn by_definition(y: u8, u: u8, v: u8) -> [f64; 3] {
        let luma = (f64::from(y) - 16.0) / 219.0;
        let (pb, pr) = (
            (f64::from(u) - 128.0) / 224.0,
            (f64::from(v) - 128.0) / 224.0,
        );
        let red = luma + 2.0 * (1.0 - 0.299) * pr;
        let blue = luma + 2.0 * (1.0 - 0.114) * pb;
        let green = (luma - 0.299 * red - 0.114 * blue) / 0.587;
        [red, green, blue].map(|level| (255.0 * level).clamp(0.0, 255.0))
    }

    #[test]
    fn colours_are_those_of_the_definition() {
        for (y, u, v) in (0..=255_u8).step_by(5).flat_map(|y| {
            (0..=255_u8)
                .step_by(15)
                .flat_map(move |u| (0..=255_u8).step_by(15).map(move |v| (y, u, v)))
        }) {
            for (got, expected) in rgb(y, u, v).into_iter().zip(by_definition(y, u, v)) {
                assert!((f64::from(got) - expected).abs() < 0.51, "{y} {u} {v}");
            }
        }
    }

    #[test]
    fn the_layouts_hold_the_same_picture() {
        let luma = [20, 60, 100, 140, 180, 220, 30, 70];
        let chroma = [90, 160, 200, 50];
        let [a, b, c, d, e, f, g, h] = luma;
        let [u0, v0, u1, v1] = chroma;
        let yuyv = [a, u0, b, v0, c, u1, d, v1, e, u0, f, v0, g, u1, h, v1];
        let uyvy = [u0, a, v0, b, u1, c, v1, d, u0, e, v0, f, u1, g, v1, h];
        let nv12 = [luma.as_slice(), &chroma].concat();
        let frame =
            |layout: YuvLayout, bytes: &[u8]| layout.develop((4, 2), bytes, vec![1, 2, 3]).unwrap();
        let expected = frame(YuvLayout::Yuyv, &yuyv);
        assert_eq!(expected.pixels()[..3], rgb(a, u0, v0));
        assert_eq!(expected.pixels()[21..], rgb(h, u1, v1));
        assert_eq!(frame(YuvLayout::Uyvy, &uyvy), expected);
        assert_eq!(frame(YuvLayout::Nv12, &nv12), expected);
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        for (layout, size, bytes) in [
            (YuvLayout::Yuyv, (4, 2), 15),
            (YuvLayout::Yuyv, (3, 2), 12),
            (YuvLayout::Nv12, (4, 3), 18),
            (YuvLayout::Nv12, (0, 0), 0),
        ] {
            assert!(layout.develop(size, &vec![0; bytes], Vec::new()).is_err());
        }
    }
}
