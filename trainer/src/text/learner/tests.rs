use super::*;
use crate::text::tower::tests::{assert_close, values};
use crate::text::{Placement, TextSource, bin_embeddings, tower};
use burn::module::ModuleVisitor;

fn tower() -> TextTower {
    tower::tests::tower(9)
}

fn prompt(placement: Placement) -> Prompt {
    Prompt {
        context: "a photo of the".into(),
        bins: ["child", "young adult", "older middle aged adult"]
            .map(String::from)
            .to_vec(),
        placement,
    }
}

fn side(tuning: &str, placement: Placement) -> TextSide {
    let tuning: Tuning = toml::from_str(tuning).expect("TOML");
    let device = Device::flex().autodiff();
    TextSide::tuned_prompt(&tower(), &prompt(placement), &tuning, &device).expect("a side")
}

#[test]
fn an_untrained_prompt_equals_the_frozen_one() {
    for placement in [Placement::Tail, Placement::Middle, Placement::Front] {
        let frozen = bin_embeddings(&tower(), &prompt(placement)).expect("embeddings");
        for tuning in [
            "ranks = true",
            "context = 'shared'",
            "context = 'per-bin'\nranks = true",
        ] {
            let side = side(tuning, placement);
            assert_close(&values(side.bins()), &frozen.values, 1e-6);
        }
    }
}

#[test]
fn as_many_base_ranks_as_bins_stand_for_themselves() {
    let prompt = Prompt {
        bins: ["child", "teenager", "adult"].map(String::from).to_vec(),
        ..prompt(Placement::Tail)
    };
    let tuning = "ranks = true\nbase_ranks = { count = 3, interpolation = 'inverse-proportional' }";
    let tuning = toml::from_str(tuning).expect("TOML");
    let side = TextSide::tuned_prompt(&tower(), &prompt, &tuning, &Device::flex()).expect("a side");
    let frozen = bin_embeddings(&tower(), &prompt).expect("embeddings");
    assert_close(&values(side.bins()), &frozen.values, 1e-3);
}

/// Gradients of each parameter: how many values are not 0.
fn reached(side: &TextSide) -> Vec<(Vec<usize>, usize)> {
    struct Collect(burn::tensor::Gradients, Vec<(Vec<usize>, usize)>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(&self.0).expect("a gradient");
            let shape = gradient.dims().to_vec();
            let changed = values(gradient).iter().filter(|g| **g != 0.0).count();
            self.1.push((shape, changed));
        }
    }
    let weights = Tensor::<1, Int>::arange(0..18, &Device::flex()).float();
    let loss = (side.bins() * weights.reshape([3, 6])).sum();
    let mut collect = Collect(loss.backward(), Vec::new());
    side.visit(&mut collect);
    collect.1
}

#[test]
fn gradients_reach_all_that_is_tuned_and_nothing_else() {
    // Names of 1, 2 and 4 tokens, a context of 4; width 8.
    let check = |tuning: &str, expected: &[(&[usize], usize)]| {
        let expected: Vec<_> = expected.iter().map(|(s, n)| (s.to_vec(), *n)).collect();
        assert_eq!(
            reached(&side(tuning, Placement::Middle)),
            expected,
            "{tuning}"
        );
    };
    check("ranks = true", &[(&[3, 4, 8], 7 * 8)]);
    check("context = 'shared'", &[(&[1, 4, 8], 32)]);
    check("context = 'per-bin'", &[(&[3, 4, 8], 96)]);
    let base = "ranks = true\nbase_ranks = { count = 2 }\ncontext = 'shared'";
    check(base, &[(&[1, 4, 8], 32), (&[2, 4, 8], 64)]);

    let embeddings = bin_embeddings(&tower(), &prompt(Placement::Tail)).expect("embeddings");
    let device = Device::flex().autodiff();
    let tuned = TextSide::tuned_embeddings(&embeddings, &device);
    assert_eq!(reached(&tuned), [(vec![3, 6], 18)]);
    assert_close(&values(tuned.bins()), &embeddings.values, 1e-6);
    let frozen = TextSide::frozen(&embeddings, &device);
    assert_eq!(frozen.num_params(), 0);
    assert_eq!(values(frozen.bins()), embeddings.values);
}

#[test]
fn base_ranks_weigh_by_their_distance() {
    let weights = |count: usize, interpolation, bin: usize, bins: usize| {
        let base = BaseRanks {
            count,
            interpolation,
        };
        base.weights(bin, bins, &base.places(bins).expect("places"))
    };
    // Five bins, base ranks at 0, 2 and 4: bin 1 is at distances 1, 1 and 3 of at most 4.
    let linear = weights(3, Interpolation::Linear, 1, 5);
    assert_close(&linear, &[3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0], 1e-6);
    let inverse = weights(3, Interpolation::InverseProportional, 1, 5);
    assert_close(&inverse, &[3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0], 1e-4);
    let at_home = weights(3, Interpolation::InverseProportional, 2, 5);
    assert_close(&at_home, &[0.0, 1.0, 0.0], 1e-4);
    assert_eq!(weights(1, Interpolation::Linear, 0, 5), [1.0]);
    assert_eq!(weights(1, Interpolation::Linear, 0, 1), [1.0]);
}

#[test]
fn what_cannot_be_tuned_is_named() {
    let check = |prompt: &Prompt, tuning: &str, expected: &str| {
        let tuning: Tuning = toml::from_str(tuning).expect("TOML");
        let side = TextSide::tuned_prompt(&tower(), prompt, &tuning, &Device::flex());
        let error = side.expect_err("an error").to_string();
        assert!(error.contains(expected), "{error}");
    };
    let whole = prompt(Placement::Tail);
    for count in [0, 4] {
        let tuning = format!("ranks = true\nbase_ranks = {{ count = {count} }}");
        check(&whole, &tuning, "for 3 bins, expected 1 to 3");
    }
    let bare = Prompt {
        context: String::new(),
        ..whole
    };
    check(&bare, "context = 'shared'", "no words to start from");
    assert!(toml::from_str::<Tuning>("rank = true").is_err());
}

#[test]
fn tuned_embeddings_leave_as_unit_rows() {
    let embeddings = BinEmbeddings {
        labels: vec!["a".into(), "b".into()],
        dim: 2,
        values: vec![1.0, 0.0, 0.0, 1.0],
        source: TextSource::Embeddings {
            file: "x".into(),
            sha256: String::new(),
            model: None,
        },
    };
    let rows = |rows| Tensor::<2>::from_floats(rows, &Device::flex());
    let tuned = embeddings
        .tuned(rows([[3.0, 4.0], [0.0, 2.0]]))
        .expect("embeddings");
    assert_eq!(tuned.values, [0.6, 0.8, 0.0, 1.0]);
    let error = embeddings
        .tuned(rows([[f32::NAN, 0.0], [0.0, 1.0]]))
        .expect_err("an error");
    assert!(error.to_string().contains("bin 0 is not finite"), "{error}");
}
