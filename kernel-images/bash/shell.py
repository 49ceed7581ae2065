"""The bash process of the kernel, and how cells run in it.

bash is interactive, since then an interrupt or an error ends the cell and not the shell. Its standard input is a pipe of commands,
each on one line; cells have another standard input. It reports the end of each cell as a record on another pipe.
"""

import base64
import contextlib
import os
import re
import select
import subprocess
import threading
from pathlib import Path

# The descriptor of the records in bash. Scripts use low numbers and 200; bash itself uses 255.
RECORDS = 250
# How often a cell that may ask is checked for a process that waits for input, seconds.
INPUT_INTERVAL = 0.05

STARTUP = r"""PS1= PS2=
exec 2>&{stderr} {stderr}>&- {records}>&{pipe} {pipe}>&-
set +H +o history
unset HISTFILE
__cellkeep_ps1= __cellkeep_prompt_command= __cellkeep_trace= __cellkeep_ended= __cellkeep_restore=
__cellkeep_export() {{
    local __cellkeep_former=
    if [[ -v $1 ]]; then
        __cellkeep_former=$(builtin declare -p "$1")
        __cellkeep_restore+="unset $1; builtin declare -g ${{__cellkeep_former#declare }};"
    else
        __cellkeep_restore+="unset $1;"
    fi
    builtin export "$1=$2"
}}
__cellkeep_cd() {{
    builtin printf -v __cellkeep_restore '%s builtin cd -- %q;' "$__cellkeep_restore" "$PWD"
    builtin cd -- "$1"
}}
__cellkeep_begin() {{
    __cellkeep_ended=
    [[ ${{PS1@a}} == *r* ]] || PS1=$__cellkeep_ps1
    [[ ${{PROMPT_COMMAND@a}} == *r* ]] || PROMPT_COMMAND=$__cellkeep_prompt_command
    __cellkeep_record began "$1"
}}
__cellkeep_status() {{ return "$1"; }}
__cellkeep_end() {{
    __cellkeep_ended=$1 __cellkeep_trace= __cellkeep_ps1=$PS1 __cellkeep_prompt_command=$PROMPT_COMMAND
    case $- in *x*) set +x; __cellkeep_trace='set -x;';; esac
    [[ ${{PS1@a}} == *r* ]] || PS1=
    [[ ${{PROMPT_COMMAND@a}} == *r* ]] || PROMPT_COMMAND=
}}
__cellkeep_record() {{ builtin printf '%s\0' "record:$#" "$@" >&{records}; }}
__cellkeep_display() {{
    local file
    file=$(command mktemp "${{TMPDIR:-/tmp}}/display.XXXXXXXX") && command cat >"$file" && __cellkeep_record display "$1" "$2" "$file"
}}
display() {{ __cellkeep_display image "${{1-}}"; }}
displayHTML() {{ __cellkeep_display html "${{1-}}"; }}
displayJS() {{ __cellkeep_display javascript "${{1-}}"; }}
export NOTEBOOK_BASH_KERNEL_CAPABILITIES=image,html,javascript
__cellkeep_record started "$BASH_VERSION"
"""


def quote(text):
    """The text as one word of bash on one line."""
    return "$'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


