#!/bin/sh
# Unpacks the fonts of fonts.txt into ENV_DIR/fonts: sh fonts.sh ENV_DIR
# Sandboxes see them at /opt/kernel/fonts and at /usr/share/fonts, and no other fonts. They are taken from Debian's packages without
# being installed, which needs no root.
set -eu
env_dir=$(cd "$1" && pwd)
common=$env_dir/common
packages=$(sed '/^#/d; s/ .*//' "$common/fonts.txt" | sort -u)
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
cd "$unpacked"

# shellcheck disable=SC2086  # a list of words
download() { apt-get -qq -o APT::Sandbox::User=root download $packages; }
# Without package lists, the first attempt fails.
download 2>/dev/null || { [ "$(id -u)" != 0 ] || apt-get -qq update; download; } || {
    echo "cannot download the fonts; as root, run: apt-get update" >&2
    exit 1
}
for package in *.deb; do dpkg-deb -x "$package" "${package%%_*}"; done

rm -rf "$env_dir/fonts"
set -f
sed '/^#/d' "$common/fonts.txt" | while read -r package names; do
    for name in $names; do
        found=$(find "$package/usr/share/fonts" -type f -name "$name")
        [ -n "$found" ] || { echo "$package has no font $name" >&2; exit 1; }
        for font in $found; do
            folder=$env_dir/fonts/$(dirname "${font#*/usr/share/fonts/}")
            mkdir -p "$folder"
            # With its time, which fontconfig compares with that in its cache.
            cp -p "$font" "$folder/"
        done
    done
done
chmod -R a+rX "$env_dir/fonts"

# fontconfig's cache, which R would otherwise make before the first plot of each session. It holds the paths that sandboxes see, and the
# times of folders, which layers of images keep in whole seconds.
find "$env_dir/fonts" -type d -exec touch -d 2020-01-01 {} +
rm -rf "$env_dir/fontcache"
mkdir "$env_dir/fontcache"
make_cache() {
    command -v fc-cache >/dev/null || return 0
    if [ "$env_dir" = /opt/kernel ]; then
        FONTCONFIG_FILE=$common/fontconfig/fonts.conf fc-cache
    elif command -v bwrap >/dev/null; then
        bwrap --ro-bind / / --tmpfs /opt --bind "$env_dir" /opt/kernel --tmpfs /tmp --dev /dev --clearenv \
            --setenv FONTCONFIG_FILE /opt/kernel/common/fontconfig/fonts.conf --setenv HOME /nowhere "$(command -v fc-cache)"
    fi
}
make_cache || echo "warning: cannot make the cache of the fonts; the first plot of each R session takes longer" >&2
chmod -R a+rX "$env_dir/fontcache"
