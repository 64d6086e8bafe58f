#!/usr/bin/env bash
# Builds the smallest program that runs a bundle, from nothing, and holds it to
# 4 MB; how long that took on how many processors is printed beside the 90 s that
# two idle ones may take. Then runs it on the bundle's samples.
#
#     tests/small/check.sh [BUNDLE]
set -euo pipefail
cd "$(dirname "$0")/../.."

bundle=${1:-models/gauge}
most=4000000
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

started=$(date +%s)
CARGO_INCREMENTAL=0 cargo build --release --locked --target-dir "$folder" -p numclip-estimate
seconds=$(($(date +%s) - started))
bytes=$(stat -c %s "$folder/release/estimate")
echo "$bytes bytes (at most $most); built in $seconds s on $(nproc) processors, load $(cut -d' ' -f1 /proc/loadavg) (asked: 90 s on two idle ones)"
[ "$bytes" -le "$most" ] || exit 1

mapfile -t samples < <(find "$bundle/samples" -name '*.png' -o -name '*.jpg' | sort)
lines=$("$folder/release/estimate" "$bundle" "${samples[@]}")
echo "$lines"
[ "$(grep -c '"value":' <<<"$lines")" = "${#samples[@]}" ]
