#!/bin/bash
# Installs influxd 1.8.10, the InfluxDB that the tests run against, from the Go
# module proxy: install-influxd.sh [DIRECTORY], by default .build/bin of this
# repository. Does nothing where that version is there already or on the PATH.
set -euo pipefail

version=1.8.10
root=$(cd "$(dirname "$0")/.." && pwd)
directory=${1:-$root/.build/bin}

right() { [ -x "$1" ] && "$1" version 2>/dev/null | grep -q "v$version "; }

if found=$(command -v influxd) && right "$found"; then
	echo "influxd $version is at $found"
	exit 0
fi
if right "$directory/influxd"; then
	echo "influxd $version is at $directory/influxd"
	exit 0
fi
mkdir -p "$directory"
echo "building influxd $version into $directory, which takes a minute or two"
# Outside of this module, so that its go.mod is left alone.
cd /
for try in 1 2 3; do
	GOBIN=$(realpath "$directory") GOFLAGS= CGO_ENABLED=0 go install -ldflags "-s -w -X main.version=$version" \
		"github.com/influxdata/influxdb/cmd/influxd@v$version" && break
	[ "$try" = 3 ] && { echo "influxd could not be built" >&2; exit 1; }
	sleep 5
done
right "$directory/influxd" || { echo "the influxd that was built is not $version" >&2; exit 1; }
