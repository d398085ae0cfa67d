"""prunus makes trained neural networks smaller, faster and greener by pruning them, and proves what it did.

    objective ─▶ trace ─▶ collect ─▶ score ─▶ plan ─▶ apply ─▶ recover ─▶ evaluate ─▶ export ─▶ report
    (budget)    (groups)  (stats)   (criteria) (data)  (verify)  (tune)     (measure)    (file)    (HTML, JSON)

`prune` is the whole middle in one call, `run` the whole way from a recipe.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "trace": "graph",
    "blocks": "graph",
    "collect": "statistics",
    "score": "criteria",
    "CRITERIA": "criteria",
    "check_criterion": "criteria",
    "plan": "allocation",
    "apply": "surgery",
    "prune": "surgery",
    "Pruned": "surgery",
    "prune_experts": "surgery",
    "prune_vocabulary": "surgery",
    "token_map": "surgery",
    "sparsify": "surgery",
    "Sparsified": "surgery",
    "GradualPruner": "surgery",
    "save": "surgery",
    "load": "surgery",
    "to_json": "surgery",
    "from_json": "surgery",
    "sparsify_language": "language",
    "perplexity": "language",
    "evaluate": "evaluation",
    "run": "pipeline",
}
"""Public name -> subpackage. Loaded on first use, so that `import prunus` and the command line's help stay fast."""

if TYPE_CHECKING:
    from .allocation import plan
    from .criteria import CRITERIA, check_criterion, score
    from .evaluation import evaluate
    from .graph import blocks, trace
    from .language import perplexity, sparsify_language
    from .pipeline import run
    from .statistics import collect
    from .surgery import (
        GradualPruner,
        Pruned,
        Sparsified,
        apply,
        from_json,
        load,
        prune,
        prune_experts,
        prune_vocabulary,
        save,
        sparsify,
        to_json,
        token_map,
    )

__all__ = [
    "trace",
    "blocks",
    "collect",
    "score",
    "plan",
    "apply",
    "prune",
    "Pruned",
    "prune_experts",
    "prune_vocabulary",
    "token_map",
    "sparsify",
    "Sparsified",
    "GradualPruner",
    "sparsify_language",
    "perplexity",
    "evaluate",
    "save",
    "load",
    "to_json",
    "from_json",
    "run",
    "CRITERIA",
    "check_criterion",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module 'prunus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOMES))
