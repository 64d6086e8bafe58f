#!/usr/bin/env bash
# Installs a Debian package into a folder, as root, and uses what is in it:
# pages, completions, unit, user, settings, and the program, by which a model is
# packed, signed, flashed, verified and asked. Packages for ARM run on an
# emulated Cortex-A53.
#
#     .ci/deb && tests/deb/check.sh target/debian/numclip_*_amd64.deb
#     .ci/deb aarch64-unknown-linux-gnu && tests/deb/check.sh target/debian/numclip_*_arm64.deb
set -euo pipefail
deb=$(realpath "$1")
cd "$(dirname "$0")/../.."

root=$(mktemp -d)
chmod 755 "$root"
trap 'rm -rf "$root"' EXIT

fail() {
  echo "$*" >&2
  exit 1
}

case $(dpkg-deb --field "$deb" Architecture) in
  "$(dpkg --print-architecture)") runner=() ;;
  arm64) runner=(qemu-aarch64 -cpu cortex-a53 -L /usr/aarch64-linux-gnu) ;;
  *) fail "no way to run $deb here" ;;
esac
dpkg-deb --info "$deb"

mkdir -p "$root"/etc "$root"/var/lib/dpkg/{info,updates,triggers}
touch "$root"/var/lib/dpkg/{status,available}
here=(dpkg --root="$root" --log=/dev/null --force-architecture --force-depends --force-script-chrootless)
"${here[@]}" --install "$deb"

echo "== what it brought"
numclip() { "${runner[@]}" "$root/usr/bin/numclip" "$@"; }
numclip --version
pages=("$root"/usr/share/man/man1/numclip*.gz)
for page in "${pages[@]}"; do
  zcat "$page" | grep -q '^\.TH numclip' || fail "$page is no page"
done
[ ${#pages[@]} -gt 15 ] || fail "${#pages[@]} pages"
bash -n "$root/usr/share/bash-completion/completions/numclip"
[ -e "$root/usr/lib/systemd/system/numclip-agent.service" ] || [ -e "$root/lib/systemd/system/numclip-agent.service" ] || fail "no unit of the agent"
grep -q '^numclip:' "$root/etc/passwd" || fail "no user"
grep -q '^video:.*numclip' "$root/etc/group" || fail "not in the group video"
[ -L "$root/etc/systemd/system/multi-user.target.wants/numclip.service" ] || fail "not enabled"
[ ! -e "$root/etc/systemd/system/multi-user.target.wants/numclip-agent.service" ] || fail "the agent is enabled, and has nobody to hear"
numclip config check "$root/etc/numclip/numclip.toml"

echo "== a model on it"
work=$root/work
mkdir "$work"
numclip keygen "$work/release" --no-passphrase
cp "$work/release.pub" "$root/var/lib/numclip/trust.d/"
numclip pack models/gauge --output "$work/gauge"
numclip pack models/gauge --cartridge --output "$work/task"
# There is no service to be told here.
: > "$root/var/lib/numclip/device.toml"
for package in gauge task; do
  numclip sign "$work/$package" --key "$work/release.key"
  numclip flash "$work/$package" "dir://$root/var/lib/numclip"
done
numclip verify "$root/var/lib/numclip"
numclip predict --model "$root/var/lib/numclip" models/gauge/samples

echo "== and gone again"
"${here[@]}" --purge numclip
for path in usr/bin/numclip etc/numclip/numclip.toml etc/numclip/agent var/lib/numclip; do
  [ ! -e "$root/$path" ] || fail "$path is left"
done
echo "the package is right"
