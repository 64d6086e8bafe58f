use super::diagnose::{diagnose_plan, search};
use crate::bundle::GoldenCase;
use crate::frame::{Frame, PixelFormat};
use crate::preprocess::{Channels, Filter, Plan, Resize};

const SIZE: u32 = 32;

/// Coloured patches with sharp edges and fine grain.
fn picture(width: u32, height: u32, seed: u32) -> Frame {
    let mut state = seed;
    let mut grain = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 26
    };
    let level =
        |x: u32, y: u32, channel: u32| ((x / 9 * 5 + y / 7 * 3 + seed) * (channel + 2) * 31) % 190;
    let pixels = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| [0, 1, 2].map(|channel| (level(x, y, channel) + grain()) as u8))
        .collect();
    Frame::new(width, height, PixelFormat::Rgb, pixels).unwrap()
}

fn pictures(count: u32) -> Vec<Frame> {
    (0..count)
        .map(|seed| picture(97 - seed % 5, 61 + seed % 7, 17 * seed + 1))
        .collect()
}

fn golden(plan: &Plan) -> Vec<GoldenCase> {
    let case = |frame: Frame| GoldenCase {
        width: frame.width(),
        height: frame.height(),
        tensor: plan.tensor(&frame),
        pixels: frame.into_pixels(),
        embedding: vec![1.0],
        value: 0.0,
    };
    pictures(3).into_iter().map(case).collect()
}

type Change = fn(&mut Plan);

/// Ways in which preprocessing goes wrong, by the field that is named.
const DAMAGES: [(&str, &str, Change); 12] = [
    ("channels", "BGR", |plan| plan.channels = Channels::Bgr),
    ("normalisation", "ImageNet", |plan| {
        (plan.mean, plan.std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    }),
    ("normalisation", "-1..1 (mean 0.5, std 0.5)", |plan| {
        (plan.mean, plan.std) = ([0.5; 3], [0.5; 3]);
    }),
    ("normalisation", "0..1 (pixel / 255)", |plan| {
        (plan.mean, plan.std) = ([0.0; 3], [1.0; 3]);
    }),
    ("normalisation", "0..255 (raw pixels)", |plan| {
        (plan.mean, plan.std) = ([0.0; 3], [1.0 / 255.0; 3]);
    }),
    ("resize", "stretched", |plan| plan.resize = Resize::Stretch),
    ("resize", "letterbox filled with grey 114", |plan| {
        plan.resize = Resize::Letterbox { fill: 114 };
    }),
    ("resize", "shorter side to 37, centre crop", |plan| {
        plan.resize = Resize::ShorterSide { to: Some(37) };
    }),
    ("filter", "bilinear", |plan| plan.filter = Filter::Bilinear),
    ("filter", "Lanczos", |plan| plan.filter = Filter::Lanczos),
    ("filter", "nearest", |plan| plan.filter = Filter::Nearest),
    ("antialias", "without antialias", |plan| {
        plan.antialias = false
    }),
];

fn changed(change: Change) -> Plan {
    let mut plan = Plan::clip(SIZE);
    change(&mut plan);
    plan
}

#[test]
fn golden_tensors_name_what_is_wrong_with_the_plan() {
    for (field, name, change) in DAMAGES {
        let diagnosis = diagnose_plan(&Plan::clip(SIZE), &golden(&changed(change))).unwrap();
        assert!(diagnosis.explained, "{name}: {diagnosis:?}");
        let found: Vec<_> = diagnosis
            .mismatches
            .iter()
            .map(|m| (m.field, &m.found[..]))
            .collect();
        assert_eq!(found, [(field, name)], "{diagnosis:?}");
        // The other way round: the bundle is damaged, the tensors are CLIP's.
        let diagnosis = diagnose_plan(&changed(change), &golden(&Plan::clip(SIZE))).unwrap();
        let found: Vec<_> = diagnosis
            .mismatches
            .iter()
            .map(|m| (m.field, &m.stated[..]))
            .collect();
        assert_eq!(found, [(field, name)], "{diagnosis:?}");
        assert_eq!(diagnosis.found, Plan::clip(SIZE));
    }
}

#[test]
fn several_faults_are_named_together() {
    let made_by = changed(|plan| {
        plan.channels = Channels::Bgr;
        (plan.mean, plan.std) = ([0.406, 0.456, 0.485], [0.225, 0.224, 0.229]);
        plan.resize = Resize::Stretch;
        plan.filter = Filter::Bilinear;
        plan.antialias = false;
    });
    let diagnosis = diagnose_plan(&Plan::clip(SIZE), &golden(&made_by)).unwrap();
    assert_eq!(diagnosis.found, made_by);
    let fields: Vec<_> = diagnosis.mismatches.iter().map(|m| m.field).collect();
    assert_eq!(
        fields,
        ["channels", "normalisation", "resize", "filter", "antialias"]
    );
    assert_eq!(diagnosis.mismatches[1].found, "ImageNet");
}

#[test]
fn a_normalisation_of_no_name_is_measured() {
    let made_by = changed(|plan| (plan.mean, plan.std) = ([0.1, 0.2, 0.3], [0.4, 0.3, 0.2]));
    let found = diagnose_plan(&Plan::clip(SIZE), &golden(&made_by))
        .unwrap()
        .found;
    for channel in 0..3 {
        assert!(
            (found.mean[channel] - made_by.mean[channel]).abs() < 1e-3,
            "{found:?}"
        );
        assert!(
            (found.std[channel] - made_by.std[channel]).abs() < 1e-3,
            "{found:?}"
        );
    }
}

#[test]
fn a_right_plan_has_no_mismatch_and_noise_has_no_plan() {
    let plan = Plan::clip(SIZE);
    let mut cases = golden(&plan);
    let diagnosis = diagnose_plan(&plan, &cases).unwrap();
    assert!(
        diagnosis.explained && diagnosis.mismatches.is_empty(),
        "{diagnosis:?}"
    );
    for case in &mut cases {
        case.tensor.reverse();
    }
    assert!(diagnose_plan(&plan, &cases).is_none_or(|diagnosis| !diagnosis.explained));
}

/// Where plan and tensors agree with each other but not with the encoder, only
/// what comes out of it can tell.
#[test]
fn a_search_by_results_names_what_is_wrong() {
    let frames = pictures(12);
    for (field, name, change) in DAMAGES {
        let trained = changed(change);
        let errors = |plans: &[Plan]| -> Result<Vec<Vec<f64>>, ()> {
            let apart = |plan: &Plan, frame: &Frame| {
                let (a, b) = (plan.tensor(frame), trained.tensor(frame));
                let pairs = a
                    .iter()
                    .zip(&b)
                    .map(|(a, b)| f64::from((a - b).abs().min(2.0)));
                pairs.sum::<f64>()
            };
            let of = |plan: &Plan| frames.iter().map(|frame| apart(plan, frame)).collect();
            Ok(plans.iter().map(of).collect())
        };
        let better = search(&Plan::clip(SIZE), errors).unwrap().unwrap();
        let found: Vec<_> = better
            .mismatches
            .iter()
            .map(|m| (m.field, &m.found[..]))
            .collect();
        assert_eq!(found, [(field, name)], "{better:?}");
        assert!(better.after < better.before);
        assert_eq!(search(&trained, errors), Ok(None), "{name}");
    }
}
