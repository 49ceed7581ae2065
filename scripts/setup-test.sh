#!/bin/sh
# What `make test` needs: everything of `make demo`, a container engine with a base image, cargo-nextest, the R packages
# of the R kernel (the process sandbox runs the host's), a Chromium that opens exported pages, and Jupyter's own clients, which
# the tests use as oracles.
#
# Idempotent. Silent when nothing is to be done; otherwise one line per step. Root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

sh "$repository/scripts/setup-demo.sh"
sh "$repository/scripts/setup-docker.sh"

if ! cargo nextest --version >/dev/null 2>&1; then
    say "building cargo-nextest (several minutes, once)"
    cargo install --quiet --locked cargo-nextest
fi

missing=
# Exported pages are opened in a browser.
command -v chromium >/dev/null || missing="chromium fonts-dejavu-core"
while read -r package; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done <"$repository/kernel-images/r/apt.txt"
# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing

# The copy inside the environment tells which requirements it was made from, and that it was made to the end.
requirements=$repository/scripts/test-requirements.txt
venv=$repository/target/test-venv
if ! cmp -s "$requirements" "$venv/made-from.txt"; then
    say "making target/test-venv"
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/made-from.txt"
fi

sh "$repository/scripts/notebook-sources.sh"
