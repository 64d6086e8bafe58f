use super::*;
use burn::nn::Linear;
use safetensors::SafeTensors;

pub(in crate::text) fn tower(seed: u64) -> TextTower {
    let config = TextConfig {
        width: 8,
        layers: 2,
        heads: 2,
        embedding: 6,
        seed,
        ..TextConfig::default()
    };
    TextTower::random(&config, &Device::flex()).expect("a tower")
}

pub(in crate::text) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().iter().collect()
}

pub(in crate::text) fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= tolerance, "{got} {expected}");
    }
}

/// The whole tower for one sequence in plain f64 loops, written from the paper.
mod plain {
    use super::*;

    type Rows = Vec<Vec<f64>>;

    fn rows(tensor: &Tensor<2>) -> Rows {
        let [_, width] = tensor.dims();
        let values = values(tensor.clone());
        let rows = values.chunks(width);
        rows.map(|row| row.iter().map(|v| f64::from(*v)).collect())
            .collect()
    }

    fn row(tensor: &Tensor<1>) -> Vec<f64> {
        let values = values(tensor.clone());
        values.iter().map(|value| f64::from(*value)).collect()
    }

    fn norm(norm: &LayerNorm, input: &[f64]) -> Vec<f64> {
        let count = input.len() as f64;
        let mean = input.iter().sum::<f64>() / count;
        let variance = input.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let beta = norm.beta.as_ref().expect("an offset");
        let (gamma, beta) = (row(&norm.gamma.val()), row(&beta.val()));
        let scaled = input.iter().zip(gamma.iter().zip(beta));
        scaled
            .map(|(x, (g, b))| (x - mean) / (variance + 1e-5).sqrt() * g + b)
            .collect()
    }

    fn times(input: &[f64], weight: &Rows) -> Vec<f64> {
        (0..weight[0].len())
            .map(|out| input.iter().zip(weight).map(|(x, row)| x * row[out]).sum())
            .collect()
    }

    fn layer(linear: &Linear, input: &[f64]) -> Vec<f64> {
        let product = times(input, &rows(&linear.weight.val()));
        let bias = linear.bias.as_ref().expect("a bias");
        let biased = product.iter().zip(row(&bias.val()));
        biased.map(|(x, b)| x + b).collect()
    }

