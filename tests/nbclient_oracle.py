"""Runs notebooks with nbclient and with Cellkeep, on the same kernel, and compares what they store.

nbclient_oracle.py CELLKEEP KERNEL_DIR WORK_DIR CACHE_DIR WHEEL NOTEBOOK...

Prints one line for each notebook: `same`, `left out` with a reason, or `DIFFERENT` with the first difference. Fails if any
notebook is `DIFFERENT`. Outputs are normalized before the comparison, like those in nbclient's own tests: addresses, file
names of cells, colours and the model ids of widgets are masked, and base64 is decoded. Adjacent outputs of one stream are
merged on both sides, because their boundaries depend on timing.

The results of nbclient are cached in CACHE_DIR. The name of an entry is a hash of everything that the result depends on: the
notebook, the kernel's environment, the versions of nbclient and of all packages beside it, and this file. The results of
Cellkeep are never cached.
"""

import asyncio
import base64
import copy
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import upgrade

TIMEOUT = 60
# The number of notebooks that run in parallel. Small notebooks mostly wait for their kernel to start, to reply and to end.
PARALLEL_NOTEBOOKS = 6

# Notebooks on which Cellkeep differs from nbclient on purpose, or that cannot be compared, by file name.
DEVIATIONS = {
    "Autokill.ipynb": "kills its kernel: nbclient raises, Cellkeep also stores an output that says how the kernel ended",
    "test_coalesce.ipynb": "prints to stdout and stderr in turns: nbclient sorts what came within 0.2 s by stream",
    "Interrupt.ipynb": "never ends: nbclient can continue after the time limit, Cellkeep ends the run",
    "Parallel Execute A.ipynb": "waits for a file that another notebook writes",
    "keyboard_interrupt.ipynb": "sleeps for a minute, and waits for a manual interrupt",
    "nbconvert_library.ipynb": "downloads a page, and the sandbox has no network",
    "Parallel Execute B.ipynb": "waits for a file that another notebook writes",
}

# The kernel's environment has no ipywidgets. Both sides import it from a wheel in their working folder.
USE_WIDGETS = "import sys, importlib; sys.path.insert(0, '{}'); importlib.invalidate_caches()"

ADDRESS = re.compile(r"0x[0-9a-f]{6,16}")
CELL_FILE = re.compile(r"(<ipython-input-\d+-[0-9a-f]+>|ipykernel_\d+/\d+\.py|/tmp/ipykernel_\d+)")
CELL_NAME = re.compile(r"((Cell|Input) In\s?\[\d+\]|<IPY-INPUT>), (in )?(line \d+|<module>|<cell line: \d+>\(\))")
KERNEL = re.compile(r"/[\w./-]*/kernels/\.python@[0-9a-f]{16}")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def text_of(value):
    return "".join(value) if isinstance(value, list) else value


def mask(text):
    text = KERNEL.sub("/opt/kernel", text)
    text = ANSI.sub("", ADDRESS.sub("<ADDRESS>", text))
    return CELL_NAME.sub("<CELL>", CELL_FILE.sub("<CELL-FILE>", text))


def decoded(value):
    try:
        return base64.b64decode(value.encode("ascii"), validate=False) if isinstance(value, str) else value
    except (ValueError, UnicodeEncodeError):
        return value


def normalized(output):
    output = copy.deepcopy(output)
    output.pop("metadata", None)
    if output["output_type"] == "stream":
        output["text"] = mask(text_of(output["text"]))
    for mime, value in output.get("data", {}).items():
        if mime == "application/vnd.jupyter.widget-view+json":
            value["model_id"] = "<MODEL>"
        elif mime.startswith("text/"):
            output["data"][mime] = mask(text_of(value))
        else:
            output["data"][mime] = decoded(text_of(value))
    if "traceback" in output:
        output["traceback"] = [mask(line) for line in output["traceback"]]
        output["evalue"] = mask(output["evalue"])
    return output


def outputs_of(cell):
    merged = []
    for output in map(normalized, cell.get("outputs", [])):
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" == last.get("output_type") and last["name"] == output["name"]:
            last["text"] += output["text"]
        else:
            merged.append(output)
    return merged


def difference(theirs, ours):
    """Describes the first difference between two executed notebooks. None if they are equal."""
    if len(theirs["cells"]) != len(ours["cells"]):
        return f"{len(theirs['cells'])} and {len(ours['cells'])} cells"
    for index, (their, our) in enumerate(zip(theirs["cells"], ours["cells"])):
        if their["cell_type"] != "code":
            continue
        if their.get("execution_count") != our.get("execution_count"):
            return f"cell {index}: execution counts {their.get('execution_count')} and {our.get('execution_count')}"
        if outputs_of(their) != outputs_of(our):
            return f"cell {index}:\n    nbclient: {outputs_of(their)!r:.1500}\n    cellkeep: {outputs_of(our)!r:.1500}"
    language = lambda notebook: notebook["metadata"].get("language_info")
    if language(theirs) != language(ours):
        return f"language_info: {language(theirs)} and {language(ours)}"
    widgets = lambda notebook: sorted(
        str(model.get("model_name"))
        for bundle in notebook["metadata"].get("widgets", {}).values()
        for model in bundle["state"].values()
    )
    if widgets(theirs) != widgets(ours):
        return f"widgets: {widgets(theirs)} and {widgets(ours)}"
    return None


def cleared(notebook):
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = []
    return notebook


