"""What timm's ViT-Tiny makes of an image, with weights from a hash.

    python vit_tiny.py > vit_tiny.json

The hash is that of training_steps.py; `trainer/src/model/tiny.rs` repeats it.
"""

import json

import numpy as np
import timm
import torch

torch.set_num_threads(1)
STD = 0.05


def numbers(stream, shape, bound):
    """Uniform within ±bound; element i depends on stream and i alone."""
    mask = 0xFFFFFFFF
    x = (np.arange(int(np.prod(shape)), dtype=np.uint64) * 2654435761 + stream * 40503 + 12345) & mask
    x ^= x >> np.uint64(15)
    x = (x * 2246822519) & mask
    x ^= x >> np.uint64(13)
    values = (x.astype(np.float64) / 2**32 * 2 - 1) * bound
    return torch.from_numpy(values.astype(np.float32)).reshape(tuple(shape))


def model(patch):
    net = timm.create_model(
        "vit_tiny_patch16_224", patch_size=patch, img_size=2 * patch, dynamic_img_size=True, num_classes=3
    ).eval()
    state = net.state_dict()
    for stream, (name, value) in enumerate(sorted(state.items())):
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        state[name] = base + numbers(stream, value.shape, STD)
    net.load_state_dict(state)
    return net


results = {}
for patch, size in [(16, 32), (16, 64), (32, 64)]:
    image = numbers(1000, (1, 3, size, size), 1.0)
    with torch.no_grad():
        features = model(patch).forward_features(image)[0, 0]
    results[f"{patch} {size}"] = [round(v, 7) for v in features.tolist()[:24]]
print(json.dumps(results))
