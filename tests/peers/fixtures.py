"""Writes the small models of tests/data/int8: a float network and a transformer,
quantised by ONNX Runtime's own quantiser in its two forms, a network (chain) and
transformers as the trainer writes them, with the outputs that ONNX Runtime
computes. Needs what compare.py does.

    python tests/peers/fixtures.py tests/data/int8
    trainer tflite tests/data/int8/chain.onnx --out tests/data/int8/chain.tflite
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    QuantFormat,
    QuantType,
    quantize_static,
)

import transformers
from compare import Images, Network

SIZE = 16
DIM = 8
# Nodes of the network that stay in floats in one of its forms.
IN_FLOATS = ["depthwise", "depthwise.relu", "last"]


def float_network(rng):
    """Stem, depthwise, residual sum, mean, linear head."""
    constants, nodes = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(name, source, outputs, inputs, kernel, stride=1, groups=1):
        shape = (outputs, inputs // groups, kernel, kernel)
        weight = constant(f"{name}.w", rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])))
        bias = constant(f"{name}.b", rng.normal(size=outputs) * 0.1)
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node(
            "Conv", [source, weight, bias], [name], name=name, kernel_shape=[kernel] * 2,
            strides=[stride] * 2, pads=pads, group=groups))
        return name

    def relu(source):
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}.relu"))
        return f"{source}.relu"

    stem = relu(conv("stem", "image", 12, 3, 3, stride=2))
    depthwise = relu(conv("depthwise", stem, 12, 12, 3, groups=12))
    project = conv("project", depthwise, 12, 12, 1)
    nodes.append(helper.make_node("Add", [stem, project], ["sum"], name="sum"))
    last = relu(conv("last", "sum", 20, 12, 1))
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pool"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"], name="flat"))
    head = constant("head.w", rng.normal(size=(DIM, 20)) * 0.3)
    bias = constant("head.b", rng.normal(size=DIM) * 0.1)
    nodes.append(helper.make_node("Gemm", ["flat", head, bias], ["embedding"], name="head", transB=1))
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, DIM])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def chain():
    """Every kind of node that the trainer writes, with random weights."""
    net = Network(SIZE)
    net.conv(12, 3, 2)
    before = (net.last, net.scale)
    net.conv(12, 3, depthwise=True)
    net.conv(12, 1, relu=False)
    net.through_float("Add", [before, (net.last, net.scale)])
    net.conv(20, 1)
    net.conv(20, 5, 2, depthwise=True)
    return net.finish(DIM)


def picture():
    """The test picture of tests/common.rs, as CLIP normalises it."""
    x, y, channel = np.meshgrid(range(SIZE), range(SIZE), range(3), indexing="xy")
    levels = (x * 37 + y * 59 + channel * 83) % 256
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    tensor = (levels / 255 - mean) / std
    return tensor.transpose(2, 0, 1)[None].astype(np.float32)


def write_output(folder, name, image):
    """What the graph says: fused operators of ONNX Runtime round elsewhere."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    session.run(None, {"image": image})[0].astype("<f4").tofile(folder / f"{name}.f32")


def write_transformers(folder, images):
    """Attention quantised by ONNX Runtime, too, and left in floats by the trainer."""
    images[0].tofile(folder / "image.f32")
    shape = dict(size=SIZE, patch=4, width=24, heads=3, mlp=40, layers=2, dim=DIM)
    for gelu in ("erf", "quick"):
        model = transformers.Transformer(**shape, gelu=gelu).model
        onnx.save(transformers.int8(model, images), folder / f"vit-{gelu}.onnx")
        write_output(folder, f"vit-{gelu}", images[0])
    source = folder / "float.onnx"
    onnx.save(transformers.Transformer(**shape).model, source)
    forms = {
        "vit-qdq": (QuantFormat.QDQ, QuantType.QUInt8, None),
        "vit-qdq-linear": (QuantFormat.QDQ, QuantType.QInt8, ["Conv", "MatMul"]),
        "vit-qoperator": (QuantFormat.QOperator, QuantType.QUInt8, ["Conv", "MatMul", "Reshape", "Transpose"]),
    }
    for name, (form, activations, operators) in forms.items():
        quantize_static(source, folder / f"{name}.onnx", Images(images), quant_format=form,
                        per_channel=form == QuantFormat.QDQ, op_types_to_quantize=operators,
                        activation_type=activations, weight_type=QuantType.QInt8)
        write_output(folder, name, images[0])
        print(name, sorted({node.op_type for node in onnx.load(folder / f"{name}.onnx").graph.node}))
    source.unlink()


def main(folder):
    folder = pathlib.Path(folder)
    rng = np.random.default_rng(7)
    source = folder / "float.onnx"
    onnx.save(float_network(rng), source)
    images = [rng.normal(size=(1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(16)]
    forms = {
        "qdq-u8": (QuantFormat.QDQ, QuantType.QUInt8, True, []),
        "qdq-s8": (QuantFormat.QDQ, QuantType.QInt8, False, []),
        "qdq-mixed": (QuantFormat.QDQ, QuantType.QUInt8, True, IN_FLOATS),
        "qoperator-u8": (QuantFormat.QOperator, QuantType.QUInt8, False, []),
    }
    images[0].tofile(folder / "image.f32")
    for name, (form, activations, per_channel, excluded) in forms.items():
        path = folder / f"{name}.onnx"
        quantize_static(source, path, Images(images), quant_format=form, per_channel=per_channel,
                        activation_type=activations, weight_type=QuantType.QInt8, nodes_to_exclude=excluded)
        options = ort.SessionOptions()
        # Else ONNX Runtime quantises the weights of float layers between quantised ones.
        options.add_session_config_entry("session.disable_quant_qdq", "1" if excluded else "0")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        output = session.run(None, {"image": images[0]})[0]
        output.astype("<f4").tofile(folder / f"{name}.f32")
        print(name, [node.op_type for node in onnx.load(path).graph.node])
    source.unlink()
    onnx.save(chain(), folder / "chain.onnx")
    session = ort.InferenceSession(str(folder / "chain.onnx"), providers=["CPUExecutionProvider"])
    session.run(None, {"image": picture()})[0].astype("<f4").tofile(folder / "chain.f32")
    write_transformers(folder, images)


if __name__ == "__main__":
    main(sys.argv[1])
