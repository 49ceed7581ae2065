"""Kernels without Cellkeep: started bare or by `docker run`, spoken to straight over ZeroMQ.

Driven by benches/spine: one JSON command per line on stdin, one JSON answer per line on stdout.

    {"do": "open", "client": "jupyter_client" | "pyzmq", "argv": [...], "env": {...}}   start a kernel and keep it
    {"do": "rounds", "count": 10}                                                      execute `1` on it so many times
    {"do": "close"}
    {"do": "start", "argv": [...], "env": {...}, "inside": "/run", "end": [...]}        start, execute `1`, end

One process and one kernel per client: a second subscriber on the same kernel would cost both of them.

In an argv `{connection_file}` is the file as the kernel sees it and `{dir}` its folder as we see it; `inside` is where the
kernel sees that folder if that is elsewhere. `end` is a command that ends the kernel where killing our child does not.
Times are seconds, measured here, so that the pipe to the harness is in none of them.
"""

import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import datetime, timezone

import zmq
from jupyter_client import BlockingKernelClient

CODE = "1"
START_DEADLINE = 60
REPLY_DEADLINE_MS = 30_000
# As Cellkeep's agent asks: a subscription may reach the kernel after its first answer.
NUDGES = (0.05, 0.15, 0.5)
PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}


class Kernel:
    """A kernel process with its folder."""

    def __init__(self, argv, env, inside=None, end=None):
        # In memory, as in a sandbox.
        self.dir = tempfile.mkdtemp(prefix="cellkeep-bench-", dir="/dev/shm")
        # A container's user is another one.
        os.chmod(self.dir, 0o777)
        inside = inside or self.dir
        self.connection = {
            **PORTS, "transport": "ipc", "ip": f"{inside}/k", "key": str(uuid.uuid4()),
            "signature_scheme": "hmac-sha256", "kernel_name": "python",
        }
        self.file = f"{self.dir}/connection.json"
        with open(self.file, "w") as file:
            json.dump(self.connection, file)
        os.chmod(self.file, 0o644)
        def fill(text):
            return text.replace("{connection_file}", f"{inside}/connection.json").replace("{dir}", self.dir)
        self.end_argv = [fill(argument) for argument in end or []]
        self.log = open(f"{self.dir}/log", "w+")
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [fill(argument) for argument in argv], env={name: fill(value) for name, value in env.items()}, cwd=self.dir,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True,
        )

    def wait_until_bound(self):
        """All sockets exist. Connecting before costs a reconnect interval of 100 ms."""
        for name in ("shell_port", "iopub_port"):
            while not os.path.exists(f"{self.dir}/k-{PORTS[name]}"):
                if self.process.poll() is not None or time.perf_counter() - self.began > START_DEADLINE:
                    self.log.seek(0)
                    raise RuntimeError(f"the kernel did not start: {self.log.read()[-2000:]}")
                time.sleep(0.001)

    def end(self):
        if self.end_argv:
            subprocess.run(self.end_argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()
        # A container's files are another user's; as root this works all the same.
        shutil.rmtree(self.dir, ignore_errors=True)


class Direct:
    """The least that a client can do: two sockets, signed requests, and the parts of the answers that tell the end."""

    def __init__(self, kernel):
        self.key = kernel.connection["key"].encode()
        self.session = uuid.uuid4().hex
        context = zmq.Context.instance()
        self.iopub = context.socket(zmq.SUB)
        self.iopub.rcvhwm = 0
        self.iopub.subscribe(b"")
        self.iopub.connect(f"ipc://{kernel.dir}/k-{PORTS['iopub_port']}")
        self.shell = context.socket(zmq.DEALER)
        self.shell.linger = 0
        self.shell.connect(f"ipc://{kernel.dir}/k-{PORTS['shell_port']}")
        self.poller = zmq.Poller()
        self.poller.register(self.iopub, zmq.POLLIN)
        self.poller.register(self.shell, zmq.POLLIN)
        self.wait_until_ready()

    def send(self, msg_type, content):
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id, "session": self.session, "username": "bench", "msg_type": msg_type, "version": "5.3",
            "date": datetime.now(timezone.utc).isoformat(),
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self.shell.send_multipart([b"<IDS|MSG>", self.sign(parts), *parts])
        return msg_id

    def sign(self, parts):
        digest = hmac.new(self.key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()

    def receive(self, socket):
        frames = socket.recv_multipart()
        at = frames.index(b"<IDS|MSG>")
        parts = frames[at + 2 : at + 6]
        if not hmac.compare_digest(frames[at + 1], self.sign(parts)):
            raise RuntimeError("wrong signature")
        return [json.loads(part) for part in parts]

    def wait_until_ready(self):
        replied = heard = False
        for wait in (*NUDGES, *[NUDGES[-1]] * 100):
            self.send("kernel_info_request", {})
            until = time.perf_counter() + wait
            while not (replied and heard) and (left := until - time.perf_counter()) > 0:
                for socket, _ in self.poller.poll(left * 1000):
                    self.receive(socket)
                    replied |= socket is self.shell
                    heard |= socket is self.iopub
            if replied and heard:
                return
        raise RuntimeError("the kernel does not answer")

    def execute(self):
        """Until reply and idle, as a run of Cellkeep's."""
        msg_id = self.send("execute_request", {
            "code": CODE, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
            "stop_on_error": False,
        })
        replied = idle = result = False
        while not (replied and idle):
            ready = self.poller.poll(REPLY_DEADLINE_MS)
            if not ready:
                raise RuntimeError("no answer")
            for socket, _ in ready:
                header, parent, _, content = self.receive(socket)
                if parent.get("msg_id") != msg_id:
                    continue
                replied |= socket is self.shell
                result |= header["msg_type"] == "execute_result"
                idle |= header["msg_type"] == "status" and content["execution_state"] == "idle"
        if not result:
            raise RuntimeError("no result")

    def close(self):
        self.iopub.close(0)
        self.shell.close(0)


class JupyterClient:
    """jupyter_client's blocking client, used as its documentation shows."""

    def __init__(self, kernel):
        self.client = BlockingKernelClient(connection_file=kernel.file)
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=START_DEADLINE)

    def execute(self):
        reply = self.client.execute_interactive(CODE, allow_stdin=False, output_hook=lambda message: None, timeout=30)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"unexpected reply: {reply['content']}")

    def close(self):
        self.client.stop_channels()


class Bench:
    def __init__(self):
        self.kernel = None
        self.client = None

    def open(self, client, **how):
        self.kernel = Kernel(**how)
        self.kernel.wait_until_bound()
        self.client = {"pyzmq": Direct, "jupyter_client": JupyterClient}[client](self.kernel)
        return {}

    def rounds(self, count):
        execute, clock, seconds = self.client.execute, time.perf_counter, []
        for _ in range(count):
            began = clock()
            execute()
            seconds.append(clock() - began)
        return {"seconds": seconds}

    def close(self):
        if self.client:
            self.client.close()
        if self.kernel:
            self.kernel.end()
        self.client = self.kernel = None
        return {}

    def start(self, **how):
        self.open("pyzmq", **how)
        self.client.execute()
        seconds = time.perf_counter() - self.kernel.began
        self.close()
        return {"seconds": [seconds]}


def main():
    bench = Bench()
    # Cells print nothing here, but whatever does must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            command = json.loads(line)
            try:
                answer = getattr(bench, command.pop("do"))(**command)
            except Exception as error:  # the harness reports it and goes on
                bench.close()
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
