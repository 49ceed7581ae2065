"""Starts ipykernel for Cellkeep: without lost output, with safe interrupts, with displays that need no network, and fast.

Usage: `python launcher.py -f CONNECTION_FILE`. Settings that need no code are in the env of kernel.json; slow preparations are
done once, by bake.sh.
"""

import codecs
import contextlib
import importlib.abc
import importlib.util
import logging
import os
import sys
import threading
import warnings
from pathlib import Path

ENV_ROOT = Path(__file__).resolve().parent


def use_baked_font_cache():
    """Copies the font index of bake.sh to a writable config folder, which matplotlib requires.

    Without an index, matplotlib takes long to create one. The copy takes some tens of KB.
    """
    config_dir = Path(os.environ.setdefault("MPLCONFIGDIR", "/tmp/.mplconfig"))
    try:
        config_dir.mkdir(parents=True, exist_ok=True)
        for baked in (ENV_ROOT / "share/mplcache").glob("fontlist-*.json"):
            copy = config_dir / baked.name
            if not copy.exists():
                copy.write_bytes(baked.read_bytes())
    except OSError as error:  # the first plot is slower, nothing else
        print(f"launcher: no font cache: {error}", file=sys.stderr)


class AltairMimetypeHook(importlib.abc.MetaPathFinder):
    """Makes Altair emit Vega-Lite JSON instead of HTML that loads scripts from a CDN.

    Altair can only be configured through its API, and importing it at kernel start would take half a second each time. So the
    renderer is set right after the user's `import altair`; the user can still choose another one.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "altair":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        exec_module = spec.loader.exec_module

        def exec_module_and_enable(module):
            exec_module(module)
            module.renderers.enable("mimetype")

        spec.loader.exec_module = exec_module_and_enable
        return spec


def watch_pipe(stream):
    """Reads the output of child processes and other output that bypasses sys.stdout.

    Upstream also copies it to the stdout of the process, which Cellkeep shows too, so it would appear twice. That copy had a side
    effect: child processes waited until it was read. Here they wait until each piece is sent; otherwise a flood of output would fill
    the kernel's memory before the output limit can stop it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while (data := os.read(stream._fid, 16384)) and stream._should_watch:
            stream.write(decoder.decode(data))
            stream.flush()
    except Exception:
        stream._exc = sys.exc_info()


# Characters that a cell may print before it waits until they are sent.
MAX_UNSENT = 1 << 20


def bounded(write):
    """Limits the output that is printed but not sent yet.

    Upstream sends the accumulated output five times a second. In that time a loop can print a hundred megabytes, of which half a dozen
    copies are made: more than a sandbox's memory. The cell would run out of memory with output within its limit.
    """

    def write_in_pieces(stream, text):
        if not isinstance(text, str) or not stream._is_master_process():
            return write(stream, text)
        for start in range(0, len(text), MAX_UNSENT):
            piece = text[start : start + MAX_UNSENT]
            write(stream, piece)
            stream.unsent = getattr(stream, "unsent", 0) + len(piece)
            if stream.unsent >= MAX_UNSENT:
                stream.unsent = 0
                stream.flush()
        return len(text)

    return write_in_pieces


# Threads of pools work for the cell that submitted their task, not for the cell that started the pool.
POOLS = {"concurrent.futures.thread", "multiprocessing.pool"}


def attribute_threads_to_cells(shell):
    """Attributes the output of a thread to the cell that started it, also after the end of that cell.

    Upstream attributes it to the cell that is running at the moment; set_thread_parent overrides this for the calling thread.
    """
    start = threading.Thread.start

    def start_for_cell(thread):
        if getattr(getattr(thread, "_target", None), "__module__", None) not in POOLS:
            run, parent = thread.run, shell.get_parent()

            def run_for_cell():
                # Breaks the reference cycle between thread and closure, which only the garbage collector would free.
                vars(thread).pop("run", None)
                shell.set_thread_parent(parent)
                run()

            thread.run = run_for_cell
        start(thread)

    threading.Thread.start = start_for_cell


def main():
    from cellkeep_interrupts import INTERRUPTS, Kernel

    # Python puts the folder of this script first in sys.path. (-P prevents that, but IPython then omits the user's folder too.)
    sys.path.remove(str(ENV_ROOT))
    # There are no widgets: tqdm correctly falls back to its text bar, and its advice to install them is noise.
    warnings.filterwarnings("ignore", message="IProgress not found")
    use_baked_font_cache()
    sys.meta_path.insert(0, AltairMimetypeHook())

    import zmq
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp

    OutStream._watch_pipe_fd = watch_pipe
    OutStream.write = bounded(OutStream.write)

    class KernelApp(IPKernelApp):
        def init_signal(self):
            INTERRUPTS.install()

        def _bind_socket(self, socket, port):
            # By default iopub silently drops messages beyond 1,000 in its queue. The alternatives are to block (XPUB_NODROP)
            # or to queue without limit. This queues: Cellkeep's agent always drains the socket, so the queue stays short, and
            # memory is limited anyway, while a kernel that blocks in print would answer no request. ipykernel has no trait for
            # this option, and it must be set before bind.
            if socket.type == zmq.XPUB:
                socket.sndhwm = 0
            return super()._bind_socket(socket, port)

        def close(self):
            # Upstream closes iopub first; if the control thread is flushing to it, the exit hangs for 10 s or for ever (seen once
            # in a hundred exits). So the control thread is stopped first.
            if self.control_thread and self.control_thread.is_alive():
                self.control_thread.stop()
                self.control_thread.join()
            super().close()

    app = KernelApp.instance(
        kernel_class=Kernel,
        # The parent is PID 1 of the sandbox. Setting it avoids a note about Ctrl-C on stdout, and a polling thread.
        parent_handle=1,
        # Suppresses the warning about unencrypted TCP, which does not apply to the loopback of a sandbox.
        log_level=logging.ERROR,
    )
    # A sandbox has one session; a history on disk would only take time.
    app.config.HistoryManager.hist_file = ":memory:"
    app.initialize()
    # IPython keeps all printed output in memory for %notebook. Cellkeep stores it outside of the sandbox.
    app.shell._tee = lambda channel: contextlib.nullcontext()
    attribute_threads_to_cells(app.shell)
    app.start()


if __name__ == "__main__":
    main()
