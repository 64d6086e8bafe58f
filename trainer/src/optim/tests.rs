use super::*;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, TensorData};

#[derive(Module, Debug)]
struct Model {
    encoder: Layers,
    head: Linear,
}

#[derive(Module, Debug)]
struct Layers {
    linear: Linear,
    norm: BatchNorm,
}

fn model(device: &Device) -> Model {
    device.seed(7);
    Model {
        encoder: Layers {
            linear: LinearConfig::new(3, 4).init(device),
            norm: BatchNormConfig::new(4).init(device),
        },
        head: LinearConfig::new(4, 2).init(device),
    }
}

fn gradients(model: &Model, seed: f32) -> GradientsParams {
    let device = model.head.weight.val().device();
    let values: Vec<f32> = (0..15).map(|i| (seed + i as f32 * 0.7).sin()).collect();
    let input = Tensor::<2>::from_data(TensorData::new(values, [5, 3]), &device);
    let hidden = model
        .encoder
        .norm
        .forward(model.encoder.linear.forward(input));
    let loss = model.head.forward(hidden.tanh()).square().mean();
    GradientsParams::from_grads(loss.backward(), model)
}

fn bytes(model: &Model) -> Vec<u8> {
    let record = model.valid().into_record().into_bytes();
    record.expect("a record").to_vec()
}

/// Every weight and statistic, bit for bit. (A record would also hold the ids of the statistics,
/// which burn does not restore.)
fn bits(model: &Model) -> Vec<u32> {
    struct Collect(Vec<u32>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values = values(param.val());
            self.0.extend(values.iter().map(|value| value.to_bits()));
        }
    }
    let mut collect = Collect(Vec::new());
    model.valid().visit(&mut collect);
    collect.0
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().iter().collect()
}

/// One weight of a scalar twin, in f64, written from the papers.
struct Twin {
    weight: f64,
    first: f64,
    second: f64,
    time: i32,
}

impl Twin {
    fn step(&mut self, method: Method, gradient: f64, lr: f64, decay: f64) {
        self.time += 1;
        let t = f64::from(self.time);
        self.first = 0.9 * self.first + 0.1 * gradient;
        self.second = 0.999 * self.second + 0.001 * gradient * gradient;
        let mean = self.first / (1.0 - 0.9f64.powi(self.time));
        let deviation = (self.second / (1.0 - 0.999f64.powi(self.time))).sqrt();
        self.weight -= lr * decay * self.weight;
        let step = match method {
            Method::AdamW => mean / (deviation + 1e-8),
            Method::RAdam => {
                let (power, limit) = (0.999f64.powi(self.time), 1999.0);
                let length = limit - 2.0 * t * power / (1.0 - power);
                if length > 5.0 {
                    let above = (length - 4.0) * (length - 2.0) / length;
                    let below = (limit - 4.0) * (limit - 2.0) / limit;
                    (above / below).sqrt() * mean / deviation
                } else {
                    mean
                }
            }
        };
        self.weight -= lr * step;
    }
}

#[test]
fn ten_steps_equal_a_scalar_twin() {
    for method in [Method::AdamW, Method::RAdam] {
        let config = OptimConfig {
            method,
            lr: 0.01,
            weight_decay: 0.1,
            ..OptimConfig::default()
        };
        let device = Device::flex().autodiff();
        let mut layer = LinearConfig::new(1, 1).init(&device);
        layer.weight = Param::from_tensor(Tensor::from_floats([[0.8]], &device));
        layer.bias = Some(Param::from_tensor(Tensor::from_floats([-0.3], &device)));
        let mut optimizer = GroupedOptimizer::new(&config, &layer).expect("a valid config");
        let [mut weight, mut bias] = [0.8f32, -0.3].map(|weight| Twin {
            weight: weight.into(),
            first: 0.0,
            second: 0.0,
            time: 0,
        });
        for step in 0..10 {
            // loss = (weight − 2)² + 3 · (bias + step / 10)²
            let target = f64::from(step) / 10.0;
            let bias_term = layer
                .bias
                .as_ref()
                .expect("a bias")
                .val()
                .add_scalar(target);
            let loss = layer.weight.val().sub_scalar(2.0).square().sum()
                + bias_term.square().sum().mul_scalar(3.0);
            let gradients = GradientsParams::from_grads(loss.backward(), &layer);
            layer = optimizer.step(0.5, layer, gradients);
            weight.step(method, 2.0 * (weight.weight - 2.0), 0.005, 0.1);
            bias.step(method, 6.0 * (bias.weight + target), 0.005, 0.0);
        }
        let got: f32 = layer.weight.val().into_scalar();
        assert!((f64::from(got) - weight.weight).abs() < 1e-6, "{method:?}");
        let got: f32 = layer.bias.expect("a bias").val().into_scalar();
        assert!((f64::from(got) - bias.weight).abs() < 1e-6, "{method:?}");
    }
}

