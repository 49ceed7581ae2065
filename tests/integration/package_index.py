"""A package index on loopback, which stands in for the public one (PEP 503). Usage: package_index.py FOLDER

Prints its port. Packages: `pelican` 1.0 and 2.0, `flock` 1.0 (needs pelican>=1), `prober` 1.0 (source only: while it is built, it tries to reach
other places and notes what answers), `broken` 1.0 (its build fails), `secretly` 1.0 (needs
denied-thing), `wcwidth` 99.0 (which the kernel has in another version). Requests for `slow` wait until FOLDER/go exists.
Each request is a line of FOLDER/requests.
"""

import hashlib
import io
import json
import sys
import tarfile
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])


def wheel(name, version, source, needs=()):
    info = f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {one}\n" for one in needs)
    files = {
        f"{name.replace('-', '_')}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-says = {name.replace('-', '_')}:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for path, text in files.items():
            writer.writestr(path, text)
    return f"{name.replace('-', '_')}-{version}-py3-none-any.whl", archive.getvalue()


def sdist(name, version, backend):
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": backend,
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as writer:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{path}")
            member.size = len(text)
            writer.addfile(member, io.BytesIO(text.encode()))
    return f"{name}-{version}.tar.gz", archive.getvalue()


# Runs in the installer sandbox.
PROBER = '''
import base64, os, socket, urllib.request, zipfile
PORT = %(other)d
def reached():
    found = []
    for host in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "1.1.1.1"):
        try:
            socket.create_connection((host, PORT), timeout=2).close()
            found.append("socket " + host)
        except OSError:
            pass
    for url in ("http://127.0.0.1:%(other)d/", "http://169.254.169.254/", "http://example.com/"):
        try:
            found.append(url + urllib.request.urlopen(url, timeout=5).read().decode()[:20])
        except Exception:
            pass
    for name in os.environ:
        if "TOKEN" in name or "SECRET" in name:
            found.append(name)
    return found
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "prober-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("prober.py", f"REACHED = {reached()!r}\\nUID = {os.getuid()}\\n")
        wheel.writestr("prober-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: prober\\nVersion: 1.0\\n")
        wheel.writestr("prober-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("prober-1.0.dist-info/RECORD", "prober.py,,\\n")
    return name
'''


class Index(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with open(FOLDER / "requests", "a") as requests:
            requests.write(self.path + "\n")
        parts = self.path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2:
            name = parts[1]
            while name == "slow" and not (FOLDER / "go").exists():
                time.sleep(0.01)
            links = [
                f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>'
                for file, data in FILES.items()
                if file.replace("_", "-").startswith(name + "-")
            ]
            return self.answer(200 if links else 404, "text/html", "\n".join(["<!DOCTYPE html>", *links]).encode())
        if parts[0] == "files" and parts[1] in FILES:
            return self.answer(200, "application/octet-stream", FILES[parts[1]])
        self.answer(404, "text/plain", b"no such page")

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


# Not 127.0.0.1, which is the sandbox itself to programs in it.
server = ThreadingHTTPServer(("127.0.0.2", 0), Index)
# Something on the machine that nobody may reach.
other = ThreadingHTTPServer(("127.0.0.1", 0), Index)
SAYS = "VERSION = '{}'\ndef main(): print('{} says', VERSION)\n"
FILES = dict(
    [
        wheel("pelican", "1.0", SAYS.format("1.0", "pelican")),
        wheel("pelican", "2.0", SAYS.format("2.0", "pelican")),
        wheel("flock", "1.0", SAYS.format("1.0", "flock"), ["pelican>=1"]),
        wheel("slow", "1.0", SAYS.format("1.0", "slow")),
        wheel("denied-thing", "1.0", SAYS.format("1.0", "denied")),
        wheel("secretly", "1.0", SAYS.format("1.0", "secretly"), ["denied-thing"]),
        wheel("wcwidth", "99.0", SAYS.format("99.0", "wcwidth")),
        sdist("prober", "1.0", PROBER % {"other": other.server_address[1]}),
        sdist("broken", "1.0", "def build_wheel(*_, **__): raise SystemExit('gcc: command not found')\n"),
    ]
)
print(server.server_address[1], flush=True)
server.serve_forever()
