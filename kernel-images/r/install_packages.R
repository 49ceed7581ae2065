# Resolves and installs packages of CRAN for a package set, in a sandbox of its own; the manager calls it (src/manager/package_sets).
#
# Usage, in an empty workspace with `requirements.txt` (`name` or `name==version`, one a line), and `lock.txt` if the versions are
# decided already:
#
# - `Rscript install_packages.R resolve` writes `lock.txt` (`name==version`, what others need first) and `packages.json`.
# - `Rscript install_packages.R install` installs them into `set/library`, which sandboxes see as /opt/packages/library.
#
# What the environment has is not installed again, unless another version is asked for.

source("/opt/kernel/repositories.R")
options(repos = repositories(), warn = 1L, timeout = 300)
fail <- function(...) {
    message(...)
    quit(status = 1L)
}

read_pins <- function(file) {
    lines <- trimws(readLines(file, warn = FALSE))
    lines <- lines[nzchar(lines)]
    bad <- grep("^[A-Za-z][A-Za-z0-9.]*(==[0-9][0-9.-]*)?$", lines, invert = TRUE, value = TRUE)
    if (length(bad)) fail(bad[[1]], ": write a name, or name==version")
    parts <- strsplit(lines, "==", fixed = TRUE)
    data.frame(name = vapply(parts, `[`, "", 1L), version = vapply(parts, `[`, "", 2L))
}

# Name -> version of what the environment has.
environment_versions <- function() {
    found <- installed.packages(lib.loc = c("/opt/kernel/library", .Library))
    setNames(found[, "Version"], found[, "Package"])
}

available <- function() {
    found <- available.packages(filters = list("R_version", "OS_type", "duplicates"))
    if (!nrow(found)) fail("no package index was read (", paste(getOption("repos"), collapse = ", "), "); see above")
    found
}

resolve <- function() {
    environment <- environment_versions()
    if (!file.exists("lock.txt")) {
        wanted <- read_pins("requirements.txt")
        index <- available()
        missing <- setdiff(wanted$name, c(rownames(index), names(environment)))
        if (length(missing)) fail("there is no package ", paste(missing, collapse = ", "), " in ", paste(getOption("repos"), collapse = ", "))
        needed <- unlist(tools::package_dependencies(wanted$name, index, c("Depends", "Imports", "LinkingTo"), recursive = TRUE))
        needed <- setdiff(unique(needed), c(names(environment), wanted$name, "R"))
        named <- wanted$name[!is.na(wanted$version) | !wanted$name %in% names(environment)]
        # Those that others need come first.
        names <- rev(c(named, needed))
        pinned <- wanted$version[match(names, wanted$name)]
        versions <- ifelse(is.na(pinned), index[match(names, rownames(index)), "Version"], pinned)
        present <- setdiff(wanted$name, named)
        writeLines(c(sprintf("%s==%s", names, versions), sprintf("%s==%s", present, environment[present])), "lock.txt")
    }
    lock <- read_pins("lock.txt")
    if (anyNA(lock$version)) fail("lock.txt: each package needs a version (name==version)")
    before <- unname(environment[lock$name])
    is_present <- !is.na(before) & before == lock$version
    packages <- lapply(seq_len(nrow(lock)), function(row) {
        replaces <- if (!is.na(before[[row]]) && !is_present[[row]]) list(replaces = before[[row]])
        c(list(name = lock$name[[row]], version = lock$version[[row]], installed = !is_present[[row]]), replaces)
    })
    writeLines(jsonlite::toJSON(packages, auto_unbox = TRUE), "packages.json")
}

install <- function() {
    environment <- environment_versions()
    lock <- read_pins("lock.txt")
    lock <- lock[!lock$name %in% names(environment) | environment[lock$name] != lock$version, ]
    dir.create("set/library", recursive = TRUE)
    if (!nrow(lock)) return(invisible())
    library <- normalizePath("set/library")
    # /tmp is too small for builds.
    dir.create("tmp")
    Sys.setenv(TMPDIR = normalizePath("tmp"), R_LIBS = library)
    .libPaths(c(library, .libPaths()))
    index <- available()
    is_current <- lock$name %in% rownames(index) & index[match(lock$name, rownames(index)), "Version"] == lock$version
    for (row in which(!is_current)) for (repository in getOption("repos")) {
        if (dir.exists(file.path(library, lock$name[[row]]))) break
        archive <- sprintf("%1$s/src/contrib/Archive/%2$s/%2$s_%3$s.tar.gz", repository, lock$name[[row]], lock$version[[row]])
        install.packages(archive, library, repos = NULL, type = "source")
    }
    if (any(is_current)) install.packages(lock$name[is_current], library, destdir = "tmp", dependencies = FALSE)
    missing <- setdiff(lock$name, list.files(library))
    if (length(missing)) fail(paste(missing, collapse = ", "), " could not be installed; see above")
}

step <- commandArgs(TRUE)
switch(step, resolve = resolve(), install = install(), fail("usage: install_packages.R resolve|install"))
