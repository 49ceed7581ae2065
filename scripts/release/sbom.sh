#!/bin/sh
# Writes the software bills of materials, as CycloneDX: the crates in the binary and its agent, and the npm packages in the
# page and its element.
set -eu
. "$(dirname "$0")/common.sh"
cd "$repository"

PATH=$tools/bin:$PATH
name=cellkeep-$version
cargo cyclonedx --quiet --all-features --target "$target" --format json --spec-version 1.5 \
    --override-filename "$name-crates.cdx"
# Without the path of this checkout.
sed "s,path+file://$repository#,," "$name-crates.cdx.json" >"$artifacts/$name-crates.cdx.json"
rm "$name-crates.cdx.json"
made "$artifacts/$name-crates.cdx.json"

# `npm sbom` needs a version in package.json, and a newer npm than Debian's.
folder=$(mktemp -d)/cellkeep-web
mkdir "$folder"
sed "s/\"private\"/\"version\": \"$version\", &/" web/package.json >"$folder/package.json"
cp web/package-lock.json "$folder"
(cd "$folder" && npm exec --yes --package npm@10 -- npm sbom --package-lock-only --sbom-format cyclonedx) \
    >"$artifacts/$name-page.cdx.json"
rm -r "$(dirname "$folder")"
made "$artifacts/$name-page.cdx.json"
