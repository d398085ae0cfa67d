"""How sure attention heads are of where they look: the largest weight that they give to a token, on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError
from ..graph.recorder import ModuleStack
from ..types import Graph
from .state import preserved

SOFTMAX = frozenset({"aten::_softmax", "aten::_safe_softmax"})


class _Softmaxes(TorchDispatchMode):
    """Hands every softmax of four dimensions to `see(module name, output)`."""

    def __init__(self, stack: ModuleStack, see: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._stack, self._see = stack, see

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in SOFTMAX and isinstance(out, Tensor) and out.dim() >= 3:
            self._see(self._stack.name, out.detach())
        return out


def attention_module(graph: Graph, group: str) -> str:
    """The module that holds all weights that make a group of heads: the longest common part of their names."""
    owners = [p.tensor.rpartition(".")[0].split(".") for p in graph.group(group).places if p.role == "out"]
    common: list[str] = []
    for parts in zip(*owners):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def attention_confidence(
    model: nn.Module,
    graph: Graph,
    inputs: Iterable[Any],
    *,
    groups: Iterable[str],
    counted: Callable[[Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mean over queries of the largest attention weight of each head.

    Args:
        model: run in evaluation mode and left as it was; fused attention is computed in its parts.
        graph: of the model.
        inputs: batches of inputs (a tensor, or a tuple of positional or a dict of keyword arguments), examples first.
        groups: names of groups of heads.
        counted: inputs -> bool (examples, tokens): queries that count (no padding, no end of sentence). None: all.

    Returns:
        (heads,) by group, in (0, 1]; 1 / tokens for a head that looks everywhere alike.

    Raises:
        InputError: the attention of a group was not seen.

    Source: Behnke, Heafield, "Losing Heads in the Lottery", EMNLP 2020.
    """
    homes = {attention_module(graph, name): name for name in groups}
    totals = {name: torch.zeros(graph.group(name).size, dtype=torch.float64) for name in homes.values()}
    counts = dict.fromkeys(totals, 0.0)
    now: dict[str, Tensor | None] = {"counted": None}

    def see(module: str, weights: Tensor) -> None:
        home = next((h for h in homes if module == h or module.startswith(f"{h}.")), None)
        if home is None:
            return
        name = homes[home]
        largest = weights.amax(-1)
        mask = now["counted"]
        examples = len(mask) if mask is not None else (len(largest) if largest.dim() > 2 else 1)
        heads = totals[name].numel()
        # (examples, heads, [queries of a head,] queries), whatever dimensions were joined.
        by_head = largest.reshape(examples, heads, -1, largest.shape[-1])
        if mask is None or mask.shape[1] != largest.shape[-1]:
            totals[name] += by_head.double().mean(2).sum((0, 2)).cpu()
            counts[name] += examples * largest.shape[-1]
        else:
            totals[name] += (by_head.double().mean(2) * mask[:, None]).sum((0, 2)).cpu()
            counts[name] += float(mask.sum())

    with preserved(model), torch.no_grad():
        model.eval()
        for batch in inputs:
            now["counted"] = None if counted is None else counted(batch)
            stack = ModuleStack(model)
            with sdpa_kernel(SDPBackend.MATH), stack.watching(), _Softmaxes(stack, see):
                if isinstance(batch, Mapping):
                    model(**batch)
                else:
                    model(*batch) if isinstance(batch, tuple | list) else model(batch)
    unseen = [name for name, count in counts.items() if not count]
    if unseen:
        raise InputError(f"attention_confidence: no attention weights were seen for {', '.join(unseen)}")
    return {name: (total / counts[name]).float() for name, total in totals.items()}
