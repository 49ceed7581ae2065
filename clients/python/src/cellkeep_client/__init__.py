"""Runs code in the sandboxes of a Cellkeep server."""

from .async_client import AsyncClient, AsyncSession
from .client import Client, Session
from .errors import CellkeepError, CodeError, Problem, ServerUnreachable
from .models import Cell, Event, FileEntry, Image, Plot, Report, ReportFile

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "Cell",
    "CellkeepError",
    "Client",
    "CodeError",
    "Event",
    "FileEntry",
    "Image",
    "Plot",
    "Problem",
    "Report",
    "ReportFile",
    "ServerUnreachable",
    "Session",
]
