"""Decides when SIGINT raises KeyboardInterrupt.

ipykernel lets SIGINT raise KeyboardInterrupt during a whole request. If that hits its own dispatch, or IPython's work before and after
the code, the request is lost or its reply never sent. Here the signal raises only where IPython turns it into an error: in the cell's
code and in event hooks (which draw plots). A signal elsewhere during an execution is deferred until the next statement. A signal between
two executions is ignored.

The stack tells where the signal arrived. Flags could be left wrong by the very exception that is raised.
"""

import os
import signal
import sys
import threading
import types
from contextlib import contextmanager

import cellkeep_context
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
        # Whether the code of this execution was interrupted before, and went on.
        self.repeated = False
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
            repeated, self.repeated = self.repeated, True
            error = keyboard_interrupt(Interrupted if repeated else KeyboardInterrupt)
            if repeated:
                interrupt_handlers(frame)
            raise error
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
        self.pending = self.in_code = self.repeated = False
        self.task = None
        self.executing = True
        try:
            yield
        finally:
            self.executing = False
            sys.settrace(None)
            self.install()

    @contextmanager
    def awaiting(self, loop, task):
        self.task = loop, task
        try:
            yield
        finally:
            self.task = None


class Interrupted(BaseException):
    """Raised from the second interrupt on, for code that catches KeyboardInterrupt and goes on."""


Interrupted.__name__ = Interrupted.__qualname__ = "KeyboardInterrupt"
Interrupted.__module__ = "builtins"


def interrupt_handlers(frame):
    """Also raises at the next line that the code executes, once. If it catches everything, that line is in its handler, out of which
    the exception leaves the loop."""

    def raise_at_line(frame, event, argument):
        if event == "call":  # not in what the code calls now
            return None
        if event != "line":
            return raise_at_line
        sys.settrace(None)
        raise keyboard_interrupt(Interrupted)

    while frame and frame.f_code is not run_statement.__code__:
        frame.f_trace = raise_at_line
        frame = frame.f_back
    sys.settrace(raise_at_line)


def keyboard_interrupt(error_class=KeyboardInterrupt):
    """An exception for an interrupt whose traceback omits the frames of this file."""
    error = error_class()

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
        return shell.InteractiveTB.structured_traceback(error_class, error, shown)

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
        self.shown_error = None
        show_traceback = self.shell._showtraceback

        def note_and_show(error_class, error, traceback):
            if is_drawing(sys._getframe()):
                self.shown_error = error_class.__name__, str(error), traceback
            show_traceback(error_class, error, traceback)

        self.shell._showtraceback = note_and_show

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
        self.shown_error = None
        try:
            with cellkeep_context.applied(self.get_parent()):
                reply = await super().do_execute(code, silent, *args, **kwargs)
            # An error while something is drawn is shown by IPython, but leaves the status ok.
            failed = self.shown_error is not None and reply["status"] == "ok"
            return self.error_reply(*self.shown_error) if failed else reply
        except OSError as error:  # of the working folder: what the code raises is caught by IPython
            reply = self.error_reply(type(error).__name__, str(error), [f"{type(error).__name__}: {error}"])
            self.send_response(self.iopub_socket, "error", {key: reply[key] for key in ("ename", "evalue", "traceback")})
            return reply
        except (KeyboardInterrupt, Interrupted):  # raised while leaving a hook; the request still needs its reply
            return self.error_reply("KeyboardInterrupt", "", ["KeyboardInterrupt"])

    def error_reply(self, name, value, traceback):
        error = {"ename": name, "evalue": value, "traceback": traceback}
        return {"status": "error", "execution_count": self.shell.execution_count - 1, "payload": [], **error}

    @contextmanager
    def _cancel_on_sigint(self, future):
        # Upstream installs a handler that can only cancel, which has no effect on a loop that never awaits.
        with INTERRUPTS.awaiting(future.get_loop(), future):
            yield


def is_drawing(frame):
    """Whether IPython is showing an object or calling an event hook, which may draw plots. Code that shows an error of its own is not."""
    while frame:
        if frame.f_globals.get("__name__") == "IPython.core.formatters" or frame.f_code is EventManager.trigger.__code__:
            return True
        frame = frame.f_back
    return False


def locate(frame):
    """Returns whether a frame belongs to a statement of the cell, and whether it belongs to an event hook of the execution."""
    called = None
    in_hook = False
    while frame:
        code = frame.f_code
        if code is run_statement.__code__:
            return True, False
        if code is InteractiveShell.showtraceback.__code__:
            return False, False  # the cell is ending; an exception here would replace its error by a note of IPython
        # Only the hook itself, not the loop that calls the hooks.
        in_hook = in_hook or (code is EventManager.trigger.__code__ and called is not None)
        if code is Kernel.do_execute.__code__:
            return False, in_hook
        called, frame = frame, frame.f_back
    return False, False
