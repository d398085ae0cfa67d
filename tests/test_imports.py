"""Imports inside the package point one way. Read from the source with ast, so that nothing has to be imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "prunus"

# Each layer may import, at module level, itself part by part and every layer above it in this table.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "axes"),
    ("types",),
    ("data",),
    ("zoo",),
    ("schedules", "masks"),
    ("graph",),
    ("criteria", "statistics", "allocation"),  # scoring and planning read the graph's counting; the graph reads neither
    ("surgery", "layerwise", "training", "search"),
    ("compression", "evaluation", "runtime", "export"),
    ("language",),
    ("methods",),
    ("report",),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}


def part_of(module: str) -> str:
    """The first name below prunus: "prunus.data.split" -> "data"; "" for the package itself."""
    return module.removeprefix("prunus").lstrip(".").split(".")[0]


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def module_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: also those inside if and try, but not inside functions or TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_type_checking(node):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from module_level(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from module_level(handler.body)


def imported_parts(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, part) of each module-level import of something inside prunus by `module`."""
    package = module if is_package else module.rpartition(".")[0]
    for node in module_level(tree.body):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, part_of(a.name)) for a in node.names if a.name.split(".")[0] == "prunus")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            if base == "prunus":
                yield from ((node.lineno, part_of(a.name)) for a in node.names if a.name != "__version__")
            elif base.startswith("prunus."):
                yield node.lineno, part_of(base)


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        names = path.relative_to(SOURCE.parent).with_suffix("").parts
        found.append((".".join(n for n in names if n != "__init__"), path))
    return found


def complaints(module: str, source: str, is_package: bool) -> list[str]:
    own = part_of(module)
    if own == "":  # the package's own __init__ gathers the public names from everywhere
        return []
    if own not in RANK:
        return [f"{module}: {own!r} has no place in LAYERS"]
    wrong = []
    for line, other in imported_parts(ast.parse(source), module, is_package):
        if other == own:
            continue
        if other not in RANK:
            wrong.append(f"{module}:{line} imports {other or 'the package itself'!r}, which has no place in LAYERS")
        elif RANK[other] >= RANK[own]:
            wrong.append(f"{module}:{line} imports {other!r}, which does not come before {own!r}")
    return wrong


def test_every_module_imports_only_what_comes_before_it():
    wrong = [c for name, path in modules() for c in complaints(name, path.read_text(), path.name == "__init__.py")]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("prunus.types", "from .graph import trace", "does not come before"),
        ("prunus.graph.counting", "from ..surgery import apply", "does not come before"),
        ("prunus.graph.counting", "from .. import cli", "does not come before"),
        ("prunus.graph.counting", "import prunus.pipeline", "does not come before"),
        (
            "prunus.graph.counting",
            "try:\n    from prunus.report import render\nexcept ImportError:\n    pass",
            "not come before",
        ),
        ("prunus.graph.counting", "if True:\n    import prunus", "no place"),
        ("prunus.utils", "", "no place"),
    ],
)
def test_a_wrong_import_is_found(module, source, says):
    assert any(says in c for c in complaints(module, source, is_package=False))


@pytest.mark.parametrize(
    "source",
    [
        "from ..types import Graph\nfrom .recorder import Recorder",
        "def later():\n    from ..surgery import apply",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..surgery import apply",
        "import torch, prunus.errors",
    ],
)
def test_a_right_import_is_left_alone(source):
    assert complaints("prunus.graph.counting", source, is_package=False) == []
