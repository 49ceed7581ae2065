"""Resolves and installs packages for a package set, in a sandbox of its own; the manager calls it (src/manager/package_sets).

Usage, in an empty workspace with `requirements.txt`, and `lock.txt` if the versions are decided already:

- `python install_packages.py resolve` writes `lock.txt` (requirements with versions and hashes) and `packages.json`.
- `python install_packages.py install` installs them into the folder `set`, which sandboxes see as /opt/packages.

Versions of the environment are preferred, and what it has is not installed again.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIREMENTS, LOCK, PACKAGES, CHOSEN = map(Path, ("requirements.txt", "lock.txt", "packages.json", "chosen.txt"))
SET = Path("set")
# In the lock: `name==version \`, and lines with hashes that belong to it.
PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def in_environment():
    """Name → version of what the environment has."""
    return {canonical(one.metadata["Name"]): one.version for one in distributions() if one.metadata["Name"]}


def uv(*arguments):
    environment = {**os.environ, "UV_CACHE_DIR": ".cache", "UV_LINK_MODE": "hardlink", "UV_NO_PROGRESS": "1", "UV_NO_CONFIG": "1"}
    # /tmp is too small for builds.
    environment["TMPDIR"] = str(Path("tmp").absolute())
    Path("tmp").mkdir(exist_ok=True)
    command = [ROOT / "lib/uv", "pip", *arguments, "--python", ROOT / "bin/python", "--no-python-downloads"]
    if subprocess.run(command, env=environment).returncode:
        sys.exit(1)


def read_lock():
    """The packages of the lock: name, version, and the text that pins it."""
    found, text = [], ""
    for line in LOCK.read_text().splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        text += line + "\n"
        if line.endswith("\\"):
            continue
        if not (match := PINNED.match(text)):
            sys.exit(f"lock.txt: {text.splitlines()[0]!r} does not name one version (name==version)")
        found.append((canonical(match[1]), match[2], text))
        text = ""
    return found


def resolve():
    environment = in_environment()
    if not LOCK.exists():
        # uv prefers the versions of an output file that exists.
        LOCK.write_text("".join(f"{name}=={version}\n" for name, version in sorted(environment.items())))
        uv("compile", REQUIREMENTS, "--output-file", LOCK, "--generate-hashes", "--no-header", "--no-annotate", "--quiet")
    packages = []
    for name, version, _ in read_lock():
        present = environment.get(name)
        packages.append({"name": name, "version": version, "installed": present != version})
        if present not in (None, version):
            packages[-1]["replaces"] = present
    PACKAGES.write_text(json.dumps(packages))


def install():
    environment = in_environment()
    chosen = [text for name, version, text in read_lock() if environment.get(name) != version]
    CHOSEN.write_text("".join(chosen))
    SET.mkdir()
    if chosen:
        uv("install", "--prefix", SET, "--no-deps", "--require-hashes", "--requirements", CHOSEN)
    # Sandboxes see it read-only, at another path. Some packages contain files that are not valid Python, which are skipped.
    compile_all = ["-m", "compileall", "-qq", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([sys.executable, *compile_all, "-s", SET, "-p", "/opt/packages", SET / "lib"], stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    {"resolve": resolve, "install": install}[sys.argv[1]]()