class Comparison:
    def __init__(self, cellkeep, kernel, work, cache, wheel):
        self.cellkeep, self.work, self.cache, self.wheel = cellkeep, Path(work), Path(cache), Path(wheel)
        self.cache.mkdir(parents=True, exist_ok=True)
        packages = sorted(f"{package.metadata['Name']}=={package.version}" for package in metadata.distributions())
        self.cache_key = [Path(__file__).read_text(), Path(kernel).name, self.wheel.name, sys.version, *packages]
        spec = json.loads(Path(kernel, "kernel.json").read_text())
        spec["argv"] = [argument.replace("/opt/kernel", kernel) for argument in spec["argv"]]
        spec["env"] = {name: value.replace("/opt/kernel", kernel) for name, value in spec["env"].items()}
        specs = Path(work, "jupyter/kernels/oracle")
        specs.mkdir(parents=True, exist_ok=True)
        Path(specs, "kernel.json").write_text(json.dumps(spec))
        self.kernels = str(specs.parent)

    def run_nbclient(self, notebook, again=False):
        """Runs the notebook with nbclient, or reads the cached result. `again` is a second run with its own cache entry."""
        notebook = cleared(notebook)
        # Without the ids of cells: cells of files without ids get new ones at each reading.
        cells = [[cell.cell_type, cell.source, cell.metadata] for cell in notebook.cells]
        key = [*self.cache_key, json.dumps([cells, notebook.metadata]), str(again)]
        cached = self.cache / f"{hashlib.sha256(chr(0).join(key).encode()).hexdigest()}.ipynb"
        if cached.exists():
            return nbformat.read(cached, as_version=4)
        self.execute(notebook)
        partial = cached.with_suffix(f".{threading.get_ident()}")
        nbformat.write(notebook, partial)
        partial.rename(cached)
        return notebook

    def execute(self, notebook):
        with tempfile.TemporaryDirectory() as folder:
            manager = AsyncKernelManager(kernel_name="oracle", kernel_spec_manager=KernelSpecManager(kernel_dirs=[self.kernels]))
            (Path(folder) / self.wheel.name).symlink_to(self.wheel)
            client = NotebookClient(
                notebook, km=manager, timeout=TIMEOUT, allow_errors=True, resources={"metadata": {"path": folder}}
            )
            try:
                client.execute(env={**os.environ, "HOME": folder, "MPLCONFIGDIR": folder})
            finally:
                asyncio.run(manager.shutdown_kernel(now=True))

    def run_cellkeep(self, notebook, name):
        source, target = self.work / f"{name}.in.ipynb", self.work / f"{name}.out.ipynb"
        nbformat.write(cleared(notebook), source)
        target.unlink(missing_ok=True)
        command = [
            self.cellkeep, "run", source, "-o", target, "--sandbox", "process", "--compat", "nbclient", "--allow-errors",
            "--timeout", str(TIMEOUT), "--memory", "1g", "--cpus", "2", "--file", self.wheel,
        ]  # fmt: skip
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if not target.exists():
            raise RuntimeError(f"cellkeep wrote no notebook: {process.stderr}")
        return nbformat.read(target, as_version=4)

    def compare(self, path):
        if path.name in DEVIATIONS:
            return "left out", DEVIATIONS[path.name]
        try:
            # nbformat adds missing ids only when it validates. Adding them here gives both sides the same ids.
            notebook = upgrade(nbformat.read(path, as_version=4))
        except Exception as error:  # nbformat raises various errors for files that are not notebooks
            return "left out", f"nbformat cannot read it: {type(error).__name__}"
        if any("widgets" in cell.source for cell in notebook.cells if cell.cell_type == "code"):
            notebook.cells.insert(0, nbformat.v4.new_code_cell(USE_WIDGETS.format(self.wheel.name), id="use-widgets"))
        language = notebook.metadata.get("kernelspec", {}).get("language", "python")
        if language != "python":
            return "left out", f"its language is {language}"
        try:
            theirs = self.run_nbclient(notebook)
        except (DeadKernelError, CellTimeoutError) as error:
            return "left out", f"nbclient fails: {type(error).__name__}"
        name = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        mismatch = difference(theirs, self.run_cellkeep(notebook, name))
        if mismatch is None:
            return "same", f"{sum(cell.cell_type == 'code' for cell in notebook.cells)} code cells"
        if (unsteady := difference(theirs, self.run_nbclient(notebook, again=True))) is not None:
            return "left out", f"two runs of nbclient differ: {unsteady.splitlines()[0]}"
        return "DIFFERENT", mismatch


def report(comparison, path):
    try:
        verdict, reason = comparison.compare(path)
    except Exception as error:  # counts as a difference of this notebook; the other notebooks still run
        verdict, reason = "DIFFERENT", f"{type(error).__name__}: {error}"
    print(f"{verdict}: {path.parent.name}/{path.name}: {reason}", flush=True)
    return verdict


def main():
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    comparison = Comparison(*sys.argv[1:6])
    with ThreadPoolExecutor(PARALLEL_NOTEBOOKS) as pool:
        verdicts = list(pool.map(lambda path: report(comparison, Path(path)), sys.argv[6:]))
    count = {verdict: verdicts.count(verdict) for verdict in ("same", "left out", "DIFFERENT")}
    print(json.dumps(count))
    sys.exit(count["DIFFERENT"] != 0)


if __name__ == "__main__":
    main()
