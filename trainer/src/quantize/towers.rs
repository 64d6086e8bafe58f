//! Transformers and CLIP's residual network, which are no chain of convolutions, in ONNX.

mod integer;

use std::collections::HashMap;

use burn::nn::{LayerNorm, Linear};
use burn::tensor::Tensor;

use super::affine::Affine;
use super::onnx::{Attribute, Builder, INPUT, conv_attributes, float_nodes};
use crate::clip::transformer::{Attention, Block};
use crate::clip::{Activation, VitForm};
use crate::graph::{self, Conv, ConvNet, Value};
use crate::model::layers::ConvUnit;
use crate::model::resnet::{AttentionPool, Bottleneck, ResNet};
use crate::model::vit::Vit;

/// A tower in ONNX.
pub struct Tower {
    /// The serialised network.
    pub bytes: Vec<u8>,
    /// Multiply-accumulate operations for one image.
    pub macs: u64,
    /// Names of the values, the image left out, that are multiplied with constant weights; each
    /// once. Of vision transformers alone.
    pub products: Vec<String>,
}

/// Writes a vision transformer for images of `size` height and width, followed by `tail` over its
/// embeddings (`[D, 1, 1]`).
pub fn vit(vit: &Vit, tail: Option<&ConvNet>, size: usize) -> Tower {
    let mut writer = Writer {
        epsilon: vit.form.epsilon() as f32,
        ..Writer::default()
    };
    let stream = writer.vit(vit, size);
    writer.finish(&stream, tail, size, vit.dim())
}

/// Writes a vision transformer as [`vit`], its products with constant weights in int8: `levels`
/// says how the image and each of [`Tower::products`] are quantised.
pub fn vit_int8(
    vit: &Vit,
    tail: Option<&ConvNet>,
    size: usize,
    levels: HashMap<String, Affine>,
) -> Tower {
    let mut writer = Writer {
        epsilon: vit.form.epsilon() as f32,
        levels,
        ..Writer::default()
    };
    let stream = writer.vit(vit, size);
    writer.finish(&stream, tail, size, vit.dim())
}

/// Writes a residual network for images of `size` height and width, followed by `tail` over its
/// embeddings (`[D, 1, 1]`).
pub fn resnet(net: &ResNet, tail: Option<&ConvNet>, size: usize) -> Tower {
    let mut writer = Writer::default();
    let stream = writer.resnet(net, size);
    writer.finish(&stream, tail, size, net.dim())
}

/// Writes nodes and counts their work. Methods return the name of their output.
struct Writer {
    builder: Builder,
    macs: u64,
    /// ε of the layer norms.
    epsilon: f32,
    /// What is multiplied with constant weights, in the order in which it was met.
    products: Vec<String>,
    /// How those are quantised, where products are written in int8.
    levels: HashMap<String, Affine>,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            builder: Builder::default(),
            macs: 0,
            epsilon: VitForm::Clip.epsilon() as f32,
            products: Vec::new(),
            levels: HashMap::new(),
        }
    }
}

/// A feature map: its name, and channels, height and width.
type Map = (String, [usize; 3]);

