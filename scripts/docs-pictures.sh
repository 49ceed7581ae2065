#!/bin/sh
# Creates the pictures of the documentation: docs/pictures/page.png, a screenshot of the page, and docs/pictures/run.svg, a
# run of notebooks/quickstart.ipynb. Needs a built cellkeep with the page (make build, or make web and cargo build), an
# installed Python kernel, Chromium, and Python 3 (standard library only).
#
#   sh scripts/docs-pictures.sh [CELLKEEP]      default: target/release/cellkeep, else target/debug/cellkeep
set -eu
. "$(dirname "$0")/common.sh"

cellkeep=${1:-$repository/target/release/cellkeep}
[ -x "$cellkeep" ] || cellkeep=$repository/target/debug/cellkeep
[ -x "$cellkeep" ] || die "there is no cellkeep; run: make build"
chromium=${CELLKEEP_CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$chromium" ] || die "there is no Chromium in PATH; set CELLKEEP_CHROMIUM"
data=$("$cellkeep" doctor | sed -n 's/^data folder  *//p')
[ -d "$data/kernels/python" ] || die "the Python kernel is not installed; run: $cellkeep kernels install python"

exec /usr/bin/python3 "$repository/scripts/docs-pictures.py" "$cellkeep" "$chromium" "$data/kernels" "$repository"
