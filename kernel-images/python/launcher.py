"""Starts ipykernel for Cellkeep: without lost output, with safe interrupts, with displays that need no network, and fast.

Usage: `python launcher.py -f CONNECTION_FILE`. Settings that need no code are in the env of kernel.json; slow preparations are
done once, by bake.sh.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
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
            # It has the paths that a sandbox sees. Tests and benchmarks also run the environment where it was installed.
            (config_dir / baked.name).write_text(baked.read_text().replace("/opt/kernel/", f"{ENV_ROOT}/"))
    except OSError as error:  # the first plot is slower, nothing else
        print(f"launcher: no font cache: {error}", file=sys.stderr)


def pack_text(pack):
    """Serialises messages also with lone surrogates, which JSON in UTF-8 cannot contain: they are shown as escapes."""

    def pack_message(message):
        try:
            return pack(message)
        except UnicodeEncodeError:
            text = json.dumps(message, default=str, ensure_ascii=False, allow_nan=False)
            return re.sub("[\ud800-\udfff]", lambda lone: f"\\\\u{ord(lone[0]):04x}", text).encode()

    return pack_message


def run_command(shell):
    """Runs `!command` without a terminal: its input is empty, and its output goes the same way as that of all children.

    Upstream gives it a terminal, from which `cat` or `read` would wait for input for ever.
    """

    def system(command):
        ran = subprocess.run(shell.var_expand(command, depth=1), shell=True, executable="/bin/bash", stdin=subprocess.DEVNULL)
        # As upstream: negative for a signal.
        shell.user_ns["_exit_code"] = ran.returncode

    shell.system = shell.system_piped = shell.system_raw = system


class CellExit(BaseException):
    """Raised by exit() and quit()."""

    def _render_traceback_(self):  # IPython calls it
        return [str(self)]


CellExit.__name__ = CellExit.__qualname__ = "SystemExit"
CellExit.__module__ = "builtins"


def end_cell():
    raise CellExit("exit() ended the cell. The kernel keeps running, with all variables; restart the session for a fresh one.")


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
    from cellkeep_display import show_in_cells
    from cellkeep_interrupts import INTERRUPTS, Kernel
    from cellkeep_output import use_pipes

    # Python puts the folder of this script first in sys.path. (-P prevents that, but IPython then omits the user's folder too.)
    sys.path.remove(str(ENV_ROOT))
    # There are no widgets: tqdm correctly falls back to its text bar, and its advice to install them is noise.
    warnings.filterwarnings("ignore", message="IProgress not found")
    use_baked_font_cache()

    import zmq
    from ipykernel.kernelapp import IPKernelApp

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
        **use_pipes(),
    )
    # A sandbox has one session; a history on disk would only take time.
    app.config.HistoryManager.hist_file = ":memory:"
    app.initialize()
    # IPython keeps all printed output in memory for %notebook. Cellkeep stores it outside of the sandbox.
    app.shell._tee = lambda channel: contextlib.nullcontext()
    app.session.pack = pack_text(app.session.pack)
    app.shell.ask_exit = end_cell
    run_command(app.shell)
    show_in_cells(app.shell)
    attribute_threads_to_cells(app.shell)
    app.start()


if __name__ == "__main__":
    main()
