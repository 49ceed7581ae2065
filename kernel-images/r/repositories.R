# The repositories of packages: the operator's mirror, else the first one of R's own list, which is the nearest. The settings of the
# machine are not read.
repositories <- function() {
    mirror <- Sys.getenv("CELLKEEP_CRAN_MIRROR")
    if (mirror == "") mirror <- utils::getCRANmirrors(local.only = TRUE)[1L, "URL"]
    # Mirrors with packages that are compiled already choose them by this.
    options(HTTPUserAgent = sprintf("R/%s R (%s)", getRversion(), paste(getRversion(), R.version$platform, R.version$arch, R.version$os)))
    c(CRAN = sub("/$", "", mirror))
}
