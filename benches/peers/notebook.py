"""Runs a notebook with nbclient: notebook.py IN.ipynb OUT.ipynb SECONDS, the kernelspec "bench" taken from JUPYTER_PATH.

SECONDS is how long nbclient waits for output that comes after a cell's reply; it calls this iopub_timeout and takes 4.
Prints one JSON line: seconds of each cell's execution and of the whole, kernel start included.
"""

import asyncio
import json
import sys
import time

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config


class TimedClient(NotebookClient):
    """nbclient, with a clock around each cell."""

    async def async_execute_cell(self, cell, *arguments, **options):
        began = time.perf_counter()
        try:
            return await super().async_execute_cell(cell, *arguments, **options)
        finally:
            self.seconds.append(time.perf_counter() - began)


def main():
    source, target, patience = sys.argv[1:]
    notebook = nbformat.read(source, as_version=4)
    # The same transport as in a sandbox.
    config = Config({"KernelManager": {"transport": "ipc"}})
    client = TimedClient(notebook, kernel_name="bench", timeout=120, iopub_timeout=int(patience), config=config)
    client.seconds = []
    began = time.perf_counter()
    asyncio.run(client.async_execute())
    nbformat.write(notebook, target)
    print(json.dumps({"cells": client.seconds, "whole": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
