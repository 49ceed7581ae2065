"""Runs a notebook with nbclient: notebook.py IN.ipynb OUT.ipynb, the kernelspec taken from JUPYTER_PATH.

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
    source, target = sys.argv[1:]
    notebook = nbformat.read(source, as_version=4)
    # The same transport as in a sandbox.
    config = Config({"KernelManager": {"transport": "ipc"}})
    client = TimedClient(notebook, kernel_name="bench", timeout=120, config=config)
    client.seconds = []
    began = time.perf_counter()
    asyncio.run(client.async_execute())
    nbformat.write(notebook, target)
    print(json.dumps({"cells": client.seconds, "whole": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
