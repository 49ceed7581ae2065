"""Uses the Python client against the server of CELLKEEP_SERVER. The argument names the part."""

import asyncio
import sys

from cellkeep_client import AsyncClient, Client, CodeError, Problem, calls


def refusal(act):
    try:
        act()
    except Problem as problem:
        return problem
    raise AssertionError("not refused")


def check_sync():
    with Client() as cellkeep:
        code = "import os\nopen('out.csv', 'w').write(open('in.csv').read() + os.environ['WHO'])\nprint(6 * 7)"
        report = cellkeep.execute(code, files={"in.csv": b"a,b\n"}, env={"WHO": "me"}, return_files=["*.csv"], timeout=120)
        assert (report.status, report.stdout, report.exit_code) == ("success", "42\n", 0), report
        assert [(file.path, file.data) for file in report.files] == [("out.csv", b"a,b\nme")], report
        failed = cellkeep.execute("import humanize", timeout=120)
        assert failed.error.kind == "ModuleNotFoundError" and "humanize" in failed.suggestions[0], failed
        try:
            failed.raise_for_error()
        except CodeError as error:
            assert "humanize" in str(error)
        plot = cellkeep.execute("import matplotlib.pyplot as p\np.plot([1, 2]); p.show()", timeout=120, memory_mb=1024).plots[0]
        assert plot.format == "png" and plot.data.startswith(b"\x89PNG")
        assert refusal(lambda: cellkeep.execute("1", language="cobol")).field == "language"

        with cellkeep.session("python", name="mine") as session:
            session.files.write("in/data ä.txt", b"hello")
            assert session.files.read("in/data ä.txt") == b"hello"
            assert [entry.path for entry in session.files.list("in")] == ["in/data ä.txt"]
            session.run("x = 41", timeout_seconds=120).raise_for_error()
            assert session.run("print('a'); x + 1").text == "a\n42\n"
            error = session.run("1/0").error
            assert error.kind == "ZeroDivisionError" and "\x1b" not in error.trace
            assert session.run("import matplotlib.pyplot as p\np.plot([1]); p.show()").images[0].data.startswith(b"\x89PNG")
            events = list(session.stream("for i in range(3): print(i, flush=True)"))
            assert "".join(event.text for event in events) == "0\n1\n2\n" and events[-1].type == "cell.finished"
            # Longer than a request waits.
            calls.WAIT = 0.1
            assert session.run("import time\ntime.sleep(1)\nprint('slept')").text == "slept\n"
            session.files.delete("in", recursive=True)
            assert session.files.list() == []
            session.restart()
            assert session.run("'x' in globals()").text == "False\n"
            other = cellkeep.open_session(session.id)
            assert other.run("1").text == "1\n"
        assert refusal(lambda: other.run("1")).code == "no_session"
        session.delete()


async def check_async():
    async with AsyncClient() as cellkeep:
        reports = await asyncio.gather(*(cellkeep.execute(f"print({n})", timeout=120) for n in range(4)))
        assert [report.stdout for report in reports] == [f"{n}\n" for n in range(4)]
        async with await cellkeep.session("python") as session:
            await session.files.write("a", b"1")
            assert await session.files.read("a") == b"1"
            assert (await session.run("6 * 7")).text == "42\n"
            texts = [event.text async for event in session.stream("print('hi')")]
            assert "".join(texts) == "hi\n", texts


def check_restart():
    """The server is killed while the code runs, and started again."""
    code = """
import os, time
with open('count', 'a') as file: file.write('x')
print('started', flush=True)
while not os.path.exists('go'): time.sleep(0.05)
print('ended', len(open('count').read()))
"""
    with Client(patience=200) as cellkeep, cellkeep.session("python") as session:
        print(session.id, flush=True)
        calls.WAIT = 300.0
        cell = session.run(code, timeout_seconds=300)
        assert cell.text == "started\nended 1\n", cell
        # A stream goes on where it was cut.
        session.files.delete("go")
        texts = []
        for event in session.stream(code, timeout_seconds=300):
            texts.append(event.text)
            if event.text == "started\n":
                print("streams", flush=True)
        assert "".join(texts) == "started\nended 2\n", texts


part = sys.argv[1]
asyncio.run(check_async()) if part == "async" else {"sync": check_sync, "restart": check_restart}[part]()
print("ok", flush=True)
