"""What a group's units are, found from where its axis stands in the operators that ran, never from module names.

Attention is a batched product whose result is softmaxed and multiplied again: its batch axis counts heads, the other
free axes are head widths. A residual width is one that several layers write and sums join. The watcher follows tensors
during the trace; `kinds` reads off the answer when the axes are final.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from .recorder import Recorder

KINDS: Mapping[str, str] = {
    "channel": "outputs of a convolution, and whatever else is not known better",
    "group": "whole groups of a grouped convolution",
    "neuron": "outputs of a matrix inside a branch: feed-forward neurons, gated pairs included",
    "hidden": "a width that several layers write into and sums join: the residual or embedding width",
    "head": "attention heads (where keys are shared: the queries of each key)",
    "kv_head": "heads of keys and values that several queries share, with their queries",
    "head_dim": "the width of a head, of queries and keys or of values",
    "recurrent": "hidden units of a recurrent layer, all their gates together",
    "expert": "experts of a mixture",
    "vocabulary": "rows that are looked up by token id",
}
"""Kind -> what a unit of it is."""

_Axes = tuple[int, ...]

_PRODUCTS = {"aten::bmm": (0, 1), "aten::baddbmm": (1, 2), "aten::mm": (0, 1), "aten::addmm": (1, 2)}
_PRODUCTS |= {"aten::linear": (0, 1), "aten::matmul": (0, 1)}
_BATCHED = {"aten::bmm", "aten::baddbmm"}
_SOFTMAX = {"aten::_softmax", "aten::_safe_softmax"}
_FUSED_ATTENTION = "aten::_scaled_dot_product"


class Watcher:
    """Follows tensors through one trace: which products are attention, which axes sums join, which weights repeat."""

    def __init__(self) -> None:
        self.heads: set[int] = set()
        self.head_widths: set[int] = set()
        self.query_rows: set[int] = set()
        self.summed: set[int] = set()
        self.embedded: set[int] = set()
        self.uses: dict[str, int] = {}
        self._products: list[tuple[_Axes, _Axes]] = []
        self._scores: dict[int, frozenset[int]] = {}
        self._weights: dict[int, frozenset[int]] = {}

    def see(self, recorder: Recorder, name: str, args: tuple[Any, ...], out: Any) -> None:
        """Look at one call, after its rule has run."""
        if name in _PRODUCTS:
            self._product(recorder, name, args, out)
        elif name.startswith(_FUSED_ATTENTION):
            self._fused(recorder, args)
        elif name != "aten::convolution":
            self._follow(name, args, out)
            if name == "aten::embedding":
                self.embedded.add(recorder.axes(args[0])[1])
            elif name == "aten::add" and len(args) > 1 and _same_shape(args[0], args[1]):
                self.summed.update(recorder.axes(args[0]))

    def _product(self, recorder: Recorder, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        left, right = (args[i] for i in _PRODUCTS[name])
        for operand in (left, right):
            origin = recorder.origin(operand)
            if origin is not None:
                self.uses[origin[0]] = self.uses.get(origin[0], 0) + 1
        if name not in _BATCHED:
            return
        axes = recorder.axes(left), recorder.axes(right)
        for index in self._weights.get(id(left), frozenset()) | self._weights.get(id(right), frozenset()):
            query, key = self._products[index]
            self.heads.update((query[0], axes[0][0]))
            self.query_rows.add(query[1])
            self.head_widths.update((query[2], *key[1:], *axes[0][1:], *axes[1][1:]))
        self._scores[id(out)] = frozenset((len(self._products),))
        self._products.append(axes)

    def _fused(self, recorder: Recorder, args: tuple[Any, ...]) -> None:
        for tensor in args[:3]:
            *batch, _, width = recorder.axes(tensor)
            self.heads.update(batch)
            self.head_widths.add(width)

    def _follow(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        """Scores stay scores through views and pointwise operators; a softmax makes them weights."""
        given = [id(t) for t in tree_leaves(args) if isinstance(t, Tensor)]
        scores = frozenset().union(*(self._scores.get(i, frozenset()) for i in given))
        weights = frozenset().union(*(self._weights.get(i, frozenset()) for i in given))
        if name in _SOFTMAX:
            scores, weights = frozenset(), scores
        if not scores and not weights:
            return
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._scores[id(tensor)], self._weights[id(tensor)] = scores, weights


def _same_shape(left: Any, right: Any) -> bool:
    return isinstance(left, Tensor) and isinstance(right, Tensor) and left.dim() > 1 and left.shape == right.shape


def kinds(recorder: Recorder, atoms: Collection[int]) -> dict[int, str]:
    """The kind of each free atom (see `KINDS`), once the trace is over and all axes are final."""
    watcher = recorder.watcher
    kv_heads, heads = _heads(recorder, watcher.heads)
    heads |= _shared_rows(recorder, watcher.query_rows)
    known = (
        (kv_heads, "kv_head"),
        (heads, "head"),
        (_atoms(recorder, watcher.head_widths), "head_dim"),
        (_recurrent(recorder), "recurrent"),
        (_groups(recorder), "group"),
    )
    summed, embedded = _atoms(recorder, watcher.summed), _atoms(recorder, watcher.embedded)
    convolved, multiplied = _writers(recorder)
    result: dict[int, str] = {}
    for atom in atoms:
        named = next((kind for found, kind in known if atom in found), None)
        convolutions, matrices = convolved.get(atom, 0), multiplied.get(atom, 0)
        if named is not None:
            result[atom] = named
        elif atom in embedded or (atom in summed and matrices > max(1, convolutions)):
            result[atom] = "hidden"
        else:
            result[atom] = "neuron" if matrices and not convolutions else "channel"
    return result


def _atoms(recorder: Recorder, nodes: Iterable[int]) -> set[int]:
    roots = {recorder.algebra.find(node) for node in nodes}
    return {atom for root in roots for atom in recorder.algebra.atoms(root)}


def _factors(recorder: Recorder, node: int) -> list[int]:
    """The factors of an axis, without the leading fixed ones (batch, windows)."""
    algebra = recorder.algebra
    factors = list(algebra.parts(node)) if algebra.kind(node) == "product" else [algebra.find(node)]
    while factors and algebra.frozen(factors[0]) is not None:
        factors.pop(0)
    return factors


def _heads(recorder: Recorder, nodes: Iterable[int]) -> tuple[set[int], set[int]]:
    """Atoms of (heads of keys and values, other heads): the outer factor counts keys where queries share them."""
    shared: set[int] = set()
    own: set[int] = set()
    for node in {recorder.algebra.find(node) for node in nodes}:
        factors = _factors(recorder, node)
        (shared if len(factors) > 1 else own).update(_atoms(recorder, factors[:1]))
        own |= _atoms(recorder, factors[1:])
    return shared, own - shared


def _shared_rows(recorder: Recorder, nodes: Iterable[int]) -> set[int]:
    """Heads that share one key stand beside the tokens in the rows of the queries."""
    algebra = recorder.algebra
    found: set[int] = set()
    for node in {algebra.find(node) for node in nodes}:
        if algebra.kind(node) == "product":
            parts = algebra.parts(node)
            if any(algebra.frozen(part) is not None for part in parts):
                found |= _atoms(recorder, parts)
    return found


def _recurrent(recorder: Recorder) -> set[int]:
    """Atoms that a matrix used at every step both reads and writes."""
    found: set[int] = set()
    for name, times in recorder.watcher.uses.items():
        axes = recorder.named[name].axes
        if times > 1 and len(axes) == 2:
            found |= _atoms(recorder, axes[:1]) & _atoms(recorder, axes[1:])
    return found


def _groups(recorder: Recorder) -> set[int]:
    """Atoms that count groups of several channels each."""
    algebra = recorder.algebra
    found: set[int] = set()
    for call in recorder.calls:
        if call.name == "aten::convolution" and call.weight:
            for axis in recorder.named[call.weight].axes[:2]:
                parts = algebra.parts(axis) if algebra.kind(axis) == "product" else ()
                counted = {algebra.find(node) for node, *_ in recorder.group_equations}
                if parts and algebra.find(parts[0]) in counted:
                    found |= _atoms(recorder, parts[:1])
    return found


def _writers(recorder: Recorder) -> tuple[dict[int, int], dict[int, int]]:
    """How many convolutions, and how many matrices, write each atom."""
    convolutions = {call.weight for call in recorder.calls if call.name == "aten::convolution"}
    counts: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for name, named in recorder.named.items():
        for dim, role in named.roles.items():
            if role == "out" and len(named.axes) > 1:
                table = counts[0] if name in convolutions else counts[1]
                for atom in recorder.algebra.atoms(named.axes[dim]):
                    table[atom] = table.get(atom, 0) + 1
    return counts
