# Starts IRkernel for Cellkeep. Usage: `R --file=launcher.R --args CONNECTION_FILE`.

options(
    # By default R draws bitmaps with an X server, which does not exist here.
    bitmapType = "cairo",
    # One image per plot. No SVG, which grows with the data: a scatter plot of 100,000 points takes tens of megabytes.
    jupyter.plot_mimetypes = c("text/plain", "image/png"),
    # Nobody can answer a menu.
    menu.graphics = FALSE
)

IRkernel::main()
