#!/bin/sh
# Installs what `make web` needs: Node and npm, which build the page and bundle the plotting libraries of exported pages.
#
# Idempotent. Prints one line per step, and nothing if there is nothing to do. Needs root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

missing=
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing
