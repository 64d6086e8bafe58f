//! Canvas with a camera: shapes in dial coordinates end up as pixels.

use std::{f32::consts::TAU, sync::LazyLock};

use ab_glyph::{Font, FontRef, OutlineCurve};
use image::{Rgb as Pixel, RgbImage};
use tiny_skia::{
    Color, FillRule, GradientStop, LinearGradient, Mask, Paint, Path, PathBuilder, Pixmap, Point,
    RadialGradient, Shader, SpreadMode, Transform,
};

use super::spec::{GaugeSpec, Rgb, View};

/// Closed outline; points are x, y in dial radii.
pub(super) type Contour = Vec<[f32; 2]>;

/// Outlines filled by the even-odd rule.
pub(super) type Shape = Vec<Contour>;

/// Pinhole camera that looks at the gauge.
struct Camera {
    view: View,
    /// Pixels for one dial radius at height 0, without perspective.
    scale: f32,
    centre: [f32; 2],
}

/// Square picture under construction.
pub(super) struct Scene {
    pub(super) pixmap: Pixmap,
    camera: Camera,
    clip: Option<Mask>,
}

impl Scene {
    /// An empty picture of `side` × `side` pixels.
    pub(super) fn new(spec: &GaugeSpec, side: u32) -> Self {
        let half = side as f32 / 2.0;
        let camera = Camera {
            view: spec.view,
            scale: half * spec.view.radius / spec.case.outer_radius(),
            centre: spec.view.offset.map(|o| half * (1.0 + o)),
        };
        let pixmap = Pixmap::new(side, side).expect("the side is clamped to a few thousand");
        Self {
            pixmap,
            camera,
            clip: None,
        }
    }

    /// Side of the picture in pixels.
    pub(super) fn side(&self) -> f32 {
        self.pixmap.width() as f32
    }

    /// Pixel position of a point above the dial.
    pub(super) fn project(&self, [x, y]: [f32; 2], height: f32) -> [f32; 2] {
        self.camera.project([x, y, height])
    }

    /// Fills a shape that lies `height` above the dial.
    pub(super) fn fill(&mut self, shape: &[Contour], height: f32, shader: Shader<'static>) {
        if let Some(path) = self.path(shape, height) {
            self.fill_path(&path, shader);
        }
    }

    /// Fills a path given in pixels.
    pub(super) fn fill_path(&mut self, path: &Path, shader: Shader<'static>) {
        let paint = Paint {
            shader,
            ..Paint::default()
        };
        self.pixmap.fill_path(
            path,
            &paint,
            FillRule::EvenOdd,
            Transform::identity(),
            self.clip.as_ref(),
        );
    }

    /// Keeps all further drawing inside a shape, until [`Scene::unclip`].
    pub(super) fn clip_to(&mut self, shape: &[Contour], height: f32) {
        let side = self.pixmap.width();
        let Some(path) = self.path(shape, height) else {
            return;
        };
        let mut mask = Mask::new(side, side).expect("same size as the picture");
        mask.fill_path(&path, FillRule::EvenOdd, true, Transform::identity());
        self.clip = Some(mask);
    }

    /// Ends [`Scene::clip_to`].
    pub(super) fn unclip(&mut self) {
        self.clip = None;
    }

