#!/bin/sh
# Sets this machine up to build and run Cellkeep's kernel images without an image registry: a running container engine with
# gVisor as a second runtime, and a local `debian:bookworm-slim` as the base of the Dockerfiles.
#
# Idempotent. Prints one line per step, and nothing if there is nothing to do. Needs root or sudo.
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
    # Engines of other vendors work as well, so look for the programs and not for Debian's packages.
    command -v docker >/dev/null && { engine_answers || command -v dockerd >/dev/null; } ||
        missing="docker.io iptables" # the bridge network needs iptables, which docker.io only recommends
    command -v debootstrap >/dev/null || has_base_image || missing="$missing debootstrap"
    # shellcheck disable=SC2086  # a list of words
    [ -z "$missing" ] || apt_install $missing
}

# --- 2. engine -------------------------------------------------------------------------------------------------

start_engine() {
    engine_answers && return 0
    as_root docker version >/dev/null 2>&1 && die "this user may not use the engine; add it to the group docker"
    log=${TMPDIR:-/tmp}/cellkeep-dockerd.log
    if [ -d /run/systemd/system ] && as_root systemctl start docker 2>/dev/null; then
        say "started docker.service"
    else
        say "starting dockerd (log: $log)"
        # In its own session, so that it outlives this script, the terminal and `make`.
        as_root setsid nohup dockerd --storage-driver overlay2 >"$log" 2>&1 </dev/null &
    fi
    waited=0
    until engine_answers; do
        [ "$waited" -lt "$start_deadline_s" ] || die "the engine does not respond after $start_deadline_s s (log: $log)"
        sleep 1
        waited=$((waited + 1))
    done
}

# --- 3. base image ---------------------------------------------------------------------------------------------

# The apt sources of this machine for the suite, as `deb` lines: a mirror that works here works in the image, and this file
# needs no name of a mirror. The filter removes third-party sources, which have other suites.
apt_sources() {
    # shellcheck disable=SC2016  # placeholders of apt
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v s="$suite" '$4 == "main" && ($3 == s || $3 == s "-updates" || $3 == s "-security") && !seen[$0]++'
}

# Makes the root file system as a tarball for the cache: debootstrap takes a minute, `docker import` a few seconds.
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
    # Exclude what Debian's slim image excludes. The dpkg rule applies to child images too.
    printf '%s\n' 'path-exclude /usr/share/doc/*' 'path-exclude /usr/share/man/*' 'path-exclude /usr/share/info/*' \
        'path-exclude /usr/share/locale/*' 'path-include /usr/share/doc/*/copyright' |
        as_root tee "$root/etc/dpkg/dpkg.cfg.d/slim" >/dev/null
    as_root find "$root/usr/share/doc" -type f ! -name copyright -delete
    as_root sh -c "rm -rf '$root'/var/lib/apt/lists/* '$root'/var/cache/apt/*.bin '$root'/var/cache/apt/archives/*.deb \
        '$root'/var/log/* '$root'/usr/share/man/* '$root'/usr/share/info/* '$root'/usr/share/locale/*"
    # The engine creates these files in each container. Otherwise the image would contain those of this machine.
    as_root rm -f "$root/etc/resolv.conf" "$root/etc/hostname"
    # Written under another name until it is complete, so that an interrupted run leaves no partial cache entry.
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
    grep -q " $suite main" "$sources" || die "the apt sources of this machine have no $suite main"
    # The name contains a hash of the apt sources, the CA bundle and this script, so a stale entry is never used.
    key=$(cat "$sources" "$ca" "$0" | sha256sum | cut -c1-12)
    tarball=$cache_dir/base-$suite-$key.tar.gz
    if ! [ -s "$tarball" ]; then
        rm -f "$cache_dir/base-$suite-"* # entries of other sources, CA bundles or versions of this script
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

# --- 4. gVisor -------------------------------------------------------------------------------------------------

# Debian's gVisor is of December 2022. It runs the kernels; for code by strangers, take a current one from its makers and
# register it under the same name.
register_gvisor() {
    docker info --format '{{json .Runtimes}}' | grep -q '"runsc"' && return 0
    docker version --format '{{json .Server.Components}}' | grep -q '"Podman' && return 0
    if ! command -v runsc >/dev/null; then
        (apt_install runsc) || { say "there is no package runsc here; go on without gVisor"; return 0; }
    fi
    say "registering gVisor as the runtime runsc"
    # host-uds: the agent's socket is on the host. network: sessions without a network have a loopback all the same.
    as_root mkdir -p /etc/docker
    merged=$(as_root python3 - "$(command -v runsc)" <<'PYTHON'
import json, os, sys
path = "/etc/docker/daemon.json"
text = open(path).read() if os.path.exists(path) else ""
config = json.loads(text) if text.strip() else {}
config.setdefault("runtimes", {})["runsc"] = {"path": sys.argv[1], "runtimeArgs": ["--host-uds=all", "--network=none"]}
print(json.dumps(config, indent=4))
PYTHON
    )
    echo "$merged" | as_root tee /etc/docker/daemon.json >/dev/null
    # The engine reads its runtimes again at this signal; containers go on.
    if [ -d /run/systemd/system ]; then as_root systemctl reload docker
    else as_root kill -HUP "$(cat /var/run/docker.pid)"
    fi
    waited=0
    until docker info --format '{{json .Runtimes}}' | grep -q '"runsc"'; do
        [ "$waited" -lt 10 ] || die "the engine does not know the runtime runsc after 10 s"
        sleep 1
        waited=$((waited + 1))
    done
}

install_missing
start_engine
make_base_image
register_gvisor
