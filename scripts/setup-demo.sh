#!/bin/sh
# Installs what `make demo` needs on a Debian 12 that has only Rust: bubblewrap for the sandbox, Python for the kernel, and a
# C compiler for SQLite and for linking.
#
# Idempotent. Prints one line per step, and nothing if there is nothing to do. Needs root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

missing=
command -v bwrap >/dev/null || missing="$missing bubblewrap"
# Debian's Python, because the sandbox contains /usr. It does not contain a Python in a home folder.
/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3 python3-venv"
# Statically, like the agent.
echo 'int main(void) { return 0; }' | cc -static -x c - -o /dev/null 2>/dev/null || missing="$missing gcc libc6-dev"

# shellcheck disable=SC2086  # a list of words
[ -z "$missing" ] || apt_install $missing
