//! Plans that networks are commonly fed by, and in what two of them differ.

use std::fmt;

use serde::Serialize;

use crate::preprocess::{Channels, Filter, Plan, Resize};

/// Mean and standard deviation by name, red first, for pixels of 0..1.
const NORMALISATIONS: [(&str, [f32; 3], [f32; 3]); 7] = [
    ("ImageNet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    (
        "CLIP",
        [0.481_454_66, 0.457_827_5, 0.408_210_73],
        [0.268_629_54, 0.261_302_6, 0.275_777_1],
    ),
    ("-1..1 (mean 0.5, std 0.5)", [0.5; 3], [0.5; 3]),
    ("-1..1 in steps of 1/128", [HALF; 3], [HALF; 3]),
    ("0..1 (pixel / 255)", [0.0; 3], [1.0; 3]),
    ("0..255 (raw pixels)", [0.0; 3], [LEVEL; 3]),
    (
        "0..255 less the ImageNet mean (Caffe)",
        [123.68 * LEVEL, 116.779 * LEVEL, 103.939 * LEVEL],
        [LEVEL; 3],
    ),
];
const HALF: f32 = 128.0 / 255.0;
const LEVEL: f32 = 1.0 / 255.0;
/// Two normalisations are one if they are nowhere further apart, in levels of 255.
const SAME_LEVELS: f32 = 0.5;
/// Greys that letterboxes are filled with.
const FILLS: [u8; 5] = [0, 114, 127, 128, 255];
/// Sides that the shorter one is brought to before the crop, per side kept.
const MARGINS: [(u32, u32); 3] = [(256, 224), (11, 10), (5, 4)];

/// One field in which two plans differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// `channels`, `normalisation`, `resize`, `filter` or `antialias`.
    pub field: &'static str,
    /// What the bundle states.
    pub stated: String,
    /// What explains the pictures.
    pub found: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            stated,
            found,
        } = self;
        write!(f, "{field}: the bundle says {stated}, it should be {found}")
    }
}

/// The fields in which `found` is not `stated`.
pub fn mismatches(stated: &Plan, found: &Plan) -> Vec<Mismatch> {
    let differs = |field, stated: String, found: String| {
        (stated != found).then_some(Mismatch {
            field,
            stated,
            found,
        })
    };
    let sampling = |plan: &Plan| match plan.antialias {
        true => "with antialias",
        false => "without antialias",
    };
    let normalisation = match same_normalisation(stated, found) {
        true => None,
        false => differs("normalisation", normalisation(stated), normalisation(found)),
    };
    let text = |text: &dyn fmt::Display| text.to_string();
    [
        differs("channels", text(&stated.channels), text(&found.channels)),
        normalisation,
        differs("resize", text(&stated.resize), text(&found.resize)),
        differs("filter", text(&stated.filter), text(&found.filter)),
        differs("antialias", sampling(stated).into(), sampling(found).into()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The normalisation of `plan` by name, or its numbers.
pub fn normalisation(plan: &Plan) -> String {
    let known = normalisations(plan).into_iter();
    let mut named = known.filter(|(_, known)| same_normalisation(plan, known));
    match named.next() {
        Some((name, _)) => name,
        None => format!("mean {:?}, std {:?}", plan.mean, plan.std),
    }
}

/// `plan` with every known normalisation, in the order of its channels and in
/// the other one, where that is another.
pub fn normalisations(plan: &Plan) -> Vec<(String, Plan)> {
    let with = |mean, std| Plan {
        mean,
        std,
        ..plan.clone()
    };
    let mut plans = Vec::new();
    for (name, mean, std) in NORMALISATIONS {
        let swapped = |[a, b, c]: [f32; 3]| [c, b, a];
        let (own, other) = match plan.channels {
            Channels::Rgb => ((mean, std), (swapped(mean), swapped(std))),
            Channels::Bgr => ((swapped(mean), swapped(std)), (mean, std)),
        };
        plans.push((name.to_owned(), with(own.0, own.1)));
        if own != other {
            let name = format!("{name}, in the order of the other channels");
            plans.push((name, with(other.0, other.1)));
        }
    }
    plans
}

/// Whether the two plans scale pixels alike, but for half a level.
pub fn same_normalisation(a: &Plan, b: &Plan) -> bool {
    let value =
        |plan: &Plan, channel: usize, pixel: f32| (pixel - plan.mean[channel]) / plan.std[channel];
    (0..3).all(|channel| {
        let apart = |pixel| (value(a, channel, pixel) - value(b, channel, pixel)).abs();
        apart(0.0).max(apart(1.0)) * a.std[channel] * 255.0 <= SAME_LEVELS
    })
}

/// `plan` with every common way to bring a frame to its size, its own first,
/// then those that are nearest to it.
pub fn geometries(plan: &Plan) -> Vec<Plan> {
    let mut resizes = vec![
        plan.resize,
        Resize::ShorterSide { to: None },
        Resize::Stretch,
    ];
    resizes.extend(FILLS.map(|fill| Resize::Letterbox { fill }));
    resizes.extend(MARGINS.map(|(to, of)| Resize::ShorterSide {
        to: Some((plan.size * to + of / 2) / of),
    }));
    let mut samplings = vec![(plan.filter, plan.antialias)];
    for filter in [Filter::Bicubic, Filter::Bilinear, Filter::Lanczos] {
        samplings.extend([(filter, true), (filter, false)]);
    }
    samplings.push((Filter::Nearest, plan.antialias));
    let mut plans: Vec<Plan> = Vec::new();
    for resize in resizes {
        for &(filter, antialias) in &samplings {
            let other = Plan {
                resize,
                filter,
                antialias,
                ..plan.clone()
            };
            if other.check().is_ok() && !plans.contains(&other) {
                plans.push(other);
            }
        }
    }
    plans
}
