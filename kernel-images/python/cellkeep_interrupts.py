"""Decides when SIGINT raises KeyboardInterrupt.

ipykernel lets SIGINT raise KeyboardInterrupt during a whole request. If that hits its own dispatch, or IPython's work before and after
the code, the request is lost or its reply never sent. Here the signal raises only where IPython turns it into an error: in the cell's
code and in event hooks (which draw plots). A signal elsewhere during an execution is deferred until the next statement. A signal between
two executions is ignored.

The stack tells where the signal arrived. Flags could be left wrong by the very exception that is raised.
"""

import os
import signal
import threading
import types
from contextlib import contextmanager

from IPython.core.events import EventManager
from IPython.core.interactiveshell import InteractiveShell
from ipykernel.ipkernel import IPythonKernel


class Interrupts:
    """The SIGINT handler for executions in the main thread, the only thread in which Python runs signal handlers."""

    def __init__(self):
        self.process = os.getpid()
        self.executing = False
        # A deferred signal, which the next statement raises.
        self.pending = False
        # Whether the cell's code is running or, in an async cell, awaiting.
        self.in_code = False
        # Event loop and task of an async cell.
        self.task = None

    def install(self):
        signal.signal(signal.SIGINT, self.handle)

    def handle(self, number, frame):
        if os.getpid() != self.process:  # a child that the code forked
            return signal.default_int_handler(number, frame)
        if not self.executing:
            return
        in_code, in_hook = locate(frame)
        if in_code:
            raise keyboard_interrupt()
        if in_hook:
            # IPython continues after a failed hook. If the hook ran before the code, the code must not start.
            self.pending = True
            raise keyboard_interrupt()
        if self.task and self.in_code:
            # The code awaits, so the event loop is running, and an exception in it would end the kernel. As in asyncio.run, the
            # task is cancelled at once, before its next step, which may never await again.
            loop, task = self.task
            task.cancel()
            loop.call_soon_threadsafe(lambda: None)  # wakes the loop
        else:
            self.pending = True

    @contextmanager
    def execution(self):
        # An earlier cell may have installed another handler.
        self.install()
        self.pending = self.in_code = False
        self.task = None
        self.executing = True
        try:
            yield
        finally:
            self.executing = False
            self.install()

    @contextmanager
    def awaiting(self, loop, task):
        self.task = loop, task
        try:
            yield
        finally:
            self.task = None


def keyboard_interrupt():
    """A KeyboardInterrupt whose traceback omits the frames of this file."""
    error = KeyboardInterrupt()

    def render():
        entries = []
        entry = error.__traceback__
        while entry:
            entries.append(entry)
            entry = entry.tb_next
        shown = None
        for entry in reversed(entries):
            if entry.tb_frame.f_code.co_filename != __file__:
                shown = types.TracebackType(shown, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
        shell = InteractiveShell.instance()
        return shell.InteractiveTB.structured_traceback(KeyboardInterrupt, error, shown)

    error._render_traceback_ = render  # IPython calls it
    return error


INTERRUPTS = Interrupts()


def in_main_thread():
    return threading.current_thread() is threading.main_thread()


async def run_statement(run_code, *args, **kwargs):
    """Wraps IPython's run_code, which runs one statement of a cell and turns an exception into the error of the statement."""
    if not in_main_thread():
        return await run_code(*args, **kwargs)
    if INTERRUPTS.pending:
        INTERRUPTS.pending = False
        raise keyboard_interrupt()
    outer, INTERRUPTS.in_code = INTERRUPTS.in_code, True
    try:
        return await run_code(*args, **kwargs)
    finally:
        INTERRUPTS.in_code = outer


class Kernel(IPythonKernel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # A subclass of the shell would not do: libraries detect notebooks by the name of its class.
        run_code = self.shell.run_code
        self.shell.run_code = lambda *args, **kwargs: run_statement(run_code, *args, **kwargs)

    def pre_handler_hook(self):
        """Upstream lets SIGINT raise during any request."""

    def post_handler_hook(self):
        """Upstream undoes the above."""

    async def execute_request(self, stream, ident, parent):
        if not in_main_thread():  # a subshell, which receives no signals
            return await super().execute_request(stream, ident, parent)
        with INTERRUPTS.execution():
            return await super().execute_request(stream, ident, parent)

    async def do_execute(self, code, silent, *args, **kwargs):
        try:
            return await super().do_execute(code, silent, *args, **kwargs)
        except KeyboardInterrupt:  # raised while leaving a hook; the request still needs its reply
            error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
            return {"status": "error", "execution_count": self.shell.execution_count - 1, "payload": [], **error}

    @contextmanager
    def _cancel_on_sigint(self, future):
        # Upstream installs a handler that can only cancel, which has no effect on a loop that never awaits.
        with INTERRUPTS.awaiting(future.get_loop(), future):
            yield


def locate(frame):
    """Returns whether a frame belongs to a statement of the cell, and whether it belongs to an event hook of the execution."""
    called = None
    in_hook = False
    while frame:
        code = frame.f_code
        if code is run_statement.__code__:
            return True, False
        # Only the hook itself, not the loop that calls the hooks.
        in_hook = in_hook or (code is EventManager.trigger.__code__ and called is not None)
        if code is Kernel.do_execute.__code__:
            return False, in_hook
        called, frame = frame, frame.f_back
    return False, False
