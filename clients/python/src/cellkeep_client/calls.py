"""The requests of the API, and how their answers are read. No I/O: the clients send them.

Every call can be repeated. What begins something has a key or an id of its own, so that a repetition finds what was begun.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from .errors import CellkeepError, Problem, ServerUnreachable
from .models import Cell, FileEntry, Json, Report

T = TypeVar("T")

#: Seconds that a request may wait for the end of a cell, before the client follows its events.
WAIT = 30.0
#: Seconds without a byte after which a connection counts as lost. The server sends something every few seconds.
SILENCE = 60.0


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    json: Any = None
    content: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    #: Seconds that the answer may take. ``None``: as long as the code runs.
    timeout: float | None = SILENCE
    #: Codes of problems that say that an earlier attempt has had its effect.
    done: Sequence[str] = ()


class Attempts:
    """Decides whether and when a request is sent again."""

    def __init__(self, patience: float) -> None:
        self._deadline = time.monotonic() + patience
        self._delay = 0.05

    def after_loss(self, error: httpx.TransportError) -> float:
        """Seconds to wait after a lost connection. Raises if patience is at its end."""
        if time.monotonic() > self._deadline:
            raise ServerUnreachable(f"the server does not answer: {error}") from error
        self._delay = min(self._delay * 2, 2.0)
        return self._delay

    def after_answer(self, response: httpx.Response) -> float | None:
        """Seconds to wait if the server is busy. ``None``: the answer counts."""
        if response.status_code not in (429, 503) or "retry-after" not in response.headers:
            return None
        delay = float(response.headers["retry-after"])
        return delay if time.monotonic() + delay < self._deadline else None


def settings(url: str | None, token: str | None) -> tuple[str, dict[str, str]]:
    """The address of the server, and the headers of all requests."""
    url = url or os.environ.get("CELLKEEP_SERVER") or "http://127.0.0.1:7788"
    token = token or os.environ.get("CELLKEEP_TOKEN")
    if not token:
        raise CellkeepError("a token is required: pass it, or set CELLKEEP_TOKEN (cellkeep token create NAME)")
    return url.rstrip("/"), {"authorization": f"Bearer {token}"}


def check(response: httpx.Response, done: Sequence[str] = ()) -> httpx.Response:
    """Raises the problem that a response describes, unless it says that all is done."""
    if response.is_success:
        return response
    try:
        body = response.json()
        problem = Problem(response.status_code, body["code"], body["detail"], body.get("field"))
    except (ValueError, KeyError, TypeError):
        problem = Problem(response.status_code, "unknown", response.text[:500])
    if problem.code in done:
        return response
    raise problem


def new_key() -> str:
    return uuid.uuid4().hex


def _given(**fields: Any) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _nothing(_: httpx.Response) -> None:
    return None


def execute(code: str, language: str, files: Mapping[str, bytes] | None, options: Mapping[str, Any]) -> Call[Report]:
    names = {
        "timeout": "timeout",
        "memory_mb": "memoryLimit",
        "cpus": "cpuLimit",
        "return_files": "returnFiles",
        "packages": "installPackages",
        "env": "environment",
        "cwd": "workingDir",
        "network": "network",
        "mounts": "mounts",
        "secrets": "secrets",
    }
    body: Json = {"code": code, "language": language, "key": new_key()}
    body |= {names[name]: value for name, value in options.items() if value is not None}
    if files:
        body["files"] = [_input(path, data) for path, data in files.items()]
    return Call("POST", "/v1/execute", lambda response: Report.read(response.json()), json=body, timeout=None)


def _input(path: str, data: bytes) -> Json:
    return {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}


def create_session(kernel: str, options: Mapping[str, Any]) -> Call[str]:
    body = {"kernel": kernel, "key": new_key(), **_given(**options)}
    return Call("POST", "/v1/sessions", lambda response: str(response.json()["id"]), json=body, timeout=None)


def delete_session(session: str) -> Call[None]:
    return Call("DELETE", f"/v1/sessions/{session}", _nothing, done=["no_session"])


def interrupt(session: str) -> Call[None]:
    return Call("POST", f"/v1/sessions/{session}/interrupt", _nothing)


def restart(session: str) -> Call[None]:
    return Call("POST", f"/v1/sessions/{session}/restart", _nothing, timeout=None)


def add_cell(session: str, cell: str, code: str, wait: float, options: Mapping[str, Any]) -> Call[Cell | None]:
    """Adds a cell with an id of the client's. ``None``: an earlier attempt has added it."""

    def read(response: httpx.Response) -> Cell | None:
        return Cell.read(response.json()) if response.is_success else None

    body = {"id": cell, "source": code, **_given(**options)}
    params = {"wait": str(wait)} if wait else {}
    path = f"/v1/sessions/{session}/cells"
    return Call("POST", path, read, json=body, params=params, timeout=wait + SILENCE, done=["cell_exists"])


def get_cell(session: str, cell: str) -> Call[Cell]:
    return Call("GET", f"/v1/sessions/{session}/cells/{cell}", lambda response: Cell.read(response.json()))


def _file_path(session: str, path: str) -> str:
    return f"/v1/sessions/{session}/files/{quote(path)}"


def write_file(session: str, path: str, data: bytes) -> Call[None]:
    return Call("PUT", _file_path(session, path), _nothing, content=data)


def read_file(session: str, path: str) -> Call[bytes]:
    return Call("GET", _file_path(session, path), lambda response: response.content)


def delete_file(session: str, path: str, recursive: bool) -> Call[None]:
    params = {"recursive": "true"} if recursive else {}
    return Call("DELETE", _file_path(session, path), _nothing, params=params, done=["no_file"])


def list_files(session: str, folder: str, cursor: str | None) -> Call[tuple[list[FileEntry], str | None]]:
    """A page of a folder, and the cursor of the next one."""

    def read(response: httpx.Response) -> tuple[list[FileEntry], str | None]:
        body = response.json()
        return [FileEntry.read(entry) for entry in body["entries"]], body.get("next_cursor")

    params = _given(path=folder, cursor=cursor)
    return Call("GET", f"/v1/sessions/{session}/files/", read, params=params)
