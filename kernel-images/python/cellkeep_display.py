"""Makes libraries show their pictures in the cell: there is no screen, no browser and no network.

Each library is adapted right after the user's first import of it, since importing it at the start would take too long.
"""

import importlib.abc
import importlib.util
import sys


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function with a module as soon as it has been imported."""

    def __init__(self, name, adapt):
        self.name = name
        self.adapt = adapt

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_module_and_adapt(module):
            exec_module(module)
            self.adapt(module)

        spec.loader.exec_module = exec_module_and_adapt
        return spec


def adapt_altair(altair):
    """Vega-Lite JSON instead of HTML that loads scripts from a CDN. The user can still choose another renderer."""
    altair.renderers.enable("mimetype")


def adapt_matplotlib(backend_agg):
    """Lets plt.show() show figures also after matplotlib.use("Agg"), which upstream draws to files only."""

    def show(*args, **kwargs):
        from IPython.display import display
        from matplotlib import pyplot

        figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
        pyplot.close("all")
        for figure in figures:
            display(figure)

    backend_agg.show = show


def adapt_pillow(image_show):
    """Image.show() shows the image here. Otherwise Pillow would prefer programs of the desktop, if they are installed."""
    viewer = getattr(image_show, "IPythonViewer", None)
    if viewer:
        image_show.register(viewer, order=0)


def draw_figure(figure):
    from IPython.core.pylabtools import print_figure

    return print_figure(figure, "png", base64=True)


def show_in_cells(shell):
    adapters = {"altair": adapt_altair, "matplotlib.backends.backend_agg": adapt_matplotlib, "PIL.ImageShow": adapt_pillow}
    sys.meta_path[:0] = [AfterImport(name, adapt) for name, adapt in adapters.items()]
    # %matplotlib: all other backends need a window or a Jupyter extension.
    enable = shell.enable_matplotlib
    shell.enable_matplotlib = lambda gui=None: enable("inline")
    # Upstream draws figures only while its own backend is in use.
    shell.display_formatter.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", draw_figure)
    # A figure that is the result of a cell is not shown again at the cell's end, where upstream shows and closes all open ones.
    show_result = shell.display_trap.hook

    def show_once(result):
        show_result(result)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot and isinstance(result, pyplot.Figure):
            pyplot.close(result)

    shell.display_trap.hook = show_once
