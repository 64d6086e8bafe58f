//! Drawing a gauge and a photograph of it at random.
//!
//! Ranges follow what catalogues of pressure gauges and thermometers show:
//! scales run clockwise with the gap at the bottom, the needle stands out from
//! the dial, its tail is clearly shorter than its tip.

use std::ops::RangeInclusive;

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::spec::{
    Backdrop, BackdropStyle, Case, Dial, GaugeSpec, Glare, Light, Needle, NeedleShape, Photo, Rgb,
    Scale, View, Zone,
};

impl GaugeSpec {
    /// Draws picture `index` of the data set named by `seed`.
    ///
    /// Every picture has its own random stream, so the order and the number of
    /// threads do not matter.
    pub fn nth(seed: u64, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        Self::sample(&mut rng)
    }

    /// Draws a gauge and a photograph of it; the reading is uniform over the
    /// closed scale, in steps of 0.001 %.
    pub fn sample(rng: &mut impl Rng) -> Self {
        let value = rng.random_range(0..=100_000_u32) as f32 / 1000.0;
        let scale = Scale::sample(rng);
        let dial = Dial::sample(rng, &scale);
        Self {
            value,
            needle: Needle::sample(rng, &dial),
            scale,
            dial,
            case: Case::sample(rng),
            view: View::sample(rng),
            light: Light::sample(rng),
            backdrop: Backdrop::sample(rng),
            photo: Photo::sample(rng),
        }
    }
}

/// First and last numeral, major divisions, minor divisions in each, unit.
const SCALES: &[(f32, f32, u32, u32, &str)] = &[
    (0.0, 1.0, 5, 4, "bar"),
    (0.0, 1.0, 10, 5, "MPa"),
    (0.0, 1.6, 8, 4, "MPa"),
    (0.0, 2.5, 5, 5, "bar"),
    (0.0, 4.0, 4, 10, "bar"),
    (0.0, 4.0, 8, 5, "bar"),
    (0.0, 6.0, 6, 10, "bar"),
    (0.0, 6.0, 6, 5, "bar"),
    (0.0, 8.0, 8, 5, "kg/cm²"),
    (0.0, 10.0, 10, 5, "bar"),
    (0.0, 10.0, 5, 4, "bar"),
    (0.0, 12.0, 6, 4, "bar"),
    (0.0, 15.0, 3, 5, "V"),
    (0.0, 16.0, 8, 4, "bar"),
    (0.0, 25.0, 5, 5, "bar"),
    (0.0, 30.0, 6, 5, "psi"),
    (0.0, 40.0, 8, 5, "mbar"),
    (0.0, 60.0, 6, 10, "psi"),
    (0.0, 60.0, 6, 5, "mbar"),
    (0.0, 80.0, 8, 5, "°C"),
    (0.0, 100.0, 10, 5, "%"),
    (0.0, 100.0, 10, 10, "kPa"),
    (0.0, 100.0, 5, 10, "psi"),
    (0.0, 100.0, 4, 5, "%"),
    (0.0, 120.0, 6, 10, "°C"),
    (0.0, 150.0, 5, 5, "A"),
    (0.0, 160.0, 8, 4, "psi"),
    (0.0, 200.0, 10, 4, "psi"),
    (0.0, 250.0, 5, 10, "bar"),
    (0.0, 300.0, 6, 5, "kPa"),
    (0.0, 400.0, 8, 5, "bar"),
    (0.0, 600.0, 6, 5, "kPa"),
    (0.0, 1000.0, 5, 10, "kPa"),
    (-1.0, 0.0, 5, 4, "bar"),
    (-1.0, 3.0, 4, 10, "bar"),
    (-20.0, 60.0, 8, 5, "°C"),
    (-30.0, 50.0, 8, 5, "°C"),
    (20.0, 120.0, 5, 10, "°C"),
];

impl Scale {
    fn sample(rng: &mut impl Rng) -> Self {
        let sweep = match rng.random_range(0..10) {
            0..5 => 270.0,
            5..7 => 240.0,
            7 => 180.0,
            8 => 300.0,
            _ => rng.random_range(180.0..=300.0),
        };
        // Numerals closer than 27 degrees would run into each other.
        let roomy: Vec<_> = SCALES
            .iter()
            .filter(|s| s.2 as f32 * 27.0 <= sweep)
            .collect();
        let (first, last, majors, minor, unit) = **pick(rng, &roomy);
        let step = (last - first) / majors as f32;
        let numeral = |i| format!("{}", ((first + step * i as f32) * 100.0).round() / 100.0);
        let unit = if rng.random_bool(0.9) { unit } else { "" };
        Self {
            start: -sweep / 2.0,
            sweep,
            numerals: (0..=majors).map(numeral).collect(),
            minor,
            unit: unit.into(),
        }
    }
}

const LIGHT_FACES: &[Rgb] = &[
    [246, 246, 243],
    [238, 238, 236],
    [250, 249, 246],
    [240, 234, 214],
    [226, 226, 222],
    [232, 240, 238],
];
const DARK_FACES: &[Rgb] = &[[18, 18, 20], [30, 31, 34], [12, 20, 34], [44, 44, 46]];
const DARK_INKS: &[Rgb] = &[[16, 16, 18], [10, 12, 20], [36, 34, 34], [20, 24, 60]];
const LIGHT_INKS: &[Rgb] = &[[240, 240, 236], [228, 226, 210], [214, 226, 220]];
const SMALL_PRINT: &[&str] = &[
    "",
    "",
    "CL 1.6",
    "CL 2.5",
    "EN 837-1",
    "Kl. 1.0",
    "AISI 316",
    "PRESSURE",
    "TEMP",
    "OIL",
    "WATER",
    "MADE IN EU",
];

impl Dial {
    fn sample(rng: &mut impl Rng, scale: &Scale) -> Self {
        let dark = rng.random_bool(0.22);
        let (faces, inks) = if dark {
            (DARK_FACES, LIGHT_INKS)
        } else {
            (LIGHT_FACES, DARK_INKS)
        };
        let face = *pick(rng, faces);
        let tick_radius = between(rng, 0.86..=0.97);
        let tick_length = between(rng, 0.10..=0.17);
        let numeral_gap = between(rng, 0.10..=0.14);
        let room = numeral_room(scale, tick_radius - tick_length - numeral_gap);
        Self {
            face: vary(rng, face, 6),
            ink: *pick(rng, inks),
            tick_radius,
            tick_length,
            tick_width: between(rng, 0.014..=0.034),
            rim: rng.random_bool(0.4),
            numeral_size: between(rng, 0.12..=0.22).min(room),
            numerals_turn: rng.random_bool(0.15),
            numeral_gap,
            boldness: between(rng, 0.02..=0.09),
            monospaced: rng.random_bool(0.3),
            unit_position: if rng.random_bool(0.7) {
                between(rng, 0.26..=0.38)
            } else {
                between(rng, -0.32..=-0.24)
            },
            small_print: (*pick(rng, SMALL_PRINT)).into(),
            zones: sample_zones(rng),
            dirt: if rng.random_bool(0.3) {
                between(rng, 0.1..=1.0)
            } else {
                0.0
            },
            dirt_seed: rng.random(),
        }
    }
}

/// Largest numerals that fit side by side on a circle, in dial radii.
fn numeral_room(scale: &Scale, radius: f32) -> f32 {
    let gaps = scale.numerals.len().saturating_sub(1).max(1) as f32;
    let spacing = radius * (scale.sweep / gaps).to_radians();
    let longest = scale.numerals.iter().map(String::len).max().unwrap_or(1) as f32;
    // A digit is about 0.75 of its height wide; half of one stays free.
    spacing / (0.75 * longest + 0.4)
}

const ZONE_RED: Rgb = [206, 40, 36];
const ZONE_GREEN: Rgb = [44, 150, 74];
const ZONE_YELLOW: Rgb = [236, 190, 40];

