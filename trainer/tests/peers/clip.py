"""Holds the trainer's CLIP towers against open_clip's, at their real size: writes
a checkpoint with random weights as OpenAI published theirs (a TorchScript
archive in half precision), and compares what both make of it.

    pip install torch open_clip_torch safetensors
    cargo build --release --workspace --examples
    python trainer/tests/peers/clip.py                    # ViT-B-16 and RN50
    python trainer/tests/peers/clip.py ViT-L-14           # another one of OpenAI's shapes

Exits with 1 where the largest difference is above a thousandth of the largest value.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import open_clip
import torch
from safetensors.torch import save_file

COMPARE = pathlib.Path(__file__).parents[3] / "target/release/examples/compare_clip"
WORDS = ["a photo of a child", "a photo of an older adult, smiling", "seventy"]
ALLOWED = 1e-3


def write(name, folder):
    """The checkpoint, and a file with inputs and the features that are expected."""
    torch.manual_seed(1)
    model = open_clip.create_model(name + "-quickgelu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:  # otherwise nothing but zeros and ones
                parameter.add_(0.1 * torch.randn_like(parameter))
        for path, buffer in model.named_buffers():
            if path.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if path.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    checkpoint = folder / f"{name}.pt"
    torch.jit.script(model.half()).save(str(checkpoint))
    model = model.float()
    size = model.visual.image_size
    images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    tokens = open_clip.get_tokenizer(name)(WORDS)
    with torch.no_grad():
        expected = {
            "images": images,
            "image_features": model.encode_image(images),
            "tokens": tokens.to(torch.int64),
            "text_features": model.encode_text(tokens),
        }
    file = folder / f"{name}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, file)
    return checkpoint, file


def main():
    worst = 0.0
    for name in sys.argv[1:] or ["ViT-B-16", "RN50"]:
        with tempfile.TemporaryDirectory() as folder:
            files = write(name, pathlib.Path(folder))
            printed = subprocess.run([COMPARE, *files], check=True, capture_output=True, text=True).stdout
        print(name, printed, sep="\n")
        worst = max(worst, *map(float, re.findall(r"difference (\S+) of", printed)))
    if worst > ALLOWED:
        sys.exit(f"{worst:.1e} is above {ALLOWED:.0e}")


if __name__ == "__main__":
    main()
