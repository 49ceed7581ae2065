#!/bin/sh
# Installs what `make test` needs: everything for `make demo`, a container engine with a base image, cargo-nextest, the Debian
# packages of the R kernel and of the commands (the process sandbox runs those of the host), Chromium to open exported pages,
# slirp4netns for open networks, and the Jupyter clients that the tests use as oracles.
#
# Idempotent. Prints one line per step, and nothing if there is nothing to do. Needs root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

sh "$repository/scripts/setup-demo.sh"
sh "$repository/scripts/setup-docker.sh"

if ! cargo nextest --version >/dev/null 2>&1; then
    say "building cargo-nextest (several minutes, once)"
    cargo install --quiet --locked cargo-nextest
fi

missing=
# The tests open exported pages in a browser.
command -v chromium >/dev/null || missing="chromium fonts-dejavu-core"
# Sessions with an open network.
command -v slirp4netns >/dev/null || missing="$missing slirp4netns"
for package in $(cat "$repository/kernel-images/r/apt.txt" "$repository/kernel-images/common/packages.txt"); do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing

# The environment contains a copy of its requirements. The copy is written last, so it also shows that the setup is complete.
requirements=$repository/scripts/test-requirements.txt
venv=$repository/target/test-venv
if ! cmp -s "$requirements" "$venv/made-from.txt"; then
    say "making target/test-venv"
    rm -rf "$venv"
    /usr/bin/python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$requirements"
    cp "$requirements" "$venv/made-from.txt"
fi

# The sandbox clients of two versions of the NeMo agent toolkit, without what else it needs.
for requirements in "$repository"/scripts/nat-*.txt; do
    folder=$repository/target/$(basename "$requirements" .txt)
    if ! cmp -s "$requirements" "$folder/made-from.txt"; then
        say "making $(realpath --relative-to="$repository" "$folder")"
        rm -rf "$folder"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --no-deps \
            --target "$folder" -r "$requirements"
        cp "$requirements" "$folder/made-from.txt"
    fi
done

sh "$repository/scripts/notebook-sources.sh"