/// Coloured bands as they occur: none, a red end, or green, yellow and red.
fn sample_zones(rng: &mut impl Rng) -> Vec<Zone> {
    let width = between(rng, 0.03..=0.09);
    let zone = |from, to, color| Zone {
        from,
        to,
        color,
        width,
    };
    match rng.random_range(0..10) {
        0..6 => Vec::new(),
        6 => vec![zone(between(rng, 70.0..=90.0), 100.0, ZONE_RED)],
        7 => {
            let (low, high) = (between(rng, 20.0..=45.0), between(rng, 55.0..=80.0));
            vec![zone(low, high, ZONE_GREEN)]
        }
        8 => {
            let (low, high) = (between(rng, 15.0..=30.0), between(rng, 70.0..=85.0));
            vec![
                zone(0.0, low, ZONE_RED),
                zone(low, high, ZONE_GREEN),
                zone(high, 100.0, ZONE_RED),
            ]
        }
        _ => {
            let (low, high) = (between(rng, 40.0..=60.0), between(rng, 70.0..=85.0));
            vec![
                zone(0.0, low, ZONE_GREEN),
                zone(low, high, ZONE_YELLOW),
                zone(high, 100.0, ZONE_RED),
            ]
        }
    }
}

const NEEDLES: &[Rgb] = &[
    [14, 14, 16],
    [26, 26, 30],
    [198, 28, 30],
    [214, 44, 34],
    [240, 240, 238],
    [236, 110, 20],
    [30, 60, 150],
];

impl Needle {
    fn sample(rng: &mut impl Rng, dial: &Dial) -> Self {
        let visible: Vec<Rgb> = NEEDLES
            .iter()
            .copied()
            .filter(|c| (luminance(*c) - luminance(dial.face)).abs() > 70.0)
            .collect();
        let color = *pick(rng, &visible);
        let length = between(rng, 0.62..=0.9);
        let tail = if rng.random_bool(0.7) {
            between(rng, 0.12..=0.30)
        } else {
            0.0
        };
        let dark_hub = rng.random_bool(0.6);
        Self {
            shape: *pick(
                rng,
                &[
                    NeedleShape::Line,
                    NeedleShape::Taper,
                    NeedleShape::Taper,
                    NeedleShape::Arrow,
                    NeedleShape::Lance,
                ],
            ),
            color: vary(rng, color, 8),
            length,
            width: between(rng, 0.035..=0.08),
            tail,
            counterweight: tail > 0.0 && rng.random_bool(0.35),
            hub: between(rng, 0.05..=0.13),
            hub_color: if dark_hub {
                [30, 30, 32]
            } else {
                [172, 168, 160]
            },
            height: between(rng, 0.015..=0.06),
        }
    }
}

impl Case {
    fn sample(rng: &mut impl Rng) -> Self {
        const PAINTED: &[Rgb] = &[
            [26, 26, 28],
            [52, 54, 58],
            [30, 50, 92],
            [140, 30, 28],
            [210, 210, 206],
        ];
        const METAL: &[Rgb] = &[
            [176, 178, 182],
            [198, 198, 200],
            [150, 152, 156],
            [186, 152, 88],
        ];
        let painted = rng.random_bool(0.45);
        let color = *pick(rng, if painted { PAINTED } else { METAL });
        Self {
            color: vary(rng, color, 6),
            gloss: if painted {
                between(rng, 0.1..=0.4)
            } else {
                between(rng, 0.4..=1.0)
            },
            width: between(rng, 0.05..=0.2),
            depth: between(rng, 0.03..=0.14),
            body: between(rng, 0.1..=0.5),
            flange: if rng.random_bool(0.15) {
                between(rng, 0.1..=0.22)
            } else {
                0.0
            },
        }
    }
}

impl View {
    fn sample(rng: &mut impl Rng) -> Self {
        let radius = between(rng, 0.66..=0.97);
        let slack = 1.04 - radius;
        // Small tilts and turns are the common case.
        let skewed: f32 = rng.random();
        Self {
            tilt: 32.0 * skewed.powf(1.5),
            tilt_axis: between(rng, 0.0..=360.0),
            roll: 14.0 * between(rng, -1.0..=1.0) * between(rng, 0.0..=1.0),
            distance: between(rng, 3.5..=12.0),
            radius,
            offset: [
                slack * between(rng, -1.0..=1.0),
                slack * between(rng, -1.0..=1.0),
            ],
        }
    }
}

