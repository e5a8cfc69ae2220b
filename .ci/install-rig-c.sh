#!/bin/bash
# Installs what rig C needs beyond the other tests: kexec for the host that it boots,
# and the kernel of the rigs. Quick when it is all there.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v kexec >/dev/null 2>&1 && [ ! -x /usr/sbin/kexec ]; then
	sudo=()
	[ "$(id -u)" = 0 ] || sudo=(sudo)
	for try in 1 2 3; do
		"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends kexec-tools && break
		[ "$try" = 3 ] && { echo "kexec-tools could not be installed" >&2; exit 1; }
		"${sudo[@]}" apt-get update -q || sleep 5
	done
fi
bash .ci/install-rig-kernel.sh
