#!/usr/bin/env bash
# A machine with a camera and nothing else, from the Debian package to estimates:
# Debian boots in a virtual machine, with systemd; the package is installed, a
# model flashed, the machine rebooted; its service estimates what the kernel's
# camera simulation (vivid) shows. Then the service hangs, the clock is wrong,
# and the agent brings another model.
#
#     apt install mmdebstrap qemu-system-x86 qemu-system-arm qemu-user-static \
#         binfmt-support arch-test e2fsprogs busybox-static kmod cpio
#     tests/deb/boot.sh target/debian/numclip_*_amd64.deb
#     tests/deb/boot.sh target/debian/numclip_*_arm64.deb
#
# The package has to be built with the feature camera, as .ci/deb does. NUMCLIP
# names a program for this machine, which packs and signs; without it, one is
# built. Wants to be root, for mmdebstrap; what it downloads is kept in
# target/boot. An emulated machine takes some minutes; ACCELERATE=kvm is faster.
set -euo pipefail
deb=$(realpath "$1")
cd "$(dirname "$0")/../.."
here=$PWD/tests/deb
arch=$(dpkg-deb --field "$deb" Architecture)
place=$PWD/target/boot/$arch
mkdir -p "$place"

if [ -z "${NUMCLIP:-}" ]; then
  cargo build --release --locked
  NUMCLIP=target/release/numclip
fi

case $arch in
  amd64)
    emulator=(qemu-system-x86_64 -machine q35 -cpu max)
    console=ttyS0
    ;;
  arm64)
    emulator=(qemu-system-aarch64 -machine virt -cpu cortex-a72)
    console=ttyAMA0
    ;;
  *)
    echo "no machine for $arch" >&2
    exit 2
    ;;
esac

# Debian as small as it gets, once.
if [ ! -e "$place/debian.tar" ]; then
  mmdebstrap --architectures="$arch" --variant=essential --include=systemd-sysv,udev,kmod \
    bookworm "$place/debian.partial.tar" http://deb.debian.org/debian
  mv "$place/debian.partial.tar" "$place/debian.tar"
fi
# Its kernel, and a shell for the moment before the disk is there.
if [ ! -d "$place/kernel/boot" ]; then
  rm -rf "$place/archive" "$place/kernel"
  mkdir -p "$place/archive"
  pool=http://deb.debian.org/debian
  curl -sf "$pool/dists/bookworm/main/binary-$arch/Packages.xz" | xz -d > "$place/archive/Packages"
  # field PACKAGE FIELD
  field() { awk -v package="$1" -v field="$2:" '$1 == "Package:" { found = $2 == package } found && $1 == field { sub(/^[^ ]* /, ""); print; exit }' "$place/archive/Packages"; }
  image=$(field "linux-image-$arch" Depends | grep -o 'linux-image-[^ ,]*' | head -n 1)
  for package in "$image" busybox-static; do
    curl -sf "$pool/$(field "$package" Filename)" -o "$place/archive/$package.deb"
    echo "$(field "$package" SHA256)  $place/archive/$package.deb" | sha256sum --check --quiet
    dpkg -x "$place/archive/$package.deb" "$place/kernel.partial"
  done
  mv "$place/kernel.partial" "$place/kernel"
fi
version=$(basename "$place"/kernel/lib/modules/*)
depmod --basedir "$place/kernel" "$version"

# What the machine starts with: the modules for its disk, and the way there.
first=$place/first
rm -rf "$first"
mkdir -p "$first"/{bin,dev,disk,modules}
cp "$place/kernel/bin/busybox" "$first/bin/busybox"
order=()
for module in virtio_pci virtio_blk ext4; do
  while read -r _ path; do
    [ ! -e "$first/modules/$(basename "$path")" ] || continue
    cp "$path" "$first/modules/"
    order+=("$(basename "$path")")
  done < <(modprobe --dirname "$place/kernel" --set-version "$version" --show-depends "$module" | grep '^insmod')
done
cat > "$first/init" <<EOF
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs none /dev
for module in ${order[*]}; do /bin/busybox insmod /modules/\$module; done
/bin/busybox mount -t ext4 /dev/vda /disk || /bin/busybox poweroff -f
exec /bin/busybox switch_root /disk /sbin/init
EOF
chmod +x "$first/init"
(cd "$first" && find . | cpio -o -H newc --quiet | gzip -1) > "$place/first.gz"

# Its disk: Debian, the package, two models and who signed them.
root=$place/root
rm -rf "$root"
mkdir -p "$root"
tar -xf "$place/debian.tar" -C "$root" --exclude './dev/*'
mkdir -p "$root/lib/modules" "$root/proof"
cp -r "$place/kernel/lib/modules/$version" "$root/lib/modules/"
cp "$deb" "$root/proof/numclip.deb"
cp "$here/guest.sh" "$root/proof/guest.sh"
"$NUMCLIP" keygen "$root/proof/release" --no-passphrase > /dev/null
for model in gauge tomato-freshness; do
  "$NUMCLIP" pack "models/$model" --output "$root/proof/$model"
  "$NUMCLIP" sign "$root/proof/$model" --key "$root/proof/release.key"
  sha256=$(sha256sum "models/$model/bundle.toml" | cut -d' ' -f1)
  echo "{\"rollout\": \"$model\", \"sha256\": \"$sha256\", \"package\": \"$model\"}" > "$root/proof/$model.json"
done
cat > "$root/etc/systemd/system/proof.service" <<EOF
[Unit]
Description=What is to be proved
[Service]
ExecStart=/bin/sh /proof/guest.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/$console
[Install]
WantedBy=multi-user.target
EOF
ln -sf ../proof.service "$root/etc/systemd/system/multi-user.target.wants/proof.service"
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@$console.service"
rm -f "$place/disk"
mke2fs -q -t ext4 -d "$root" "$place/disk" 2G

# Until the machine goes off, or reboots.
boot() {
  timeout "${TIMEOUT:-900}" "${emulator[@]}" -accel "${ACCELERATE:-tcg,thread=multi}" -smp 2 -m 1024 \
    -display none -nodefaults -no-reboot -kernel "$place/kernel/boot/vmlinuz-$version" \
    -initrd "$place/first.gz" -append "console=$console quiet panic=-1 systemd.show_status=no" \
    -drive "file=$place/disk,format=raw,if=virtio,cache=unsafe" \
    -serial stdio -monitor none < /dev/null | tee -a "$place/log"
}
: > "$place/log"
boot
boot

if grep -q '^FAIL' "$place/log" || ! grep -q '^DONE' "$place/log"; then
  echo "boot: failed"
  exit 1
fi
echo "boot: all passed"
