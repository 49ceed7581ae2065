#!/bin/sh
# Builds the binary for this machine's architecture against an older glibc, and packs it as a tarball.
#
# Zig is the linker of the server, because it has the symbols of every glibc. It cannot link glibc statically, so the agent
# is built before, by the system's linker; it needs no glibc on the machine where it runs.
set -eu
. "$(dirname "$0")/common.sh"
cd "$repository"

[ -f web/dist/page/index.html ] || die "the page is not built; run: make web"

say "building the agent (static)"
# As in build.rs.
CARGO_ENCODED_RUSTFLAGS=-Ctarget-feature=+crt-static cargo build --quiet --locked --profile agent --no-default-features \
    --features agent --bin cellkeep-agent --target "$target" --target-dir target/agent
agent=$repository/target/agent/$target/agent/cellkeep-agent
readelf --program-headers "$agent" | grep -q INTERP && die "the agent is not static"

say "building the server for glibc $glibc"
PATH=$tools/venv/bin:$PATH CELLKEEP_AGENT=$agent cargo zigbuild --quiet --locked --profile dist --target "$target.$glibc"
needed=$(objdump -T "$binary" | sed -n 's/.*(\?GLIBC_\([0-9.]*\))\? .*/\1/p' | sort -uV | tail -n 1)
say "the binary needs glibc $needed"
[ "$(printf '%s\n' "$needed" "$glibc" | sort -V | tail -n 1)" = "$glibc" ] || die "that is newer than $glibc"
[ "$("$binary" --version)" = "cellkeep $version" ] || die "the binary is not version $version"

name=cellkeep-$version-$architecture-linux-gnu
folder=$(mktemp -d)/$name
mkdir "$folder"
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE packaging/cellkeep.toml "$folder"
cp packaging/debian/service "$folder/cellkeep.service"
install -m 755 "$binary" "$folder/cellkeep"
tar -C "$(dirname "$folder")" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
    gzip -9n >"$artifacts/$name.tar.gz"
rm -r "$(dirname "$folder")"
made "$artifacts/$name.tar.gz"
