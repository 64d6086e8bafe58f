//! What is behind the gauge.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tiny_skia::{PathBuilder, PremultipliedColorU8, Rect};

use super::{
    scene::{Scene, glaze, shade, solid},
    spec::{Backdrop, BackdropStyle, Rgb},
};

/// Covers the whole picture.
pub(super) fn draw(scene: &mut Scene, backdrop: &Backdrop) {
    let mut rng = ChaCha8Rng::seed_from_u64(backdrop.seed);
    paint_base(scene, backdrop, &mut rng);
    match backdrop.style {
        BackdropStyle::Wall => {}
        BackdropStyle::Panel => draw_panel(scene, backdrop.first, &mut rng),
        BackdropStyle::Pipes => draw_pipes(scene, &mut rng),
        BackdropStyle::Clutter => draw_clutter(scene, &mut rng),
        BackdropStyle::Lights => draw_lights(scene, &mut rng),
    }
    let radius = (backdrop.defocus * scene.side()) as usize;
    soften(scene, radius);
}

/// Gradient from one colour to the other with cloudy and grainy texture.
fn paint_base(scene: &mut Scene, backdrop: &Backdrop, rng: &mut ChaCha8Rng) {
    let side = scene.side();
    let (sin, cos) = rng.random_range(0.0..std::f32::consts::TAU).sin_cos();
    let clouds = Clouds::new(rng);
    let width = side as usize;
    for (i, pixel) in scene.pixmap.pixels_mut().iter_mut().enumerate() {
        let (x, y) = ((i % width) as f32 / side, (i / width) as f32 / side);
        let mix = (0.5 + (x - 0.5) * cos + (y - 0.5) * sin).clamp(0.0, 1.0);
        let light = 1.0 + backdrop.texture * 0.5 * clouds.at(x, y);
        let channel = |c: usize| {
            let (a, b) = (f32::from(backdrop.first[c]), f32::from(backdrop.second[c]));
            ((a + (b - a) * mix) * light).clamp(0.0, 255.0) as u8
        };
        *pixel = opaque([channel(0), channel(1), channel(2)]);
    }
}

/// Smooth random field of a few octaves, sampled on a lattice.
struct Clouds {
    lattice: Vec<f32>,
}

impl Clouds {
    /// Cells of the lattice along each side.
    const CELLS: usize = 127;

    fn new(rng: &mut ChaCha8Rng) -> Self {
        let points = Self::CELLS + 1;
        let mut lattice: Vec<f32> = (0..points * points)
            .map(|_| rng.random_range(-0.5..0.5))
            .collect();
        for cells in [4, 11, 43] {
            let octave: Vec<f32> = (0..(cells + 1) * (cells + 1))
                .map(|_| rng.random_range(-0.5..0.5))
                .collect();
            for (i, value) in lattice.iter_mut().enumerate() {
                let place = |at: usize| at as f32 / Self::CELLS as f32;
                *value += interpolate(&octave, cells, place(i % points), place(i / points));
            }
        }
        Self { lattice }
    }

    /// Value of −2 to 2, mostly within −1 to 1, at a place given in 0–1.
    fn at(&self, x: f32, y: f32) -> f32 {
        interpolate(&self.lattice, Self::CELLS, x, y)
    }
}

/// Bilinear value on a square lattice of `cells` cells a side.
fn interpolate(values: &[f32], cells: usize, x: f32, y: f32) -> f32 {
    let (x, y) = (x * cells as f32, y * cells as f32);
    let (col, row) = ((x as usize).min(cells - 1), (y as usize).min(cells - 1));
    let (u, v) = (x - col as f32, y - row as f32);
    let at = |r: usize, c: usize| values[r * (cells + 1) + c];
    let top = at(row, col) + (at(row, col + 1) - at(row, col)) * u;
    let bottom = at(row + 1, col) + (at(row + 1, col + 1) - at(row + 1, col)) * u;
    top + (bottom - top) * v
}

/// Seams and screws of sheet metal.
fn draw_panel(scene: &mut Scene, base: Rgb, rng: &mut ChaCha8Rng) {
    let side = scene.side();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0.0..side);
        let upright = rng.random_bool(0.5);
        for (shift, gain) in [(0.0, 0.45), (0.008, 1.35)] {
            let line = stripe(at + shift * side, 0.008 * side, side, upright);
            fill_rect(scene, line, shade(base, gain), 0.8);
        }
    }
    for _ in 0..rng.random_range(0..6) {
        let (x, y) = (rng.random_range(0.0..side), rng.random_range(0.0..side));
        let radius = rng.random_range(0.012..0.03) * side;
        fill_circle(
            scene,
            x + radius * 0.2,
            y + radius * 0.25,
            radius * 1.15,
            shade(base, 0.4),
            0.7,
        );
        fill_circle(scene, x, y, radius, shade(base, 1.25), 1.0);
        fill_circle(scene, x, y, radius * 0.45, shade(base, 0.6), 1.0);
    }
}

