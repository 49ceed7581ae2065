#!/usr/bin/python3
"""Checks that every relative link and anchor in the repository's Markdown files points to something that exists. No network.

Also checks that each problem code of the HTTP API (src/api, src/chat/error.rs) has a heading in docs/problems.md, because
the `type` of a problem is the address of that heading, and that each heading is a code of the API.
"""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
SOURCE = re.compile(r"<(?:img|a|source)\b[^>]*?\b(?:src|href|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
NAMED = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
CODE = re.compile(
    r"(?:(?:Problem|Self)::new\([^\"]*?"
    r"|\b(?:bad_request|not_found|unprocessable|conflict|unavailable|unauthorized|forbidden)\()"
    r"\s*\"([a-z_]+)\""
)
CHAT_CODE = re.compile(r"=> \"([a-z_]+)\"")


def markdown_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    skipped = {"target", "node_modules", ".git"}
    return [path for path in ROOT.rglob("*.md") if not skipped & set(path.relative_to(ROOT).parts)]


def anchors(path):
    """The anchors of a Markdown file, as GitHub makes them from its headings."""
    text = FENCE.sub("", path.read_text())
    names, counts = set(NAMED.findall(text)), {}
    for heading in HEADING.findall(text):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = counts.get(slug, 0)
        counts[slug] = number + 1
        names.add(f"{slug}-{number}" if number else slug)
    return names


def broken_links(path):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text()))
    for target in LINK.findall(text) + SOURCE.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = path if not name else (ROOT / name[1:] if name.startswith("/") else path.parent / name)
        if not file.exists():
            yield f"{target}: there is no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"{target}: there is no such heading"


def problem_differences():
    page = ROOT / "docs" / "problems.md"
    documented = set(re.findall(r"^### `([a-z_]+)`", page.read_text(), re.MULTILINE))
    codes = set()
    for path in sorted((ROOT / "src" / "api").rglob("*.rs")):
        code = path.read_text().split("#[cfg(test)]")[0]
        codes |= set(CODE.findall(code))
    chat = (ROOT / "src" / "chat" / "error.rs").read_text().split("pub fn code")[1].split("\n    }\n")[0]
    codes |= set(CHAT_CODE.findall(chat))
    codes.add("interrupted")  # src/chat/mod.rs: turns that the stop of a server interrupted
    for code in sorted(codes - documented):
        yield f"the code {code} of the API has no section `### \\`{code}\\``"
    for code in sorted(documented - codes):
        yield f"the section {code} names no code of the API"


def main():
    broken = [f"{path.relative_to(ROOT)}: {problem}" for path in markdown_files() for problem in broken_links(path)]
    broken += [f"docs/problems.md: {problem}" for problem in problem_differences()]
    for line in broken:
        print(line, file=sys.stderr)
    sys.exit(1 if broken else 0)


main()
