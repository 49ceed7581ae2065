#!/bin/sh
# Checks the types of the Python client.
set -eu
. "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."

python=target/test-venv/bin/python
[ -x "$python" ] || die "there is no $python; run: make setup-test"
"$python" -m mypy --strict --cache-dir target/mypy-cache --no-error-summary clients/python/src
