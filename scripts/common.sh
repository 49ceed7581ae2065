# Shared by the setup-*.sh scripts, which source it: . "$(dirname "$0")/common.sh"

script=$(basename "$0" .sh)
repository=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "$script: $*" >&2; }
die() { say "$*"; exit 1; }

# The PATH of ordinary users lacks sbin, which has the system's programs.
PATH=$PATH:/usr/sbin:/sbin

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else die "root is required, but there is no sudo; run as root: $*"
    fi
}

# apt_install PACKAGE...: installs these packages without the recommended ones, so the callers name all that is needed.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || die "this system has no apt; install the equivalents of these Debian packages: $*"
    say "installing $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
