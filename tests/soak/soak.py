#!/usr/bin/env python3
"""Runs `numclip run` for a long time and watches its memory and latency.

    cargo build --release
    tests/soak/soak.py --frames 1000000        # hours; exits 1 on a leak or a slow-down
    tests/soak/soak.py --rate 30 --seconds 60  # overhead and latency at a camera's pace

Memory is the resident size of the process, from /proc; it may grow by 1 MB
over the last 90 % of the frames. The 99th percentile of the latency of the
last tenth may be 10 % above that of the first. At a camera's pace the time of
preprocessing and encoding is taken from the process's CPU time; what is left
is the overhead, in percent of a core. Nothing here needs more than Python.
"""

import argparse
import json
import os
import subprocess
import sys
import time

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * PAGE


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numclip", default="target/release/numclip")
    parser.add_argument("--model", default="models/gauge")
    parser.add_argument("--source", help="an address; plain 64-pixel frames without it")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, help="frames in a second, of a camera that does not wait")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("flags", nargs="*", help="more flags for numclip run, after --")
    options = parser.parse_args()

    frames = options.frames
    command = [options.numclip, "run", "--model", options.model, "--json"]
    if options.rate:
        frames = int(options.rate * options.seconds)
        pause = 1 / options.rate
        frame = "head -c 921600 /dev/urandom > $f"
        plain = (f"f=$(mktemp); {frame}; while cat $f; do sleep {pause:.4f}; done"
                 "?format=rgb&size=640x480")
    else:
        command += ["--every-frame"]
        plain = "cat /dev/urandom?format=rgb&size=64x64"
    command += ["--source", options.source or f"cmd:{plain}", *options.flags]

    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    latency, beside, engine = [], [], 0.0
    memory = []
    start = time.monotonic()
    for count, line in enumerate(child.stdout):
        times = json.loads(line)["latency_ms"]
        latency.append(times["total"])
        beside.append(times["total"] - times["preprocess"] - times["encode"])
        engine += times["preprocess"] + times["encode"]
        if count % max(frames // 200, 1) == 0:
            memory.append(resident(child.pid))
            if sys.stderr.isatty():
                print(f"\r{count} frames, {memory[-1] / 1e6:.1f} MB", end="", file=sys.stderr)
        if count + 1 == frames:
            break
    seconds = time.monotonic() - start
    cpu = cpu_seconds(child.pid)
    child.terminate()
    child.stdout.close()
    child.wait()

    tenth = max(len(latency) // 10, 1)
    first, last = (percentile(part, 0.99) for part in (latency[:tenth], latency[-tenth:]))
    settled = memory[len(memory) // 10:]
    growth = max(settled) - settled[0]
    report = {
        "frames": len(latency),
        "frames_per_second": round(len(latency) / seconds, 1),
        "resident_mb": [round(settled[0] / 1e6, 2), round(settled[-1] / 1e6, 2)],
        "growth_mb": round(growth / 1e6, 3),
        "latency_p99_ms": [round(first, 3), round(last, 3)],
        "beside_engine_ms": {p: round(percentile(beside, float(p)), 3) for p in ("0.5", "0.99")},
    }
    if options.rate:
        report["overhead_percent_of_core"] = round(100 * (cpu - engine / 1e3) / seconds, 2)
    print(json.dumps(report))
    sound = len(latency) == frames and growth <= 1e6 and last <= 1.1 * first
    sys.exit(0 if options.rate or sound else 1)


main()
