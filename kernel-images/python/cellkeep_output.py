"""Sends the kernel's output through pipes, which keep it however the process ends.

Upstream's text waits in memory for up to 0.2 s, and its messages wait in a ZeroMQ socket until another thread sends them; a process
that dies suddenly takes both along. Here text goes to the process's own stdout and stderr, line by line, and messages go to a pipe
of their own. Cellkeep's agent reads all three, and src/agent/iopub_pipe.rs describes how it restores their order.
"""

import fcntl
import mmap
import os
import select
import struct
import subprocess
import sys
import termios
import threading
import time

from ipykernel import kernelapp
from ipykernel.iostream import IOPubThread, OutStream

# The largest write that the system makes completely or not at all.
PIPE_BUF = 4096
FRAGMENT = struct.Struct("<HBxIQQ")
PART, LAST_PART, TEXT_OWNER = 1, 2, 3
UNKNOWN = 2**64 - 1
# Characters of text that wait for the end of their line.
MAX_LINE = 8192
# Where system calls that never wait take this long, one after the other, another thread keeps the interpreter busy, and takes it for
# 5 ms at each call. Then lines are collected for a while. Both times in seconds.
SLOW_CALL = 0.001
SLOW_CALLS = 3
COLLECT_TIME = 0.02
# How long the beginning of a line waits for its end, seconds.
FLUSH_INTERVAL = 0.2


def unread(descriptor):
    """The number of bytes in a pipe."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0\0\0\0"))[0]


class IopubPipe:
    """The inherited pipe of the iopub channel, and the text streams of the process.

    One lock orders everything that is written. It is reentrant, since signal handlers and finalizers print too.
    """

    def __init__(self, pipe, page):
        self.pipe = pipe
        self.page = memoryview(mmap.mmap(page, mmap.PAGESIZE, prot=mmap.PROT_READ)).cast("Q")
        os.close(page)
        os.set_inheritable(pipe, False)
        # Duplicates, since code may redirect its descriptors 1 and 2 for native libraries, and still print here.
        self.stdout, self.stderr = (fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (1, 2))
        self.lock = threading.RLock()
        self.process = os.getpid()
        self.number = 0
        # The execution to which text belongs now, by its msg_id. None: the running one.
        self.owner = None
        self.streams = []
        # Until this time lines are collected instead of written one by one.
        self.collect_until = 0
        self.slow_calls = 0
        # Whether a message is being sent, and messages that a signal handler sends meanwhile.
        self.sending = False
        self.postponed = []
        os.register_at_fork(before=self.mark, after_in_child=self.leave)
        # Says that text waits.
        self.waiting = threading.Event()
        threading.Thread(target=self.flush_regularly, name="flush", daemon=True).start()

    def leave(self):
        """In a forked child, which writes text to the inherited streams. Its messages go through the parent, as upstream."""
        self.lock, self.waiting = threading.RLock(), threading.Event()
        for stream in self.streams:
            stream.pieces, stream.length = [], 0
            stream.session.pid = os.getpid()  # else it sends nothing

    def flush_regularly(self):
        # Upstream's timer needs a descriptor for each thread that prints.
        while self.waiting.wait():
            time.sleep(FLUSH_INTERVAL)
            self.waiting.clear()
            with self.lock:
                self.send_text()

    def positions(self):
        """How many bytes have been written to stdout and stderr, by this process and its children."""
        for _ in range(1000):
            before = self.page[0]
            if before % 2 == 0:
                stdout, stderr = self.page[1] + unread(self.stdout), self.page[2] + unread(self.stderr)
                if self.page[0] == before:
                    return stdout, stderr
            time.sleep(0)  # the agent is reading just now
        return UNKNOWN, UNKNOWN

    def write_fragment(self, kind, number, positions, payload):
        os.write(self.pipe, FRAGMENT.pack(len(payload), kind, number, *positions) + payload)

    def send(self, frames):
        """Sends a message, given as the frames of ZeroMQ."""
        with self.lock:
            if self.sending:
                self.postponed.append(frames)
                return
            self.sending = True
            try:
                self.send_now(frames)
                while self.postponed:
                    self.send_now(self.postponed.pop(0))
            finally:
                self.sending = False

    def send_now(self, frames):
        frames = [bytes(frame) for frame in frames]
        # The delimiter and the signature are for sockets that others can reach.
        parts = frames[frames.index(b"<IDS|MSG>") + 2 :]
        packed = struct.pack(f"<{len(parts) + 1}I", len(parts), *map(len, parts)) + b"".join(parts)
        room = PIPE_BUF - FRAGMENT.size
        self.send_text()
        self.number = (self.number + 1) % 2**32
        positions = self.positions()
        last = (len(packed) - 1) // room * room
        for start in range(0, last, room):
            self.write_fragment(PART, self.number, positions, packed[start : start + room])
        self.write_fragment(LAST_PART, self.number, positions, packed[last:])

    def mark(self):
        """Sends the text so far, and a fragment that orders it before what others write next."""
        with self.lock:
            self.send_text()
            if self.process == os.getpid() and (unread(self.stdout) or unread(self.stderr)):
                self.set_owner(self.owner)

    def set_owner(self, owner):
        """Says to which execution the following text belongs: of this process, its children, and native code."""
        self.write_fragment(TEXT_OWNER, 0, self.positions(), (owner or "").encode())
        self.owner = owner

    def send_text(self):
        for stream in self.streams:
            stream.send_pieces()

    def write_text(self, descriptor, owner, text):
        started = time.perf_counter()
        other = unread(self.stderr if descriptor == self.stdout else self.stdout)
        asked = time.perf_counter()
        self.slow_calls = self.slow_calls + 1 if asked - started > SLOW_CALL else 0
        if self.slow_calls >= SLOW_CALLS:
            self.slow_calls, self.collect_until = 0, asked + COLLECT_TIME
        # If the other stream's pipe is empty, the agent has read it and will read this text later.
        if owner != self.owner or other:
            self.set_owner(owner)
        write_all(descriptor, text)
        if descriptor == self.stderr:
            # The agent reads stdout first. So this comes before what native code may write to stdout next.
            self.set_owner(owner)


def write_all(descriptor, text):
    # A lone surrogate, which is no text, is shown as its escape.
    rest = memoryview(text.encode("utf-8", "backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # a child may have made the shared pipe non-blocking
            select.select([], [descriptor], [])


class PipedIOPubThread(IOPubThread):
    """Upstream's thread, which now only forwards the messages of forked children."""

    iopub_pipe = None

    def send_multipart(self, message, *args, **kwargs):
        if self._is_master_process():
            self.iopub_pipe.send(message)
        else:
            super().send_multipart(message, *args, **kwargs)


