#!/usr/bin/env bash
# Uses a program that is linked statically: that it needs no library, and that its
# engines, signatures and store work. One for ARM runs on an emulated Cortex-A53,
# without any file of such a system.
#
#     .ci/deb aarch64-unknown-linux-musl
#     tests/deb/static.sh target/aarch64-unknown-linux-musl/release/numclip
set -euo pipefail
program=$(realpath "$1")
cd "$(dirname "$0")/../.."

if readelf --dynamic "$program" | grep NEEDED || readelf --segments "$program" | grep INTERP; then
  echo "$program is not static" >&2
  exit 1
fi
case $(readelf --file-header "$program" | sed -n 's/ *Machine: *//p') in
  AArch64) runner=(qemu-aarch64 -cpu cortex-a53 -L /nonexistent) ;;
  *) runner=() ;;
esac
numclip() { "${runner[@]}" "$program" "$@"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
numclip --version
numclip verify models/gauge
numclip keygen "$work/release" --no-passphrase
numclip pack models/gauge --output "$work/gauge"
numclip sign "$work/gauge" --key "$work/release.key"
numclip flash "$work/gauge" "dir://$work/store" --trust "$work/release.pub"
numclip predict --model "$work/store" models/gauge/samples
echo "the program is right"
