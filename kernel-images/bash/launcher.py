"""A Jupyter kernel for bash. Usage: `python launcher.py -f CONNECTION_FILE`.

One bash runs for the whole session. It writes to the stdout and stderr of this process, which Cellkeep's agent reads, so output is as
fast as in a script and outlives the shell. This program sends the code of each cell, and learns its exit status through another pipe.
"""

import logging
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import zmq
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel
from shell import Shell, find_matches, rich_output

IMPLEMENTATION = "cellkeep-bash"
VERSION = "1.0"


class BashKernel(Kernel):
    implementation = IMPLEMENTATION
    implementation_version = VERSION
    banner = "Bash"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.asking = False
        self.displayed = set()
        signal.signal(signal.SIGINT, self.handle_interrupt)
        self.shell_process = Shell()
        self.language_info = {
            "name": "bash",
            "version": self.shell_process.version,
            "codemirror_mode": "shell",
            "mimetype": "text/x-sh",
            "file_extension": ".sh",
        }

    def handle_interrupt(self, number, frame):
        """The signal reaches bash and its children too, which end the cell. Only a question to the user ends here."""
        if self.asking:
            raise KeyboardInterrupt

    # ipykernel lets SIGINT raise during requests; here it must not.
    def pre_handler_hook(self):
        pass

    def post_handler_hook(self):
        pass

    # ipykernel inspects the names of the parameters.
    def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False):
        if "\0" in code:
            return self.failed("InvalidCode", "bash code cannot contain NUL characters", silent)
        self._allow_stdin = allow_stdin  # what raw_input looks at
        context = (self.get_parent().get("metadata") or {}).get("cellkeep")
        for kind, *values in self.shell_process.run(code, self.ask if allow_stdin else None, context):
            if kind == "display" and not silent:
                self.display(*values)
            elif kind == "ended":
                return self.reply(int(values[0]), silent)
            elif kind == "exited":
                return self.shell_exited(values[0], silent)

    def reply(self, status, silent):
        if status == 0:
            return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}
        if status == 128 + signal.SIGINT:
            return self.failed("KeyboardInterrupt", "", silent)
        return self.failed("ExitStatus", str(status), silent)

    def shell_exited(self, how, silent):
        """Starts a new shell, and says that the state of the old one is gone."""
        self.shell_process.close()
        self.shell_process = Shell()
        lost = "its variables, functions and working directory are gone, and a new shell has started"
        return self.failed("ShellExited", f"the shell exited {how} (exit, exec, set -e or a signal); {lost}", silent, state_lost=True)

    def failed(self, name, value, silent, **more):
        error = {"ename": name, "evalue": value, "traceback": [f"{name}: {value}".rstrip(": ")], **more}
        if not silent:
            self.send_response(self.iopub_socket, "error", error)
        return {"status": "error", "execution_count": self.execution_count, **error}

    def ask(self):
        """Asks the user for a line. None if the question is interrupted."""
        self.asking = True
        try:
            return self.raw_input("")
        except KeyboardInterrupt:
            return None
        finally:
            self.asking = False

    def display(self, kind, display_id, path):
        """Shows what one of the shell's functions `display`, `displayHTML` and `displayJS` has read."""
        try:
            data = rich_output(kind, Path(path))
        except (OSError, ValueError) as error:
            self.send_response(self.iopub_socket, "stream", {"name": "stderr", "text": f"{kind}: {error}\n"})
            return
        content = {"data": data, "metadata": {}, "transient": {"display_id": display_id} if display_id else {}}
        known = display_id in self.displayed
        self.displayed.add(display_id)
        self.send_response(self.iopub_socket, "update_display_data" if display_id and known else "display_data", content)

    def do_complete(self, code, cursor_pos):
        word = re.split(r"[\s;=\"'><|&(]+", code[:cursor_pos])[-1]
        matches = find_matches(self.shell_process, word)
        return {
            "status": "ok",
            "matches": matches,
            "cursor_start": cursor_pos - len(word),
            "cursor_end": cursor_pos,
            "metadata": {},
        }

    def do_is_complete(self, code):
        return {"status": self.shell_process.completeness(code), "indent": ""}

    def do_shutdown(self, restart):
        self.shell_process.end()
        return {"status": "ok", "restart": restart}


class KernelApp(IPKernelApp):
    def _bind_socket(self, socket, port):
        # Queues output without limit instead of dropping it; see python/launcher.py.
        if socket.type == zmq.XPUB:
            socket.sndhwm = 0
        return super()._bind_socket(socket, port)

    def init_signal(self):
        pass  # the kernel has its own handler

    def init_io(self):
        # stdout and stderr stay those of the process, and nothing is displayed by Python.
        self.displayhook = SimpleNamespace()

    def close(self):
        # Avoids a rare hang at exit; see python/launcher.py.
        if self.control_thread and self.control_thread.is_alive():
            self.control_thread.stop()
            self.control_thread.join()
        super().close()


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    # The parent is PID 1 of the sandbox: setting it avoids a note on stdout and a polling thread. The log level suppresses the warning about unencrypted TCP, which does not apply to the loopback of a sandbox.
    KernelApp.launch_instance(kernel_class=BashKernel, parent_handle=1, log_level=logging.ERROR)
