#!/bin/sh
# Prepares a new environment; called by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# R and its packages are Debian packages in /usr, already compiled. This only checks that they are complete.
set -eu
Rscript --vanilla -e 'for (package in c("IRkernel", "ggplot2", "dplyr", "tidyr", "jsonlite", "data.table"))
    loadNamespace(package)' -e 'stopifnot(capabilities("cairo"))' >/dev/null
