# Shared by the scripts of `make release`, which source it: . "$(dirname "$0")/common.sh"

. "$(dirname "$0")/../common.sh"
repository=$(cd "$(dirname "$0")/../.." && pwd)

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repository/Cargo.toml" | head -n 1)
architecture=$(uname -m)
target=$architecture-unknown-linux-gnu
# The binary runs with this glibc and newer ones: Debian 10, Ubuntu 20.04, RHEL 8.
glibc=2.28

# shellcheck disable=SC2034  # used by the scripts
tools=$repository/target/release-tools
artifacts=$repository/target/release-artifacts
# shellcheck disable=SC2034
binary=$repository/target/$target/dist/cellkeep
# Times in archives, so that the same commit gives the same files.
SOURCE_DATE_EPOCH=$(git -C "$repository" log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH

mkdir -p "$artifacts"

# made FILE: prints the size of an artifact.
made() { say "$(basename "$1"), $(du -h --apparent-size "$1" | cut -f 1)"; }
