#!/bin/sh
# Fetches the public notebooks that the tests compare with nbclient and nbformat, and ipywidgets, which some of them use, as one file.
#
# Idempotent and silent when nothing is to be done. A quarter of a minute the first time.
set -eu
. "$(dirname "$0")/common.sh"

sources=$repository/target/notebook-sources
list=$repository/scripts/notebook-sources.txt
cmp -s "$list" "$sources/made-from.txt" && exit 0

say "fetching public notebooks into target/notebook-sources"
pip="$repository/target/test-venv/bin/python -m pip --disable-pip-version-check"
rm -rf "$sources"
mkdir -p "$sources"
# Only these as sources: pip asks each for its metadata, and would compile even the tools for that (`:all:`).
packages=$(sed -n 's/^\([a-z]*\)==.*/\1/p' "$list" | paste -sd, -)
$pip download --quiet --require-hashes --no-deps --no-binary "$packages" --dest "$sources" -r "$list"
wheel=$(mktemp)
echo 'ipywidgets==8.1.7 --hash=sha256:764f2602d25471c213919b8a1997df04bef869251db4ca8efba1b76b1bd9f7bb' >"$wheel"
$pip download --quiet --require-hashes --no-deps --only-binary :all: --dest "$sources" -r "$wheel"
rm "$wheel"
for archive in "$sources"/*.tar.gz; do
    # Only the notebooks and what they read.
    tar -xzf "$archive" -C "$sources" --wildcards '*.ipynb'
done
cp "$list" "$sources/made-from.txt"
