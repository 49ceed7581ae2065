#!/bin/sh
# Run once on a freshly installed environment, by the Dockerfile and by `cellkeep kernels install`: sh bake.sh ENV_DIR
# R and its packages are Debian's, in /usr, compiled already. So there is only to prove that they are complete.
set -eu
Rscript --vanilla -e 'for (package in c("IRkernel", "ggplot2", "dplyr", "tidyr", "jsonlite", "data.table"))
    loadNamespace(package)' -e 'stopifnot(capabilities("cairo"))' >/dev/null
