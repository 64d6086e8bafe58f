//! Housing: body, bezel, flange, and the glass over the dial.

use super::{
    scene::{Scene, arc, direction, disc, glaze, polar, ring, shade, shifted, solid, tint},
    spec::{Case, GaugeSpec, Glare, Light},
};

/// Body, flange and bezel; leaves the dial's disc open.
pub(super) fn draw_body(scene: &mut Scene, spec: &GaugeSpec) {
    let (case, light) = (&spec.case, &spec.light);
    cast_shadow(scene, case, light);
    for step in 0..6 {
        let height = -case.body + (case.body + case.depth) * step as f32 / 6.0;
        let side = disc([0.0; 2], 1.0 + case.width * 0.98);
        scene.fill(
            &[side],
            height,
            solid(shade(case.color, 0.30 + 0.05 * step as f32)),
        );
    }
    if case.flange > 0.0 {
        draw_flange(scene, case, light);
    }
    draw_bezel(scene, case, light);
}

/// Soft shadow of the body on what is behind it.
fn cast_shadow(scene: &mut Scene, case: &Case, light: &Light) {
    let [x, y] = direction(light.from + 180.0);
    for step in 0..6 {
        let far = case.body * light.slant * (0.6 + 0.1 * step as f32);
        let shadow = disc(
            [x * far, y * far],
            case.outer_radius() * (0.97 + 0.025 * step as f32),
        );
        scene.fill(&[shadow], -case.body, glaze([0; 3], light.shadow / 6.0));
    }
}

/// Mounting ring with three screws, level with the dial.
fn draw_flange(scene: &mut Scene, case: &Case, light: &Light) {
    let (inner, outer) = (1.0 + case.width, case.outer_radius());
    let color = shade(case.color, 0.85);
    let sheen = scene.across(
        light.from,
        outer,
        0.0,
        &[
            (0.0, tint(shade(color, 1.2), 1.0)),
            (1.0, tint(shade(color, 0.75), 1.0)),
        ],
    );
    scene.fill(&ring(inner * 0.98, outer), 0.0, sheen);
    for hole in [0.0, 120.0, 240.0] {
        let at = polar(hole, (inner + outer) / 2.0);
        scene.fill(
            &[disc(at, case.flange * 0.28)],
            0.0,
            solid(shade(color, 0.35)),
        );
        scene.fill(
            &[disc(at, case.flange * 0.2)],
            0.0,
            solid(shade(color, 1.15)),
        );
    }
}

/// Ring around the glass: an outer slope towards the light, a rim that
/// mirrors it, an inner slope away from the light, and the wall down to the
/// dial.
fn draw_bezel(scene: &mut Scene, case: &Case, light: &Light) {
    let outer = 1.0 + case.width;
    let slope = |gain: f32| {
        let bright = 1.0 + (0.35 + 0.5 * case.gloss) * gain;
        let dark = 1.0 - (0.3 + 0.45 * case.gloss) * gain;
        [
            (0.0, shade(case.color, bright)),
            (0.30, shade(case.color, 1.0)),
            (0.45, shade(case.color, 1.0 - 0.3 * case.gloss)),
            (0.60, shade(case.color, 1.0 + 0.25 * case.gloss)),
            (1.0, shade(case.color, dark)),
        ]
        .map(|(at, color): (f32, _)| (at, tint(color, 1.0)))
    };
    let rings = [
        (1.0 + case.width * 0.35, outer, light.from, 1.0),
        (
            1.0 + case.width * 0.25,
            1.0 + case.width * 0.72,
            light.from + 25.0,
            0.5,
        ),
        (1.0, 1.0 + case.width * 0.42, light.from + 180.0, 0.9),
    ];
    for (inner, outer, from, gain) in rings {
        let sheen = scene.across(from, outer, case.depth, &slope(gain));
        scene.fill(&ring(inner, outer), case.depth, sheen);
    }
}

/// What lies between the dial and the camera: the bezel's shadow and the
/// reflections.
pub(super) fn draw_glass(scene: &mut Scene, spec: &GaugeSpec) {
    scene.clip_to(&[disc([0.0; 2], 1.0)], spec.case.depth);
    for glare in &spec.light.glares {
        if glare.window {
            reflect_window(scene, glare);
        } else {
            let reach = glare.size[0].max(glare.size[1]);
            let spot = scene.spot(glare.at, glare.size, glare.turn, [255; 3], glare.strength);
            scene.fill(&[disc(glare.at, reach * 1.3)], 0.0, spot);
        }
    }
    let edge = arc(0.955, 0.985, spec.light.from - 40.0, spec.light.from + 40.0);
    scene.fill(
        &[edge],
        spec.case.depth,
        glaze([255; 3], 0.12 * spec.case.gloss),
    );
    scene.unclip();
}

/// Two by two panes.
fn reflect_window(scene: &mut Scene, glare: &Glare) {
    let (sin, cos) = glare.turn.to_radians().sin_cos();
    let place = |u: f32, v: f32| {
        let (x, y) = (u * glare.size[0], v * glare.size[1]);
        [
            glare.at[0] + x * cos - y * sin,
            glare.at[1] + x * sin + y * cos,
        ]
    };
    for (left, top) in [(-1.0, -1.0), (0.06, -1.0), (-1.0, 0.06), (0.06, 0.06)] {
        let (right, bottom) = (left + 0.94, top + 0.94);
        let pane = vec![
            place(left, top),
            place(right, top),
            place(right, bottom),
            place(left, bottom),
        ];
        for grow in [0.0, 0.012] {
            let shape = shifted(std::slice::from_ref(&pane), [grow, grow]);
            scene.fill(&shape, 0.0, glaze([236, 244, 255], glare.strength / 2.0));
        }
    }
}
