#!/bin/sh
# Writes SHA256SUMS of all artifacts.
set -eu
. "$(dirname "$0")/common.sh"

cd "$artifacts"
rm -f SHA256SUMS
sha256sum -- * >"$artifacts.sums"
mv "$artifacts.sums" SHA256SUMS
made "$artifacts/SHA256SUMS"
