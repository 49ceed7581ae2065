#!/bin/sh
# Packs the crate with the built page, so that `cargo install` needs no Node.
set -eu
. "$(dirname "$0")/common.sh"
cd "$repository"

[ -f web/dist/page/index.html ] || die "the page is not built; run: make web"
# check.sh builds the packed crate; here it would be built once more.
cargo package --quiet --locked --no-verify --allow-dirty
cp "target/package/cellkeep-$version.crate" "$artifacts"
for file in web/dist/page/index.html web/dist/vega.js languages/python.toml kernel-images/python/kernel.json Cargo.lock; do
    tar -tzf "$artifacts/cellkeep-$version.crate" | grep -qx "cellkeep-$version/$file" || die "the crate has no $file"
done
made "$artifacts/cellkeep-$version.crate"
