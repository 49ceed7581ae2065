"""Results, as the server describes them. Each keeps the JSON that it was read from, in ``raw``."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

from .errors import CodeError

Json = dict[str, Any]
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/webp": "webp", "image/svg+xml": "svg"}


@dataclass(frozen=True)
class ReportFile:
    """A file that an execution left."""

    path: str
    data: bytes
    #: ``data``, ``plot`` or ``log``.
    kind: str
    mime: str

    @classmethod
    def read(cls, raw: Json) -> ReportFile:
        content = raw["content"]
        data = base64.b64decode(content) if raw["encoding"] == "base64" else content.encode()
        return cls(raw["path"], data, raw["type"], raw["mime"])


@dataclass(frozen=True)
class Plot:
    """A plot that an execution displayed."""

    #: ``png``, ``svg``, ``pdf``, or ``plotly`` and its like for specifications.
    format: str
    data: bytes
    caption: str | None

    @classmethod
    def read(cls, raw: Json) -> Plot:
        is_text = raw["format"] in ("svg", "plotly", "vega", "vega-lite")
        data = raw["data"].encode() if is_text else base64.b64decode(raw["data"])
        return cls(raw["format"], data, raw["caption"])


@dataclass(frozen=True)
class Report:
    """What code that ran once has left."""

    id: str
    #: ``success``, ``error``, ``timeout`` or ``memory-exceeded``.
    status: str
    stdout: str
    stderr: str
    exit_code: int
    files: list[ReportFile]
    plots: list[Plot]
    #: What can be done about an error.
    suggestions: list[str]
    raw: Json

    @classmethod
    def read(cls, raw: Json) -> Report:
        output, results, error = raw["output"], raw["results"], raw["error"] or {}
        return cls(
            id=raw["executionId"],
            status=raw["status"],
            stdout=output["stdout"],
            stderr=output["stderr"],
            exit_code=output["exitCode"],
            files=[ReportFile.read(file) for file in results["files"]],
            plots=[Plot.read(plot) for plot in results["plots"]],
            suggestions=error.get("suggestions", []),
            raw=raw,
        )

    @property
    def error(self) -> CodeError | None:
        error = self.raw["error"]
        return CodeError(error["type"], error["message"], error["stackTrace"]) if error else None

    def raise_for_error(self) -> Report:
        if self.error:
            raise self.error
        return self


@dataclass(frozen=True)
class Image:
    """An image among the outputs of a cell."""

    format: str
    data: bytes


@dataclass(frozen=True)
class Cell:
    """A cell of a session with its outputs."""

    id: str
    #: ``queued``, ``running`` or ``finished``.
    state: str
    #: ``ok``, ``error``, ``timeout`` and so on, once it has finished.
    status: str | None
    #: As nbformat has them.
    outputs: list[Json]
    raw: Json

    @classmethod
    def read(cls, raw: Json) -> Cell:
        return cls(raw["id"], raw["state"], raw.get("status"), raw.get("outputs") or [], raw)

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    @property
    def text(self) -> str:
        """Streams and values as a terminal shows them, without colours."""
        return "".join(_text(output) for output in self.outputs)

    @property
    def images(self) -> list[Image]:
        found = []
        for output in self.outputs:
            bundle = output.get("data", {})
            mime = next((mime for mime in _IMAGES if mime in bundle), None)
            if mime:
                text = _joined(bundle[mime])
                data = text.encode() if mime == "image/svg+xml" else base64.b64decode(text)
                found.append(Image(_IMAGES[mime], data))
        return found

    @property
    def error(self) -> CodeError | None:
        error = self.raw.get("error")
        if not error:
            return None
        return CodeError(error["ename"], error["evalue"], _plain("\n".join(error["traceback"])))

    def raise_for_error(self) -> Cell:
        if self.error:
            raise self.error
        return self


@dataclass(frozen=True)
class Event:
    """Something that happened in a session."""

    seq: int
    #: ``output.append``, ``cell.finished`` and so on; see "Events by number" in docs/http-api.md.
    type: str
    raw: Json

    @classmethod
    def read(cls, raw: Json) -> Event:
        return cls(raw["seq"], raw["type"], raw)

    @property
    def text(self) -> str:
        """What an ``output.append`` adds, as plain text."""
        return _text(self.raw["output"]) if self.type == "output.append" else ""


@dataclass(frozen=True)
class FileEntry:
    """An entry of the workspace."""

    path: str
    #: ``file``, ``folder``, ``link`` or ``other``.
    kind: str
    size: int
    raw: Json

    @classmethod
    def read(cls, raw: Json) -> FileEntry:
        return cls(raw["path"], raw["kind"], raw["size"], raw)


def _joined(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _plain(text: str) -> str:
    return _ESCAPES.sub("", text)


def _text(output: Json) -> str:
    kind = output.get("output_type")
    if kind == "stream":
        return _plain(_joined(output["text"]))
    if kind == "error":
        return _plain("\n".join(output.get("traceback", []))) + "\n"
    value = output.get("data", {}).get("text/plain")
    return "" if value is None else _plain(_joined(value)) + "\n"
