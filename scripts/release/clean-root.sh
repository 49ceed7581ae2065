#!/bin/sh
# Runs in a clean Debian, started by check.sh: installs one artifact of /artifacts and runs code with it. $1: a function below.
set -eu

export DEBIAN_FRONTEND=noninteractive
apt_install() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1; }
apt-get update -qq

# runs_code [PREFIX...]: a kernel is installed, and one cell runs in a process sandbox.
runs_code() {
    [ "$("$@" cellkeep --version)" = "cellkeep $VERSION" ]
    "$@" cellkeep kernels install python >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
    "$@" cellkeep doctor
    [ "$("$@" cellkeep exec --sandbox process -c 'print(6*7)')" = 42 ]
}

tarball() {
    apt_install bubblewrap python3 python3-venv
    tar -xzf /artifacts/cellkeep-"$VERSION"-*-linux-gnu.tar.gz -C /opt
    install -m 755 /opt/cellkeep-*/cellkeep /usr/local/bin/
    runs_code
}

deb() {
    apt_install python3 python3-venv
    apt_install /artifacts/cellkeep_"$VERSION"_*.deb
    id cellkeep
    # As the service runs it: its user, its data, its settings.
    as_service() { setpriv --reuid cellkeep --regid cellkeep --clear-groups --no-new-privs env HOME=/var/lib/cellkeep CELLKEEP_DATA=/var/lib/cellkeep "$@"; }
    cd /var/lib/cellkeep
    runs_code as_service
    as_service cellkeep serve --config /etc/cellkeep/cellkeep.toml --print-config >/dev/null
    cd /
    apt-get purge -y -qq cellkeep >/dev/null 2>&1
    [ ! -e /usr/bin/cellkeep ] && [ ! -e /etc/cellkeep ] && [ ! -e /var/lib/cellkeep ]
}

wheel() {
    apt_install python3 python3-venv
    python3 -m venv /venv
    /venv/bin/pip install --quiet --no-index /artifacts/cellkeep-"$VERSION"-*.whl
    [ "$(/venv/bin/cellkeep --version)" = "cellkeep $VERSION" ]
    # There is no bubblewrap here, and nothing runs without a sandbox.
    if /venv/bin/cellkeep exec -c 1 2>/dev/null; then exit 1; fi
}

"$1"
