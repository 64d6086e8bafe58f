"""Ten training steps of the complete NumCLIP objective in PyTorch, with a convolutional encoder and
with the image tower of a tiny CLIP.

Writes training_steps.json, which trainer/src/fit/gradients/tests.rs compares with. All weights,
images and labels come from one integer hash, so that both sides start from the same numbers.

    pip install torch open_clip_torch
    python training_steps.py
"""

import json
import pathlib

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch.optim import AdamW, RAdam

torch.set_num_threads(1)
WIDTH, HEADS, LAYERS, EMBEDDING, POSITIONS = 32, 2, 2, 16, 20
SIZE, PATCH, BATCH, STEPS, SCALE, LAMBDA = 32, 16, 8, 10, 10.0, 0.5
CONTEXT = "age estimation: the person is a"
BINS = [("child", 0, 12), ("teenager", 13, 18), ("young adult", 19, 34), ("older adult", 35, 99)]
LABELS = [3.0, 16.0, 30.0, 70.0, 11.0, 22.0, 14.0, 50.0]


def numbers(stream, shape, bound):
    """Uniform within ±bound; element i depends on stream and i alone."""
    count = int(np.prod(shape))
    mask = np.uint64(0xFFFFFFFF)
    x = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(stream * 40503 + 12345)) & mask
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(2246822519)) & mask
    x ^= x >> np.uint64(13)
    values = (x.astype(np.float64) / 2.0**32 * 2.0 - 1.0) * bound
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


