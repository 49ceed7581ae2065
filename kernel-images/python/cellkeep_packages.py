"""Where this environment's Python finds packages besides its own, and where pip installs them: the environment is read-only.

Imported at each start, by a .pth file beside its copy in site-packages. Searched in this order, before the
environment itself:

- `~/.local`, where pip installs during a session. It may appear at any time.
- `/opt/packages`, the package set of the sandbox.
"""

import os
import sys

USER_PREFIX = os.path.join(os.path.expanduser("~"), ".local")
SET_PREFIX = "/opt/packages"
LIBRARY = "lib/python{}.{}/site-packages".format(*sys.version_info)


def search(prefix):
    """Puts the packages of `prefix` before those that are found so far, and after the standard library."""
    import site

    end = len(sys.path)
    site.addsitedir(os.path.join(prefix, LIBRARY))
    added = sys.path[end:]
    del sys.path[end:]
    later = (os.path.join(SET_PREFIX, LIBRARY), os.path.dirname(__file__))
    start = next((index for index, folder in enumerate(sys.path) if folder in later), end)
    sys.path[start:start] = added


class UserPackages:
    """Searches `~/.local` from the first import after it has appeared. Python would remember that it was not there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if os.path.isdir(os.path.join(USER_PREFIX, LIBRARY)):
            sys.meta_path.remove(cls)
            search(USER_PREFIX)


def redirect_pip():
    """Makes pip treat `~/.local` as a virtual environment over this one: it installs there, keeps what the environment has already,
    and leaves that alone where it must install another version."""
    # /tmp is too small for large packages.
    temporary = os.path.join(USER_PREFIX, "tmp")
    os.makedirs(temporary, exist_ok=True)
    os.environ["TMPDIR"] = temporary
    # pip reads it from its prefix.
    with open(os.path.join(USER_PREFIX, "pyvenv.cfg"), "w") as file:
        file.write("include-system-site-packages = false\n")
    sys.prefix = sys.exec_prefix = USER_PREFIX


def adapt():
    # `bin/pip` starts pip in the same way.
    if sys.orig_argv[1:3] == ["-m", "pip"] and os.environ.get("HOME"):
        try:
            redirect_pip()
        except OSError as error:
            print(f"pip cannot install into {USER_PREFIX}: {error}", file=sys.stderr)
    if os.path.isdir(SET_PREFIX):
        search(SET_PREFIX)
    if os.path.isdir(os.path.join(USER_PREFIX, LIBRARY)):
        search(USER_PREFIX)
    else:
        sys.meta_path.insert(0, UserPackages)


# Tests and benchmarks also run the environment where it was installed.
if __file__.startswith("/opt/kernel/"):
    adapt()
