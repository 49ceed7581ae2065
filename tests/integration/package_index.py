"""A package index on loopback, which stands in for the public one (PEP 503). Usage: package_index.py FOLDER [--only NAME] [--key KEY]

Prints its port. Packages: `pelican` 1.0 and 2.0, `flock` 1.0 (needs pelican>=1), `prober` 1.0 (source only: while it is built, it tries to reach
other places and notes what answers), `broken` 1.0 (its build fails), `secretly` 1.0 (needs
denied-thing), `wcwidth` 99.0 (which the kernel has in another version), `heavy` 1.0 (3 MB). Requests for `slow` wait until FOLDER/go
exists. `pelican` 3.0 appears with FOLDER/newer. Each request is a line of FOLDER/requests: method, path, and the Authorization field.
For R, `/cran` has `rpelican` 1.0 (in the archive) and 2.0, and `rflock` 1.0 (imports rpelican).
With --only, other packages are not there; with --key, requests without `Authorization: Basic KEY` are refused.
"""

import argparse
import hashlib
import io
import json
import tarfile
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--only")
parser.add_argument("--key")
OPTIONS = parser.parse_args()
FOLDER = OPTIONS.folder


def wheel(name, version, source, needs=()):
    info = f"{name.replace('-', '_')}-{version}.dist-info"
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
    return f"{name}-{version}.tar.gz", tar(f"{name}-{version}", files)


def r_package(name, version, imports=""):
    description = f"Package: {name}\nVersion: {version}\nTitle: Test\nAuthor: Test\nMaintainer: Test <test@example.com>\n"
    description += f"Description: Test.\nLicense: MIT\nNeedsCompilation: no\n" + (f"Imports: {imports}\n" if imports else "")
    files = {
        "DESCRIPTION": description,
        "NAMESPACE": 'exportPattern("^[a-z]")\n',
        "R/says.R": f'{name}_says <- function() "{name} {version}"\n',
    }
    return f"{name}_{version}.tar.gz", tar(name, files), description


def tar(folder, files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as writer:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{folder}/{path}")
            member.size = len(text)
            writer.addfile(member, io.BytesIO(text.encode()))
    return archive.getvalue()


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
        key = self.headers.get("Authorization", "-")
        with open(FOLDER / "requests", "a") as requests:
            requests.write(f"{self.command} {self.path} {key}\n")
        if OPTIONS.key and key != f"Basic {OPTIONS.key}":
            return self.answer(401, "text/plain", b"who are you?")
        parts = self.path.strip("/").split("/")
        if parts[0] == "simple" and len(parts) == 2:
            name = parts[1]
            while name == "slow" and not (FOLDER / "go").exists():
                time.sleep(0.01)
            links = [
                f'<a href="/files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>'
                for file, data in FILES.items()
                if file.replace("_", "-").startswith(name + "-")
                and OPTIONS.only in (None, name)
                and ("pelican-3" not in file or (FOLDER / "newer").exists())
            ]
            return self.answer(200 if links else 404, "text/html", "\n".join(["<!DOCTYPE html>", *links]).encode())
        if parts[0] == "files" and parts[1] in FILES:
            return self.answer(200, "application/octet-stream", FILES[parts[1]])
        if self.path in CRAN:
            return self.answer(200, "application/octet-stream", CRAN[self.path])
        self.answer(404, "text/plain", b"no such page")

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
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
        wheel("pelican", "3.0", SAYS.format("3.0", "pelican")),
        wheel("heavy", "1.0", "TEXT = '" + "x" * 3_000_000 + "'\n"),
        wheel("flock", "1.0", SAYS.format("1.0", "flock"), ["pelican>=1"]),
        wheel("slow", "1.0", SAYS.format("1.0", "slow")),
        wheel("denied-thing", "1.0", SAYS.format("1.0", "denied")),
        wheel("secretly", "1.0", SAYS.format("1.0", "secretly"), ["denied-thing"]),
        wheel("wcwidth", "99.0", SAYS.format("99.0", "wcwidth")),
        sdist("prober", "1.0", PROBER % {"other": other.server_address[1]}),
        sdist("broken", "1.0", "def build_wheel(*_, **__): raise SystemExit('gcc: command not found')\n"),
    ]
)
R = [r_package("rpelican", "2.0"), r_package("rflock", "1.0", "rpelican")]
CRAN = {"/cran/src/contrib/PACKAGES": "\n".join(description for _, _, description in R).encode()}
CRAN |= {f"/cran/src/contrib/{file}": data for file, data, _ in R}
CRAN["/cran/src/contrib/Archive/rpelican/rpelican_1.0.tar.gz"] = r_package("rpelican", "1.0")[1]
print(server.server_address[1], flush=True)
server.serve_forever()
