# Starts IRkernel the way Cellkeep wants it. Run as `R --file=launcher.R --args CONNECTION_FILE`.

options(
    # There is no X server, which is where R looks first for drawing bitmaps.
    bitmapType = "cairo",
    # One picture per plot. SVG grows with the data: a scatter plot of 100,000 points would be tens of megabytes.
    jupyter.plot_mimetypes = c("text/plain", "image/png"),
    # There is nobody to answer a question, and no network to install from.
    menu.graphics = FALSE
)

IRkernel::main()
