"""When SIGINT stops a cell, and when it must not.

ipykernel lets SIGINT raise KeyboardInterrupt during a whole request. Where that meets its own dispatch, or IPython's work
before and after the code, the request is lost or its reply never sent. Here the signal raises only where IPython makes
an error of it: in the cell's code and in event hooks (which draw the plots). A signal that comes during an execution but not there is
remembered until the next statement; one that comes between two executions has nothing to stop.

The place is told by the stack and not by flags: a flag could be left wrong by the very exception that is raised.
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
    """SIGINT, as the main thread's executions take it. Signal handlers run in that thread and in no other."""

    def __init__(self):
        self.process = os.getpid()
        self.executing = False
        # Came too early: the next statement raises it.
        self.pending = False
        # Whether code runs or, in an async cell, awaits something.
        self.in_code = False
        # The event loop and the task of an async cell.
        self.task = None

    def install(self):
        signal.signal(signal.SIGINT, self.take)

    def take(self, number, frame):
        if os.getpid() != self.process:  # a child that the code forked
            return signal.default_int_handler(number, frame)
        if not self.executing:
            return
        in_code, in_hook = where(frame)
        if in_code:
            raise interruption()
        if in_hook:
            # IPython carries on after a hook that fails. If it ran before the code, the code must not start.
            self.pending = True
            raise interruption()
        if self.task and self.in_code:
            # It awaits something. The event loop is what runs, and an exception in there would end the kernel. As in
            # asyncio.run: cancelled here and now, before the task's next step, which may never await again.
            loop, task = self.task
            task.cancel()
            loop.call_soon_threadsafe(lambda: None)  # wakes the loop
        else:
            self.pending = True

    @contextmanager
    def execution(self):
        # The code of an earlier cell may have installed a handler of its own.
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


def interruption():
    """A KeyboardInterrupt that IPython shows without the frames of this file, which are none of the user's business."""
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

    error._render_traceback_ = render  # where IPython looks for it
    return error


INTERRUPTS = Interrupts()


def in_main_thread():
    return threading.current_thread() is threading.main_thread()


async def run_statement(run_code, *args, **kwargs):
    """IPython's run_code: one statement of a cell. What is raised in here is the statement's error."""
    if not in_main_thread():
        return await run_code(*args, **kwargs)
    if INTERRUPTS.pending:
        INTERRUPTS.pending = False
        raise interruption()
    outer, INTERRUPTS.in_code = INTERRUPTS.in_code, True
    try:
        return await run_code(*args, **kwargs)
    finally:
        INTERRUPTS.in_code = outer


class Kernel(IPythonKernel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # Not a subclass of the shell: libraries tell a notebook by the name of its class.
        run_code = self.shell.run_code
        self.shell.run_code = lambda *args, **kwargs: run_statement(run_code, *args, **kwargs)

    def pre_handler_hook(self):
        """Upstream lets SIGINT raise during any request."""

    def post_handler_hook(self):
        """Upstream undoes the above."""

    async def execute_request(self, stream, ident, parent):
        if not in_main_thread():  # a subshell: no signal reaches it
            return await super().execute_request(stream, ident, parent)
        with INTERRUPTS.execution():
            return await super().execute_request(stream, ident, parent)

    async def do_execute(self, code, silent, *args, **kwargs):
        try:
            return await super().do_execute(code, silent, *args, **kwargs)
        except KeyboardInterrupt:  # on the way out of a hook; the request must have its reply all the same
            error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
            return {"status": "error", "execution_count": self.shell.execution_count - 1, "payload": [], **error}

    @contextmanager
    def _cancel_on_sigint(self, future):
        # Upstream installs a handler that can only cancel: a loop that never awaits would not heed it.
        with INTERRUPTS.awaiting(future.get_loop(), future):
            yield


def where(frame):
    """Whether a frame belongs to a cell's statement, and whether to an event hook that the execution waits for."""
    called = None
    in_hook = False
    while frame:
        code = frame.f_code
        if code is run_statement.__code__:
            return True, False
        # The hook itself, not the loop around the hooks.
        in_hook = in_hook or (code is EventManager.trigger.__code__ and called is not None)
        if code is Kernel.do_execute.__code__:
            return False, in_hook
        called, frame = frame, frame.f_back
    return False, False
