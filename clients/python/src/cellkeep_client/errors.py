"""What can go wrong."""

from __future__ import annotations


class CellkeepError(Exception):
    """Any error of this package."""


class ServerUnreachable(CellkeepError):
    """The server did not answer for as long as the client is patient."""


class Problem(CellkeepError):
    """The server refused a request."""

    def __init__(self, status: int, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        #: Stable, one section of docs/problems.md each.
        self.code = code
        self.detail = detail
        #: The field of the request that is wrong, if it is one.
        self.field = field


class CodeError(CellkeepError):
    """The code failed."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {message}")
        #: The class of the error in the words of the language.
        self.kind = kind
        self.message = message
        self.trace = trace
