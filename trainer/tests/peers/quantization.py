"""Quantises our float encoder with ONNX Runtime's static quantisation too, and
compares its mean absolute error with that of our int8 encoder, in one table.

    pip install numpy pillow onnx onnxruntime safetensors [ai-edge-litert]
    trainer export RUN --out f32 --precision f32
    trainer export RUN --out int8 --search [--tflite]
    python trainer/tests/peers/quantization.py f32 int8 CALIBRATION.csv TEST.csv \\
        [--images 2000] [--calibration-images 256] [--methods min-max] [--where fold=0,1,2] [--test-where fold=3]

Both tables are CSV files with the columns path and label; paths are relative
to them. All encoders run in ONNX Runtime on the same tensors, so what differs
is the quantisation alone. Ours is also what numclip's own engine computes. A
bundle with encoder.tflite is measured in LiteRT too.
"""

import argparse
import csv
import logging
import pathlib
import tempfile
import tomllib

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static)
from PIL import Image
from safetensors.numpy import load_file

FILTERS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR,
           "lanczos": Image.LANCZOS, "nearest": Image.NEAREST}
METHODS = {"min-max": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
           "percentile": CalibrationMethod.Percentile}


def tensor(path, plan):
    """The bundle's preprocessing: resize, centre, normalise."""
    size = plan["size"]
    resize = plan.get("resize", {"mode": "shorter-side"})
    image = Image.open(path).convert("RGB")
    if resize["mode"] == "stretch":
        sides = [size, size]
    elif resize["mode"] == "shorter-side":
        scale = resize.get("to", size) / min(image.size)
        sides = [max(size, round(side * scale)) for side in image.size]
    else:
        raise SystemExit(f"this script does not resize by {resize['mode']}")
    image = image.resize(sides, FILTERS[plan.get("filter", "bicubic")])
    left, top = (sides[0] - size) // 2, (sides[1] - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    pixels = (pixels - np.float32(plan["mean"])) / np.float32(plan["std"])
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def rows(table, where, count, seed):
    """Some rows of a table: paths and labels."""
    table = pathlib.Path(table)
    column, _, values = (where or "").partition("=")
    with open(table) as file:
        chosen = [row for row in csv.DictReader(file)
                  if not column or row[column] in values.split(",")]
    order = np.random.default_rng(seed).permutation(len(chosen))[:count]
    return [(table.parent / chosen[i]["path"], float(chosen[i]["label"])) for i in order]


class Bundle:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = tomllib.loads((self.folder / "bundle.toml").read_text())
        self.bins = next(iter(load_file(self.folder / "bins.safetensors").values()))
        self.encoder = self.folder / self.manifest["encoder"][0]["path"]

    def value(self, embedding):
        """From an embedding to the task's unit, as numclip does it."""
        logits = self.manifest["logit_scale"] * self.bins @ (embedding / np.linalg.norm(embedding))
        p = np.exp(logits - logits.max())
        p /= p.sum()
        regressor = self.manifest["regressor"]
        low, high = self.manifest["task"]["range"]
        if regressor["kind"] == "expectation":
            return float(np.clip(p @ np.array(regressor["values"]), low, high))
        affine = lambda part, x: (np.array(regressor[f"{part}_weight"]).reshape(-1, len(x)) @ x
                                  + np.array(regressor[f"{part}_bias"]))
        shifts = np.tanh(affine("shift", np.maximum(affine("hidden", logits), 0)))
        denominators = np.maximum(1 + regressor["lambda"] * shifts, 1e-6)
        return float(np.clip(p @ (np.array(regressor["starts"]) / denominators), low, high))


class Reader(CalibrationDataReader):
    def __init__(self, tensors):
        self.tensors = iter(tensors)

    def get_next(self):
        tensor = next(self.tensors, None)
        return None if tensor is None else {"image": tensor}


def run(path, tensors):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Else it quantises the weights of float layers between quantised ones by itself.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"image": tensor})[0][0] for tensor in tensors]


def run_tflite(path, tensors):
    from ai_edge_litert.interpreter import Interpreter
    session = Interpreter(str(path), num_threads=1).get_signature_runner()
    return [session(image=tensor.transpose(0, 2, 3, 1))["embedding"][0] for tensor in tensors]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("f32")
    parser.add_argument("int8")
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--where", help="rows to calibrate on, such as fold=0,1,2")
    parser.add_argument("--test-where", help="rows to test on, such as fold=3")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS),
                        help="ONNX Runtime's ways to calibrate; none with nothing behind it")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    f32, int8 = Bundle(given.f32), Bundle(given.int8)
    plan = f32.manifest["preprocess"]
    test = rows(given.test, given.test_where, given.images, 1)
    tensors = [tensor(path, plan) for path, _ in test]
    labels = np.array([label for _, label in test])
    sample = [tensor(path, plan) for path, _ in
              rows(given.calibration, given.where, given.calibration_images, 2)]
    truth = run(f32.encoder, tensors)
    exact = np.array([f32.value(embedding) for embedding in truth])
    print(f"{len(labels)} images, calibrated on {len(sample)}")
    print(f"{'':44} {'MAE':>8} {'beside f32':>10} {'drift':>8} {'lowest cosine':>13}")

    def line(name, embeddings, bundle):
        values = np.array([bundle.value(embedding) for embedding in embeddings])
        mae, base = np.abs(values - labels).mean(), np.abs(exact - labels).mean()
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(embeddings, truth)]
        print(f"{name:44} {mae:8.4f} {100 * (mae / base - 1):+9.2f}% "
              f"{np.abs(values - exact).mean():8.4f} {min(cosines):13.5f}", flush=True)

    line("float", truth, f32)
    line("int8, numclip", run(int8.encoder, tensors), int8)
    tflite = int8.folder / "encoder.tflite"
    if tflite.exists():
        line("int8, numclip, in LiteRT", run_tflite(tflite, tensors), int8)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.methods:
            for per_channel in (True, False):
                path = pathlib.Path(folder) / "quantised.onnx"
                quantize_static(
                    str(f32.encoder), str(path), Reader(sample), quant_format=QuantFormat.QOperator,
                    per_channel=per_channel, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, calibrate_method=METHODS[name])
                onnx.checker.check_model(str(path))
                weights = "per channel" if per_channel else "per tensor"
                line(f"int8, ONNX Runtime, {name}, {weights}", run(path, tensors), f32)


if __name__ == "__main__":
    main()
