#!/bin/sh
# Packs the binary of binary.sh as a Debian package, with a systemd unit. Its metadata is in Cargo.toml.
set -eu
. "$(dirname "$0")/common.sh"
cd "$repository"

PATH=$tools/bin:$PATH
package=$artifacts/cellkeep_${version}_$(dpkg --print-architecture).deb
cargo deb --quiet --locked --no-build --no-strip --profile dist --target "$target" --output "$package" >/dev/null
made "$package"
