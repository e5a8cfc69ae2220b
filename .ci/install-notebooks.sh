#!/bin/bash
# Installs what `make notebooks` needs: Jupyter's nbconvert from Debian, and into
# .build/notebooks the Go kernel gonb in the version of tools/gonb/go.mod, with the
# goimports that it calls. Quick when it is all there.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
bin=$root/.build/notebooks/bin
kernels=$root/.build/notebooks/jupyter/kernels

if ! command -v jupyter-nbconvert >/dev/null 2>&1; then
	sudo=()
	[ "$(id -u)" = 0 ] || sudo=(sudo)
	for try in 1 2 3; do
		"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
			jupyter-nbconvert jupyter-client python3-ipykernel && break
		[ "$try" = 3 ] && { echo "jupyter-nbconvert could not be installed" >&2; exit 1; }
		"${sudo[@]}" apt-get update -q || sleep 5
	done
fi

if [ ! -e "$bin/complete" ] || ! cmp -s "$bin/complete" tools/gonb/go.sum; then
	mkdir -p "$bin"
	(cd tools/gonb && CGO_ENABLED=0 go build -o "$bin/gonb" github.com/janpfeifer/gonb &&
		CGO_ENABLED=0 go build -o "$bin/goimports" golang.org/x/tools/cmd/goimports)
	cp tools/gonb/go.sum "$bin/complete"
fi
mkdir -p "$kernels/gonb"
cat >"$kernels/gonb/kernel.json" <<EOF
{"argv": ["$bin/gonb", "--kernel", "{connection_file}"], "display_name": "Go (gonb)", "language": "go"}
EOF
echo "gonb is at $bin/gonb"
