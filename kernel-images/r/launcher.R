# Starts IRkernel for Cellkeep. Usage: `R --file=launcher.R --args CONNECTION_FILE`.

source("/opt/kernel/repositories.R")
options(
    # By default R draws bitmaps with an X server, which does not exist here.
    bitmapType = "cairo",
    # One image per plot. No SVG, which grows with the data: a scatter plot of 100,000 points takes tens of megabytes.
    jupyter.plot_mimetypes = c("text/plain", "image/png"),
    # Nobody can answer a menu.
    menu.graphics = FALSE,
    repos = repositories()
)

# Makes install.packages() install into the workspace by default: the library of the environment is read-only. The folder does not exist
# before. R_LIBS (kernel.json) names it for other R processes.
install_into_workspace <- function(library) {
    upstream <- utils::install.packages
    replacement <- function(pkgs, lib, ...) {
        if (missing(lib)) {
            dir.create(library, showWarnings = FALSE, recursive = TRUE)
            .libPaths(c(library, .libPaths()))
            lib <- library
        }
        # R reads the index again each time, so that one that was not reachable is not remembered.
        failed <- FALSE
        withCallingHandlers(upstream(pkgs, lib, ...), warning = function(warning) {
            failed <<- failed || grepl("unable to access index", conditionMessage(warning), fixed = TRUE)
        })
        if (failed) message("The package index was not reached. If this session has no network, ask for the network \"packages\".")
        invisible()
    }
    for (place in list(asNamespace("utils"), as.environment("package:utils"))) {
        unlockBinding("install.packages", place)
        assign("install.packages", replacement, place)
        lockBinding("install.packages", place)
    }
}
install_into_workspace(file.path(getwd(), ".local/lib/R"))

# Shows a plot of plotly as the data that the page draws, without HTML that contains 4 MB of code each time. Upstream makes scalars of
# arrays with one element, and sends four digits of each number.
show_plotly_data <- function() {
    register <- function(generic, method) registerS3method(generic, "plotly", method, asNamespace("repr"))
    register("repr_html", function(obj, ...) NULL)
    register("repr_plotly1", function(obj, ...) {
        jsonlite::fromJSON(plotly::plotly_json(obj, jsonedit = FALSE), simplifyVector = FALSE)
    })
    replace_import("toJSON", function(x, ...) jsonlite::toJSON(x, ..., digits = NA))
}

# Makes IRkernel send through the pipes of Cellkeep's agent, which keep output however the process ends: text goes to the process's own
# stdout at once, instead of after each expression, and messages go to a pipe. `numbers`: the pipe, and the page on which the agent
# says how much it has read. src/agent/iopub_pipe.rs and positions_page.rs define both.
use_pipes <- function(numbers) {
    paths <- paste0("/proc/self/fd/", strsplit(numbers, ",")[[1]])
    pipe <- file(paths[[1]], "wb", raw = TRUE)
    process <- Sys.getpid()
    number <- 0L
    written <- 0

    little <- function(values, size) writeBin(as.integer(values), raw(), size = size, endian = "little")
    read_by_agent <- function() sum(as.integer(readBin(paths[[2]], "raw", 32L)[25:32]) * 256^(0:7))

    # Sends a message, and waits until the agent has read it: text that is printed afterwards then comes after it.
    send <- function(parts) suspendInterrupts({
        # closeAllConnections() closes it too.
        if (!tryCatch(isOpen(pipe), error = function(e) FALSE)) pipe <<- file(paths[[1]], "wb", raw = TRUE)
        number <<- number %% .Machine$integer.max + 1L
        packed <- c(little(c(length(parts), lengths(parts)), 4L), unlist(parts))
        # A fragment is at most 4096 bytes, which the system writes completely or not at all.
        room <- 4096L - 24L
        starts <- seq(1L, length(packed), room)
        for (start in starts) {
            payload <- packed[start:min(start + room - 1L, length(packed))]
            kind <- if (start == tail(starts, 1L)) 2L else 1L
            header <- c(little(length(payload), 2L), as.raw(c(kind, 0L)), little(number, 4L), rep(as.raw(255L), 16L))
            writeBin(c(header, payload), pipe)
            flush(pipe)
            written <<- written + length(header) + length(payload)
        }
        while (read_by_agent() < written) Sys.sleep(0.0002)
    })

    kernel <- getFromNamespace("Kernel", "IRkernel")$new(connection_file = commandArgs(TRUE)[[1]])
    # Upstream rejects requests that arrive shortly after an error or interrupt. Cellkeep sends the next one only after the reply.
    kernel$executor$abort_queued_messages <- function() NULL
    # Upstream begins each execution with the one message and ends it with the other.
    respond <- kernel$executor$send_response
    restore <- function() NULL
    kernel$executor$send_response <- function(msg_type, parent_msg, ...) {
        if (msg_type == "execute_input") restore <<- apply_context(parent_msg$metadata$cellkeep)
        if (msg_type == "execute_reply") restore()
        respond(msg_type, parent_msg, ...)
    }
    send_by_zmq <- pbdZMQ::zmq.send.multipart
    replace_import("zmq.send.multipart", function(socket, parts, ...) {
        if (!identical(socket, kernel$sockets$iopub)) {
            send_by_zmq(socket, parts, ...)
        } else if (Sys.getpid() == process) {
            send(tail(parts, 4L))  # without routing and signature
        }  # else a forked child, which must not use the sockets of its parent
    })
    # Upstream captures text, and hands it over after each expression.
    assignInNamespace("watchout", function(debug = FALSE) list(
        get_new = function(plot = FALSE, incomplete_plots = FALSE, text_callback = identity, graphics_callback = identity) {
            graphics <- if (plot) getFromNamespace("plot_snapshot", "evaluate")(incomplete_plots)
            if (!is.null(graphics)) graphics_callback(graphics)
            Filter(Negate(is.null), list(graphics))
        },
        pause = function() NULL, unpause = function() NULL, close = function() character(), get_con = stdout
    ), "evaluate")
    kernel
}

# Sets the environment variables and the working folder of a request. Returns a function that sets them back.
apply_context <- function(context) {
    names <- as.character(names(context$env))  # without names, Sys.getenv() would return everything
    former <- if (length(names)) Sys.getenv(names, unset = NA, names = TRUE) else character()
    if (length(names)) do.call(Sys.setenv, as.list(context$env))
    # The agent starts the kernel in the workspace.
    folder <- getwd()
    if (!is.null(context$cwd)) try(setwd(file.path(workspace, context$cwd)), silent = TRUE)
    function() {
        if (length(names)) Sys.unsetenv(names)
        kept <- former[!is.na(former)]
        if (length(kept)) do.call(Sys.setenv, as.list(kept))
        if (!is.null(context$cwd)) try(setwd(folder), silent = TRUE)
    }
}
workspace <- getwd()

# Replaces a function that IRkernel imports.
replace_import <- function(name, replacement) {
    imports <- parent.env(asNamespace("IRkernel"))
    unlockBinding(name, imports)
    assign(name, replacement, imports)
}

show_plotly_data()
numbers <- Sys.getenv("CELLKEEP_IOPUB_PIPE")
Sys.unsetenv("CELLKEEP_IOPUB_PIPE")
if (numbers == "") {
    IRkernel::main()
} else {
    local(use_pipes(numbers)$run())
}
