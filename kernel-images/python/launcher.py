"""Starts ipykernel the way Cellkeep wants it: no output lost, no interrupt astray, no network for display, nothing slow at
start.

Run as `python launcher.py -f CONNECTION_FILE`. Set-up that needs no code is in kernel.json's env;
what takes time is done once, by bake.sh.
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
    """matplotlib needs a config folder that it can write to, and takes long to index the fonts if no index is there.

    The index made by bake.sh lies on a read-only file system, so each sandbox gets a copy (some tens of KB).
    """
    config_dir = Path(os.environ.setdefault("MPLCONFIGDIR", "/tmp/.mplconfig"))
    try:
        config_dir.mkdir(parents=True, exist_ok=True)
        for baked in (ENV_ROOT / "share/mplcache").glob("fontlist-*.json"):
            copy = config_dir / baked.name
            if not copy.exists():
                copy.write_bytes(baked.read_bytes())
    except OSError as error:  # only costs the user time at the first plot
        print(f"launcher: no font cache: {error}", file=sys.stderr)


class AltairMimetypeHook(importlib.abc.MetaPathFinder):
    """Makes Altair emit its Vega-Lite JSON instead of HTML that loads scripts from a CDN.

    Altair has no setting for it outside of its API, and importing it at kernel start would cost everyone half a second:
    so the renderer is switched right after the user's own `import altair`, who can still choose another one.
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
    """Takes in what children write, and what bypasses sys.stdout.

    Upstream also copies it to the process's own stdout, and Cellkeep keeps what comes there, too: it would be shown twice.
    That copy made the children wait for whoever reads it. Here they wait until each piece has been sent: without, a flood
    fills the kernel's memory before anybody can stop it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while (data := os.read(stream._fid, 16384)) and stream._should_watch:
            stream.write(decoder.decode(data))
            stream.flush()
    except Exception:
        stream._exc = sys.exc_info()


# Characters that a cell may print before it waits until they have been sent.
AHEAD = 1 << 20


def paced(write):
    """Bounds what is printed and not sent yet.

    Upstream sends five times a second whatever has come by then. A loop prints a hundred megabytes in that time, of which half a
    dozen copies are then made: more than a sandbox's memory, and the cell would die of output that is within its limit.
    """

    def write_in_pieces(stream, text):
        if not isinstance(text, str) or not stream._is_master_process():
            return write(stream, text)
        for start in range(0, len(text), AHEAD):
            piece = text[start : start + AHEAD]
            write(stream, piece)
            stream.ahead = getattr(stream, "ahead", 0) + len(piece)
            if stream.ahead >= AHEAD:
                stream.ahead = 0
                stream.flush()
        return len(text)

    return write_in_pieces


# Threads of pools work for whichever cell gave them something to do, and not for the one that was first.
POOLS = {"concurrent.futures.thread", "multiprocessing.pool"}


def threads_belong_to_their_cells(shell):
    """What a thread prints and displays belongs to the cell that started it, as long as it may live.

    Upstream takes the cell that runs at that moment; it has a way to say otherwise for the calling thread.
    """
    start = threading.Thread.start

    def start_for_cell(thread):
        if getattr(getattr(thread, "_target", None), "__module__", None) not in POOLS:
            run, parent = thread.run, shell.get_parent()

            def run_for_cell():
                # A thread that goes on holding this, which holds the thread, would wait for the garbage collector.
                vars(thread).pop("run", None)
                shell.set_thread_parent(parent)
                run()

            thread.run = run_for_cell
        start(thread)

    threading.Thread.start = start_for_cell


def main():
    from cellkeep_interrupts import INTERRUPTS, Kernel

    # Python put this script's folder first in sys.path. (-P would prevent it, but then IPython leaves out the user's.)
    sys.path.remove(str(ENV_ROOT))
    # There are no widgets, so tqdm's text bar is right, and its advice to install them is noise.
    warnings.filterwarnings("ignore", message="IProgress not found")
    use_baked_font_cache()
    sys.meta_path.insert(0, AltairMimetypeHook())

    import zmq
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp

    OutStream._watch_pipe_fd = watch_pipe
    OutStream.write = paced(OutStream.write)

    class KernelApp(IPKernelApp):
        def init_signal(self):
            INTERRUPTS.install()

        def _bind_socket(self, socket, port):
            # By default iopub silently drops what exceeds 1,000 waiting messages. The two cures are to block
            # (XPUB_NODROP) or to queue without limit. We queue: Cellkeep's agent always drains, so the queue stays
            # short, and if it ever does not, memory has a limit of its own, while a kernel blocked in a print
            # would answer nobody. There is no trait for it, and it must be set before bind.
            if socket.type == zmq.XPUB:
                socket.sndhwm = 0
            return super()._bind_socket(socket, port)

        def close(self):
            # Upstream closes iopub first; if the control thread is just flushing to it, the exit hangs 10 s or for ever
            # (seen once in a hundred). So that thread ends first.
            if self.control_thread and self.control_thread.is_alive():
                self.control_thread.stop()
                self.control_thread.join()
            super().close()

    app = KernelApp.instance(
        kernel_class=Kernel,
        # Our parent is PID 1 of the sandbox. Saying so spares the note about Ctrl-C on stdout, and a polling thread.
        parent_handle=1,
        # The warning that TCP is not encrypted does not apply to a sandbox's own loopback.
        log_level=logging.ERROR,
    )
    # One sandbox, one session: a history on disk would only cost time.
    app.config.HistoryManager.hist_file = ":memory:"
    app.initialize()
    # IPython keeps all that was ever printed, for %notebook. Cellkeep keeps it, too, and not in the sandbox's memory.
    app.shell._tee = lambda channel: contextlib.nullcontext()
    threads_belong_to_their_cells(app.shell)
    app.start()


if __name__ == "__main__":
    main()