impl Writer {
    fn vit(&mut self, vit: &Vit, size: usize) -> String {
        let [width, inputs, patch, _] = vit.patches.val().dims();
        let places = (size / patch).pow(2);
        let patches = Conv {
            weight: plain(vit.patches.val()),
            shape: [width, inputs, patch, patch],
            bias: vec![0.0; width],
            stride: [patch; 2],
            padding: [0; 4],
            groups: 1,
            activation: graph::Activation::None,
        };
        let patches = match self.levels.get(INPUT).copied() {
            Some(affine) => self.integer_conv("patches", affine, &patches),
            None => {
                let kernel = self
                    .builder
                    .floats("patches.weight", &patches.shape, &patches.weight);
                let window = conv_attributes(&patches);
                self.builder
                    .node("Conv", "patches", &[INPUT, &kernel], &window)
            }
        };
        self.macs += (places * width * inputs * patch * patch) as u64;
        let rows = self.reshape("rows", &patches, &[0, width as i64, places as i64]);
        let rows = self.transpose("sequence", &rows, &[0, 2, 1]);
        // A row of zeros for the class token, which stands with the positions.
        let pads = self.builder.longs("class.pads", &[6], &[0, 1, 0, 0, 0, 0]);
        let rows = self.builder.node("Pad", "class", &[&rows, &pads], &[]);
        let class = vit.class.val().reshape([1, width]);
        let positions = vit.positions.val();
        let first = positions.clone().narrow(0, 0, 1) + class;
        let positions = Tensor::cat(vec![first, positions.narrow(0, 1, places)], 0);
        let stream = self.add("embedded", &rows, &[1, places + 1, width], positions);
        let mut stream = match &vit.norm_pre {
            Some(norm) => self.norm("norm_pre", &stream, norm),
            None => stream,
        };
        for (index, block) in vit.transformer.blocks.iter().enumerate() {
            stream = self.block(&format!("block{index}"), &stream, block, places + 1);
        }
        let zero = self.builder.longs("class.index", &[], &[0]);
        let class = self.builder.node(
            "Gather",
            "class.row",
            &[&stream, &zero],
            &[Attribute::Int("axis", 1)],
        );
        let class = self.norm("norm_post", &class, &vit.norm_post);
        self.matmul("projection", &class, vit.projection.val(), 1)
    }

