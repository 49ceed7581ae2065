#!/bin/sh
# Builds the container image of the server from the Debian package of deb.sh, and saves it as a file for `docker load`.
set -eu
. "$(dirname "$0")/common.sh"

sh "$repository/scripts/setup-docker.sh"
context=$(mktemp -d)
cp "$repository/packaging/Dockerfile" "$context"
cp "$artifacts/cellkeep_${version}_$(dpkg --print-architecture).deb" "$context/cellkeep.deb"
# The network of the host, because the engine's own may reach no package registry (see `cellkeep images build --help`).
docker build --quiet --network host --tag "cellkeep:$version" "$context" >/dev/null
rm -r "$context"
file=$artifacts/cellkeep-$version-$architecture-image.tar.gz
docker save "cellkeep:$version" | gzip -n >"$file"
made "$file"