class Stream:
    """Parameters in the order in which the trainer visits them."""

    def __init__(self, first):
        self.next = first
        self.parameters = []

    def take(self, shape, bound):
        values = numbers(self.next, shape, bound)
        self.next += 1
        self.parameters.append(values.requires_grad_())
        return self.parameters[-1]

    def conv(self, inputs, outputs, kernel, stride=1, groups=1, activation=True):
        fan_in = inputs // groups * kernel * kernel
        weight = self.take((outputs, inputs // groups, kernel, kernel), (6 / fan_in) ** 0.5)
        bias = self.take((outputs,), 0.05)

        def apply(x):
            y = F.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
            return F.relu6(y) if activation else y

        return apply

    def linear(self, inputs, outputs, bias=True):
        """The weight is [inputs, outputs], as the trainer keeps it."""
        weight = self.take((inputs, outputs), inputs**-0.5)
        offset = self.take((outputs,), 0.05) if bias else 0.0
        return lambda x: x @ weight + offset

    def norm(self, width):
        gamma = 1 + 0.1 * self.take((width,), 1.0).detach()
        self.parameters[-1] = gamma.requires_grad_()
        beta = self.take((width,), 0.05)
        return lambda x: F.layer_norm(x, (width,), gamma, beta)


def mobilenet(stream):
    """MobileNetV2 of width 0.25 without batch normalisation."""
    stem = stream.conv(3, 8, 3, 2)
    blocks, inputs = [], 8
    stages = [(1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2), (6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1)]
    for expansion, outputs, repeats, stride in stages:
        for repeat in range(repeats):
            step, hidden = (stride if repeat == 0 else 1), inputs * expansion
            units = [stream.conv(inputs, hidden, 1)] if expansion > 1 else []
            units.append(stream.conv(hidden, hidden, 3, step, hidden))
            units.append(stream.conv(hidden, outputs, 1, activation=False))
            blocks.append((units, step == 1 and inputs == outputs))
            inputs = outputs
    last = stream.conv(inputs, 1280, 1)
    head = stream.linear(1280, EMBEDDING)

    def apply(x):
        x = stem(x)
        for units, residual in blocks:
            y = x
            for unit in units:
                y = unit(y)
            x = x + y if residual else y
        return head(last(x).mean((2, 3)))

    return apply


def vision_transformer(stream):
    """The image tower of CLIP: patches of 16, two blocks of two heads."""
    patches = stream.take((WIDTH, 3, PATCH, PATCH), (6 / (3 * PATCH * PATCH)) ** 0.5)
    token = stream.take((WIDTH,), 0.05)
    places = (SIZE // PATCH) ** 2 + 1
    positions = stream.take((places, WIDTH), places**-0.5)
    norm_pre = stream.norm(WIDTH)
    blocks = []
    for _ in range(LAYERS):
        norm_1 = stream.norm(WIDTH)
        mix = stream.linear(WIDTH, 3 * WIDTH), stream.linear(WIDTH, WIDTH)
        norm_2 = stream.norm(WIDTH)
        feed = stream.linear(WIDTH, 4 * WIDTH), stream.linear(4 * WIDTH, WIDTH)
        blocks.append((norm_1, mix, norm_2, feed))
    norm_post = stream.norm(WIDTH)
    projection = stream.take((WIDTH, EMBEDDING), WIDTH**-0.5)

    def apply(x):
        count = len(x)
        x = F.conv2d(x, patches, stride=PATCH).flatten(2).transpose(1, 2)
        x = norm_pre(torch.cat([token.expand(count, 1, WIDTH), x], 1) + positions)
        for norm_1, (project, join), norm_2, (widen, narrow) in blocks:
            parts = project(norm_1(x)).chunk(3, -1)
            q, k, v = (part.view(count, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
            y = F.scaled_dot_product_attention(q, k, v)
            x = x + join(y.transpose(1, 2).reshape(count, -1, WIDTH))
            y = widen(norm_2(x))
            x = x + narrow(y * torch.sigmoid(1.702 * y))
        return norm_post(x[:, 0]) @ projection

    return apply


def text_tower():
    """CLIP's text transformer from tensors in the trainer's order; frozen."""
    streams = iter(range(1000, 2000))
    take = lambda shape, bound: numbers(next(streams), shape, bound)
    norm = lambda: (1 + take((WIDTH,), 0.1), take((WIDTH,), 0.1))
    tower = {
        "tokens": take((49408, WIDTH), 0.5),
        "positions": take((POSITIONS, WIDTH), 0.2),
        "projection": take((WIDTH, EMBEDDING), 0.3),
        "final": norm(),
    }
    tower["blocks"] = [
        {
            "in": (take((3 * WIDTH, WIDTH), 0.3), take((3 * WIDTH,), 0.1)),
            "out": (take((WIDTH, WIDTH), 0.3), take((WIDTH,), 0.1)),
            "fc": (take((4 * WIDTH, WIDTH), 0.3), take((4 * WIDTH,), 0.1)),
            "proj": (take((WIDTH, 4 * WIDTH), 0.2), take((WIDTH,), 0.1)),
            "norms": [norm(), norm()],
        }
        for _ in range(LAYERS)
    ]
    return tower


def text_features(tower, embedded, ends):
    count, length, _ = embedded.shape
    x = embedded + tower["positions"][:length]
    for block in tower["blocks"]:
        y = F.linear(F.layer_norm(x, (WIDTH,), *block["norms"][0]), *block["in"])
        q, k, v = (part.view(count, length, HEADS, -1).transpose(1, 2) for part in y.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(count, length, WIDTH), *block["out"])
        y = F.linear(F.layer_norm(x, (WIDTH,), *block["norms"][1]), *block["fc"])
        x = x + F.linear(y * torch.sigmoid(1.702 * y), *block["proj"])
    x = F.layer_norm(x[torch.arange(count), ends], (WIDTH,), *tower["final"])
    return x @ tower["projection"]


def objective(logits, values, bins, labels):
    """FCRC both ways (reference form) and the absolute error, all of weight 1."""
    count = logits.shape[1]
    distance = (bins[:, None] - torch.arange(count)[None]).abs().float()

    def weighted(dim):
        weight = distance * (count - 1) / distance.sum(dim, keepdim=True).clamp_min(1.0)
        return logits * torch.where(distance == 0, torch.ones_like(weight), weight)

    image_to_text = F.cross_entropy(weighted(1), bins)
    terms = []
    rows = weighted(0)
    for column in bins.unique():
        target = F.softmax(10.0 * (bins == column).float(), 0)
        terms.append(F.kl_div(F.log_softmax(rows[:, column], 0), target, reduction="sum"))
    return image_to_text + torch.stack(terms).mean() + F.l1_loss(values, labels)


def run(image_encoder, optimizer):
    stream = Stream(0)
    encoder = image_encoder(stream)
    down, up = stream.linear(EMBEDDING, EMBEDDING // 4, False), stream.linear(EMBEDDING // 4, EMBEDDING, False)
    hidden, offset = stream.linear(len(BINS), 2 * len(BINS)), stream.linear(2 * len(BINS), len(BINS))

    encode = open_clip.SimpleTokenizer().encode
    tower = text_tower()
    context, stop = encode(CONTEXT), encode(".")
    names = [encode(name) for name, _, _ in BINS]
    ranks = [tower["tokens"][name].clone().requires_grad_() for name in names]
    starts = torch.tensor([float(start) for _, start, _ in BINS])

    def bins_embeddings():
        sentences = []
        for rank in ranks:
            fixed = lambda ids: tower["tokens"][ids]
            sentences.append(torch.cat([fixed([49406]), fixed(context), rank, fixed(stop), fixed([49407])]))
        ends = torch.tensor([len(sentence) - 1 for sentence in sentences])
        padded = torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True)
        features = text_features(tower, padded, ends)
        return features / features.norm(dim=1, keepdim=True)

    labels = torch.tensor(LABELS)
    bins = torch.tensor([sum(label >= start for _, start, _ in BINS) - 1 for label in LABELS])
    chosen = optimizer(stream.parameters, ranks)
    losses = []
    for step in range(STEPS):
        images = numbers(5000 + step, (BATCH, 3, SIZE, SIZE), 1.0)
        feature = encoder(images)
        feature = 0.8 * F.relu(up(F.relu(down(feature)))) + 0.2 * feature
        feature = feature / feature.norm(dim=1, keepdim=True)
        logits = SCALE * feature @ bins_embeddings().T
        shift = torch.tanh(offset(F.relu(hidden(logits))))
        values = (logits.softmax(1) * starts / (1 + LAMBDA * shift)).sum(1)
        loss = objective(logits, values, bins, labels)
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        losses.append(loss.item())
    first = stream.parameters[0].detach().flatten()
    return {
        "losses": losses,
        "first_kernel": first[:8].tolist(),
        "first_rank": ranks[0].detach().flatten()[:8].tolist(),
        "offset_bias": stream.parameters[-1].detach().tolist(),
    }


def radam(model, ranks):
    return RAdam([{"params": model}, {"params": ranks, "lr": 1e-2}], lr=1e-3)


def adamw(model, ranks):
    """PyTorch's defaults; vectors do not decay in the trainer."""
    matrices = [p for p in model if p.dim() >= 2]
    vectors = [p for p in model if p.dim() < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}, {"params": ranks, "lr": 1e-2}]
    return AdamW(groups, lr=1e-3)


if __name__ == "__main__":
    result = {
        "torch": torch.__version__,
        "radam": run(mobilenet, radam),
        "adamw": run(mobilenet, adamw),
        "clip-radam": run(vision_transformer, radam),
        "clip-adamw": run(vision_transformer, adamw),
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path.read_text())
