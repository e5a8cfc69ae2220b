#!/usr/bin/env bash
# Installs what the tests need and this machine lacks. Quick when all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
need() { # COMMAND PACKAGE
  command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}
need qemu-system-x86_64 qemu-system-x86
need systemd-nspawn systemd-container
need dbus-daemon dbus
need ip iproute2
need zstd zstd
need pgrep procps
need tar tar
need stress-ng stress-ng
need nft nftables
need libvirtd libvirt-daemon
need ipmi_sim openipmi
need mke2fs e2fsprogs
need chromium chromium

if [ ${#packages[@]} -gt 0 ]; then
  sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  for try in 1 2 3; do
    "${sudo[@]}" apt-get update -q &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}" && break
    [ "$try" = 3 ] && { echo "${packages[*]} could not be installed" >&2; exit 1; }
    sleep 5
  done
fi

bash .ci/install-influxd.sh
