"""The checker of the documentation finds what is wrong in a page, and the repository's own links are right."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("check_docs", REPOSITORY / "tools" / "check_docs.py")
assert SPEC is not None
assert SPEC.loader is not None
check_docs = importlib.util.module_from_spec(SPEC)
__import__("sys").modules["check_docs"] = check_docs  # dataclasses look their module up
SPEC.loader.exec_module(check_docs)

PAGE = """# The First: a heading

[there](other.md) and [here](#the-first-a-heading), `[code](absent.md)`, [far](https://example.org/absent)

```text
[in a block](absent.md)
```
"""


def complaints(folder: Path, text: str) -> list[str]:
    (folder / "other.md").write_text("# Other")
    page = folder / "page.md"
    page.write_text(text)
    return [*check_docs.dead_links(page, text), *check_docs.failing_blocks(page, text)]


def block(code: str, above: str = "") -> str:
    return f"{above}\n```python\n{code}\n```\n"


def test_a_right_page_is_left_alone(tmp_path):
    page = PAGE + block("x = 1") + block(">>> x + 1\n2") + block("1 / 0", "<!-- not run: it fails -->")
    assert complaints(tmp_path, page) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n[a](absent.md)", "page.md:2: link to absent.md, which does not exist"),
        ("![a](absent.png)", "link to absent.png"),
        ("[a](other.md#nowhere)", "no such heading"),
        ("[a](#nowhere)", "no such heading"),
        (block("1 / 0"), "ZeroDivisionError"),
        (block(">>> 1 + 1\n3"), "Expected:\n    3\nGot:\n    2"),
        (block("x = (", "<!-- not run: even so it must compile -->"), "SyntaxError"),
    ],
)
def test_a_wrong_page_is_found(tmp_path, text, says):
    (found,) = complaints(tmp_path, text)
    assert says in found


@pytest.mark.parametrize("page", check_docs.pages(), ids=lambda page: page.name)
def test_links_of_the_repository_lead_somewhere(page):
    assert list(check_docs.dead_links(page, page.read_text(encoding="utf-8"))) == []
