#!/bin/sh
# Prepares a new environment; called by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# ENV_DIR may be a staging folder; kernels see it as /opt/kernel, read-only.
set -eu
env_dir=$1

# Deno is a single binary; Python was needed only to download it. Everything else is removed.
find "$env_dir/bin" ! -type d ! -name deno -delete
rm -rf "$env_dir/lib" "$env_dir/lib64" "$env_dir/include" "$env_dir/share" "$env_dir/pyvenv.cfg"
sh "$env_dir/common/commands.sh" "$env_dir"

"$env_dir/bin/deno" --version >/dev/null
