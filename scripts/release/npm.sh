#!/bin/sh
# Packs the element <cellkeep-cell>, which `make web` has built into web/npm, for npm.
set -eu
. "$(dirname "$0")/common.sh"

cd "$repository/web/npm"
npm pack --silent --pack-destination "$artifacts" >/dev/null
made "$artifacts/cellkeep-cell-$version.tgz"
