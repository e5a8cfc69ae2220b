#!/usr/bin/env bash
# Builds the InfluxDB 1.8.10 server that the tests run, from the Go module proxy,
# into .build/bin, unless one of that version is there or on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
version=1.8.10
for candidate in "$(command -v influxd || true)" .build/bin/influxd; do
  if [ -n "$candidate" ] && [ -x "$candidate" ] && "$candidate" version 2>/dev/null | grep -q "v$version"; then
    exit 0
  fi
done
mkdir -p .build/bin
echo "building influxd $version, which takes a minute or two" >&2
cd /
CGO_ENABLED=0 GOFLAGS=-mod=mod GOBIN="$OLDPWD/.build/bin" \
  go install -ldflags "-s -w -X main.version=$version" "github.com/influxdata/influxdb/cmd/influxd@v$version"