#[test]
fn groups_have_their_own_rate_and_the_last_wins() {
    let device = Device::flex().autodiff();
    let group = |path: &str, lr: f64| LrGroup {
        path: path.into(),
        lr,
        from_epoch: 1,
    };
    let config = OptimConfig {
        lr: 0.1,
        weight_decay: 0.0,
        groups: vec![group("encoder", 0.01), group("encoder.norm", 0.0)],
        ..OptimConfig::default()
    };
    let before = model(&device);
    let mut optimizer = GroupedOptimizer::new(&config, &before).expect("a valid config");
    let after = optimizer.step(1.0, before.clone(), gradients(&before, 0.0));
    // Adam's first step moves each weight by the learning rate.
    let moved = |after: Vec<f32>, before: Vec<f32>| -> f32 {
        let pairs = after.iter().zip(&before);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let head = moved(
        values(after.head.weight.val()),
        values(before.head.weight.val()),
    );
    assert!((head - 0.1).abs() < 1e-4, "{head}");
    let linear = moved(
        values(after.encoder.linear.weight.val()),
        values(before.encoder.linear.weight.val()),
    );
    assert!((linear - 0.01).abs() < 1e-4, "{linear}");
    let gamma = |model: &Model| values(model.encoder.norm.gamma.val());
    assert_eq!(gamma(&after), gamma(&before));
}

#[test]
fn rates_change_with_the_epoch() {
    let device = Device::flex().autodiff();
    let config = "lr = 0.1\nweight_decay = 0.0\nlayer_decay = 0.5\ngroups = [
        { path = 'encoder', lr = 0.02 }, { path = 'encoder', lr = 0.04, from_epoch = 3 }]";
    let config: OptimConfig = toml::from_str(config).expect("TOML");
    let before = model(&device);
    let mut optimizer = GroupedOptimizer::new(&config, &before).expect("a valid config");
    // The encoder here is one layer of unnumbered parts: it has the full rate of its group.
    for (epoch, expected) in [(1, 0.02), (2, 0.02), (3, 0.04), (9, 0.04)] {
        optimizer.begin_epoch(epoch);
        let mut fresh = optimizer.clone();
        let after = fresh.step(1.0, before.clone(), gradients(&before, 0.0));
        let [after, before] = [&after, &before].map(|m| values(m.encoder.linear.weight.val()));
        let pairs = after.iter().zip(&before);
        let moved = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!((moved - expected).abs() < 1e-4, "epoch {epoch}: {moved}");
    }
}

#[test]
fn a_frozen_part_keeps_weights_and_statistics_until_it_is_released() {
    let device = Device::flex().autodiff();
    let freeze: Vec<Freeze> = vec![Freeze {
        path: "encoder".into(),
        until_epoch: Some(2),
    }];
    let config = OptimConfig::default();
    let mut state = model(&device);
    let mut optimizer = GroupedOptimizer::new(&config, &state).expect("a valid config");
    let start = bits(&state);
    for epoch in 1..=3 {
        state = freeze::apply(&freeze, state, epoch);
        let gradients = gradients(&state, 0.0);
        state = optimizer.step(1.0, state, gradients);
        let now = bits(&state);
        // Linear 3×4 + 4, norm 4 + 4 + statistics 4 + 4, then the head of 4×2 + 2.
        let (encoder, head) = now.split_at(32);
        assert_eq!(encoder == &start[..32], epoch <= 2, "epoch {epoch}");
        assert_ne!(head, &start[32..], "epoch {epoch}");
    }
    let everything = |path: &str| Freeze {
        path: path.into(),
        until_epoch: None,
    };
    let all = [everything("encoder"), everything("head")];
    let error = freeze::check(&all, &state).expect_err("an error");
    assert!(matches!(error, OptimError::NothingToTrain));
    assert!(freeze::check(&[everything("hea")], &state).is_err());
}

