"""The client for programs without an event loop."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import httpx
from httpx_sse import connect_sse

from . import calls
from .calls import Attempts, Call
from .models import Cell, Event, FileEntry, Report

T = TypeVar("T")


class Client:
    """A Cellkeep server. Threads may share it."""

    def __init__(self, url: str | None = None, token: str | None = None, *, patience: float = 60.0) -> None:
        """``patience``: seconds for which a server that is away or busy is asked again."""
        address, headers = calls.settings(url, token)
        self._http = httpx.Client(base_url=address, headers=headers, timeout=calls.SILENCE)
        self._patience = patience

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def execute(
        self,
        code: str,
        *,
        language: str = "python",
        files: Mapping[str, bytes] | None = None,
        **options: Any,
    ) -> Report:
        """Runs code once, in a session of its own.

        Options: ``timeout`` (seconds), ``memory_mb``, ``cpus``, ``return_files`` (patterns), ``packages``, ``env``, ``cwd``, ``network``,
        ``mounts``, ``secrets``.
        """
        report = self._send(calls.execute(code, language, files, options))
        # The server has kept the results for repetitions, which are over.
        self._send(calls.delete_session(report.id))
        return report

    def session(self, kernel: str = "python", **options: Any) -> Session:
        """Creates a session. Options are the fields of ``POST /v1/sessions``: ``name``, ``limits``, ``network``, ``packages``, ..."""
        return Session(self, self._send(calls.create_session(kernel, options)))

    def open_session(self, id: str) -> Session:
        """A session that exists."""
        return Session(self, id)

    def _send(self, call: Call[T]) -> T:
        attempts = Attempts(self._patience)
        while True:
            try:
                response = self._http.request(
                    call.method,
                    call.path,
                    json=call.json,
                    content=call.content,
                    params=call.params,
                    timeout=httpx.Timeout(calls.SILENCE, read=call.timeout),
                )
                delay = attempts.after_answer(response)
                if delay is None:
                    return call.read(calls.check(response, call.done))
            except httpx.TransportError as error:
                delay = attempts.after_loss(error)
            time.sleep(delay)


class Session:
    """A kernel whose variables and files stay. As a context manager, it is deleted at the end."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self.id = id
        self.files = Files(client, id)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.delete()

    def run(self, code: str, **options: Any) -> Cell:
        """Runs a cell to its end. Options: ``timeout_seconds``, ``env``, ``cwd``, ``artifacts``, ``hash_files``."""
        id = calls.new_key()
        cell = self._client._send(calls.add_cell(self.id, id, code, calls.WAIT, options))
        if cell is None or not cell.is_finished:
            for _ in self._events(id):
                pass
            cell = self._client._send(calls.get_cell(self.id, id))
        return cell

    def stream(self, code: str, **options: Any) -> Iterator[Event]:
        """Runs a cell, and yields its events as they come."""
        id = calls.new_key()
        self._client._send(calls.add_cell(self.id, id, code, 0, options))
        return self._events(id)

    def interrupt(self) -> None:
        self._client._send(calls.interrupt(self.id))

    def restart(self) -> None:
        """Restarts the kernel. Files and cells stay."""
        self._client._send(calls.restart(self.id))

    def delete(self) -> None:
        self._client._send(calls.delete_session(self.id))

    def _events(self, cell: str) -> Iterator[Event]:
        """The events of a cell until its end, over cuts of the connection."""
        params = {"cell": cell}
        attempts = Attempts(self._client._patience)
        while True:
            try:
                path = f"/v1/sessions/{self.id}/events"
                with connect_sse(self._client._http, "GET", path, params=params) as source:
                    if not source.response.is_success:
                        source.response.read()
                    calls.check(source.response)
                    for item in source.iter_sse():
                        event = Event.read(json.loads(item.data))
                        params["after"] = str(event.seq)
                        attempts = Attempts(self._client._patience)
                        yield event
                        if event.type == "cell.finished":
                            return
                # The server has ended the stream. A cell that has ended before has no further events.
                if (self._client._send(calls.get_cell(self.id, cell))).is_finished:
                    return
                delay = 0.05
            except httpx.TransportError as error:
                delay = attempts.after_loss(error)
            time.sleep(delay)


class Files:
    """The workspace of a session."""

    def __init__(self, client: Client, session: str) -> None:
        self._client = client
        self._session = session

    def write(self, path: str, data: bytes) -> None:
        self._client._send(calls.write_file(self._session, path, data))

    def read(self, path: str) -> bytes:
        return self._client._send(calls.read_file(self._session, path))

    def delete(self, path: str, *, recursive: bool = False) -> None:
        self._client._send(calls.delete_file(self._session, path, recursive))

    def list(self, folder: str = "") -> list[FileEntry]:
        entries, cursor = self._client._send(calls.list_files(self._session, folder, None))
        while cursor:
            more, cursor = self._client._send(calls.list_files(self._session, folder, cursor))
            entries += more
        return entries
