#!/bin/sh
# Makes ENV_DIR/commands, the PATH of a sandbox: sh commands.sh ENV_DIR
# It has a link for each command of our lists, so that a process sandbox finds the same commands as an image, and no others that the
# machine happens to have. A link to a command that is not installed counts as absent.
set -eu
env_dir=$1
rm -rf "$env_dir/commands"
mkdir "$env_dir/commands"
# `[` is a pattern.
set -f
for list in "$env_dir/common/commands.txt" "$env_dir/commands.txt"; do
    [ -e "$list" ] || continue
    for command in $(cat "$list"); do ln -s "/usr/bin/$command" "$env_dir/commands/$command"; done
done