#[test]
fn paths_need_not_name_kinds() {
    let parameter = "encoder.Conv.features.MobileNetV2.blocks.10.expand.weight";
    for path in [
        "encoder",
        "encoder.features.blocks.10",
        "encoder.Conv.features.blocks",
        parameter,
    ] {
        assert!(is_under(parameter, path), "{path}");
    }
    for path in ["encoder.features.blocks.1", "features", "encoder.head"] {
        assert!(!is_under(parameter, path), "{path}");
    }
    let paths = [parameter, "encoder.Conv.head.weight"].map(String::from);
    let error = empty_group("encoder.features.stages.0", &paths).to_string();
    assert!(error.contains("`encoder.features` has: blocks"), "{error}");
}

#[test]
fn a_bad_config_is_named() {
    let device = Device::flex();
    let check = |toml: &str, expected: &str| {
        let config: OptimConfig = toml::from_str(toml).expect("TOML");
        let error = GroupedOptimizer::new(&config, &model(&device)).err();
        let text = error.expect("an error").to_string();
        assert!(text.contains(expected), "{text}");
    };
    check("lr = -1.0", "`lr` is -1");
    check("betas = [0.9, 1.0]", "`betas` is 1");
    check("epsilon = 0.0", "`epsilon` is 0");
    check("layer_decay = 0.0", "`layer_decay` is 0");
    check("weight_decay = inf", "`weight_decay` is inf");
    check("groups = [{ path = 'encode', lr = 0.1 }]", "encoder, head");
    check(
        "groups = [{ path = '(', lr = 0.1 }]",
        "matches no parameter",
    );
    check("groups = [{ path = 'head', lr = nan }]", "`groups.lr`");
    assert!(toml::from_str::<OptimConfig>("momentum = 0.9").is_err());
}

#[test]
fn clipping_scales_to_the_global_norm() {
    let device = Device::flex().autodiff();
    let layer = LinearConfig::new(2, 1).init(&device);
    let with = |weight: [f32; 2], bias: f32| {
        let plain = Device::flex();
        let mut gradients = GradientsParams::new();
        let weight = Tensor::<2>::from_floats([[weight[0]], [weight[1]]], &plain);
        gradients.register(layer.weight.id, weight);
        let bias = Tensor::<1>::from_floats([bias], &plain);
        gradients.register(layer.bias.as_ref().expect("a bias").id, bias);
        gradients
    };
    let weight = |gradients: &GradientsParams| {
        values(gradients.get::<2>(layer.weight.id).expect("a gradient"))
    };

    let mut gradients = with([2.0, 3.0], 6.0);
    assert_eq!(clip_gradients(&layer, &mut gradients, None), 7.0);
    assert_eq!(clip_gradients(&layer, &mut gradients, Some(8.0)), 7.0);
    assert_eq!(weight(&gradients), [2.0, 3.0]);
    assert_eq!(clip_gradients(&layer, &mut gradients, Some(3.5)), 7.0);
    let halved = weight(&gradients);
    assert!((halved[0] - 1.0).abs() < 1e-6 && (halved[1] - 1.5).abs() < 1e-6);
    let norm = clip_gradients(&layer, &mut gradients, None);
    assert!((norm - 3.5).abs() < 1e-5, "{norm}");

    let mut gradients = with([2.0, f32::NAN], 6.0);
    assert!(clip_gradients(&layer, &mut gradients, Some(1.0)).is_nan());
    assert_eq!(weight(&gradients)[0], 2.0);
    let mut gradients = with([2.0, f32::INFINITY], 6.0);
    assert!(clip_gradients(&layer, &mut gradients, Some(1.0)).is_infinite());
    assert_eq!(weight(&gradients)[0], 2.0);
}

