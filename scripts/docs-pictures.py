"""Creates the pictures for docs-pictures.sh. Arguments: cellkeep, Chromium, folder of installed kernels, repository."""

import base64
import html
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

DEADLINE_S = 60
SIZE = {"width": 1280, "height": 1350, "deviceScaleFactor": 1, "mobile": False}
CELLS = [
    ("markdown", "## Tides of a harbour\n\nA year of hourly readings, simulated."),
    (
        "code",
        "import numpy as np, pandas as pd\n"
        'hours = pd.date_range("2026-01-01", periods=365 * 24, freq="h")\n'
        "t = np.arange(len(hours))\n"
        "level = pd.Series(1.2 * np.cos(2 * np.pi * t / 12.42) + 0.4 * np.cos(2 * np.pi * t / 12), index=hours)\n"
        'print(f"{len(level):,} readings, from {level.min():.2f} m to {level.max():.2f} m")',
    ),
    ("code", 'level.groupby(level.index.month_name(), sort=False).agg(["min", "max", "std"]).head(4).round(2)'),
    (
        "code",
        "import matplotlib.pyplot as plt\n"
        "figure, axes = plt.subplots(figsize=(8, 2.6))\n"
        'level[: 21 * 24].plot(ax=axes, color="#1c5d8a", linewidth=1, ylabel="metres", title="Three weeks")\n'
        "plt.show()",
    ),
]


def request(server, token, method, path, body=None):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    prepared = urllib.request.Request(server + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(prepared, timeout=DEADLINE_S) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        sys.exit(f"docs-pictures: {method} {path}: {error.read().decode()}")


def until(description, condition):
    """Waits until a condition is true; returns its value."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    sys.exit(f"docs-pictures: waited {DEADLINE_S} s for {description}")


class Browser:
    """A headless Chromium, controlled over the DevTools protocol on a pipe. Messages are JSON and end with a NUL byte."""

    def __init__(self, program, profile):
        to_browser, self.output = os.pipe()
        self.input, from_browser = os.pipe()
        arguments = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        arguments += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        arguments.append("about:blank")
        # Chromium reads from descriptor 3 and writes to descriptor 4.
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *arguments],
            pass_fds=[to_browser, from_browser],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.id, self.session = b"", 0, None
        targets = until("a page", lambda: [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"])
        self.session = self.call("Target.attachToTarget", targetId=targets[0]["targetId"], flatten=True)["sessionId"]

    def call(self, method, **parameters):
        self.id += 1
        message = {"id": self.id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                chunk = os.read(self.input, 1 << 20)
                if not chunk:
                    sys.exit("docs-pictures: Chromium ended")
                self.buffer += chunk
            line, self.buffer = self.buffer.split(b"\0", 1)
            message = json.loads(line)
            if message.get("id") == self.id:
                if "error" in message:
                    sys.exit(f"docs-pictures: {method}: {message['error']}")
                return message["result"]

    def evaluate(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        self.session = None
        self.call("Browser.close")
        self.process.wait(DEADLINE_S)


def page_picture(cellkeep, chromium, kernels, folder, picture):
    data = folder / "data"
    data.mkdir()
    (data / "kernels").symlink_to(kernels)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    token, server = secrets.token_hex(16), f"http://{address}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CELLKEEP_")}
    arguments = [cellkeep, "serve", "--data", str(data), "--listen", address, "--sandbox", "process", "--end-sessions"]
    environment["CELLKEEP_TOKEN"] = token
    process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    browser = None
    try:
        def is_ready():
            try:
                return request(server, token, "GET", "/v1/token")
            except (urllib.error.URLError, ConnectionError):
                return None

        until("the server", is_ready)
        session = request(server, token, "POST", "/v1/sessions", {"kernel": "python", "name": "Tides"})["id"]
        for kind, source in CELLS:
            new = {"source": source, "cell_type": kind}
            cell = request(server, token, "POST", f"/v1/sessions/{session}/cells?wait=60", new)
            if kind == "code" and cell.get("status") != "ok":
                sys.exit(f"docs-pictures: a cell failed: {cell}")
        browser = Browser(chromium, folder / "profile")
        browser.call("Emulation.setDeviceMetricsOverride", **SIZE)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser.call("Page.navigate", url=f"{server}/#token={token}")
        is_shown = f"""(() => {{
            const page = document.querySelector('cellkeep-page')?.renderRoot;
            const cells = [...(page?.querySelectorAll('cellkeep-cell') ?? [])];
            const outputs = cells.flatMap(cell => [...(cell.renderRoot?.querySelectorAll('cellkeep-output') ?? [])]);
            const images = outputs.flatMap(output => [...output.renderRoot.querySelectorAll('img')]);
            return cells.length === {len(CELLS)} && images.some(image => image.naturalWidth > 100);
        }})()"""
        until("the page with its plot", lambda: browser.evaluate(is_shown))
        time.sleep(1)  # for fonts, transitions and the usage of the session
        shot = browser.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        picture.write_bytes(base64.b64decode(shot["data"]))
    finally:
        if browser:
            browser.close()
        process.terminate()
        process.wait(DEADLINE_S)


def run_picture(cellkeep, repository, folder, picture):
    """Draws the output lines of a run as SVG. Paths are relative, so the picture shows no path of this machine."""
    notebook = folder / "quickstart.ipynb"
    notebook.write_bytes((repository / "notebooks" / "quickstart.ipynb").read_bytes())
    arguments = ["run", "quickstart.ipynb", "--artifacts", "plots"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run([cellkeep, *arguments], cwd=folder, text=True, check=True, **streams)
    lines = ["$ cellkeep " + " ".join(arguments)]
    lines += [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).rstrip() for line in done.stdout.splitlines()]
    width, height = max(map(len, lines)) * 8 + 48, len(lines) * 21 + 62
    text = "\n".join(
        f'<text x="24" y="{62 + number * 21}" fill="{"#7ee2b8" if number == 0 else "#e6e6e6"}">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    colours = enumerate(["#ff5f57", "#febc2e", "#28c840"])
    dots = "".join(f'<circle cx="{24 + 18 * n}" cy="20" r="5.5" fill="{colour}"/>' for n, colour in colours)
    picture.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img">\n'
        f"<title>cellkeep run on a terminal</title>\n"
        f'<rect width="{width}" height="{height}" rx="10" fill="#16181d"/>{dots}\n'
        f'<g font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="13" xml:space="preserve">\n'
        f"{text}\n</g>\n</svg>\n"
    )


def main():
    cellkeep, chromium, kernels, repository = sys.argv[1], sys.argv[2], *map(Path, sys.argv[3:5])
    cellkeep = str(Path(cellkeep).resolve())
    pictures = repository / "docs" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cellkeep-pictures-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # sandboxes run with other uids, which must be able to enter the data folder
        page_picture(cellkeep, chromium, kernels, Path(folder), pictures / "page.png")
        run_picture(cellkeep, repository, Path(folder), pictures / "run.svg")
    for picture in ["page.png", "run.svg"]:
        print(f"wrote docs/pictures/{picture} ({(pictures / picture).stat().st_size // 1024} KB)")


main()
