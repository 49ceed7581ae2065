#!/bin/sh
# Downloads the public notebooks on which the tests compare Cellkeep with nbclient and nbformat, and the wheel of ipywidgets,
# which some of them use.
#
# Idempotent, and silent if there is nothing to do. The first run takes about 15 s.
set -eu
. "$(dirname "$0")/common.sh"

sources=$repository/target/notebook-sources
list=$repository/scripts/notebook-sources.txt
cmp -s "$list" "$sources/made-from.txt" && exit 0

say "downloading public notebooks into target/notebook-sources"
pip="$repository/target/test-venv/bin/python -m pip --disable-pip-version-check"
rm -rf "$sources"
mkdir -p "$sources"
# Only these packages as sources, not `:all:`: pip builds the metadata of each, and would compile even the build tools for it.
packages=$(sed -n 's/^\([a-z]*\)==.*/\1/p' "$list" | paste -sd, -)
$pip download --quiet --require-hashes --no-deps --no-binary "$packages" --dest "$sources" -r "$list"
wheel=$(mktemp)
echo 'ipywidgets==8.1.7 --hash=sha256:764f2602d25471c213919b8a1997df04bef869251db4ca8efba1b76b1bd9f7bb' >"$wheel"
$pip download --quiet --require-hashes --no-deps --only-binary :all: --dest "$sources" -r "$wheel"
rm "$wheel"
for archive in "$sources"/*.tar.gz; do
    tar -xzf "$archive" -C "$sources" --wildcards '*.ipynb'
done
cp "$list" "$sources/made-from.txt"