    /// `[N, rows, width]` to the same.
    fn block(&mut self, name: &str, input: &str, block: &Block, rows: usize) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let normed = self.norm(&part("norm_1"), input, &block.norm_1);
        let attended = self.self_attention(&part("attention"), &normed, &block.attention, rows);
        let stream = self.sum(&part("attended"), input, &attended);
        let normed = self.norm(&part("norm_2"), &stream, &block.norm_2);
        let hidden = self.linear(&part("fc"), &normed, &block.fc, rows);
        let hidden = self.activation(&part("activation"), &hidden, block.activation);
        let result = self.linear(&part("proj"), &hidden, &block.proj, rows);
        self.sum(name, &stream, &result)
    }

    fn self_attention(&mut self, name: &str, input: &str, of: &Attention, rows: usize) -> String {
        let projection = &of.in_proj;
        let width = projection.weight.val().dims()[0];
        let parts = [("query", 0), ("key", 1), ("value", 2)].map(|(kind, index)| {
            let weight = projection.weight.val().narrow(1, index * width, width);
            let bias = projection
                .bias
                .as_ref()
                .map(|bias| bias.val().narrow(0, index * width, width));
            self.affine(&format!("{name}.{kind}"), input, weight, bias, rows)
        });
        let mixed = self.attend(name, parts, of.heads, [rows, rows], width);
        self.linear(&format!("{name}.out"), &mixed, &of.out_proj, rows)
    }

    /// Queries `[N, L, width]` over keys and values `[N, K, width]`: `[N, L, width]`.
    fn attend(
        &mut self,
        name: &str,
        [query, key, value]: [String; 3],
        heads: usize,
        [rows, keys]: [usize; 2],
        width: usize,
    ) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let mut split = |kind: &str, input: &str, rows: usize, axes: &[i64]| {
            let shape = [0, rows as i64, heads as i64, (width / heads) as i64];
            let heads = self.reshape(&part(&format!("{kind}.heads")), input, &shape);
            self.transpose(&part(&format!("{kind}.turned")), &heads, axes)
        };
        let query = split("query", &query, rows, &[0, 2, 1, 3]);
        let key = split("key", &key, keys, &[0, 2, 3, 1]);
        let value = split("value", &value, keys, &[0, 2, 1, 3]);
        let scores = self
            .builder
            .node("MatMul", &part("products"), &[&query, &key], &[]);
        let scale = ((width / heads) as f32).sqrt().recip();
        let scores = self.scale(&part("scores"), &scores, scale);
        let shares = self.builder.node(
            "Softmax",
            &part("shares"),
            &[&scores],
            &[Attribute::Int("axis", -1)],
        );
        let mixed = self
            .builder
            .node("MatMul", &part("mixed"), &[&shares, &value], &[]);
        self.macs += (2 * rows * keys * width) as u64;
        let mixed = self.transpose(&part("rows"), &mixed, &[0, 2, 1, 3]);
        self.reshape(&part("joined"), &mixed, &[0, rows as i64, width as i64])
    }

    fn activation(&mut self, name: &str, input: &str, activation: Activation) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let gate = match activation {
            Activation::QuickGelu => {
                let scaled = self.scale(&part("scaled"), input, 1.702);
                self.builder.node("Sigmoid", &part("gate"), &[&scaled], &[])
            }
            Activation::Gelu => {
                let scaled = self.scale(&part("scaled"), input, std::f32::consts::FRAC_1_SQRT_2);
                let erf = self.builder.node("Erf", &part("erf"), &[&scaled], &[]);
                let half = self.scale(&part("half"), &erf, 0.5);
                let offset = self.builder.floats(&part("offset"), &[], &[0.5]);
                self.builder
                    .node("Add", &part("gate"), &[&half, &offset], &[])
            }
        };
        self.builder.node("Mul", name, &[input, &gate], &[])
    }

    /// Layer normalisation over the last axis.
    fn norm(&mut self, name: &str, input: &str, norm: &LayerNorm) -> String {
        let part = |part: &str| format!("{name}.{part}");
        let mean = self.mean(&part("mean"), input, -1);
        let centred = self
            .builder
            .node("Sub", &part("centred"), &[input, &mean], &[]);
        let squares = self
            .builder
            .node("Mul", &part("squares"), &[&centred, &centred], &[]);
        let variance = self.mean(&part("variance"), &squares, -1);
        let epsilon = self.builder.floats(&part("epsilon"), &[], &[self.epsilon]);
        let variance = self
            .builder
            .node("Add", &part("floored"), &[&variance, &epsilon], &[]);
        let deviation = self
            .builder
            .node("Sqrt", &part("deviation"), &[&variance], &[]);
        let unit = self
            .builder
            .node("Div", &part("unit"), &[&centred, &deviation], &[]);
        let gamma = norm.gamma.val();
        let width = gamma.dims()[0];
        let gamma = self.builder.floats(&part("gamma"), &[width], &plain(gamma));
        let scaled = self
            .builder
            .node("Mul", &part("scaled"), &[&unit, &gamma], &[]);
        match &norm.beta {
            Some(beta) => self.add(name, &scaled, &[width], beta.val()),
            None => scaled,
        }
    }

    fn resnet(&mut self, net: &ResNet, size: usize) -> String {
        let mut map = (INPUT.to_owned(), [3, size, size]);
        for (index, unit) in net.stem.iter().enumerate() {
            map = self.unit(&format!("stem{index}"), map, unit);
        }
        map = self.shrink("stem.pool", map, 2);
        for (index, block) in net.blocks.iter().enumerate() {
            map = self.bottleneck(&format!("block{index}"), map, block);
        }
        self.attention_pool(map, &net.pool)
    }

    fn bottleneck(&mut self, name: &str, input: Map, block: &Bottleneck) -> Map {
        let part = |part: &str| format!("{name}.{part}");
        let map = self.unit(&part("reduce"), input.clone(), &block.reduce);
        let map = self.unit(&part("conv"), map, &block.conv);
        let map = self.shrink(&part("pool"), map, block.stride);
        let (result, shape) = self.unit(&part("expand"), map, &block.expand);
        let (around, _) = match &block.skip {
            Some(unit) => {
                let map = self.shrink(&part("skip.pool"), input, block.stride);
                self.unit(&part("skip"), map, unit)
            }
            None => input,
        };
        let sum = self.sum(&part("sum"), &around, &result);
        (self.builder.node("Relu", name, &[&sum], &[]), shape)
    }

    fn unit(&mut self, name: &str, (input, shape): Map, unit: &ConvUnit) -> Map {
        let mut net = ConvNet {
            input: shape,
            nodes: Vec::new(),
        };
        let output = unit.fold(name, &mut net, Value::Image);
        self.macs += net.macs();
        (
            float_nodes(&mut self.builder, &net, &input),
            net.shape(output),
        )
    }

    fn shrink(&mut self, name: &str, (input, [channels, height, width]): Map, step: usize) -> Map {
        if step == 1 {
            return (input, [channels, height, width]);
        }
        let window =
            ["kernel_shape", "strides"].map(|name| Attribute::Ints(name, vec![step as i64; 2]));
        let output = self.builder.node("AveragePool", name, &[&input], &window);
        (output, [channels, height / step, width / step])
    }

    fn attention_pool(
        &mut self,
        (input, [width, height, columns]): Map,
        pool: &AttentionPool,
    ) -> String {
        let places = height * columns;
        let rows = self.reshape("pool.flat", &input, &[0, width as i64, places as i64]);
        let rows = self.transpose("pool.sequence", &rows, &[0, 2, 1]);
        let mean = self.mean("pool.mean", &rows, 1);
        let rows = self.builder.node(
            "Concat",
            "pool.rows",
            &[&mean, &rows],
            &[Attribute::Int("axis", 1)],
        );
        let keys = places + 1;
        let rows = self.add(
            "pool.embedded",
            &rows,
            &[1, keys, width],
            pool.positions.val(),
        );
        let index = self.builder.longs("pool.index", &[1], &[0]);
        let first = self.builder.node(
            "Gather",
            "pool.first",
            &[&rows, &index],
            &[Attribute::Int("axis", 1)],
        );
        let parts = [
            self.linear("pool.query", &first, &pool.query, 1),
            self.linear("pool.key", &rows, &pool.key, keys),
            self.linear("pool.value", &rows, &pool.value, keys),
        ];
        let mixed = self.attend("pool.attention", parts, pool.heads, [1, keys], width);
        self.linear("pool.projection", &mixed, &pool.projection, 1)
    }

    fn linear(&mut self, name: &str, input: &str, linear: &Linear, rows: usize) -> String {
        let bias = linear.bias.as_ref().map(|bias| bias.val());
        self.affine(name, input, linear.weight.val(), bias, rows)
    }

    fn affine(
        &mut self,
        name: &str,
        input: &str,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        rows: usize,
    ) -> String {
        let outputs = weight.dims()[1];
        let product = self.matmul(&format!("{name}.product"), input, weight, rows);
        match bias {
            Some(bias) => self.add(name, &product, &[outputs], bias),
            None => product,
        }
    }

    /// Times a constant matrix, for `rows` rows of one image.
    fn matmul(&mut self, name: &str, input: &str, weight: Tensor<2>, rows: usize) -> String {
        let shape = weight.dims();
        self.macs += (rows * shape[0] * shape[1]) as u64;
        if let Some(affine) = self.levels.get(input).copied() {
            return self.integer_matmul(name, input, affine, weight);
        }
        if !self.products.iter().any(|known| known == input) {
            self.products.push(input.into());
        }
        let weight = self
            .builder
            .floats(&format!("{name}.weight"), &shape, &plain(weight));
        self.builder.node("MatMul", name, &[input, &weight], &[])
    }

    fn add<const D: usize>(
        &mut self,
        name: &str,
        input: &str,
        shape: &[usize],
        values: Tensor<D>,
    ) -> String {
        let values = self
            .builder
            .floats(&format!("{name}.added"), shape, &plain(values));
        self.sum(name, input, &values)
    }

    fn sum(&mut self, name: &str, one: &str, other: &str) -> String {
        self.builder.node("Add", name, &[one, other], &[])
    }

    fn scale(&mut self, name: &str, input: &str, factor: f32) -> String {
        let factor = self
            .builder
            .floats(&format!("{name}.factor"), &[], &[factor]);
        self.builder.node("Mul", name, &[input, &factor], &[])
    }

    fn mean(&mut self, name: &str, input: &str, axis: i64) -> String {
        let attributes = [
            Attribute::Ints("axes", vec![axis]),
            Attribute::Int("keepdims", 1),
        ];
        self.builder.node("ReduceMean", name, &[input], &attributes)
    }

    fn reshape(&mut self, name: &str, input: &str, shape: &[i64]) -> String {
        let shape = self
            .builder
            .longs(&format!("{name}.shape"), &[shape.len()], shape);
        self.builder.node("Reshape", name, &[input, &shape], &[])
    }

    fn transpose(&mut self, name: &str, input: &str, axes: &[i64]) -> String {
        self.builder.node(
            "Transpose",
            name,
            &[input],
            &[Attribute::Ints("perm", axes.to_vec())],
        )
    }

    fn finish(mut self, embedding: &str, tail: Option<&ConvNet>, size: usize, dim: usize) -> Tower {
        let mut last = self.reshape("embedded.map", embedding, &[0, dim as i64, 1, 1]);
        if let Some(tail) = tail {
            self.macs += tail.macs();
            last = float_nodes(&mut self.builder, tail, &last);
        }
        Tower {
            bytes: self.builder.finish(&last, [3, size, size], dim),
            macs: self.macs,
            products: self.products,
        }
    }
}

