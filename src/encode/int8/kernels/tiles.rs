//! A dense convolution cut into tiles: a few output pixels by the outputs of
//! one panel, as many as the registers hold.

use super::Dense;
use super::pack::Panel;

/// What all tiles of a panel share.
pub struct Strip<'a> {
    /// The convolution.
    pub dense: &'a Dense<'a>,
    /// The panel.
    pub panel: &'a Panel,
    /// Its weights.
    pub weights: &'a [u8],
    /// A bias for each slot.
    pub bias: &'a [i32],
    /// A multiplier for each slot.
    pub multiplier: &'a [f32],
    /// What is added to the real value of each slot.
    pub offset: &'a [f32],
}

/// Output pixels that lie side by side in a row.
pub struct Tile<'a> {
    /// What it shares with others.
    pub strip: &'a Strip<'a>,
    /// Pixels, at least 1.
    pub pixels: usize,
    /// Levels, from the first pixel's window on.
    pub from: &'a [u8],
    /// Output, from the panel's first value of the first pixel on.
    pub to: &'a mut [u8],
}

/// Has `compute` do `dense`, which has been checked, in tiles of at most
/// `pixels`. Those of a row are of equal size, or one pixel apart.
#[inline]
pub fn for_each_tile(dense: &Dense<'_>, to: &mut [u8], pixels: usize, compute: impl Fn(Tile<'_>)) {
    let (windows, matrix) = (dense.windows, dense.matrix);
    let tiles = windows.columns.div_ceil(pixels);
    for panel in matrix.panels() {
        let (weights, bias, multiplier, offset) = matrix.panel(panel);
        let strip = Strip {
            dense,
            panel,
            weights,
            bias,
            multiplier,
            offset,
        };
        for row in 0..windows.rows {
            for tile in 0..tiles {
                let first = tile * windows.columns / tiles;
                let pixels = (tile + 1) * windows.columns / tiles - first;
                let at = (row * windows.columns + first) * matrix.outputs() + panel.first;
                let at = at * dense.width();
                compute(Tile {
                    strip: &strip,
                    pixels,
                    from: &dense.from[row * windows.row_step + first * windows.column_step..],
                    to: &mut to[at..],
                });
            }
        }
    }
}
