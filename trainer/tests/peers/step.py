"""Times training steps (forward, backward, AdamW) of the same network with the trainer and with
PyTorch, in turns, on the same number of threads, and prints times and ratios.

    pip install torch timm
    cargo build --release -p numclip-trainer --example step
    python trainer/tests/peers/step.py [THREADS [SIZE [BATCH]]]     # 2 threads, 128 px, 32 images
"""

import os
import pathlib
import statistics
import subprocess
import sys
import time

import timm
import torch

STEP = pathlib.Path(__file__).parents[3] / "target/release/examples/step"
ROUNDS = 15
NETWORKS = {"mobileone-s0": "mobileone_s0", "mobilenet-v2": "mobilenetv2_100"}


def trainer(name, threads, size, batch):
    """A function that takes one step and gives its milliseconds."""
    process = subprocess.Popen(
        [STEP, name, str(size), str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"RAYON_NUM_THREADS": str(threads)})

    def step():
        process.stdin.write("1\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return step


def pytorch(name, size, batch):
    model = timm.create_model(name, num_classes=512).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.rand(batch, 3, size, size)

    def step():
        start = time.perf_counter()
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
        return 1e3 * (time.perf_counter() - start)

    return step


def main(arguments):
    threads, size, batch = [int(value) for value in arguments] + [2, 128, 32][len(arguments):]
    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {threads} threads, {size} px, {batch} images, "
          f"{ROUNDS} rounds: least / median of milliseconds")
    for ours, theirs in NETWORKS.items():
        sides = {"trainer": trainer(ours, threads, size, batch), "pytorch": pytorch(theirs, size, batch)}
        times = {side: [] for side in sides}
        for round in range(-2, ROUNDS):
            for side, step in sides.items():
                taken = step()
                # The first rounds warm up.
                if round >= 0:
                    times[side].append(taken)
        (a_least, a_median), (b_least, b_median) = (
            (min(values), statistics.median(values)) for values in times.values())
        ratios = statistics.median(a / b for a, b in zip(*times.values()))
        print(f"{ours}: trainer {a_least:.0f} / {a_median:.0f}, pytorch {b_least:.0f} / {b_median:.0f}, "
              f"ratio {a_least / b_least:.2f} / {a_median / b_median:.2f} (median of pairs {ratios:.2f})")


if __name__ == "__main__":
    main(sys.argv[1:])
