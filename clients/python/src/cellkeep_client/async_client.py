"""The client for programs with an event loop. As :mod:`cellkeep_client.client`, with ``await``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, TypeVar

import httpx
from httpx_sse import aconnect_sse

from . import calls
from .calls import Attempts, Call
from .models import Cell, Event, FileEntry, Report

T = TypeVar("T")


class AsyncClient:
    """A Cellkeep server."""

    def __init__(self, url: str | None = None, token: str | None = None, *, patience: float = 60.0) -> None:
        """``patience``: seconds for which a server that is away or busy is asked again."""
        address, headers = calls.settings(url, token)
        self._http = httpx.AsyncClient(base_url=address, headers=headers, timeout=calls.SILENCE)
        self._patience = patience

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def execute(
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
        report = await self._send(calls.execute(code, language, files, options))
        # The server has kept the results for repetitions, which are over.
        await self._send(calls.delete_session(report.id))
        return report

    async def session(self, kernel: str = "python", **options: Any) -> AsyncSession:
        """Creates a session. Options are the fields of ``POST /v1/sessions``: ``name``, ``limits``, ``network``, ``packages``, ..."""
        return AsyncSession(self, await self._send(calls.create_session(kernel, options)))

    def open_session(self, id: str) -> AsyncSession:
        """A session that exists."""
        return AsyncSession(self, id)

    async def _send(self, call: Call[T]) -> T:
        attempts = Attempts(self._patience)
        while True:
            try:
                response = await self._http.request(
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
            await asyncio.sleep(delay)


class AsyncSession:
    """A kernel whose variables and files stay. As a context manager, it is deleted at the end."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client = client
        self.id = id
        self.files = AsyncFiles(client, id)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.delete()

    async def run(self, code: str, **options: Any) -> Cell:
        """Runs a cell to its end. Options: ``timeout_seconds``, ``env``, ``cwd``, ``artifacts``, ``hash_files``."""
        id = calls.new_key()
        cell = await self._client._send(calls.add_cell(self.id, id, code, calls.WAIT, options))
        if cell is None or not cell.is_finished:
            async for _ in self._events(id):
                pass
            cell = await self._client._send(calls.get_cell(self.id, id))
        return cell

    async def stream(self, code: str, **options: Any) -> AsyncIterator[Event]:
        """Runs a cell, and yields its events as they come."""
        id = calls.new_key()
        await self._client._send(calls.add_cell(self.id, id, code, 0, options))
        async for event in self._events(id):
            yield event

    async def interrupt(self) -> None:
        await self._client._send(calls.interrupt(self.id))

    async def restart(self) -> None:
        """Restarts the kernel. Files and cells stay."""
        await self._client._send(calls.restart(self.id))

    async def delete(self) -> None:
        await self._client._send(calls.delete_session(self.id))

    async def _events(self, cell: str) -> AsyncIterator[Event]:
        """The events of a cell until its end, over cuts of the connection."""
        params = {"cell": cell}
        attempts = Attempts(self._client._patience)
        while True:
            try:
                path = f"/v1/sessions/{self.id}/events"
                async with aconnect_sse(self._client._http, "GET", path, params=params) as source:
                    if not source.response.is_success:
                        await source.response.aread()
                    calls.check(source.response)
                    async for item in source.aiter_sse():
                        event = Event.read(json.loads(item.data))
                        params["after"] = str(event.seq)
                        attempts = Attempts(self._client._patience)
                        yield event
                        if event.type == "cell.finished":
                            return
                # The server has ended the stream. A cell that has ended before has no further events.
                if (await self._client._send(calls.get_cell(self.id, cell))).is_finished:
                    return
                delay = 0.05
            except httpx.TransportError as error:
                delay = attempts.after_loss(error)
            await asyncio.sleep(delay)


class AsyncFiles:
    """The workspace of a session."""

    def __init__(self, client: AsyncClient, session: str) -> None:
        self._client = client
        self._session = session

    async def write(self, path: str, data: bytes) -> None:
        await self._client._send(calls.write_file(self._session, path, data))

    async def read(self, path: str) -> bytes:
        return await self._client._send(calls.read_file(self._session, path))

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        await self._client._send(calls.delete_file(self._session, path, recursive))

    async def list(self, folder: str = "") -> list[FileEntry]:
        entries, cursor = await self._client._send(calls.list_files(self._session, folder, None))
        while cursor:
            more, cursor = await self._client._send(calls.list_files(self._session, folder, cursor))
            entries += more
        return entries
