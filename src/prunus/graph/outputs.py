"""Which of a model's outputs are what it is for, and which are by-products whose shape a cut may change."""

from __future__ import annotations

import fnmatch
from typing import Any

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

BY_PRODUCTS = (
    "*hidden_state",
    "*hidden_states",
    "*attentions",
    "*past_key_values",
    "*cache*",
    "mems",
    "state",
    "states",
    "*_states",
    "*_model_output",
)
"""Names of output fields that hold caches, hidden states and the like: they would pin the width of the whole model."""


def leaves_of(output: Any) -> list[tuple[str, Tensor, bool]]:
    """(path, tensor, held) of every tensor in a model's output; what is held keeps its shape.

    Of an output with named fields (a Hugging Face model output) the first field is held, and every other whose name
    does not say that it is a by-product. Everything in a plain tensor, tuple or dict is held.
    """
    found = [(path, leaf) for path, leaf in tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)]
    if not hasattr(output, "to_tuple") or not found:
        return [(keystr(path), leaf, True) for path, leaf in found]
    first = found[0][0][0]
    return [(keystr(path), leaf, path[0] == first or not _by_product(path[0])) for path, leaf in found]


def _by_product(key: Any) -> bool:
    name = str(getattr(key, "key", getattr(key, "name", "")))
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in BY_PRODUCTS)


def held(output: Any) -> list[Tensor]:
    """The tensors of an output that keep their shape."""
    return [tensor for _, tensor, kept in leaves_of(output) if kept]