    /// Colours blended across a disc of radius `reach`, from the side at
    /// `angle` degrees to the opposite one.
    pub(super) fn across(
        &self,
        angle: f32,
        reach: f32,
        height: f32,
        colors: &[(f32, Color)],
    ) -> Shader<'static> {
        let [x, y] = direction(angle).map(|c| c * reach);
        let [x0, y0] = self.project([x, y], height);
        let [x1, y1] = self.project([-x, -y], height);
        let stops = colors
            .iter()
            .map(|&(at, color)| GradientStop::new(at, color))
            .collect();
        LinearGradient::new(
            Point::from_xy(x0, y0),
            Point::from_xy(x1, y1),
            stops,
            SpreadMode::Pad,
            Transform::identity(),
        )
        .unwrap_or(Shader::SolidColor(colors[0].1))
    }

    /// A colour that fades out from the centre of an ellipse to its edge.
    pub(super) fn spot(
        &self,
        at: [f32; 2],
        size: [f32; 2],
        turn: f32,
        color: Rgb,
        strength: f32,
    ) -> Shader<'static> {
        let [x, y] = self.project(at, 0.0);
        let radii = size.map(|s| (s * self.camera.scale).max(0.5));
        let stops = [(0.0, 1.0), (0.45, 0.8), (0.75, 0.3), (1.0, 0.0)]
            .map(|(r, a)| GradientStop::new(r, tint(color, a * strength)));
        RadialGradient::new(
            Point::from_xy(0.0, 0.0),
            0.0,
            Point::from_xy(0.0, 0.0),
            1.0,
            stops.to_vec(),
            SpreadMode::Pad,
            Transform::from_scale(radii[0], radii[1])
                .post_concat(Transform::from_rotate(turn))
                .post_translate(x, y),
        )
        .unwrap_or(Shader::SolidColor(Color::TRANSPARENT))
    }

    /// The picture averaged down to `size` × `size`; drops the alpha channel.
    pub(super) fn into_rgb(self, size: u32) -> RgbImage {
        let factor = self.pixmap.width() / size;
        let width = self.pixmap.width() as usize;
        let pixels = self.pixmap.pixels();
        let area = factor * factor;
        RgbImage::from_fn(size, size, |x, y| {
            let mut sum = [0_u32; 3];
            for row in y * factor..(y + 1) * factor {
                let start = row as usize * width + (x * factor) as usize;
                for pixel in &pixels[start..start + factor as usize] {
                    sum[0] += u32::from(pixel.red());
                    sum[1] += u32::from(pixel.green());
                    sum[2] += u32::from(pixel.blue());
                }
            }
            Pixel(sum.map(|s| ((s + area / 2) / area) as u8))
        })
    }

    fn path(&self, shape: &[Contour], height: f32) -> Option<Path> {
        let mut path = PathBuilder::new();
        for contour in shape {
            let mut points = contour.iter().map(|&p| self.project(p, height));
            let [x, y] = points.next()?;
            path.move_to(x, y);
            for [x, y] in points {
                path.line_to(x, y);
            }
            path.close();
        }
        path.finish()
    }
}

impl Camera {
    /// Turn, tilt, then perspective division.
    fn project(&self, [x, y, z]: [f32; 3]) -> [f32; 2] {
        let (roll, tilt, axis) = (
            self.view.roll.to_radians(),
            self.view.tilt.to_radians(),
            self.view.tilt_axis.to_radians(),
        );
        let (x, y) = (
            x * roll.cos() - y * roll.sin(),
            x * roll.sin() + y * roll.cos(),
        );
        // Along the tilt axis nothing moves; across it depth and place mix.
        let along = x * axis.cos() + y * axis.sin();
        let across = y * axis.cos() - x * axis.sin();
        let depth = z * tilt.cos() + across * tilt.sin();
        let across = across * tilt.cos() - z * tilt.sin();
        let zoom = self.scale * self.view.distance / (self.view.distance - depth);
        [
            self.centre[0] + zoom * (along * axis.cos() - across * axis.sin()),
            self.centre[1] + zoom * (along * axis.sin() + across * axis.cos()),
        ]
    }
}

/// Unit vector at `angle` degrees clockwise from twelve o'clock.
pub(super) fn direction(angle: f32) -> [f32; 2] {
    let (sin, cos) = angle.to_radians().sin_cos();
    [sin, -cos]
}

/// Point at `angle` degrees and `radius` dial radii.
pub(super) fn polar(angle: f32, radius: f32) -> [f32; 2] {
    direction(angle).map(|c| c * radius)
}

/// Disc.
pub(super) fn disc([x, y]: [f32; 2], radius: f32) -> Contour {
    let corners = if radius > 0.3 { 96 } else { 32 };
    (0..corners)
        .map(|i| TAU * i as f32 / corners as f32)
        .map(|a| [x + radius * a.sin(), y - radius * a.cos()])
        .collect()
}

/// Ring around the origin.
pub(super) fn ring(inner: f32, outer: f32) -> Shape {
    vec![disc([0.0; 2], inner), disc([0.0; 2], outer)]
}

/// Part of a ring between two angles in degrees.
pub(super) fn arc(inner: f32, outer: f32, from: f32, to: f32) -> Contour {
    let steps = (((to - from).abs() / 3.0) as usize).max(2);
    let angle = |i: usize| from + (to - from) * i as f32 / steps as f32;
    let there = (0..=steps).map(|i| polar(angle(i), outer));
    let back = (0..=steps).rev().map(|i| polar(angle(i), inner));
    there.chain(back).collect()
}

