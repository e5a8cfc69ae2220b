#!/bin/bash
# Puts what the guests of the rigs run into .build/rig: Debian's kernel for virtual
# machines with the modules that they need, and a static busybox. Quick when it is
# all there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rig=$root/.build/rig
modules="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover virtio_net libnvdimm nd_btt nd_pmem nd_e820"

if [ -e "$rig/complete" ]; then
	echo "the rigs' kernel is in $rig: $(cat "$rig/complete")"
	exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)
fetch() {
	kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/{print $2; exit}')
	[ -n "$kernel" ] && (cd "$work" && apt-get download -q "$kernel" busybox-static)
}
for try in 1 2 3; do
	fetch && break
	[ "$try" = 3 ] && { echo "the packages of the rigs' kernel could not be fetched" >&2; exit 1; }
	"${sudo[@]}" apt-get update -q || sleep 5
done
for deb in "$work"/*.deb; do
	dpkg-deb -x "$deb" "$work/tree"
done
rm -rf "$rig"
mkdir -p "$rig/modules"
cp "$work"/tree/boot/vmlinuz-* "$rig/vmlinuz"
cp "$(find "$work/tree" -path "*bin/busybox" -type f)" "$rig/busybox"
n=0
for m in $modules; do
	cp "$(find "$work/tree" -name "$m.ko")" "$rig/modules/$(printf %02d-%s.ko $n "$m")"
	n=$((n + 1))
done
basename "$(echo "$work"/tree/lib/modules/* "$work"/tree/usr/lib/modules/* | tr ' ' '\n' | grep -v '\*' | head -1)" >"$rig/complete"
echo "the rigs' kernel is in $rig: $(cat "$rig/complete")"
