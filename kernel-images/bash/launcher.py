"""Starts bash_kernel for Cellkeep. Usage: `python launcher.py -f CONNECTION_FILE`."""

import logging
import sys
from pathlib import Path

import pexpect
import zmq
from bash_kernel.kernel import BashKernel
from ipykernel.kernelapp import IPKernelApp


class Terminal(pexpect.spawn):
    """A terminal without the delay of 50 ms before each line, with which pexpect prevents passwords from being echoed.

    bash_kernel sends some forty lines at start and two per cell, so the delay would take 2 s and 100 ms.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.delaybeforesend = None


class KernelApp(IPKernelApp):
    def _bind_socket(self, socket, port):
        # Queues output without limit instead of dropping it; see python/launcher.py.
        if socket.type == zmq.XPUB:
            socket.sndhwm = 0
        return super()._bind_socket(socket, port)

    def close(self):
        # Avoids a rare hang at exit; see python/launcher.py.
        if self.control_thread and self.control_thread.is_alive():
            self.control_thread.stop()
            self.control_thread.join()
        super().close()


class Kernel(BashKernel):
    """bash_kernel with replies as of other kernels, so that every execution ends, and errors have a name."""

    def process_output(self, output):
        # Upstream appends a line break to an incomplete line, for example of `printf`.
        if not output.endswith(("\r", "\n")):
            if not self.silent:
                self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": output})
            return
        # `display` of a file that is not an image raises here; unhandled, the cell would get no reply.
        try:
            super().process_output(output)
        except Exception as error:
            self.send_response(self.iopub_socket, "stream", {"name": "stderr", "text": f"{error!s:.500}\n"})

    def send_response(self, stream, msg_or_type, content=None, **kwargs):
        # Upstream leaves the name empty. The same dict becomes the execute_reply, which then has the name too.
        if msg_or_type == "error" and not content["ename"]:
            content["ename"] = "ExitStatus" if content["evalue"].isdigit() else "BashError"
            content["traceback"] = [f"{content['ename']}: {content['evalue']}"]
        return super().send_response(stream, msg_or_type, content, **kwargs)

    # Keeps upstream's parameter names: ipykernel inspects the signature to decide which further arguments it passes.
    def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False):
        try:
            reply = super().do_execute(code, silent, store_history, user_expressions, allow_stdin)
        except ValueError as error:  # input that ends in the middle of a command
            return self.failed("IncompleteInput", str(error).split(":")[0])
        if reply["status"] == "abort":  # upstream's status for interrupted, which no protocol version has
            return self.failed("KeyboardInterrupt")
        return reply

    def failed(self, name, value=""):
        error = {"ename": name, "evalue": value, "traceback": [f"{name}: {value}".rstrip(": ")]}
        self.send_response(self.iopub_socket, "error", error)
        return {"status": "error", "execution_count": self.execution_count, **error}


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    pexpect.spawn = Terminal  # where bash_kernel looks it up
    # The parent is PID 1 of the sandbox: setting it avoids a note on stdout and a polling thread. The log level suppresses the warning
    # about unencrypted TCP, which does not apply to the loopback of a sandbox.
    KernelApp.launch_instance(kernel_class=Kernel, parent_handle=1, log_level=logging.ERROR)
