#!/bin/sh
# Prepares a new environment; called by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# R and its packages are Debian packages in /usr, already compiled. ENV_DIR/library, the only library of kernels besides R's own, has
# links to those that the kernel needs, so that others on the machine are not seen.
set -eu
env_dir=$1
sh "$env_dir/common/commands.sh" "$env_dir"
sh "$env_dir/common/fonts.sh" "$env_dir"
rm -rf "$env_dir/library"
mkdir "$env_dir/library"
R_LIBS_SITE=/usr/lib/R/site-library R_LIBS_USER=/nowhere Rscript --vanilla - "$env_dir/library" <<'END'
site <- "/usr/lib/R/site-library"
packages <- c("IRkernel", "ggplot2", "dplyr", "tidyr", "jsonlite", "data.table")
needed <- tools::package_dependencies(packages, installed.packages(c(site, .Library)), recursive = TRUE)
needed <- intersect(unique(c(packages, unlist(needed))), list.files(site))
stopifnot(file.symlink(file.path(site, needed), file.path(commandArgs(TRUE), needed)))
END
R_LIBS_SITE=$env_dir/library R_LIBS_USER=/nowhere Rscript --vanilla -e 'for (package in
    c("IRkernel", "ggplot2", "dplyr", "tidyr", "jsonlite", "data.table", "survival")) loadNamespace(package)' \
    -e 'stopifnot(capabilities("cairo"))' >/dev/null