    /// Attention of position `at` over all up to it, for one head.
    fn head(projected: &Rows, at: usize, head: usize, size: usize) -> Vec<f64> {
        let part = |position: usize, kind: usize| {
            let width = projected[0].len() / 3;
            let start = kind * width + head * size;
            &projected[position][start..start + size]
        };
        let scores: Vec<f64> = (0..=at)
            .map(|key| {
                let pairs = part(at, 0).iter().zip(part(key, 1));
                let dot: f64 = pairs.map(|(q, k)| q * k).sum();
                (dot / (size as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = scores.iter().sum();
        (0..size)
            .map(|i| {
                let shares = scores.iter().enumerate();
                shares.map(|(key, s)| s / total * part(key, 2)[i]).sum()
            })
            .collect()
    }

    pub fn features(tower: &TextTower, tokens: &[u16]) -> Vec<f64> {
        let (vocabulary, positions) = (rows(&tower.tokens), rows(&tower.positions));
        let add =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let embedded = tokens.iter().zip(&positions);
        let mut stream: Rows = embedded
            .map(|(token, position)| add(&vocabulary[usize::from(*token)], position))
            .collect();
        let size = tower.config.width / tower.config.heads;
        for block in &tower.transformer.blocks {
            let inputs = stream
                .iter()
                .map(|x| layer(&block.attention.in_proj, &norm(&block.norm_1, x)));
            let projected: Rows = inputs.collect();
            for (at, x) in stream.iter_mut().enumerate() {
                let heads = 0..tower.config.heads;
                let mixed = heads.flat_map(|index| head(&projected, at, index, size));
                *x = add(
                    x,
                    &layer(&block.attention.out_proj, &mixed.collect::<Vec<_>>()),
                );
                let hidden = layer(&block.fc, &norm(&block.norm_2, x));
                let hidden = hidden.iter().map(|h| h / (1.0 + (-1.702 * h).exp()));
                *x = add(x, &layer(&block.proj, &hidden.collect::<Vec<_>>()));
            }
        }
        let last = stream.last().expect("a token");
        times(&norm(&tower.norm, last), &rows(&tower.projection))
    }
}

#[test]
fn features_equal_plain_loops() {
    let tower = tower(3);
    let sequences = [
        vec![49406, 320, 1125, 49407],
        vec![49406, 9, 8, 7, 6, 49407],
    ];
    let features = values(tower.features(tower.embed(&sequences), &[3, 5]));
    let expected = sequences
        .iter()
        .flat_map(|tokens| plain::features(&tower, tokens));
    let expected: Vec<f32> = expected.map(|value| value as f32).collect();
    assert_close(&features, &expected, 1e-5);
}

#[test]
fn nothing_after_the_end_counts() {
    let tower = tower(4);
    let short = [vec![49406, 320, 49407]];
    let expected = values(tower.features(tower.embed(&short), &[2]));
    for filler in [0, 77, 49407] {
        let mut full = short[0].clone();
        full.resize(77, filler);
        let features = values(tower.features(tower.embed(&[full]), &[2]));
        assert_close(&features, &expected, 1e-5);
    }
    let other = values(tower.features(tower.embed(&[vec![49406, 321, 49407]]), &[2]));
    assert!(
        other
            .iter()
            .zip(&expected)
            .any(|(a, b)| (a - b).abs() > 1e-3)
    );
}

#[test]
fn gradients_reach_the_token_embeddings() {
    let tower = tower(5);
    let embedded = tower.embed(&[vec![49406, 320, 49407]]);
    let embedded = embedded.autodiff().require_grad();
    let features = tower.features(embedded.clone(), &[2]);
    let gradient = embedded.grad(&features.square().sum().backward());
    let gradient = values(gradient.expect("a gradient"));
    assert!(gradient.iter().all(|g| g.is_finite()) && gradient.iter().any(|g| *g != 0.0));
}

#[test]
fn sizes_that_do_not_work_are_named() {
    let check = |toml: &str, expected: &str| {
        let config: TextConfig = toml::from_str(toml).expect("TOML");
        let error = TextTower::random(&config, &Device::flex()).expect_err("an error");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(
        "heads = 7",
        "`heads` is 7, which does not divide the width of 512",
    );
    check("layers = 0", "`layers` is 0");
    assert!(toml::from_str::<TextConfig>("depth = 3").is_err());
}

#[test]
fn equals_the_reference() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden");
    let Ok(text) = std::fs::read_to_string(format!("{folder}/clip-tiny.json")) else {
        println!("skipped: no golden vectors in {folder}");
        return;
    };
    let golden: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for (name, activation) in [
        ("vit-quickgelu", Activation::QuickGelu),
        ("vit-gelu", Activation::Gelu),
        ("resnet-quickgelu", Activation::QuickGelu),
    ] {
        let path = format!("{folder}/clip-tiny-{name}.safetensors");
        let hints = Hints {
            activation: Some(activation),
            text_heads: Some(2),
            image_heads: Some(2),
        };
        let tower = TextTower::load(path.as_ref(), &hints, &Device::flex());
        let tower = tower.expect("a tower");
        let sequences: Vec<Vec<u16>> =
            serde_json::from_value(golden[name]["tokens"].clone()).expect("tokens");
        let ends: Vec<usize> = sequences.iter().map(|tokens| tokens.len() - 1).collect();
        let features = values(tower.features(tower.embed(&sequences), &ends));
        let expected = format!("{folder}/clip-tiny-{name}.expected.safetensors");
        let expected = std::fs::read(expected).expect("a file");
        let expected = SafeTensors::deserialize(&expected).expect("safetensors");
        let expected = expected.tensor("text_features").expect("text features");
        let (chunks, _) = expected.data().as_chunks::<4>();
        let expected: Vec<f32> = chunks.iter().map(|c| f32::from_le_bytes(*c)).collect();
        assert_close(&features, &expected, 1e-4);
    }
}
