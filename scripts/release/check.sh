#!/bin/sh
# Installs the artifacts of `make release` as a stranger would, and runs each. Clean roots are containers of the base image that
# scripts/setup-docker.sh makes; they have no Rust, Node or Python.
#
#   sh scripts/release/check.sh [tarball|deb|wheel|crate|npm|image]...      default: all
set -eu
. "$(dirname "$0")/common.sh"

sh "$repository/scripts/setup-docker.sh"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What a process sandbox inside a container needs: user namespaces, mounts, and an unmasked /proc.
nested="--security-opt seccomp=unconfined --security-opt systempaths=unconfined --security-opt apparmor=unconfined"

# in_clean_root STEP: runs a function of clean-root.sh.
in_clean_root() {
    # shellcheck disable=SC2086  # a list of words
    docker run --rm $nested --network host --volume "$artifacts:/artifacts:ro" --env "VERSION=$version" \
        --volume "$repository/scripts/release/clean-root.sh:/clean-root.sh:ro" debian:bookworm-slim sh /clean-root.sh "$1"
}

check_tarball() { in_clean_root tarball; }
check_deb() { in_clean_root deb; }
check_wheel() { in_clean_root wheel; }

# The crate is built like `cargo install` does, without Node in PATH. It shares compiled dependencies with `make build`.
check_crate() {
    tar -xzf "$artifacts/cellkeep-$version.crate" -C "$scratch"
    mkdir "$scratch/path"
    for program in cargo rustc rustup cc ld ar sh; do
        ln -s "$(command -v "$program")" "$scratch/path/$program"
    done
    PATH=$scratch/path CARGO_TARGET_DIR=$repository/target cargo install --quiet --locked \
        --path "$scratch/cellkeep-$version" --root "$scratch/root"
    serves_page "$scratch/root/bin/cellkeep"
}

# serves_page CELLKEEP: starts a server, and reads its page.
serves_page() {
    CELLKEEP_TOKEN=ck_check "$1" serve --data "$scratch/data" --listen 127.0.0.1:0 >"$scratch/log" 2>&1 &
    pid=$!
    until grep -q '^cellkeep serves ' "$scratch/log"; do
        kill -0 "$pid" 2>/dev/null || { cat "$scratch/log" >&2; die "the server did not start"; }
        sleep 0.1
    done
    address=$(sed -n 's/^cellkeep serves //p' "$scratch/log" | sed 's/#.*//')
    page=$(/usr/bin/python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())' "$address")
    kill "$pid"
    case $page in *"<cellkeep-page>"*) ;; *) die "the binary has no page: $page" ;; esac
}

check_npm() {
    cd "$scratch"
    npm install --silent --no-audit --no-fund --prefix "$scratch/site" "$artifacts/cellkeep-cell-$version.tgz"
    for file in cellkeep-cell.js types/cell.d.ts README.md; do
        [ -f "$scratch/site/node_modules/cellkeep-cell/$file" ] || die "the npm package has no $file"
    done
    [ -d "$scratch/site/node_modules/lit" ] || die "npm did not install lit"
    cd "$repository"
}

# With an engine's default profile no sandbox works in a container, and then nothing may run.
check_image() {
    docker load --quiet --input "$artifacts/cellkeep-$version-$architecture-image.tar.gz" >/dev/null
    image=cellkeep:$version
    [ "$(docker run --rm "$image" --version)" = "cellkeep $version" ] || die "the image has another version"
    # shellcheck disable=SC2086  # a list of words
    answer=$(docker run --rm $nested "$image" exec --sandbox process -c 'print(6*7)')
    [ "$answer" = 42 ] || die "the image's process sandbox printed: $answer"
    docker run --rm "$image" exec -c 'print(6*7)' >/dev/null 2>&1 && die "code ran without a sandbox"
    :
}

(cd "$artifacts" && sha256sum --quiet --check SHA256SUMS)
[ $# -gt 0 ] || set -- tarball deb wheel crate npm image
for what; do
    started=$(date +%s)
    "check_$what"
    say "$what works ($(($(date +%s) - started)) s)"
done
