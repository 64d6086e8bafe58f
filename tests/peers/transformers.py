"""Vision transformers in ONNX with random weights: in floats as numclip's
trainer writes them, and in its int8 form."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


class Transformer:
    """Patches, class token, blocks of attention and GELU, a projection."""

    def __init__(self, size, patch, width, heads, mlp, layers, dim, gelu="erf", seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []
        self.width, self.heads, self.rows = width, heads, (size // patch) ** 2 + 1
        kernel = self.constant("patches.weight", self.normal(width, 3, patch, patch))
        patches = self.op("Conv", "patches", ["image", kernel], kernel_shape=[patch] * 2, strides=[patch] * 2)
        rows = self.reshape("rows", patches, [0, width, self.rows - 1])
        rows = self.op("Transpose", "sequence", [rows], perm=[0, 2, 1])
        pads = self.constant("class.pads", np.array([0, 1, 0, 0, 0, 0]))
        rows = self.op("Pad", "class", [rows, pads])
        stream = self.add("embedded", rows, 0.5 * self.rng.normal(size=(1, self.rows, width)))
        for index in range(layers):
            stream = self.block(f"block{index}", stream, mlp, gelu)
        zero = self.constant("class.index", np.array(0))
        row = self.op("Gather", "class.row", [stream, zero], axis=1)
        row = self.matmul("projection", self.norm("norm_post", row), dim)
        row = self.reshape("embedded.map", row, [0, dim, 1, 1])
        self.op("Flatten", "embedding", [row], axis=1)
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, dim])
        graph = helper.make_graph(self.nodes, "transformer", [image], [output], self.constants)
        self.model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    def block(self, name, stream, mlp, gelu):
        normed = self.norm(f"{name}.norm_1", stream)
        stream = self.op("Add", f"{name}.attended", [stream, self.attention(f"{name}.attention", normed)])
        hidden = self.linear(f"{name}.fc", self.norm(f"{name}.norm_2", stream), mlp)
        hidden = self.gelu(f"{name}.activation", hidden, gelu)
        return self.op("Add", name, [stream, self.linear(f"{name}.proj", hidden, self.width, mlp)])

    def attention(self, name, rows):
        each = self.width // self.heads

        def split(kind, axes):
            part = self.linear(f"{name}.{kind}", rows, self.width)
            part = self.reshape(f"{name}.{kind}.heads", part, [0, self.rows, self.heads, each])
            return self.op("Transpose", f"{name}.{kind}.turned", [part], perm=axes)

        query, key, value = split("query", [0, 2, 1, 3]), split("key", [0, 2, 3, 1]), split("value", [0, 2, 1, 3])
        scores = self.op("MatMul", f"{name}.products", [query, key])
        scores = self.scale(f"{name}.scores", scores, each ** -0.5)
        shares = self.op("Softmax", f"{name}.shares", [scores], axis=-1)
        mixed = self.op("MatMul", f"{name}.mixed", [shares, value])
        mixed = self.op("Transpose", f"{name}.rows", [mixed], perm=[0, 2, 1, 3])
        return self.linear(f"{name}.out", self.reshape(f"{name}.joined", mixed, [0, self.rows, self.width]), self.width)

    def gelu(self, name, x, form):
        if form == "quick":
            gate = self.op("Sigmoid", f"{name}.gate", [self.scale(f"{name}.scaled", x, 1.702)])
        else:
            erf = self.op("Erf", f"{name}.erf", [self.scale(f"{name}.scaled", x, 0.5 ** 0.5)])
            gate = self.add(f"{name}.gate", self.scale(f"{name}.half", erf, 0.5), np.array(0.5))
        return self.op("Mul", name, [x, gate])

    def norm(self, name, x):
        mean = self.op("ReduceMean", f"{name}.mean", [x], axes=[-1], keepdims=1)
        centred = self.op("Sub", f"{name}.centred", [x, mean])
        squares = self.op("Mul", f"{name}.squares", [centred, centred])
        variance = self.op("ReduceMean", f"{name}.variance", [squares], axes=[-1], keepdims=1)
        deviation = self.op("Sqrt", f"{name}.deviation", [self.add(f"{name}.floored", variance, np.array(1e-6))])
        unit = self.op("Div", f"{name}.unit", [centred, deviation])
        gamma = self.constant(f"{name}.gamma", 1 + 0.1 * self.rng.normal(size=self.width))
        scaled = self.op("Mul", f"{name}.scaled", [unit, gamma])
        return self.add(name, scaled, 0.1 * self.rng.normal(size=self.width))

    def linear(self, name, x, outputs, inputs=None):
        product = self.matmul(f"{name}.product", x, outputs, inputs)
        return self.add(name, product, 0.1 * self.rng.normal(size=outputs))

    def matmul(self, name, x, outputs, inputs=None):
        return self.op("MatMul", name, [x, self.constant(f"{name}.weight", self.normal(inputs or self.width, outputs))])

    def add(self, name, x, values):
        return self.op("Add", name, [x, self.constant(f"{name}.added", values)])

    def scale(self, name, x, factor):
        return self.op("Mul", name, [x, self.constant(f"{name}.factor", np.array(factor))])

    def reshape(self, name, x, dims):
        return self.op("Reshape", name, [x, self.constant(f"{name}.shape", np.array(dims))])

    def normal(self, *shape):
        fan_in = shape[0] if len(shape) == 2 else np.prod(shape[1:])
        return self.rng.normal(size=shape) / np.sqrt(fan_in)

    def constant(self, name, values):
        kind = np.int64 if values.dtype == np.int64 else np.float32
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def op(self, kind, name, inputs, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name


def int8(model, images):
    """Convolution and products with constant weights as ConvInteger and
    MatMulInteger; ranges are those of `images`."""
    weights = {constant.name: constant for constant in model.graph.initializer}
    linear = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul") and node.input[1] in weights]
    ranges = observed(model, {node.input[0] for node in linear}, images)
    nodes, constants, quantised = [], [], set()

    def constant(name, array):
        constants.append(numpy_helper.from_array(array, name))
        return name

    for node in model.graph.node:
        if node not in linear:
            nodes.append(node)
            continue
        source, name = node.input[0], node.output[0]
        low, high = ranges[source]
        scale = np.float32((high - low) / 255)
        zero = constants_of(source)
        if source not in quantised:
            quantised.add(source)
            constant(zero[0], scale)
            constant(zero[1], np.uint8(np.clip(np.rint(-low / scale), 0, 255)))
            nodes.append(helper.make_node("QuantizeLinear", [source, *zero], [f"{source}.levels"]))
        weight = numpy_helper.to_array(weights[node.input[1]])
        conv = node.op_type == "Conv"
        axes = (1, 2, 3) if conv else (0,)
        scales = (np.abs(weight).max(axes, keepdims=True) / 127).astype(np.float32)
        levels = constant(f"{name}.levels", np.rint(weight / scales).astype(np.int8))
        factor = scale * (scales.reshape(1, -1, 1, 1) if conv else scales.ravel())
        nodes.append(helper.make_node(f"{node.op_type}Integer", [f"{source}.levels", levels, zero[1]], [f"{name}.sums"]))
        nodes[-1].attribute.extend(node.attribute)
        nodes.append(helper.make_node("Cast", [f"{name}.sums"], [f"{name}.cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Mul", [f"{name}.cast", constant(f"{name}.factor", factor)], [name]))
    used = {name for node in nodes for name in node.input}
    constants += [value for name, value in weights.items() if name in used]
    graph = helper.make_graph(nodes, "int8", model.graph.input, model.graph.output, constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def constants_of(source):
    return [f"{source}.scale", f"{source}.zero_point"]


def observed(model, names, images):
    """Lowest and highest value, 0 included, of these tensors."""
    tapped = type(model)()
    tapped.CopyFrom(model)
    taps = [name for name in names if name != "image"]
    tapped.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in taps)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges = {name: (0.0, 0.0) for name in names}
    for image in images:
        values = dict(zip(taps, session.run(taps, {"image": image}) if taps else []), image=image)
        for name in names:
            low, high = ranges[name]
            ranges[name] = (min(low, values[name].min()), max(high, values[name].max()))
    return ranges
