"""The residual stream of a pre-norm decoder: what writes it, what reads it behind which norm, found in its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SurgeryError
from ..graph import trace
from ..types import Graph, Group, Place
from .stack import find_blocks


@dataclass(frozen=True)
class Branch:
    """One branch of a block: a norm, then modules that run one after the other.

    Attributes:
        norm, modules: names.
        readers: (tensor, dimension of it in which the stream stands) of matrices that read the normed stream.
        writers: the same of matrices whose product is added to the stream.
        biases: of the writers.
    """

    norm: str
    modules: tuple[str, ...]
    readers: tuple[tuple[str, int], ...]
    writers: tuple[tuple[str, int], ...]
    biases: tuple[str, ...]


@dataclass(frozen=True)
class Stream:
    """Everything that touches the residual stream.

    Attributes:
        width: of the stream.
        tables: embeddings (rows, width) that are added up to make it.
        blocks: name -> its two branches, in the order in which they run.
        norm: the last norm. heads: (tensor, dimension) of matrices that read it behind that norm; a tensor tied to an
            embedding has the name of the head.
        tied: heads that share their tensor with an embedding.
    """

    width: int
    tables: tuple[str, ...]
    blocks: Mapping[str, tuple[Branch, Branch]]
    norm: str
    heads: tuple[tuple[str, int], ...]
    tied: tuple[str, ...]

    @property
    def norms(self) -> tuple[str, ...]:
        """All norms, in the order in which they run."""
        return (*(branch.norm for pair in self.blocks.values() for branch in pair), self.norm)


def find_stream(model: nn.Module, tokens: Tensor) -> Stream:
    """The residual stream of a decoder whose blocks are twice a norm and a branch.

    Args:
        model: only read. tokens: (samples, length) ids.

    Raises:
        SurgeryError: something touches the stream in another way: says what.
    """
    graph = trace(model, tokens)
    hidden = [group for group in graph.groups if group.kind == "hidden"]
    if len(hidden) != 1:
        raise SurgeryError(f"the model has {len(hidden)} residual widths that can be found, and one is needed")
    places = [place for place in hidden[0].places if graph.tensors[place.tensor].is_parameter]
    names = find_blocks(model, tokens)
    blocks = {name: _branches(model, name, _children(model, name, tokens), places) for name in names}
    outside = [place for place in places if not any(place.tensor.startswith(f"{name}.") for name in names)]
    return _assembled(model, graph, hidden[0], blocks, outside)


def _module(place: Place) -> str:
    return place.tensor.rpartition(".")[0]


def _is_norm(model: nn.Module, name: str) -> bool:
    own = list(model.get_submodule(name).parameters())
    return bool(own) and all(parameter.dim() == 1 for parameter in own)


def _children(model: nn.Module, block: str, tokens: Tensor) -> list[str]:
    """Direct children of a block in the order in which they run."""
    order: list[str] = []
    handles = [
        child.register_forward_pre_hook(lambda _m, _a, name=name: order.append(name))  # type: ignore[misc]
        for name, child in model.get_submodule(block).named_children()
    ]
    mode = model.training
    try:
        with torch.no_grad():
            model.eval()(tokens)
    finally:
        model.train(mode)
        for handle in handles:
            handle.remove()
    return [f"{block}.{name}" for name in order]


def _branches(model: nn.Module, block: str, children: Sequence[str], places: Sequence[Place]) -> tuple[Branch, Branch]:
    norms = [i for i, name in enumerate(children) if _is_norm(model, name)]
    if len(norms) != 2 or norms[0] != 0 or norms[1] in (1, len(children) - 1) or len(set(children)) < len(children):
        raise SurgeryError(f"{block!r} is not a norm and a branch, twice: its parts run as {', '.join(children)}")
    parts = children[: norms[1]], children[norms[1] :]
    first, second = (_branch(part, places) for part in parts)
    mine = [place.tensor for place in places if place.tensor.startswith(f"{block}.")]
    seen = {t for b in (first, second) for t in (*(n for n, _ in (*b.readers, *b.writers)), *b.biases)}
    left = [name for name in mine if name not in seen and name.rpartition(".")[0] not in (first.norm, second.norm)]
    if left:
        raise SurgeryError(f"{left[0]!r} touches the residual stream in a way that is not understood")
    return first, second


def _branch(part: Sequence[str], places: Sequence[Place]) -> Branch:
    inside = [p for p in places if any(f"{_module(p)}.".startswith(f"{name}.") for name in part[1:])]

    def those(role: str) -> tuple[tuple[str, int], ...]:
        return tuple((p.tensor, p.dim) for p in inside if p.role == role)

    return Branch(part[0], tuple(part[1:]), those("in"), those("out"), tuple(name for name, _ in those("shift")))


def _assembled(
    model: nn.Module,
    graph: Graph,
    hidden: Group,
    blocks: Mapping[str, tuple[Branch, Branch]],
    outside: Sequence[Place],
) -> Stream:
    tables, heads, tied, norms = [], [], [], []
    modules: dict[str, Any] = dict(model.named_modules())
    for place in outside:
        names = (place.tensor, *graph.tensors[place.tensor].aliases)
        owners = [modules[name.rpartition(".")[0]] for name in names]
        if _is_norm(model, _module(place)):
            norms.append(_module(place))
            continue
        for name, owner in zip(names, owners):
            if isinstance(owner, nn.Embedding):
                tables.append(name)
            elif isinstance(owner, nn.Linear) and name.endswith(".weight"):
                heads.append((name, place.dim))
                tied += [name] if len(names) > 1 else []
            else:
                raise SurgeryError(f"{name!r} touches the residual stream in a way that is not understood")
    if len(set(norms)) != 1 or not tables or not heads:
        raise SurgeryError("the model has no embedding, one last norm and a head around its blocks")
    return Stream(hidden.size, tuple(tables), blocks, norms[0], tuple(heads), tuple(tied))