fn plain<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::{ImageShape, ResNetShape, image_layout, random};
    use crate::graph::{Conv, Op};
    use crate::quantize::tests::transformer;
    use burn::tensor::{Device, TensorData};
    use numclip::encode::Model as _;
    use numclip::encode::tract::TractModel;

    const SIZE: usize = 64;

    fn image() -> Vec<f32> {
        (0..3 * SIZE * SIZE)
            .map(|i| (i as f32 * 0.37).sin())
            .collect()
    }

    fn tensor() -> Tensor<4> {
        let data = TensorData::new(image(), [1, 3, SIZE, SIZE]);
        Tensor::from_data(data, &Device::flex())
    }

    /// What the engine makes of the image.
    fn embedding(tower: &Tower, dim: usize) -> Vec<f32> {
        let model = TractModel::from_bytes("tower", &tower.bytes, SIZE, dim).unwrap();
        model.session().unwrap().encode(&image()).unwrap()
    }

    fn assert_close(got: &[f32], expected: Vec<f32>) {
        assert_eq!(got.len(), expected.len());
        let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (got, expected) in got.iter().zip(expected) {
            assert!(
                (got - expected).abs() < 1e-4 * largest,
                "{got}, expected {expected}"
            );
        }
    }

    #[test]
    fn the_engine_gives_what_the_vision_transformer_gives() {
        for (activation, form) in [
            (Activation::QuickGelu, VitForm::Clip),
            (Activation::Gelu, VitForm::Clip),
            (Activation::Gelu, VitForm::Plain),
        ] {
            let net = transformer([48, SIZE], 6, activation, form);
            let tower = vit(&net, None, SIZE);
            assert_close(&embedding(&tower, 6), plain(net.forward(tensor())));
            // 16 patches of 768 values, 17 rows through two blocks, one row to the embedding.
            let block = 17 * (4 * 24 * 24 + 2 * 24 * 40) + 2 * 17 * 17 * 24;
            assert_eq!(tower.macs, 16 * 768 * 24 + 2 * block + 24 * 6);
        }
    }

    #[test]
    fn the_engine_gives_what_the_residual_network_gives() {
        let shape = ResNetShape {
            image: 32,
            width: 4,
            stages: [1, 2, 1, 1],
            heads: 4,
            embedding: 6,
        };
        let weights = &mut random(image_layout(&ImageShape::ResNet(shape.clone())), 2);
        let net = ResNet::take(weights, &shape, SIZE, &Device::flex());
        let tail = doubling(6);
        let expected = plain(net.forward(tensor()))
            .iter()
            .map(|v| 2.0 * v)
            .collect();
        assert_close(&embedding(&resnet(&net, Some(&tail), SIZE), 6), expected);
    }

    /// A network that doubles its input.
    fn doubling(channels: usize) -> ConvNet {
        let conv = Conv {
            weight: vec![2.0; channels],
            shape: [channels, 1, 1, 1],
            bias: vec![0.0; channels],
            stride: [1, 1],
            padding: [0; 4],
            groups: channels,
            activation: graph::Activation::None,
        };
        let mut net = ConvNet {
            input: [channels, 1, 1],
            nodes: Vec::new(),
        };
        net.push("double", Op::Conv(conv), vec![Value::Image]);
        net
    }
}