impl Light {
    fn sample(rng: &mut impl Rng) -> Self {
        let glares = (0..*pick(rng, &[0, 0, 1, 1, 2]))
            .map(|_| Glare::sample(rng))
            .collect();
        Self {
            from: between(rng, -90.0..=90.0),
            slant: between(rng, 0.3..=1.4),
            shadow: between(rng, 0.15..=0.55),
            falloff: between(rng, 0.0..=0.35),
            shade: if rng.random_bool(0.25) {
                between(rng, 0.15..=0.5)
            } else {
                0.0
            },
            shade_edge: between(rng, -0.6..=0.6),
            shade_from: between(rng, 0.0..=360.0),
            glares,
        }
    }
}

impl Glare {
    fn sample(rng: &mut impl Rng) -> Self {
        let window = rng.random_bool(0.35);
        let (size, strength) = if window {
            (0.12..=0.4, 0.06..=0.22)
        } else {
            (0.08..=0.4, 0.15..=0.6)
        };
        Self {
            at: [between(rng, -0.75..=0.75), between(rng, -0.75..=0.75)],
            size: [between(rng, size.clone()), between(rng, size)],
            turn: between(rng, -60.0..=60.0),
            strength: between(rng, strength),
            window,
        }
    }
}

impl Backdrop {
    fn sample(rng: &mut impl Rng) -> Self {
        let style = *pick(
            rng,
            &[
                BackdropStyle::Wall,
                BackdropStyle::Panel,
                BackdropStyle::Pipes,
                BackdropStyle::Clutter,
                BackdropStyle::Lights,
            ],
        );
        let grey = rng.random_range(20..=225_u8);
        let first = vary(rng, [grey; 3], 12);
        Self {
            style,
            first,
            second: vary(rng, first, 24),
            texture: between(rng, 0.05..=0.6),
            defocus: between(rng, 0.0..=0.025),
            seed: rng.random(),
        }
    }
}

impl Photo {
    fn sample(rng: &mut impl Rng) -> Self {
        let warmth = between(rng, -0.12..=0.14);
        Self {
            exposure: between(rng, 0.65..=1.25),
            contrast: between(rng, 0.75..=1.2),
            saturation: if rng.random_bool(0.06) {
                0.0
            } else {
                between(rng, 0.6..=1.25)
            },
            white_balance: [1.0 + warmth, 1.0 + between(rng, -0.04..=0.04), 1.0 - warmth],
            vignette: between(rng, 0.0..=0.35),
            blur: if rng.random_bool(0.6) {
                between(rng, 0.0..=0.006)
            } else {
                0.0
            },
            motion: if rng.random_bool(0.15) {
                between(rng, 0.004..=0.014)
            } else {
                0.0
            },
            motion_angle: between(rng, 0.0..=180.0),
            noise: between(rng, 0.5..=9.0),
            noise_seed: rng.random(),
            jpeg: rng.random_bool(0.6).then(|| rng.random_range(35..=92)),
        }
    }
}

fn between(rng: &mut impl Rng, range: RangeInclusive<f32>) -> f32 {
    rng.random_range(range)
}

fn pick<'a, T>(rng: &mut impl Rng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

fn vary(rng: &mut impl Rng, color: Rgb, by: i16) -> Rgb {
    color.map(|c| (i16::from(c) + rng.random_range(-by..=by)).clamp(0, 255) as u8)
}

fn luminance([r, g, b]: Rgb) -> f32 {
    0.299 * f32::from(r) + 0.587 * f32::from(g) + 0.114 * f32::from(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_cover_the_scale_evenly() {
        let count = 4000;
        let mut tenths = [0_u32; 10];
        for index in 0..count {
            let spec = GaugeSpec::nth(1, index);
            assert!((0.0..=100.0).contains(&spec.value));
            tenths[((spec.value / 10.0) as usize).min(9)] += 1;
        }
        for (tenth, seen) in tenths.iter().enumerate() {
            assert!(
                (320..=480).contains(seen),
                "{seen} readings in tenth {tenth}"
            );
        }
    }

    #[test]
    fn every_gauge_is_legible() {
        for index in 0..2000 {
            let spec = GaugeSpec::nth(2, index);
            assert!((180.0..=300.0).contains(&spec.scale.sweep));
            assert!(spec.needle.tail < 0.5 * spec.needle.length);
            let contrast = luminance(spec.needle.color) - luminance(spec.dial.face);
            assert!(
                contrast.abs() > 45.0,
                "needle drowns in the dial of {index}"
            );
        }
    }
}