/// Round pipes and thin cables, lit from one side.
fn draw_pipes(scene: &mut Scene, rng: &mut ChaCha8Rng) {
    let side = scene.side();
    for _ in 0..rng.random_range(1..5) {
        let color = random_color(rng);
        let width = rng.random_range(0.02..0.22) * side;
        let at = rng.random_range(-0.1..1.0) * side;
        let upright = rng.random_bool(0.6);
        let steps = 12;
        for i in 0..steps {
            let across = (i as f32 + 0.5) / steps as f32;
            let gain = 0.35 + 1.0 * (1.0 - ((across - 0.35) / 0.65).powi(2)).max(0.0);
            let line = stripe(
                at + width * i as f32 / steps as f32,
                width / steps as f32 + 1.0,
                side,
                upright,
            );
            fill_rect(scene, line, shade(color, gain), 1.0);
        }
    }
}

/// Boxes and discs with shadows.
fn draw_clutter(scene: &mut Scene, rng: &mut ChaCha8Rng) {
    let side = scene.side();
    for _ in 0..rng.random_range(3..10) {
        let color = random_color(rng);
        let (x, y) = (
            rng.random_range(-0.2..1.0) * side,
            rng.random_range(-0.2..1.0) * side,
        );
        let (w, h) = (
            rng.random_range(0.05..0.6) * side,
            rng.random_range(0.05..0.6) * side,
        );
        if rng.random_bool(0.7) {
            let dark = Rect::from_xywh(x + 0.015 * side, y + 0.02 * side, w, h);
            fill_rect(scene, dark, [0, 0, 0], 0.35);
            fill_rect(scene, Rect::from_xywh(x, y, w, h), color, 1.0);
            fill_rect(
                scene,
                Rect::from_xywh(x, y, w, h * 0.12),
                shade(color, 1.3),
                0.6,
            );
        } else {
            fill_circle(scene, x, y, w * 0.4, color, 1.0);
            fill_circle(
                scene,
                x - w * 0.08,
                y - w * 0.08,
                w * 0.25,
                shade(color, 1.3),
                0.6,
            );
        }
    }
}

/// Large soft discs of far lamps.
fn draw_lights(scene: &mut Scene, rng: &mut ChaCha8Rng) {
    let side = scene.side();
    for _ in 0..rng.random_range(4..16) {
        let color = shade(random_color(rng), 1.6);
        let (x, y) = (rng.random_range(0.0..side), rng.random_range(0.0..side));
        let radius = rng.random_range(0.02..0.12) * side;
        fill_circle(scene, x, y, radius, color, rng.random_range(0.2..0.8));
    }
}

fn random_color(rng: &mut impl Rng) -> Rgb {
    let grey = rng.random_range(30..210_i16);
    let spread = if rng.random_bool(0.3) { 90 } else { 18 };
    [0; 3].map(|_: u8| (grey + rng.random_range(-spread..=spread)).clamp(8, 245) as u8)
}

/// Bar through the whole picture, upright or level.
fn stripe(at: f32, width: f32, side: f32, upright: bool) -> Option<Rect> {
    if upright {
        Rect::from_xywh(at, 0.0, width, side)
    } else {
        Rect::from_xywh(0.0, at, side, width)
    }
}

fn fill_rect(scene: &mut Scene, rect: Option<Rect>, color: Rgb, alpha: f32) {
    if let Some(rect) = rect {
        scene.fill_path(&PathBuilder::from_rect(rect), glaze(color, alpha));
    }
}

fn fill_circle(scene: &mut Scene, x: f32, y: f32, radius: f32, color: Rgb, alpha: f32) {
    if let Some(path) = PathBuilder::from_circle(x, y, radius) {
        let shader = if alpha >= 1.0 {
            solid(color)
        } else {
            glaze(color, alpha)
        };
        scene.fill_path(&path, shader);
    }
}

/// Two box blurs along each axis: close to a lens out of focus.
fn soften(scene: &mut Scene, radius: usize) {
    if radius == 0 {
        return;
    }
    let side = scene.side() as usize;
    let pixels = scene.pixmap.pixels_mut();
    let mut line = vec![[0_u32; 3]; side];
    for _ in 0..2 {
        for i in 0..side {
            blur_line(pixels, &mut line, i * side, 1, radius);
            blur_line(pixels, &mut line, i, side, radius);
        }
    }
}

/// Running mean over `2 * radius + 1` pixels; ends are repeated.
fn blur_line(
    pixels: &mut [PremultipliedColorU8],
    line: &mut [[u32; 3]],
    start: usize,
    stride: usize,
    radius: usize,
) {
    let last = line.len() - 1;
    for (i, value) in line.iter_mut().enumerate() {
        let p = pixels[start + i * stride];
        *value = [p.red(), p.green(), p.blue()].map(u32::from);
    }
    let window = 2 * radius as u32 + 1;
    let mut sum = line[0].map(|c| c * (radius as u32 + 1));
    for i in 1..=radius {
        add(&mut sum, line[i.min(last)]);
    }
    for i in 0..=last {
        pixels[start + i * stride] = opaque(sum.map(|c| (c / window) as u8));
        add(&mut sum, line[(i + radius + 1).min(last)]);
        let gone = line[i.saturating_sub(radius)];
        sum = [sum[0] - gone[0], sum[1] - gone[1], sum[2] - gone[2]];
    }
}

fn add(sum: &mut [u32; 3], value: [u32; 3]) {
    for (s, v) in sum.iter_mut().zip(value) {
        *s += v;
    }
}

fn opaque([r, g, b]: Rgb) -> PremultipliedColorU8 {
    PremultipliedColorU8::from_rgba(r, g, b, 255).expect("opaque colours are always valid")
}
