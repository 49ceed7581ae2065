#!/bin/sh
# Run once on a freshly installed environment, by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# ENV_DIR may be a staging folder; kernels see it as /opt/kernel, read-only.
set -eu
env_dir=$1
python=$env_dir/bin/python
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Files of no use inside a sandbox. Scripts in bin/ name the staging folder in their first line, so none of them would
# run. Without debugpy ipykernel offers no debugger, and starts 60 ms sooner.
find "$env_dir/bin" -type f -delete
rm -rf "$site"/pip "$site"/pip-* "$site"/setuptools "$site"/setuptools-* "$site"/pkg_resources \
    "$site"/_distutils_hack "$site"/distutils-precedence.pth "$site"/debugpy "$site"/debugpy-*
for package in matplotlib mpl_toolkits numpy pandas scipy sklearn statsmodels sympy; do
    find "$site/$package" -depth -type d -name tests -exec rm -rf {} +
done

# matplotlib's font index, which launcher.py copies to a place where matplotlib can write.
rm -rf "$env_dir/share/mplcache"
mkdir -p "$env_dir/share/mplcache"
MPLCONFIGDIR=$env_dir/share/mplcache "$python" -B -c 'import matplotlib.font_manager'

# Byte code. Unchecked, because image layers and copies change time stamps and the environment is read-only anyway.
# -f: pip may have left byte code with time stamps. Some packages carry a file or two that is not valid Python 3.11:
# no reason to fail.
"$python" -B -m compileall -qq -f -j 0 --invalidation-mode unchecked-hash -s "$env_dir" -p /opt/kernel \
    "$site" "$env_dir/launcher.py" "$env_dir/cellkeep_interrupts.py" || true

# Prove that nothing needed was taken away.
"$python" -B -c 'import altair, ipykernel, matplotlib.pyplot, pandas, PIL, plotly.express, scipy.stats, seaborn
import sklearn.ensemble, statsmodels.api, sympy, tqdm'