#[test]
fn the_average_follows_its_closed_form() {
    let device = Device::flex().autodiff();
    let mut layer = LinearConfig::new(1, 1).init(&device);
    let mut expected = 4.0;
    layer.weight = Param::from_tensor(Tensor::from_floats([[4.0]], &device));
    let mut ema = Ema::new(&layer, 0.25);
    for (update, weight) in [8.0f32, -1.0, 3.0, 5.0].into_iter().enumerate() {
        layer.weight = Param::from_tensor(Tensor::from_floats([[weight]], &device));
        ema.update(&layer);
        let decay = [0.1, 2.0 / 11.0, 0.25, 0.25][update];
        expected = decay * expected + (1.0 - decay) * f64::from(weight);
        let got: f32 = ema.model().weight.val().into_scalar();
        assert!((f64::from(got) - expected).abs() < 1e-6, "{got} {expected}");
    }
}

#[test]
fn averaging_leaves_the_model_and_its_statistics_alone() {
    let device = Device::flex().autodiff();
    let model = model(&device);
    let mut ema = Ema::new(&model, 0.9);
    gradients(&model, 1.0);
    let before = bits(&model);
    ema.update(&model);
    assert_eq!(bits(&model), before);
    let mean = |model: &Model| values(model.encoder.norm.running_mean.value());
    let model = model.valid();
    for (average, current) in mean(ema.model()).iter().zip(mean(&model)) {
        // The statistics began at 0; the first update takes nine tenths of them.
        assert!((average - 0.9 * current).abs() < 1e-6);
    }
}

#[test]
fn resuming_is_exact() {
    let device = Device::flex().autodiff();
    for method in [Method::AdamW, Method::RAdam] {
        let config = OptimConfig {
            method,
            groups: vec![LrGroup {
                path: "head".into(),
                lr: 0.02,
                from_epoch: 1,
            }],
            ..OptimConfig::default()
        };
        let advance = |state: (Model, GroupedOptimizer, Ema<Model>), steps: std::ops::Range<u8>| {
            steps.fold(state, |(model, mut optimizer, mut ema), step| {
                let mut gradients = gradients(&model, step.into());
                clip_gradients(&model, &mut gradients, Some(0.1));
                let model = optimizer.step(1.0, model, gradients);
                ema.update(&model);
                (model, optimizer, ema)
            })
        };
        let fresh = || {
            let model = model(&device);
            let optimizer = GroupedOptimizer::new(&config, &model).expect("a valid config");
            let ema = Ema::new(&model, 0.9);
            (model, optimizer, ema)
        };
        let (model, optimizer, ema) = advance(fresh(), 0..8);
        let saved = (
            bytes(&model),
            optimizer.to_bytes().expect("state"),
            ema.to_bytes().expect("average"),
        );
        let (through, _, through_ema) = advance((model, optimizer, ema), 8..16);

        let (model, optimizer, ema) = fresh();
        let record = burn::store::ModuleRecord::from_bytes(Bytes::from_bytes_vec(saved.0));
        let model = model.load_record(record.expect("a record"));
        let optimizer = optimizer.restore(saved.1).expect("state");
        let ema = ema.restore(&saved.2).expect("average");
        let (resumed, _, resumed_ema) = advance((model, optimizer, ema), 8..16);
        assert_eq!(bits(&resumed), bits(&through), "{method:?}");
        assert_eq!(
            bits(resumed_ema.model()),
            bits(through_ema.model()),
            "{method:?}"
        );
    }
}

#[test]
fn foreign_state_is_refused() {
    let device = Device::flex().autodiff();
    let start = model(&device);
    let config = OptimConfig::default();
    let fresh = || GroupedOptimizer::new(&config, &start).expect("a valid config");
    let mut optimizer = fresh();
    optimizer.step(1.0, start.clone(), gradients(&start, 0.0));
    let state = optimizer.to_bytes().expect("state");
    assert!(fresh().restore(state.clone()).is_ok());
    for length in [0, 10, state.len() / 2, state.len() - 1] {
        assert!(
            fresh().restore(state[..length].to_vec()).is_err(),
            "{length}"
        );
    }
    // The weights of a model are a record too, but no optimiser state.
    assert!(fresh().restore(bytes(&start)).is_err());

    let ema = Ema::new(&start, 0.9);
    let average = ema.to_bytes().expect("average");
    for length in [0, 7, 20, average.len() - 1] {
        let error = ema.clone().restore(&average[..length]);
        assert!(error.is_err(), "{length}");
    }
    let other = Ema::new(&LinearConfig::new(2, 2).init(&device), 0.9);
    assert!(other.restore(&average).is_err());
}
