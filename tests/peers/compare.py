"""Encodes one image with numclip's int8 engine, ONNX Runtime and TensorFlow
Lite (LiteRT with XNNPACK), in turns, on one thread each, and prints times and
ratios.

    pip install numpy onnx onnxruntime ai-edge-litert
    cargo build --release --example encoder && cargo build --release -p numclip-trainer
    python tests/peers/compare.py                  # MobileOne-S0, S1, MobileNetV2, ViT-Tiny, random weights
    python tests/peers/compare.py ViT-Tiny/16      # one of them
    python tests/peers/compare.py ENCODER.onnx SIZE DIM
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime as ort
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

import transformers

ROOT = pathlib.Path(__file__).parents[2]
ENCODER = ROOT / "target/release/examples/encoder"
TRAINER = ROOT / "target/release/trainer"
ROUNDS, RUNS = 30, 10


class Network:
    """A chain of QLinearConv as numclip's trainer writes it, random weights."""

    def __init__(self, size, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.size = [], [], size
        self.count, self.channels, self.side = 0, 3, size
        self.last = self.op("QuantizeLinear", ["image", *self.affine(4 / 255, 128)])
        self.scale = (4 / 255, 128)

    def op(self, kind, inputs, **attributes):
        self.count += 1
        name = f"{kind}{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array):
        self.count += 1
        self.constants.append(numpy_helper.from_array(array, f"c{self.count}"))
        return f"c{self.count}"

    def affine(self, scale, zero):
        return [self.constant(np.float32(scale)), self.constant(np.uint8(zero))]

    def conv(self, outputs, kernel, stride=1, depthwise=False, relu=True):
        inputs = 1 if depthwise else self.channels
        shape = (outputs, inputs, kernel, kernel)
        weight = self.rng.integers(-127, 128, shape).astype(np.int8)
        scales = (2.0 / 127 / np.sqrt(np.prod(shape[1:])) * self.rng.uniform(0.5, 1.5, outputs)).astype(np.float32)
        bias = self.rng.integers(-2000, 2000, outputs).astype(np.int32)
        to = (6 / 255, 0) if relu else (8 / 255, 128)
        side = (self.side + 2 * (kernel // 2) - kernel) // stride + 1
        self.last = self.op(
            "QLinearConv",
            [self.last, *self.affine(*self.scale), self.constant(weight), self.constant(scales),
             self.constant(np.zeros(outputs, np.int8)), *self.affine(*to), self.constant(bias)],
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4,
            group=self.channels if depthwise else 1)
        self.channels, self.side, self.scale = outputs, side, to

    def through_float(self, kind, names):
        real = [self.op("DequantizeLinear", [name, *self.affine(*scale)]) for name, scale in names]
        self.last = self.op("QuantizeLinear", [self.op(kind, real), *self.affine(*self.scale)])

    def finish(self, dim):
        self.through_float("GlobalAveragePool", [(self.last, self.scale)])
        self.side = 1
        self.conv(dim, 1, relu=False)
        real = self.op("DequantizeLinear", [self.last, *self.affine(*self.scale)])
        self.nodes.append(helper.make_node("Flatten", [real], ["embedding"], axis=1))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, self.size, self.size])
        output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", dim])
        graph = helper.make_graph(self.nodes, "encoder", [image], [output], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def mobileone(widths, size=224, dim=512):
    net = Network(size)
    net.conv(min(64, int(64 * widths[0])), 3, 2)
    for blocks, base, width in zip((2, 8, 10, 1), (64, 128, 256, 512), widths):
        for block in range(blocks):
            net.conv(net.channels, 3, 2 if block == 0 else 1, depthwise=True)
            net.conv(int(base * width), 1)
    return net.finish(dim)


def mobilenet_v2(size=224, dim=512):
    net = Network(size)
    net.conv(32, 3, 2)
    for expand, channels, blocks, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
            (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for block in range(blocks):
            before = (net.last, net.scale)
            inputs, step = net.channels, stride if block == 0 else 1
            if expand > 1:
                net.conv(inputs * expand, 1)
            net.conv(net.channels, 3, step, depthwise=True)
            net.conv(channels, 1, relu=False)
            if step == 1 and inputs == channels:
                net.through_float("Add", [before, (net.last, net.scale)])
    net.conv(1280, 1)
    return net.finish(dim)


class Images(CalibrationDataReader):
    def __init__(self, images):
        self.left = iter(images)

    def get_next(self):
        image = next(self.left, None)
        return None if image is None else {"image": image}


def vit_tiny(folder, size, dim):
    """The trainer's int8 form, and those that ONNX Runtime makes of the floats itself."""
    model = transformers.Transformer(size, patch=16, width=192, heads=3, mlp=768, layers=12, dim=dim).model
    images = [np.random.default_rng(seed).normal(size=(1, 3, size, size)).astype(np.float32) for seed in range(2)]
    source = folder / "float.onnx"
    onnx.save(model, source)
    onnx.save(transformers.int8(model, images), folder / "encoder.onnx")
    quantize_dynamic(source, folder / "dynamic.onnx", weight_type=QuantType.QInt8)
    quantize_dynamic(source, folder / "products.onnx", weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    quantize_static(source, folder / "static.onnx", Images(images), op_types_to_quantize=["Conv", "MatMul"],
                    per_channel=True, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8)
    return [folder / f"{form}.onnx" for form in ("dynamic", "products", "static")]


class Numclip:
    """The int8 engine, in a process of its own."""

    def __init__(self, path, image, dim, folder):
        image.tofile(folder / "image.f32")
        self.process = subprocess.Popen(
            [ENCODER, path, str(image.shape[-1]), str(dim), folder / "image.f32"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def times(self):
        self.process.stdin.write(f"{RUNS}\n")
        self.process.stdin.flush()
        return [float(time) for time in self.process.stdout.readline().split()]

    def embedding(self):
        self.process.stdin.close()
        return np.array(self.process.stdout.readline().split(), np.float32)


class Peer:
    """An engine with a Python interface."""

    def times(self):
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            self.run()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def embedding(self):
        return self.run().ravel()


class OnnxRuntime(Peer):
    def __init__(self, path, image):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.feed = {self.session.get_inputs()[0].name: image}

    def run(self):
        return self.session.run(None, self.feed)[0]


class TensorFlowLite(Peer):
    """LiteRT, which gives the network to XNNPACK; the same encoder, converted."""

    def __init__(self, path, image, folder):
        converted = folder / "encoder.tflite"
        subprocess.run([TRAINER, "tflite", path, "--out", converted], check=True, stdout=subprocess.DEVNULL)
        self.interpreter = Interpreter(str(converted), num_threads=1)
        self.interpreter.allocate_tensors()
        self.input, self.output = (
            details()[0]["index"]
            for details in (self.interpreter.get_input_details, self.interpreter.get_output_details))
        self.image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))

    def run(self):
        self.interpreter.set_tensor(self.input, self.image)
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output)


def picture(size):
    return np.random.default_rng(1).normal(size=(1, 3, size, size)).astype("<f4")


def compare(name, path, size, dim, folder):
    image = picture(size)
    peers = {"onnxruntime": OnnxRuntime(path, image), "tflite": TensorFlowLite(path, image, folder)}
    race(name, Numclip(path, image, dim, folder), peers)


def compare_transformer(name, size, dim, folder):
    """The trainer's form on numclip; on ONNX Runtime, whichever int8 form is fastest there."""
    image = picture(size)
    others = vit_tiny(folder, size, dim)
    path = folder / "encoder.onnx"
    peers = {form.stem: OnnxRuntime(form, image) for form in (path, *others)}
    fastest = min(peers, key=lambda form: min(peers[form].times()))
    race(name, Numclip(path, image, dim, folder), {f"onnxruntime ({fastest})": peers[fastest]})


def race(name, numclip, peers):
    engines = {"numclip": numclip, **peers}
    times = {engine: [] for engine in engines}
    for _ in range(ROUNDS):
        for engine in engines:
            times[engine] += engines[engine].times()
    least = {engine: min(values) for engine, values in times.items()}
    median = {engine: statistics.median(values) for engine, values in times.items()}
    mine = engines.pop("numclip").embedding()
    print(f"{name}: numclip {least['numclip']:.3f} / {median['numclip']:.3f} ms (least / median)")
    for engine, peer in engines.items():
        theirs = peer.embedding()
        cosine = mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs)
        equal = np.mean(np.abs(mine - theirs) < 1e-6)
        print(f"  {engine} {least[engine]:.3f} / {median[engine]:.3f} ms, ratio "
              f"{least['numclip'] / least[engine]:.2f} / {median['numclip'] / median[engine]:.2f}; "
              f"cosine {cosine:.6f}, {100 * equal:.1f} % of values equal", flush=True)


def main(arguments):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if len(arguments) == 3:
            compare(arguments[0], arguments[0], int(arguments[1]), int(arguments[2]), folder)
            return
        networks = {
            "MobileOne-S0": lambda: mobileone((0.75, 1.0, 1.0, 2.0)),
            "MobileOne-S1": lambda: mobileone((1.5, 1.5, 2.0, 2.5)),
            "MobileNetV2": mobilenet_v2,
        }
        for name, make in networks.items():
            if name in (arguments or networks):
                onnx.save(make(), folder / "encoder.onnx")
                compare(name, folder / "encoder.onnx", 224, 512, folder)
        if not arguments or "ViT-Tiny/16" in arguments:
            compare_transformer("ViT-Tiny/16", 224, 512, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
