#!/bin/sh
# Pins the Python packages that set-up installs: from each requirements.in, the versions and hashes of requirements.txt beside it.
# `make pins` keeps the versions that are there; `UPGRADE=1 make pins` takes the latest ones. Needs uv (PATH, or Cellkeep's own).
#
# All are wheels for Debian 12's Python, so nothing is built, and no code of a package runs while it is installed. The hashes are
# those of all platforms. The first line of the output has the hash of the input; a test compares it.
set -eu
. "$(dirname "$0")/common.sh"
cd "$repository"

uv=$(command -v uv || echo "${CELLKEEP_DATA:-/var/lib/cellkeep}/tools/bin/uv")
[ -x "$uv" ] || die "there is no uv; run: cellkeep kernels install bash"

# pin INPUT: bench-requirements.in is installed into the environment of test-requirements.in, so it agrees with its versions.
pin() {
    input=$1
    output=${input%.in}.txt
    pinned=$(mktemp)
    [ -n "${UPGRADE:-}" ] || ! [ -e "$output" ] || cp "$output" "$pinned"
    case $input in
    scripts/bench-requirements.in) constraints="--constraints scripts/test-requirements.txt" ;;
    *) constraints= ;;
    esac
    # shellcheck disable=SC2086  # none or two words
    "$uv" pip compile --quiet --generate-hashes --only-binary :all: --python-version 3.11 \
        --python-platform x86_64-manylinux_2_36 --no-header --no-annotate --output-file "$pinned" $constraints "$input"
    {
        echo "# Made by \`make pins\` from $(basename "$input"), sha256 $(sha256sum "$input" | cut -d' ' -f1)"
        sed '/^#/d' "$pinned"
    } >"$output"
    rm -f "$pinned"
    say "$output: $(grep -c '==' "$output") packages"
}

git ls-files --cached --others --exclude-standard '*requirements.in' | sort -r | while read -r input; do pin "$input"; done
