#!/bin/sh
# What `make web` needs: Node and npm, which fetch and pack the plotting libraries of exported pages.
#
# Idempotent. Silent when nothing is to be done; otherwise one line per step. Root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

missing=
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing
