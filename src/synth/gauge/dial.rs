//! Face of the gauge and its needle.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    scene::{
        Contour, Scene, Shape, along, arc, bar, direction, disc, glaze, lettering, polar, ring,
        shade, shifted, solid, tint,
    },
    spec::{Case, Dial, GaugeSpec, Light, Needle, NeedleShape, Rgb, Scale},
};

/// Everything printed on the dial, and the wall and shadow around it.
pub(super) fn draw_face(scene: &mut Scene, spec: &GaugeSpec) {
    let (dial, scale) = (&spec.dial, &spec.scale);
    scene.clip_to(&[disc([0.0; 2], 1.0)], spec.case.depth);
    draw_wall(scene, &spec.case, &spec.light);
    let sheen = scene.across(
        spec.light.from,
        1.0,
        0.0,
        &[
            (0.0, tint(shade(dial.face, 1.02), 1.0)),
            (1.0, tint(shade(dial.face, 0.9), 1.0)),
        ],
    );
    scene.fill(&[disc([0.0; 2], 1.0)], 0.0, sheen);
    for zone in &dial.zones {
        let (from, to) = (scale.angle(zone.from), scale.angle(zone.to));
        let outer = dial.tick_radius;
        scene.fill(
            &[arc(outer - zone.width, outer, from, to)],
            0.0,
            solid(zone.color),
        );
    }
    draw_ticks(scene, dial, scale);
    draw_numerals(scene, dial, scale);
    draw_texts(scene, dial, &scale.unit);
    draw_dirt(scene, dial);
    shadow_of_bezel(scene, &spec.case, &spec.light);
    scene.unclip();
}

/// Inside of the case between the glass and the dial.
fn draw_wall(scene: &mut Scene, case: &Case, light: &Light) {
    let wall = scene.across(
        light.from,
        1.0,
        case.depth,
        &[
            (0.0, tint(shade(case.color, 0.35), 1.0)),
            (1.0, tint(shade(case.color, 0.8), 1.0)),
        ],
    );
    scene.fill(&[disc([0.0; 2], 1.05)], case.depth, wall);
}

fn draw_ticks(scene: &mut Scene, dial: &Dial, scale: &Scale) {
    let majors = scale.numerals.len().saturating_sub(1) as u32;
    let count = majors * scale.minor.max(1);
    let ticks: Shape = (0..=count)
        .map(|i| {
            let angle = scale.angle(100.0 * i as f32 / count.max(1) as f32);
            let (length, width) = match i % scale.minor.max(1) {
                0 => (1.0, 1.0),
                half if 2 * half == scale.minor => (0.75, 0.7),
                _ => (0.5, 0.5),
            };
            let outer = dial.tick_radius;
            bar(
                angle,
                outer - dial.tick_length * length,
                outer,
                dial.tick_width * width,
            )
        })
        .collect();
    for tick in ticks {
        scene.fill(&[tick], 0.0, solid(dial.ink));
    }
    if dial.rim {
        let (from, to) = (scale.angle(0.0), scale.angle(100.0));
        let line = arc(dial.tick_radius - 0.012, dial.tick_radius + 0.006, from, to);
        scene.fill(&[line], 0.0, solid(dial.ink));
    }
}

fn draw_numerals(scene: &mut Scene, dial: &Dial, scale: &Scale) {
    let last = scale.numerals.len().saturating_sub(1).max(1) as f32;
    for (i, numeral) in scale.numerals.iter().enumerate() {
        let angle = scale.angle(100.0 * i as f32 / last);
        // Long upright numerals need more room where they lie along the radius.
        let lean = if dial.numerals_turn {
            0.0
        } else {
            direction(angle)[0].abs()
        };
        let room = dial.numeral_size * (numeral.len() as f32 - 1.0) * 0.28 * lean;
        let at = polar(
            angle,
            dial.tick_radius - dial.tick_length - dial.numeral_gap - room,
        );
        let turn = if dial.numerals_turn { angle } else { 0.0 };
        write(scene, dial, numeral, dial.numeral_size, at, turn);
    }
}

fn draw_texts(scene: &mut Scene, dial: &Dial, unit: &str) {
    let letters = unit.chars().count().max(1) as f32;
    // Half a dial radius is free between the first and the last numeral.
    let height = (dial.numeral_size * 0.9)
        .min(0.14)
        .min(0.5 / (0.75 * letters));
    write(scene, dial, unit, height, [0.0, dial.unit_position], 0.0);
    let below = if dial.unit_position > 0.0 {
        dial.unit_position + 0.15
    } else {
        0.32
    };
    write(scene, dial, &dial.small_print, 0.06, [0.0, below], 0.0);
}

/// Text around a point, `turn` degrees clockwise, in the dial's ink.
fn write(scene: &mut Scene, dial: &Dial, text: &str, height: f32, at: [f32; 2], turn: f32) {
    let (sin, cos) = turn.to_radians().sin_cos();
    let place = |[x, y]: &[f32; 2]| [at[0] + x * cos - y * sin, at[1] + x * sin + y * cos];
    let shape: Shape = lettering(text, height, dial.monospaced)
        .iter()
        .map(|contour| contour.iter().map(place).collect())
        .collect();
    if shape.is_empty() {
        return;
    }
    // Bold type: the same outlines again, moved a little.
    let bold = dial.boldness * height / 2.0;
    for by in [[-bold, -bold], [bold, bold]] {
        scene.fill(&shifted(&shape, by), 0.0, solid(dial.ink));
    }
}

/// Stains: soft brown and grey spots.
fn draw_dirt(scene: &mut Scene, dial: &Dial) {
    if dial.dirt == 0.0 {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(dial.dirt_seed);
    for _ in 0..8 {
        let at = polar(rng.random_range(0.0..360.0), rng.random_range(0.2..1.05));
        let size = [rng.random_range(0.05..0.5), rng.random_range(0.05..0.5)];
        let color = [96, 78, 52].map(|c: u8| c - rng.random_range(0..40));
        let strength = dial.dirt * rng.random_range(0.05..0.32);
        let spot = scene.spot(at, size, rng.random_range(0.0..180.0), color, strength);
        scene.fill(&[disc(at, size[0].max(size[1]) * 1.3)], 0.0, spot);
    }
}

/// The bezel keeps the light from the dial's edge.
fn shadow_of_bezel(scene: &mut Scene, case: &Case, light: &Light) {
    let [x, y] = direction(light.from + 180.0);
    for step in 0..5 {
        let far = case.depth * light.slant * (0.5 + 0.25 * step as f32);
        let lit = disc([x * far, y * far], 1.01 - 0.012 * step as f32);
        let frame = disc([0.0; 2], 1.3);
        scene.fill(&[frame, lit], 0.0, glaze([0; 3], light.shadow / 4.0));
    }
}

/// The pointer with its shadow and hub.
pub(super) fn draw_needle(scene: &mut Scene, spec: &GaugeSpec) {
    let needle = &spec.needle;
    let angle = spec.scale.angle(spec.value);
    let parts = needle_outline(needle, angle);
    let hub = disc([0.0; 2], needle.hub);
    scene.clip_to(&[disc([0.0; 2], 1.0)], spec.case.depth);
    let [x, y] = direction(spec.light.from + 180.0);
    for step in 0..4 {
        let far = needle.height * spec.light.slant * (0.7 + 0.2 * step as f32);
        for part in parts.iter().chain([&hub]) {
            let shadow = shifted(std::slice::from_ref(part), [x * far, y * far]);
            scene.fill(&shadow, 0.0, glaze([0; 3], spec.light.shadow / 4.0));
        }
    }
    for part in &parts {
        scene.fill(
            std::slice::from_ref(part),
            needle.height,
            solid(needle.color),
        );
    }
    draw_hub(scene, needle, spec.light.from);
    scene.unclip();
}

fn draw_hub(scene: &mut Scene, needle: &Needle, light_from: f32) {
    let height = needle.height * 1.3;
    let sheen = |scene: &Scene, from: f32, color: Rgb| {
        scene.across(
            from,
            needle.hub,
            height,
            &[
                (0.0, tint(shade(color, 1.5), 1.0)),
                (1.0, tint(shade(color, 0.6), 1.0)),
            ],
        )
    };
    let outer = sheen(scene, light_from, needle.hub_color);
    scene.fill(&[disc([0.0; 2], needle.hub)], height, outer);
    let inner = sheen(scene, light_from + 180.0, needle.hub_color);
    scene.fill(&ring(needle.hub * 0.3, needle.hub * 0.55), height, inner);
}

/// Closed parts of the needle that points to `angle` degrees.
fn needle_outline(needle: &Needle, angle: f32) -> Vec<Contour> {
    let (length, half, tail) = (needle.length, needle.width / 2.0, needle.tail);
    let tip = 0.006;
    let outline: Vec<[f32; 2]> = match needle.shape {
        NeedleShape::Line => vec![
            [-tail, -half],
            [length, -half],
            [length, half],
            [-tail, half],
        ],
        NeedleShape::Taper => vec![[-tail, -half], [length, -tip], [length, tip], [-tail, half]],
        NeedleShape::Arrow => {
            let (shaft, neck, head) = (half * 0.6, length * 0.76, half * 1.7);
            vec![
                [-tail, -shaft],
                [neck, -shaft],
                [neck, -head],
                [length, 0.0],
                [neck, head],
                [neck, shaft],
                [-tail, shaft],
            ]
        }
        NeedleShape::Lance => {
            let waist = length * 0.33;
            vec![
                [-tail, -half * 0.4],
                [waist, -half],
                [length, 0.0],
                [waist, half],
                [-tail, half * 0.4],
            ]
        }
    };
    let mut parts = vec![along(angle, &outline)];
    if needle.counterweight {
        parts.push(disc(polar(angle, -tail), needle.width * 0.9));
    }
    parts
}
