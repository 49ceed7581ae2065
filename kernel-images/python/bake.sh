#!/bin/sh
# Prepares a new environment; called by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# The kernels that extend this one use it too, so it expects no package.
# ENV_DIR may be a staging folder; kernels see it as /opt/kernel, read-only.
set -eu
env_dir=$1
python=$env_dir/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Files that are not needed in a sandbox. Scripts in bin/ refer to the staging folder in their first line, so they cannot run.
# Without debugpy, ipykernel has no debugger and starts 60 ms faster.
mv "$env_dir/bin/uv" "$env_dir/lib/uv"
find "$env_dir/bin" -type f -delete
rm -rf "$site"/setuptools "$site"/setuptools-* "$site"/pkg_resources \
    "$site"/_distutils_hack "$site"/distutils-precedence.pth "$site"/debugpy "$site"/debugpy-* "$site"/pyarrow/include
find "$site" -depth -type d -name tests -exec rm -rf {} +

sh "$env_dir/common/commands.sh" "$env_dir"

# Packages that are installed later: by users with pip, and in package sets.
for name in pip pip3; do printf '#!/bin/sh\nexec /opt/kernel/bin/python -m pip "$@"\n' >"$env_dir/bin/$name"; done
cat >"$env_dir/bin/uv" <<'END'
#!/bin/sh
# `uv pip install` installs where pip does; see cellkeep_packages.py.
uv=/opt/kernel/lib/uv
[ "$1 $2" = "pip install" ] || exec "$uv" "$@"
shift 2
for argument; do
    shift
    [ "$argument" = --system ] || set -- "$@" "$argument"
done
# /tmp is too small for large packages.
export UV_NO_CACHE=1 UV_HTTP_RETRIES=1 UV_LINK_MODE=hardlink TMPDIR="$HOME/.local/tmp"
mkdir -p "$TMPDIR"
"$uv" pip install --prefix "$HOME/.local" --python /opt/kernel/bin/python "$@" && exit
status=$?
echo 'If the index was not reached: this sandbox may have no network. Ask for the network "packages".' >&2
exit $status
END
chmod 755 "$env_dir/bin/pip" "$env_dir/bin/pip3" "$env_dir/bin/uv"
cp "$env_dir/cellkeep_packages.py" "$site/_cellkeep_packages.py"
echo 'import _cellkeep_packages' >"$site/_cellkeep_packages.pth"

adapt() { printf '\n\nfrom matplotlib import _cellkeep_fonts\n_cellkeep_fonts.%s\n' "$2" >>"$site/matplotlib/$1.py"; }
if [ -d "$site/matplotlib" ]; then
    sh "$env_dir/common/fonts.sh" "$env_dir"
    rm -rf "$env_dir/share/mplcache"
    mkdir -p "$env_dir/share/mplcache"
    "$python" -B "$env_dir/bake_fonts.py" "$env_dir"
    cp "$env_dir/cellkeep_fonts.py" "$site/matplotlib/_cellkeep_fonts.py"
    adapt font_manager 'adapt_font_manager(FontManager, FontPath)'
    adapt _mathtext 'adapt_mathtext(UnicodeFonts)'
fi

# Byte code, unchecked: image layers and copies change time stamps, and the environment is read-only anyway.
# -f: pip may have left byte code with time stamps. Some packages contain files that are not valid Python 3.11, so errors are
# ignored.
"$python" -B -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash -s "$env_dir" -p /opt/kernel \
    "$site" "$env_dir/launcher.py" "$env_dir/install_packages.py" "$env_dir"/cellkeep_*.py || true

# Check that nothing necessary was removed.
"$python" -B -c 'import importlib, sys
for name in open(sys.argv[1]).read().split(): importlib.import_module(name)' "$env_dir/modules.txt"
