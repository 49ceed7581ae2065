# The repositories of packages: those of the operator, else the first one of R's own list, which is the nearest. The settings of the
# machine are not read.
repositories <- function() {
    mirrors <- strsplit(Sys.getenv("CELLKEEP_CRAN_MIRROR"), " ")[[1L]]
    if (!length(mirrors)) mirrors <- utils::getCRANmirrors(local.only = TRUE)[1L, "URL"]
    # Mirrors with packages that are compiled already choose them by this.
    options(HTTPUserAgent = sprintf("R/%s R (%s)", getRversion(), paste(getRversion(), R.version$platform, R.version$arch, R.version$os)))
    stats::setNames(sub("/$", "", mirrors), c("CRAN", sprintf("CRAN%d", seq_along(mirrors)))[seq_along(mirrors)])
}