class PipedOutStream(OutStream):
    """sys.stdout or sys.stderr. Text leaves the process at the end of each line, when it is flushed, and after 0.2 s."""

    def __init__(self, session, pub_thread, name, **kwargs):
        super().__init__(session, pub_thread, name, **(kwargs | {"watchfd": False}))
        # What fileno() returns.
        self._original_stdstream_copy = {"stdout": 1, "stderr": 2}[name]
        # Texts of one execution that wait for the end of their line, and its msg_id.
        self.pieces = []
        self.length = 0
        self.owner = None
        self.pipe = pub_thread.iopub_pipe
        self.descriptor = getattr(self.pipe, name)
        self.pipe.streams.append(self)

    def set_parent(self, parent):
        super().set_parent(parent)
        if self.pipe.owner is not None:
            with self.pipe.lock:
                self.pipe.send_text()
                self.pipe.set_owner(None)  # the new request's own

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        if self._hooks:  # somebody wants to see messages
            return super().write(text)
        owner = self.parent_header.get("msg_id")
        with self.pipe.lock:
            # What waits in the other stream, or of another execution, was written before.
            for stream in self.pipe.streams:
                if stream.pieces and (stream is not self or owner != self.owner):
                    stream.send_pieces()
            self.owner = owner
            self.pieces.append(text)
            self.length += len(text)
            complete = "\n" in text or self.length > MAX_LINE
            if not self._is_master_process() or (complete and time.perf_counter() >= self.pipe.collect_until):
                self.send_pieces()
            elif not self.pipe.waiting.is_set():
                self.pipe.waiting.set()
        return len(text)

    def send_pieces(self):
        if self.pieces:
            text, self.pieces, self.length = "".join(self.pieces), [], 0
            if self._is_master_process():
                self.pipe.write_text(self.descriptor, self.owner, text)
            else:
                write_all(self.descriptor, text)

    def flush(self):
        if self._hooks:
            super().flush()
        with self.pipe.lock:
            self.pipe.send_text()


def send_before_others_write(pipe):
    """Sends the text so far before a child starts, whose output then comes after it, and before the process ends itself.

    os.fork has hooks for this. multiprocessing's `spawn` starts its children in yet another way, and is left out.
    """

    def marked(start):
        def start_marked(*args, **kwargs):
            pipe.mark()
            return start(*args, **kwargs)

        return start_marked

    subprocess.Popen._execute_child = marked(subprocess.Popen._execute_child)
    os.system = marked(os.system)
    for name in ("posix_spawn", "posix_spawnp", "kill", "_exit", "abort"):
        setattr(os, name, marked(getattr(os, name)))
    # What bypasses sys.stdout, but not Python.
    for stream in (sys.__stdout__, sys.__stderr__):
        stream.reconfigure(line_buffering=True)


def use_pipes():
    """Makes ipykernel use the pipes that the agent gave the process, and returns settings for its application.

    Without an agent everything stays as upstream has it.
    """
    numbers = os.environ.pop("CELLKEEP_IOPUB_PIPE", None)
    if numbers is None:
        return {}
    pipe = PipedIOPubThread.iopub_pipe = IopubPipe(*map(int, numbers.split(",")))
    kernelapp.IOPubThread = PipedIOPubThread
    send_before_others_write(pipe)
    return {"outstream_class": f"{__name__}.{PipedOutStream.__name__}"}
