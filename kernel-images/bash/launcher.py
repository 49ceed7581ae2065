"""Starts bash_kernel the way Cellkeep wants it. Run as `python launcher.py -f CONNECTION_FILE`."""

import logging
import sys
from pathlib import Path

import pexpect
import zmq
from bash_kernel.kernel import BashKernel
from ipykernel.kernelapp import IPKernelApp


class Terminal(pexpect.spawn):
    """bash's terminal, without the 50 ms that pexpect waits before each line it sends, lest a password be echoed.

    bash_kernel sends some forty lines at start and two per cell: 2 s and 100 ms for nothing.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.delaybeforesend = None


class KernelApp(IPKernelApp):
    def _bind_socket(self, socket, port):
        # Queue output without limit instead of silently dropping it; python/launcher.py says why this and not blocking.
        if socket.type == zmq.XPUB:
            socket.sndhwm = 0
        return super()._bind_socket(socket, port)

    def close(self):
        # Spares a rare hang at exit; see python/launcher.py.
        if self.control_thread and self.control_thread.is_alive():
            self.control_thread.stop()
            self.control_thread.join()
        super().close()


class Kernel(BashKernel):
    """bash_kernel with the replies that other kernels give, so that every run ends, and ends with a reason to show."""

    def process_output(self, output):
        # Upstream adds a line break to a line that has none, as left by `printf` without one.
        if not output.endswith(("\r", "\n")):
            if not self.silent:
                self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": output})
            return
        # `display` of a file that is no image raises in here; unhandled, the cell would never get its reply.
        try:
            super().process_output(output)
        except Exception as error:
            self.send_response(self.iopub_socket, "stream", {"name": "stderr", "text": f"{error!s:.500}\n"})

    def send_response(self, stream, msg_or_type, content=None, **kwargs):
        # The same dict becomes the execute_reply, so both name the error. Upstream leaves the name empty.
        if msg_or_type == "error" and not content["ename"]:
            content["ename"] = "ExitStatus" if content["evalue"].isdigit() else "BashError"
            content["traceback"] = [f"{content['ename']}: {content['evalue']}"]
        return super().send_response(stream, msg_or_type, content, **kwargs)

    # The parameters are upstream's, by name: ipykernel passes further ones to whoever has a place for them.
    def do_execute(self, code, silent, store_history=True, user_expressions=None, allow_stdin=False):
        try:
            reply = super().do_execute(code, silent, store_history, user_expressions, allow_stdin)
        except ValueError as error:  # input that ends in the middle of a command
            return self.failed("IncompleteInput", str(error).split(":")[0])
        if reply["status"] == "abort":  # upstream's word for interrupted, which is in no version of the protocol
            return self.failed("KeyboardInterrupt")
        return reply

    def failed(self, name, value=""):
        error = {"ename": name, "evalue": value, "traceback": [f"{name}: {value}".rstrip(": ")]}
        self.send_response(self.iopub_socket, "error", error)
        return {"status": "error", "execution_count": self.execution_count, **error}


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))
    pexpect.spawn = Terminal  # where bash_kernel looks it up
    # Our parent is PID 1 of the sandbox: saying so spares a note on stdout and a polling thread. The log level leaves
    # out the warning that TCP is not encrypted, which does not apply to a sandbox's own loopback.
    KernelApp.launch_instance(kernel_class=Kernel, parent_handle=1, log_level=logging.ERROR)
