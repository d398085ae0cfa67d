"""Check every Markdown page of the repository: links lead somewhere, and Python examples run.

    python tools/check_docs.py [PAGE ...]

A link to a file or folder must exist, and its #fragment must be a heading of that page. Python blocks run in order, in
one namespace per page and in an empty working folder: with `>>>` as a doctest, otherwise they must not raise. A block
whose line above is `<!-- not run: REASON -->` is only compiled.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^(?P<mark>```+|~~~+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^()\s]+)(?:\s+\"[^\"]*\")?\)")
NOT_RUN = re.compile(r"<!-- not run: \S.*-->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced Python example: its first line in the page, its text, and whether it is to be run."""

    line: int
    code: str
    run: bool


def python_blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        if match["info"].strip().split(" ")[0] in ("python", "py", "pycon"):
            before = text[: match.start()]
            yield Block(before.count("\n") + 2, match["body"], run=NOT_RUN.search(before) is None)


def anchors(text: str) -> set[str]:
    """The fragments of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#{1,6}\s+(.*?)\s*#*$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def dead_links(page: Path, text: str) -> Iterator[str]:
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub(lambda m: "\n" * m[0].count("\n"), text))
    for match in LINK.finditer(prose):
        target = match["target"]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):  # https:, mailto: ... are not ours to check
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        line = prose[: match.start()].count("\n") + 1
        if not file.exists():
            yield f"{page}:{line}: link to {target}, which does not exist"
        elif fragment and file.suffix == ".md" and fragment not in anchors(file.read_text(encoding="utf-8")):
            yield f"{page}:{line}: link to {target}, but that page has no such heading"


def failing_blocks(page: Path, text: str) -> Iterator[str]:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in python_blocks(text):
        place = f"{page}:{block.line}"
        try:
            if ">>>" in block.code:
                if block.run:
                    yield from (f"{place}: {report}" for report in _doctest(block, names, place))
                continue
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if block.run:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(code, names)
        except Exception:
            yield f"{place}: the example failed\n{traceback.format_exc(limit=-3)}"


def _doctest(block: Block, names: dict[str, object], place: str) -> list[str]:
    test = doctest.DocTestParser().get_doctest(block.code, names, place, place, block.line)
    out = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False)
    runner.run(test, out=out.write, clear_globs=False)
    names.update(test.globs)
    return [out.getvalue()] if runner.failures else []


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [REPOSITORY / name for name in listed.stdout.splitlines()]


def main(arguments: list[str]) -> int:
    wrong, examples, chosen = [], 0, [Path(a).resolve() for a in arguments] or pages()
    for page in chosen:
        text = page.read_text(encoding="utf-8")
        examples += sum(block.run for block in python_blocks(text))
        wrong += dead_links(page, text)
        with tempfile.TemporaryDirectory() as folder, _working_in(folder):
            wrong += failing_blocks(page, text)
    print("\n".join(wrong) if wrong else f"{len(chosen)} pages: all links lead somewhere, {examples} examples ran")
    return int(bool(wrong))


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