class Shell:
    """One bash process. Methods are for the main thread."""

    def __init__(self):
        self.workspace = os.getcwd()  # the agent starts the kernel there
        self.records, pipe = os.pipe()
        self.unread = b""
        self.fields = []
        # Both ends of the pipe that the cell may read from, and its name.
        self.input = self.input_reader = self.input_name = None
        stderr = os.dup(2)
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "--noediting", "-i", "-s"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # until the first line: bash notes that it has no terminal
            pass_fds=(pipe, stderr),
        )
        os.close(stderr)
        # Children of bash may keep the pipe open, so its end does not tell that bash has exited.
        threading.Thread(target=self.watch, args=(pipe,), daemon=True).start()
        self.send(STARTUP.format(stderr=stderr, records=RECORDS, pipe=pipe))
        self.cell = self.last_status = 0
        self.version = next((values[0] for kind, *values in self.read_records() if kind == "started"), "")

    def close(self):
        """Releases the descriptors of a shell that has exited."""
        with contextlib.suppress(BrokenPipeError):  # commands that it did not read
            self.process.stdin.close()
        os.close(self.records)
        self.close_input()

    def watch(self, pipe):
        code = self.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        os.write(pipe, f"record:2\0exited\0{how}\0".encode())
        os.close(pipe)

    def send(self, commands):
        try:
            self.process.stdin.write(commands.encode("utf-8", "replace"))
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has exited, which a record says

    def run(self, code, ask=None, context=None):
        """Runs a cell and yields records: ("display", kind, display_id, path), then ("ended", status) or ("exited", how).

        `ask` returns a line of input, or None for the end of input; without it, input is empty. `context` has environment variables
        (`env`) and a working folder (`cwd`) for the time of the execution.
        """
        self.cell += 1
        code = code.replace("\r\n", "\n")
        # The left side of || may fail without setting off a trap or `set -e`: it gives the cell the status of the last one.
        status = f"__cellkeep_status {self.last_status} || " if self.last_status else ""
        context = context or {}
        restore = ""
        if context.get("env") or context.get("cwd") is not None:
            # It keeps the status of the cell, which an interrupt leaves in $?.
            restore = '__cellkeep_ended=${__cellkeep_ended:-$?}; eval "$__cellkeep_restore" 2>/dev/null || :; __cellkeep_restore=\n'
        folder = os.path.join(self.workspace, context.get("cwd") or "")
        if not os.path.isdir(folder):  # a file is in its place: the cell fails instead of running elsewhere
            code = f"builtin cd -- {quote(folder)}"
        self.send(
            self.context_commands(context)
            + f'{{ __cellkeep_begin {self.cell}; }} 2>/dev/null; {status}eval "$__cellkeep_trace"{quote(code)} <{self.open_input(ask)}'
            '; { __cellkeep_end "$?"; } 2>/dev/null\n'
            # Lines of their own, which an interrupt or a syntax error in the one above does not skip; the latter may swallow one.
            + 2 * restore
            + 2 * f'__cellkeep_record ended {self.cell} "${{__cellkeep_ended:-$?}}" 2>/dev/null\n'
        )
        began = False
        for kind, *values in self.read_records(ask):
            if kind == "began":
                began = True
            elif kind == "ended" and values[:1] == [str(self.cell)]:
                self.close_input()
                if not began:  # the code has changed what runs it, for example by `declare -r`
                    self.process.kill()
                    continue
                self.last_status = int(values[1])
                yield kind, values[1]
                return
            elif kind in ("display", "exited"):
                yield kind, *values

    def context_commands(self, context):
        """Commands, each on a line, that set the context of a cell and note how it is set back."""
        env, folder = context.get("env", {}), context.get("cwd")
        # Other names cannot be variables of bash.
        names = [name for name in env if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)]
        commands = [f"__cellkeep_export {name} {quote(env[name])}" for name in names]
        if folder is not None:
            commands.append(f"__cellkeep_cd {quote(os.path.join(self.workspace, folder))}")
        return "".join(f"{{ {command}; }} 2>/dev/null\n" for command in commands)

    def capture(self, command):
        """The words that a command of ours prints, one a line. It changes neither state nor the last status."""
        self.cell += 1
        self.send(
            f'{{ __cellkeep_record output {self.cell} "$({command})"; }} 2>/dev/null </dev/null\n'
            f"__cellkeep_record output {self.cell} '' 2>/dev/null\n"  # if the line above has failed
        )
        for kind, *values in self.read_records():
            if kind == "output" and values[0] == str(self.cell):
                return values[1].splitlines()
        return []

    def read_records(self, ask=None):
        """Yields records, each a list of strings, until the shell has exited."""
        while True:
            while record := self.take_record():
                yield record
                if record[0] == "exited":
                    return
            if ask and not select.select([self.records], [], [], INPUT_INTERVAL)[0]:
                if self.input and self.waits_for_input():
                    self.answer(ask())
                continue
            *complete, self.unread = (self.unread + os.read(self.records, 65536)).split(b"\0")
            self.fields += [field.decode("utf-8", "replace") for field in complete]

    def take_record(self):
        """The next complete record: the number of its values, and these. Other text is not ours: code can write to the pipe."""
        while self.fields:
            start = re.search("record:([1-9])$", self.fields[0])
            count = int(start[1]) if start else 0
            if count >= len(self.fields):
                return None
            record = self.fields[1 : count + 1]
            del self.fields[: count + 1]
            if record:
                return record
        return None

    # ---- input ----------------------------------------------------------------------------------------------------------------------

    def open_input(self, ask):
        """The path of the cell's standard input: a pipe if the user can be asked, else nothing."""
        self.close_input()
        if not ask:
            return "/dev/null"
        self.input_reader, self.input = os.pipe()
        self.input_name = os.readlink(f"/proc/self/fd/{self.input}")
        return f"/proc/{os.getpid()}/fd/{self.input_reader}"

    def close_input(self):
        for descriptor in (self.input, self.input_reader):
            if descriptor is not None:
                os.close(descriptor)
        self.input = self.input_reader = None

    def answer(self, line):
        if line is None:
            self.close_input()
        else:
            os.write(self.input, f"{line}\n".encode())

    def waits_for_input(self):
        """Whether a process of the sandbox is blocked in a read of the input pipe."""
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and self.reads_input(process):
                return True
        return False

    def reads_input(self, process):
        try:
            # The number of the system call, then its arguments, in hexadecimal: read is 0 on x86-64 and 63 on ARM.
            call, descriptor, *_ = (process / "syscall").read_text().split()
            return call in ("0", "63") and os.readlink(process / "fd" / str(int(descriptor, 16))) == self.input_name
        except (OSError, ValueError):
            return False

    # ---- other requests -------------------------------------------------------------------------------------------------------------

    def completeness(self, code):
        """The status of Jupyter's is_complete_reply."""
        check = subprocess.run(["bash", "-n"], input=code.encode("utf-8", "replace"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if check.returncode == 0:
            return "complete"
        return "incomplete" if b"unexpected end of file" in check.stderr or b"unexpected EOF" in check.stderr else "invalid"

    def end(self):
        self.process.kill()


def find_matches(shell, word):
    """What the shell would complete a word to."""
    prefix = ""
    if word.startswith("$"):
        prefix, word, actions = "$", word[1:], "-v"
    elif "/" in word:
        actions = "-f"
    else:
        actions = "-abcfk -A function"
    matches = shell.capture(f"compgen {actions} -- {quote(word)}")
    hidden = re.compile("__cellkeep_")
    folders = {match for match in matches if "/" in word and os.path.isdir(os.path.expanduser(match))}
    return sorted({prefix + match + ("/" if match in folders else "") for match in matches if not hidden.match(match)})


def rich_output(kind, path):
    """The MIME bundle of a file that a function of the shell has written, which is removed.

    Raises ValueError if it is no image of a known format.
    """
    data = path.read_bytes()
    path.unlink()
    if kind == "html":
        return {"text/html": data.decode("utf-8", "replace")}
    if kind == "javascript":
        return {"application/javascript": data.decode("utf-8", "replace")}
    for start, mime in [(b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif")]:
        if data.startswith(start):
            return {mime: base64.b64encode(data).decode("ascii")}
    if b"<svg" in data[:1024]:
        return {"image/svg+xml": data.decode("utf-8", "replace")}
    raise ValueError("not an image: PNG, JPEG, GIF and SVG are shown")
