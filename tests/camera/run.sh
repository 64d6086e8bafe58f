#!/usr/bin/env bash
# Real V4L2 cameras in a virtual machine: every pixel format, and what goes
# wrong with cameras. No camera, no root and no hardware support is needed, but
# Debian or Ubuntu:
#
#   apt install qemu-system-x86 busybox-static cpio gcc make v4l-utils ffmpeg libclang-dev
#   tests/camera/run.sh
#
# Kernel, headers and v4l2loopback come from the distribution's archive and are
# unpacked under target/camera-vm, not installed. NUMCLIP names a binary built
# with the feature camera; without it, one is built.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/tests/camera
place=$PWD/target/camera-vm
mkdir -p "$place/packages"

if [[ -z ${NUMCLIP:-} ]]; then
    cargo build --release --features camera
    NUMCLIP=target/release/numclip
fi

if [[ ! -d $place/tree/boot ]]; then
    depends() { apt-cache depends "$1" | sed -n "s/.*Depends: \($2\)/\1/p" | head -n 1; }
    image=$(depends linux-image-amd64 'linux-image-.*')
    headers=$(depends linux-headers-amd64 'linux-headers-.*')
    common=$(depends "$headers" 'linux-headers-.*-common')
    kbuild=$(depends "$headers" 'linux-kbuild-.*')
    (cd "$place/packages" && apt-get download "$image" "$headers" "$common" "$kbuild" v4l2loopback-dkms)
    for package in "$place"/packages/*.deb; do dpkg -x "$package" "$place/tree"; done
fi
kernel=$(basename "$place"/tree/lib/modules/*)
modules=$place/tree/lib/modules/$kernel/kernel
loopback=$(echo "$place"/tree/usr/src/v4l2loopback-*)

if [[ ! -f $loopback/v4l2loopback.ko ]]; then
    # The headers are written for /usr/src and /usr/lib.
    sources=$place/tree/usr/src
    grep -rlI --include=Makefile --include='.kernelvariables' '/usr/\(src\|lib\)/linux-' "$sources/linux-headers-$kernel" \
        | xargs -r sed -i "s#\(^\|[ =]\)/usr/\(src\|lib\)/linux-#\1$place/tree/usr/\2/linux-#g"
    for link in scripts tools; do
        kbuild=$(echo "$place"/tree/usr/lib/linux-kbuild-*)
        for base in "$sources/linux-headers-$kernel" "$sources"/linux-headers-*-common; do
            [[ -L $base/$link ]] && ln -sfn "$kbuild/$link" "$base/$link"
        done
    done
    make -C "$sources/linux-headers-$kernel" M="$loopback" modules > "$place/loopback.log" 2>&1 \
        || { tail "$place/loopback.log"; exit 1; }
fi

root=$place/root
rm -rf "$root"
mkdir -p "$root"/{bin,proc,sys,dev,tmp,modules,pictures}
busybox=$(command -v busybox)
cp "$busybox" "$root/bin/busybox"
for applet in sh mount cat cut insmod rmmod wc tail sed awk seq sleep grep kill poweroff; do
    ln -s busybox "$root/bin/$applet"
done
gcc -O1 -o "$place/feed" "$here/feed.c"
for program in "$NUMCLIP" "$(command -v v4l2-ctl)" "$place/feed"; do
    cp "$program" "$root/bin/"
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
[[ -e $root/bin/numclip ]] || mv "$root/bin/$(basename "$NUMCLIP")" "$root/bin/numclip"
cp -r models/gauge "$root/model"
rm -rf "$root/model/samples"
cp "$here/init.sh" "$root/init"
chmod +x "$root/init"

# Modules in the order in which they need each other.
order=()
need() {
    local name=$1 file
    [[ " ${order[*]} " == *" $name "* ]] && return
    file=$(find "$modules" "$loopback" -name "$name.ko" -o -name "${name//_/-}.ko" | head -n 1)
    [[ -n $file ]] || return 0 # built into the kernel
    for other in $(tr '\0' '\n' < "$file" | sed -n 's/^depends=//p' | tr ',' ' '); do need "$other"; done
    cp "$file" "$root/modules/$name.ko"
    order+=("$name")
}
need vivid
need v4l2loopback
echo "${order[@]}" > "$root/modules/order"

# One gauge in every pixel format.
sample=models/gauge/samples/000000.jpg
"$NUMCLIP" predict --model models/gauge "$sample" --json | sed 's/.*"value":\([-0-9.]*\).*/\1/' > "$root/pictures/expected"
raw() { ffmpeg -loglevel error -y -i "$sample" -vf scale=320:320 -pix_fmt "$1" -f rawvideo "$root/pictures/$2"; }
raw yuyv422 yuyv
raw uyvy422 uyvy
raw nv12 nv12
raw rgb24 rgb
raw bgr24 bgr
raw gray grey
ffmpeg -loglevel error -y -i "$sample" -vf scale=320:320 -q:v 2 -pix_fmt yuvj420p -frames:v 1 -f mjpeg "$root/pictures/mjpeg"

(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$place/initrd.gz"
timeout "${TIMEOUT:-180}" qemu-system-x86_64 -accel "${ACCELERATE:-tcg,thread=multi}" -machine q35 -cpu max -smp 2 -m 768 \
    -display none -nodefaults -no-reboot -kernel "$place/tree/boot/vmlinuz-$kernel" \
    -initrd "$place/initrd.gz" -append "console=ttyS0 quiet panic=-1" \
    -serial stdio -monitor none < /dev/null | tee "$place/log"

if grep -q '^FAIL' "$place/log" || ! grep -q '^DONE' "$place/log"; then
    echo "cameras: failed"
    exit 1
fi
echo "cameras: all passed"
