//! Analogue gauges: dial, ticks, numerals and needle, photographed by a
//! randomly placed, imperfect camera.
//!
//! Geometry lives in dial coordinates: the origin is the dial's centre, the
//! unit is the dial's radius, x points right, y down, and height towards the
//! viewer. Angles are degrees clockwise from twelve o'clock.

mod backdrop;
mod case;
mod dial;
mod photo;
mod sample;
mod scene;
mod spec;

pub use spec::{
    Backdrop, BackdropStyle, Case, Dial, GaugeSpec, Glare, Light, Needle, NeedleShape, Photo, Rgb,
    Scale, View, Zone,
};

use image::RgbImage;

/// Pixels are drawn this many times denser than the picture, then averaged.
const SUPERSAMPLE: u32 = 2;

/// Draws the gauge as a square photograph.
///
/// Returns `size` × `size` RGB pixels, eight bits a channel. The result
/// depends on the arguments alone. `size` is clamped to 16–2048.
pub fn render(spec: &GaugeSpec, size: u32) -> RgbImage {
    let size = size.clamp(16, 2048);
    let mut scene = scene::Scene::new(spec, size * SUPERSAMPLE);
    backdrop::draw(&mut scene, &spec.backdrop);
    case::draw_body(&mut scene, spec);
    dial::draw_face(&mut scene, spec);
    dial::draw_needle(&mut scene, spec);
    case::draw_glass(&mut scene, spec);
    photo::develop(&scene.into_rgb(size), spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat_spec(value: f32) -> GaugeSpec {
        let mut spec = GaugeSpec::nth(3, 0);
        spec.value = value;
        spec.view = View {
            tilt: 0.0,
            tilt_axis: 0.0,
            roll: 0.0,
            distance: 8.0,
            radius: 0.9,
            offset: [0.0, 0.0],
        };
        spec
    }

    #[test]
    fn same_spec_same_pixels() {
        let spec = GaugeSpec::nth(7, 11);
        assert_eq!(render(&spec, 64), render(&spec, 64));
    }

    #[test]
    fn nearby_specs_differ() {
        let first = render(&GaugeSpec::nth(7, 11), 64);
        let second = render(&GaugeSpec::nth(7, 12), 64);
        assert_ne!(first, second);
    }

    /// The pixels that change between two readings lie around the two needle
    /// directions that the scale's angles predict.
    #[test]
    fn needle_points_where_the_label_says() {
        let size = 192;
        let quiet = |value| {
            let mut spec = flat_spec(value);
            spec.photo = Photo::clean();
            spec.light.glares.clear();
            spec.needle.width = 0.03;
            spec.needle.tail = 0.0;
            spec
        };
        for value in [0.0, 20.0, 50.0, 85.0, 100.0] {
            let spec = quiet(value);
            let other = quiet(if value < 50.0 {
                value + 40.0
            } else {
                value - 40.0
            });
            let (with, without) = (render(&spec, size), render(&other, size));
            let angle = spec.scale.angle(value).to_radians();
            let centre = size as f32 / 2.0;
            let reach = spec.view.radius * centre / spec.case.outer_radius() * spec.needle.length;
            let at = |fraction: f32, turn: f32| {
                let r = reach * fraction;
                let a = angle + turn;
                let (x, y) = (centre + r * a.sin(), centre - r * a.cos());
                let (a, b) = (
                    with.get_pixel(x as u32, y as u32),
                    without.get_pixel(x as u32, y as u32),
                );
                a.0.iter()
                    .zip(b.0)
                    .map(|(p, q)| p.abs_diff(q) as u32)
                    .sum::<u32>()
            };
            let on = at(0.7, 0.0);
            assert!(on > 60, "no needle at {value} %: difference {on}");
            let off = at(0.7, -0.35).max(at(0.7, 0.6));
            assert!(off < on / 2, "{value} %: {off} beside, {on} on the needle");
        }
    }

    #[test]
    fn any_size_is_accepted() {
        assert_eq!(render(&flat_spec(40.0), 0).dimensions(), (16, 16));
        assert_eq!(render(&flat_spec(40.0), 33).dimensions(), (33, 33));
    }
}
