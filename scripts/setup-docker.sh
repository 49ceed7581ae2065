#!/bin/sh
# Makes this machine able to build and run Cellkeep's kernel images without any image registry:
# an engine that answers, and a local `debian:bookworm-slim` for the Dockerfiles to start from.
#
# Idempotent. Silent when nothing is to be done; otherwise one line per step. Root or sudo.
set -eu
. "$(dirname "$0")/common.sh"

base_image=debian:bookworm-slim
suite=bookworm
cache_dir=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/cellkeep
start_deadline_s=60

engine_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
has_base_image() { docker image inspect "$base_image" >/dev/null 2>&1; }

# --- 1. programs -----------------------------------------------------------------------------------------------

install_missing() {
    missing=
    # Another vendor's engine is as good as Debian's: look for the programs, not for the packages.
    command -v docker >/dev/null && { engine_answers || command -v dockerd >/dev/null; } ||
        missing="docker.io iptables" # for its bridge network the engine needs iptables, which is only recommended
    command -v debootstrap >/dev/null || has_base_image || missing="$missing debootstrap"
    # shellcheck disable=SC2086  # a list of words
    [ -z "$missing" ] || apt_install $missing
}

# --- 2. engine -------------------------------------------------------------------------------------------------

start_engine() {
    engine_answers && return 0
    as_root docker version >/dev/null 2>&1 && die "this user may not use the engine (see Debian's group docker)"
    log=${TMPDIR:-/tmp}/cellkeep-dockerd.log
    if [ -d /run/systemd/system ] && as_root systemctl start docker 2>/dev/null; then
        say "started docker.service"
    else
        say "starting dockerd (log: $log)"
        # A session of its own, so that it outlives this script, the terminal and `make`.
        as_root setsid nohup dockerd --storage-driver overlay2 >"$log" 2>&1 </dev/null &
    fi
    waited=0
    until engine_answers; do
        [ "$waited" -lt "$start_deadline_s" ] || die "no answer from the engine after $start_deadline_s s (log: $log)"
        sleep 1
        waited=$((waited + 1))
    done
}

# --- 3. base image ---------------------------------------------------------------------------------------------

# This machine's own apt sources for the suite, one `deb` line each: whatever mirror works here works in the image,
# and no mirror is named in this file. Third-party sources (other suites) fall through the filter.
apt_sources() {
    # shellcheck disable=SC2016  # apt's own placeholders
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v s="$suite" '$4 == "main" && ($3 == s || $3 == s "-updates" || $3 == s "-security") && !seen[$0]++'
}

# A finished root file system, cached: debootstrap takes a minute, `docker import` a few seconds.
# $1: tarball to write, $2: file with apt sources, $3: CA bundle
make_rootfs_tarball() {
    root=$(mktemp -d "${TMPDIR:-/tmp}/cellkeep-base.XXXXXX")
    say "making the base image's files with debootstrap (a minute or two)"
    mirror=$(awk -v s="$suite" '$3 == s { print $2; exit }' "$2")
    as_root env PATH="$PATH" debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$1.log" 2>&1 ||
        { tail -n 5 "$1.log" >&2; die "debootstrap failed (log: $1.log)"; }
    as_root install -m 644 "$2" "$root/etc/apt/sources.list"
    # Outside /etc/ssl/certs: installing ca-certificates in a child image rebuilds that folder.
    as_root install -D -m 644 "$3" "$root/usr/local/share/cellkeep-ca.pem"
    # What Debian's slim image leaves out too: kept out in child images by the same dpkg rule.
    printf '%s\n' 'path-exclude /usr/share/doc/*' 'path-exclude /usr/share/man/*' 'path-exclude /usr/share/info/*' \
        'path-exclude /usr/share/locale/*' 'path-include /usr/share/doc/*/copyright' |
        as_root tee "$root/etc/dpkg/dpkg.cfg.d/slim" >/dev/null
    as_root find "$root/usr/share/doc" -type f ! -name copyright -delete
    as_root sh -c "rm -rf '$root'/var/lib/apt/lists/* '$root'/var/cache/apt/*.bin '$root'/var/cache/apt/archives/*.deb \
        '$root'/var/log/* '$root'/usr/share/man/* '$root'/usr/share/info/* '$root'/usr/share/locale/*"
    # The engine gives each container its own; the machine's would be frozen in otherwise.
    as_root rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
    # Under another name until complete: an interrupted run must not leave half a cache entry.
    as_root tar -C "$root" --numeric-owner --one-file-system -czf - . >"$1.part"
    mv "$1.part" "$1"
    as_root rm -rf "$root"
    rm -f "$1.log"
}

make_base_image() {
    has_base_image && return 0
    mkdir -p "$cache_dir"
    ca=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    [ -r "$ca" ] || die "no CA bundle at $ca (set SSL_CERT_FILE, or install ca-certificates)"
    sources=$(mktemp)
    apt_sources >"$sources"
    grep -q " $suite main" "$sources" || die "this machine's apt has no source for $suite main"
    # The two things that differ between machines are in the name, so a stale entry is never used.
    key=$(cat "$sources" "$ca" "$0" | sha256sum | cut -c1-12)
    tarball=$cache_dir/base-$suite-$key.tar.gz
    if ! [ -s "$tarball" ]; then
        rm -f "$cache_dir/base-$suite-"* # of other sources, CAs or versions of this script
        make_rootfs_tarball "$tarball" "$sources" "$ca"
    fi
    rm -f "$sources"
    say "importing $base_image"
    pem=/usr/local/share/cellkeep-ca.pem
    docker import \
        --change 'CMD ["/bin/bash"]' \
        --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        --change "ENV PIP_CERT=$pem SSL_CERT_FILE=$pem REQUESTS_CA_BUNDLE=$pem NODE_EXTRA_CA_CERTS=$pem" \
        "$tarball" "$base_image" >/dev/null
}

install_missing
start_engine
make_base_image
