#!/usr/bin/env bash
# Runs the tests of the int8 engine and of the resampler, and the golden vectors
# of a bundle, on emulated ARM processors: one with plain NEON, one with dot
# products, one with matrix products of bytes. Emulation tells whether results
# are right, not how fast they come.
#
#     rustup target add aarch64-unknown-linux-gnu
#     sudo apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
#     tests/arm/qemu.sh [BUNDLE]
set -euo pipefail
cd "$(dirname "$0")/../.."

bundle=${1:-models/gauge}
target=aarch64-unknown-linux-gnu
sysroot=/usr/aarch64-linux-gnu

missing() {
  echo "missing: $1; it comes with: $2" >&2
  exit 2
}
command -v qemu-aarch64 >/dev/null || missing qemu-aarch64 "apt-get install qemu-user"
command -v aarch64-linux-gnu-gcc >/dev/null || missing aarch64-linux-gnu-gcc "apt-get install gcc-aarch64-linux-gnu"
[ -e "$sysroot/lib/ld-linux-aarch64.so.1" ] || missing "$sysroot" "apt-get install libc6-dev-arm64-cross"
[ -d "$(rustc --print sysroot)/lib/rustlib/$target" ] || missing "the standard library for $target" "rustup target add $target"

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
build=(--release --target "$target" -p numclip --no-default-features --features "cli,int8")
cargo build "${build[@]}"
numclip=${CARGO_TARGET_DIR:-target}/$target/release/numclip

# on CPU COMMAND…
on() {
  local cpu=$1
  shift
  qemu-aarch64 -cpu "$cpu" -L "$sysroot" "$@"
}

# check CPU ISA…: the sets of kernels that this processor has, and no other.
check() {
  local cpu=$1 isa
  shift
  printf '\n== %s: %s\n' "$cpu" "$*"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L $sysroot" \
    cargo test "${build[@]}" --lib -- int8 resample
  for isa in neon-i8mm neon-dotprod neon scalar; do
    if [[ " $* " == *" $isa "* ]]; then
      NUMCLIP_ISA=$isa on "$cpu" "$numclip" verify "$bundle"
    elif NUMCLIP_ISA=$isa on "$cpu" "$numclip" verify "$bundle" 2>/dev/null; then
      echo "$cpu runs $isa, which it should not have" >&2
      exit 1
    fi
  done
}

check cortex-a53 neon scalar
check cortex-a76 neon-dotprod neon scalar
check max,sve=off neon-i8mm neon-dotprod neon scalar
echo "all sets of kernels agree"