/// Radial bar at `angle` degrees.
pub(super) fn bar(angle: f32, from: f32, to: f32, width: f32) -> Contour {
    along(
        angle,
        &[
            [from, -width / 2.0],
            [to, -width / 2.0],
            [to, width / 2.0],
            [from, width / 2.0],
        ],
    )
}

/// Outline given as distance along a direction and distance to its right.
pub(super) fn along(angle: f32, outline: &[[f32; 2]]) -> Contour {
    let [dx, dy] = direction(angle);
    outline
        .iter()
        .map(|[far, right]| [far * dx - right * dy, far * dy + right * dx])
        .collect()
}

/// The shape moved by a vector.
pub(super) fn shifted(shape: &[Contour], by: [f32; 2]) -> Shape {
    let shift = |[x, y]: &[f32; 2]| [x + by[0], y + by[1]];
    shape
        .iter()
        .map(|contour| contour.iter().map(shift).collect())
        .collect()
}

/// Opaque colour.
pub(super) fn solid(color: Rgb) -> Shader<'static> {
    Shader::SolidColor(tint(color, 1.0))
}

/// Transparent colour; `alpha` 0–1.
pub(super) fn glaze(color: Rgb, alpha: f32) -> Shader<'static> {
    Shader::SolidColor(tint(color, alpha))
}

/// Colour with opacity 0–1.
pub(super) fn tint([r, g, b]: Rgb, alpha: f32) -> Color {
    Color::from_rgba8(r, g, b, (alpha.clamp(0.0, 1.0) * 255.0).round() as u8)
}

/// Colour made lighter (`gain` above 1) or darker.
pub(super) fn shade(color: Rgb, gain: f32) -> Rgb {
    color.map(|c| (f32::from(c) * gain).clamp(0.0, 255.0) as u8)
}

static PROPORTIONAL: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT).expect("embedded font")
});
static MONOSPACED: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(epaint_default_fonts::HACK_REGULAR).expect("embedded font")
});

/// Outlines of a text centred on the origin; `height` is that of a digit.
pub(super) fn lettering(text: &str, height: f32, monospaced: bool) -> Shape {
    let font: &FontRef = if monospaced {
        &MONOSPACED
    } else {
        &PROPORTIONAL
    };
    let Some(digit) = font.outline(font.glyph_id('0')) else {
        return Shape::new();
    };
    let scale = height / digit.bounds.height().abs();
    let advance = |c| font.h_advance_unscaled(font.glyph_id(c)) * scale;
    let mut pen = -text.chars().map(advance).sum::<f32>() / 2.0;
    let mut shape = Shape::new();
    for c in text.chars() {
        if let Some(outline) = font.outline(font.glyph_id(c)) {
            let place = |p: ab_glyph::Point| [pen + p.x * scale, height / 2.0 - p.y * scale];
            trace(&outline.curves, place, &mut shape);
        }
        pen += advance(c);
    }
    shape
}

/// Appends a glyph's contours, its curves cut into short lines.
fn trace(curves: &[OutlineCurve], place: impl Fn(ab_glyph::Point) -> [f32; 2], shape: &mut Shape) {
    const STEPS: usize = 4;
    let mut last = None;
    for curve in curves {
        let (start, end) = match curve {
            OutlineCurve::Line(a, b)
            | OutlineCurve::Quad(a, _, b)
            | OutlineCurve::Cubic(a, _, _, b) => (*a, *b),
        };
        if last != Some(start) {
            shape.push(vec![place(start)]);
        }
        let contour = shape.last_mut().expect("a contour was just begun");
        match curve {
            OutlineCurve::Line(_, b) => contour.push(place(*b)),
            curve => {
                contour.extend((1..=STEPS).map(|i| place(on_curve(curve, i as f32 / STEPS as f32))))
            }
        }
        last = Some(end);
    }
}

/// Point at `t` in 0–1, by de Casteljau's construction.
fn on_curve(curve: &OutlineCurve, t: f32) -> ab_glyph::Point {
    let mix = |a: ab_glyph::Point, b: ab_glyph::Point| {
        ab_glyph::point(a.x + (b.x - a.x) * t, a.y + (b.y - a.y) * t)
    };
    match *curve {
        OutlineCurve::Line(a, b) => mix(a, b),
        OutlineCurve::Quad(a, b, c) => mix(mix(a, b), mix(b, c)),
        OutlineCurve::Cubic(a, b, c, d) => {
            let (ab, bc, cd) = (mix(a, b), mix(b, c), mix(c, d));
            mix(mix(ab, bc), mix(bc, cd))
        }
    }
}
