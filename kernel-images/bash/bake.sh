#!/bin/sh
# Prepares a new environment; called by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# ENV_DIR may be a staging folder; kernels see it as /opt/kernel, read-only.
set -eu
env_dir=$1
python=$env_dir/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Scripts in bin/ refer to the staging folder in their first line, so they cannot run. The other files are not needed.
find "$env_dir/bin" -type f -delete
rm -rf "$site"/pip "$site"/pip-* "$site"/setuptools "$site"/setuptools-* "$site"/pkg_resources \
    "$site"/_distutils_hack "$site"/distutils-precedence.pth "$site"/debugpy "$site"/debugpy-*
sh "$env_dir/common/commands.sh" "$env_dir"

# Byte code, unchecked: image layers and copies change time stamps, and the environment is read-only anyway.
# -f: pip may have left byte code with time stamps. Some packages contain files that are not valid Python 3.11, so errors are
# ignored.
"$python" -B -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash -s "$env_dir" -p /opt/kernel \
    "$site" "$env_dir/launcher.py" "$env_dir/shell.py" || true

# Check that nothing necessary was removed.
"$python" -B -c 'import ipykernel.kernelapp'
