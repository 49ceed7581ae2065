"""The environment variables and the working folder that a request sets for the time of its execution."""

import os
from contextlib import contextmanager

# The agent starts the kernel there.
WORKSPACE = os.getcwd()


@contextmanager
def applied(request):
    """For a request's message. What it sets is set back after the execution, also if the code has changed it."""
    context = (request.get("metadata") or {}).get("cellkeep") or {}
    env, folder = context.get("env", {}), context.get("cwd")
    former_env = {name: os.environ.get(name) for name in env}
    former_folder = None if folder is None else current_folder()
    try:
        os.environ.update(env)
        if folder is not None:
            os.chdir(os.path.join(WORKSPACE, folder))
        yield
    finally:
        for name, value in former_env.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if former_folder is not None:
            os.chdir(former_folder if os.path.isdir(former_folder) else WORKSPACE)


def current_folder():
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted
        return WORKSPACE
