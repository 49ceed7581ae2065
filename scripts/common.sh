# Shared by the setup-*.sh scripts, which source it: . "$(dirname "$0")/common.sh"

script=$(basename "$0" .sh)
repository=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "$script: $*" >&2; }
die() { say "$*"; exit 1; }

# Programs of the system live in sbin, which ordinary users' PATH lacks.
PATH=$PATH:/usr/sbin:/sbin

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else die "needs root, and there is no sudo. As root, run: $*"
    fi
}

# apt_install PACKAGE...: installs just these. No recommended packages: what is needed is named.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || die "this system has no apt. Please install what corresponds to Debian's: $*"
    say "installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
