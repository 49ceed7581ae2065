#!/bin/sh
# Prepares a new environment; called by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# R and its packages are Debian packages in /usr, already compiled. ENV_DIR/library, the only library of kernels besides R's own, has
# links to those of modules.txt and what they need, so that others on the machine are not seen.
set -eu
env_dir=$1
sh "$env_dir/common/commands.sh" "$env_dir"
sh "$env_dir/common/fonts.sh" "$env_dir"
rm -rf "$env_dir/library"
mkdir "$env_dir/library"
R_LIBS_SITE=/usr/lib/R/site-library R_LIBS_USER=/nowhere Rscript --vanilla - "$env_dir/modules.txt" "$env_dir/library" <<'END'
arguments <- commandArgs(TRUE)
site <- "/usr/lib/R/site-library"
packages <- scan(arguments[[1]], "", quiet = TRUE)
needed <- tools::package_dependencies(packages, installed.packages(c(site, .Library)), recursive = TRUE)
needed <- intersect(unique(c(packages, unlist(needed))), list.files(site))
stopifnot(file.symlink(file.path(site, needed), file.path(arguments[[2]], needed)))
END
R_LIBS_SITE=$env_dir/library R_LIBS_USER=/nowhere Rscript --vanilla - "$env_dir/modules.txt" >/dev/null <<'END'
for (package in c(scan(commandArgs(TRUE), "", quiet = TRUE), "survival")) loadNamespace(package)
stopifnot(capabilities("cairo"))
END
