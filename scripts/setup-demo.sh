#!/bin/sh
# What `make demo` needs on a Debian 12 that has Rust and nothing else: bubblewrap for the sandbox, Python for the
# kernel, a C compiler for SQLite and for linking.
#
# Idempotent. Silent when nothing is to be done; otherwise one line per step. Root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

missing=
command -v bwrap >/dev/null || missing="$missing bubblewrap"
# Debian's own Python, because it is part of /usr, which the sandbox sees; a Python in a home folder is not.
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3 python3-venv"
# Static, as the agent is linked.
echo 'int main(void) { return 0; }' | cc -static -x c - -o /dev/null 2>/dev/null || missing="$missing gcc libc6-dev"

# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing
