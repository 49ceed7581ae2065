#!/bin/sh
# The first step of each image, which images share: installs the commands, and removes what a process sandbox does not have either.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update
# shellcheck disable=SC2046  # a list of words
apt-get install -y --no-install-recommends $(cat "$(dirname "$0")/packages.txt")
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin
# A login shell would read a PATH there.
rm -rf /etc/profile /etc/profile.d
rm -f /etc/localtime /etc/timezone /etc/mime.types
