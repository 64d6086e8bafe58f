"""Embeds the same pictures with one bundle on numclip's engines, ONNX Runtime
and LiteRT, and holds each against ONNX Runtime: the least cosine between
embeddings, and how many values lie within 0.5 % of the task's range. Ends with
1 unless every cosine is at least 0.999 and 99 % of the values are that near.

    pip install numpy onnxruntime ai-edge-litert safetensors
    cargo build --release --example parity      # --features tflite for that engine
    cargo build --release -p numclip-trainer
    python tests/peers/parity.py models/gauge data/gauge-test/images [500]
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import tomllib

import numpy as np
import onnxruntime as ort
from ai_edge_litert.interpreter import Interpreter
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).parents[2]
PARITY = ROOT / "target/release/examples/parity"
TRAINER = ROOT / "target/release/trainer"
COSINE, NEAR, SHARE = 0.999, 0.005, 0.99


def by_onnxruntime(bundle, tensors):
    options = ort.SessionOptions()
    # Else it quantises the weights of float layers between quantised ones by itself.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(bundle / "encoder.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: tensor[None]})[0] for tensor in tensors])


def by_litert(bundle, tensors):
    interpreter = Interpreter(str(bundle / "encoder.tflite"), num_threads=1)
    run = interpreter.get_signature_runner()
    return np.concatenate([run(image=tensor.transpose(1, 2, 0)[None])["embedding"] for tensor in tensors])


def values(manifest, bins, embeddings):
    """Bin matching and regression, written down once more."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    logits = manifest["logit_scale"] * unit @ bins.T
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    regressor = {key: np.array(value) for key, value in manifest["regressor"].items()}
    if regressor["kind"] == "expectation":
        anchors = regressor["values"]
    else:
        count = len(bins)
        hidden = logits @ regressor["hidden_weight"].reshape(-1, count).T + regressor["hidden_bias"]
        shifts = np.maximum(hidden, 0) @ regressor["shift_weight"].reshape(count, -1).T + regressor["shift_bias"]
        anchors = regressor["starts"] / np.maximum(1 + regressor["lambda"] * np.tanh(shifts), 1e-6)
    return (probabilities * anchors).sum(axis=1).clip(*manifest["task"]["range"])


def main(bundle, pictures, count=500):
    paths = sorted(path for path in pathlib.Path(pictures).rglob("*") if path.is_file())[:int(count)]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(bundle, folder / "model")
        bundle = folder / "model"
        subprocess.run([TRAINER, "tflite", bundle], check=True, stdout=subprocess.DEVNULL)
        run = subprocess.run([PARITY, bundle, folder, *paths], check=True, stdout=subprocess.PIPE, text=True)
        manifest = tomllib.loads((bundle / "bundle.toml").read_text())
        bins = load_file(bundle / "bins.safetensors")["embeddings"]
        size = manifest["preprocess"]["size"]
        tensors = np.fromfile(folder / "tensors.f32", "<f4").reshape(-1, 3, size, size)
        embeddings = {name: np.fromfile(folder / f"{name}.f32", "<f4").reshape(len(tensors), -1)
                      for name in run.stdout.split()}
        embeddings["LiteRT (Python)"] = by_litert(bundle, tensors)
        reference = by_onnxruntime(bundle, tensors)
    expected = values(manifest, bins, reference)
    low, high = manifest["task"]["range"]
    print(f"{len(tensors)} pictures against ONNX Runtime: least cosine, values within {100 * NEAR} % of the range, farthest")
    passed = True
    for name, got in embeddings.items():
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = ((got * reference).sum(axis=1) / norms).min()
        apart = np.abs(values(manifest, bins, got) - expected) / (high - low)
        near = np.mean(apart <= NEAR)
        passed &= bool(cosine >= COSINE and near >= SHARE)
        print(f"  {name:16} {cosine:.6f}  {100 * near:.1f} %  {100 * apart.max():.3f} %")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
