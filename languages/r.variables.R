local({
  clean <- function(text) substr(gsub("[[:cntrl:][:space:]]+", " ", paste(text, collapse = ", ")), 1, 300)
  summary <- function(value) {
    if (is.data.frame(value)) return(paste(nrow(value), "\u00d7", ncol(value)))
    if (!is.null(dim(value)) && is.atomic(value)) return(paste(c(paste(dim(value), collapse = " \u00d7 "), "of", typeof(value)), collapse = " "))
    if (is.function(value)) return("")
    if (is.factor(value)) return(paste(length(value), "items"))
    if (is.atomic(value)) {
      first <- format(unclass(utils::head(value, 5)), trim = TRUE)
      return(if (length(value) == 1) first else paste0(length(value), " items: ", paste(first, collapse = ", "), if (length(value) > 5) ", \u2026" else ""))
    }
    if (is.list(value)) return(paste(length(value), "items"))
    ""
  }
  names <- utils::head(ls(globalenv()), MOST)
  lines <- vapply(names, function(name) {
    # Active bindings compute their value, so they are not evaluated.
    if (bindingIsActive(as.name(name), globalenv())) return(paste(name, "active binding", "", sep = "\t"))
    value <- get(name, envir = globalenv(), inherits = FALSE)
    paste(clean(name), clean(class(value)), clean(tryCatch(summary(value), error = function(error) "")), sep = "\t")
  }, "")
  writeLines(enc2utf8(as.character(lines)), PATH, useBytes = TRUE)
})
