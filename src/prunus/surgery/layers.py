"""What known layer types say about their own size, and how that follows from the shapes of their tensors.

`FOLLOWS` is the one table: layer type -> attribute -> rule. A user's subclass of a known layer is that layer, because
types are looked up along the class's `__mro__`; a type that is not in the table has no attributes to mend. Types of
optional packages stand in it by their full name, so that nothing is imported for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNBase, RNNCellBase

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Resized:
    """A layer before the cut, with the shapes that its tensors will have.

    `shapes` maps names local to the layer ("weight", "out_proj.weight") to shapes; a tensor that is None or absent is
    not in it. `kept` holds, for a tensor's first dimension that is cut, the positions that stay. `planned` are the
    attribute values that the plan sets.
    """

    layer: Any
    shapes: Mapping[str, Shape]
    kept: Mapping[str, tuple[int, ...]]
    planned: Mapping[str, int]
    output: Shape | None = None


Rule = Callable[[Resized], Any]


def _dim(tensor: str, dim: int) -> Rule:
    """The size of one dimension of a tensor; None when the layer has no such tensor."""

    def rule(resized: Resized) -> int | None:
        shape = resized.shapes.get(tensor)
        return None if shape is None else shape[dim]

    return rule


def _groups(resized: Resized) -> int:
    """Groups of a convolution: the plan's number if it names one; shapes do not tell 12 groups of 1 from 4 of 3."""
    return resized.planned.get("groups", resized.layer.groups)


def _times_groups(dim: int) -> Rule:
    return lambda resized: resized.shapes["weight"][dim] * _groups(resized)


def _norm_features(resized: Resized) -> int | None:
    """A norm without scale and statistics holds no tensor: its width is the channel dimension of its output."""
    for tensor in ("weight", "running_mean"):
        if tensor in resized.shapes:
            return resized.shapes[tensor][0]
    if resized.output is None:
        return None
    unbatched = getattr(resized.layer, "_get_no_batch_dim", lambda: 1)()
    return resized.output[0 if len(resized.output) == unbatched else 1]


def _normalized_shape(resized: Resized) -> Shape | None:
    """A norm without scale normalises the last dimensions of its output."""
    if "weight" in resized.shapes or resized.output is None:
        return resized.shapes.get("weight")
    return tuple(resized.output[-len(resized.layer.normalized_shape) :])


def _padding_index(resized: Resized) -> int | None:
    """The padding row's new position; None when it is gone or there was none."""
    old, kept = resized.layer.padding_idx, resized.kept.get("weight")
    if old is None or kept is None:
        return old
    return kept.index(old) if old in kept else None


def _mha_heads(resized: Resized) -> int:
    return resized.planned.get("num_heads", resized.layer.num_heads)


def _mha_width(resized: Resized) -> int:
    return resized.shapes["out_proj.weight"][0]


def _mha_input(tensor: str) -> Rule:
    """Width of keys or values: the packed projection reads the embedding."""
    return lambda resized: resized.shapes[tensor][1] if tensor in resized.shapes else _mha_width(resized)


def _recurrent_hidden(resized: Resized) -> int:
    gates = {"LSTM": 4, "GRU": 3}.get(resized.layer.mode, 1)
    return resized.shapes["weight_ih_l0"][0] // gates


def _recurrent_projection(resized: Resized) -> int:
    return resized.shapes["weight_hr_l0"][0] if "weight_hr_l0" in resized.shapes else 0


FOLLOWS: dict[type[nn.Module] | str, Mapping[str, Rule]] = {
    _ConvNd: {"groups": _groups, "in_channels": _times_groups(1), "out_channels": _dim("weight", 0)},
    _ConvTransposeNd: {"groups": _groups, "in_channels": _dim("weight", 0), "out_channels": _times_groups(1)},
    nn.Linear: {"in_features": _dim("weight", 1), "out_features": _dim("weight", 0)},
    nn.Bilinear: {
        "out_features": _dim("weight", 0),
        "in1_features": _dim("weight", 1),
        "in2_features": _dim("weight", 2),
    },
    _NormBase: {"num_features": _norm_features},
    nn.LayerNorm: {"normalized_shape": _normalized_shape},
    nn.RMSNorm: {"normalized_shape": _normalized_shape},
    nn.GroupNorm: {"num_channels": _dim("weight", 0)},
    nn.Embedding: {
        "num_embeddings": _dim("weight", 0),
        "embedding_dim": _dim("weight", 1),
        "padding_idx": _padding_index,
    },
    nn.EmbeddingBag: {
        "num_embeddings": _dim("weight", 0),
        "embedding_dim": _dim("weight", 1),
        "padding_idx": _padding_index,
    },
    nn.PReLU: {"num_parameters": _dim("weight", 0)},
    nn.MultiheadAttention: {
        "embed_dim": _mha_width,
        "kdim": _mha_input("k_proj_weight"),
        "vdim": _mha_input("v_proj_weight"),
        "num_heads": _mha_heads,
        "head_dim": lambda resized: _mha_width(resized) // _mha_heads(resized),
    },
    RNNBase: {
        "input_size": _dim("weight_ih_l0", 1),
        "hidden_size": _recurrent_hidden,
        "proj_size": _recurrent_projection,
    },
    RNNCellBase: {"input_size": _dim("weight_ih", 1), "hidden_size": _dim("weight_hh", 1)},
    "transformers.pytorch_utils.Conv1D": {"nx": _dim("weight", 0), "nf": _dim("weight", 1)},
}


def follow(kind: type[nn.Module] | str, attribute: str, tensor: str, dim: int = 0) -> None:
    """Let an attribute of a layer type follow the size of one of its tensors, in every cut from now on.

    Args:
        kind: a module class, its subclasses included, or its full name, such as "mylib.layers.Experts".
        attribute: holds an int, such as "hidden_dim"; layers without it are passed over.
        tensor: name of a parameter or buffer, as the layer knows it ("weight", "proj.weight").
        dim: the dimension whose size the attribute becomes.

    >>> from torch import nn
    >>> class Widths(nn.Linear):
    ...     hidden: int
    >>> follow(Widths, "hidden", "weight", 1)
    """
    FOLLOWS[kind] = {**_lookup_kind(kind), attribute: _dim(tensor, dim)}


def _lookup_kind(kind: type[nn.Module] | str) -> Mapping[str, Rule]:
    return FOLLOWS.get(kind, {}) if isinstance(kind, str) else _lookup(FOLLOWS, kind, {})


@dataclass(frozen=True)
class Divides:
    """`parts` (an attribute) must divide the size that `whole` (another attribute of the layer) takes."""

    parts: str
    whole: str


DIVIDES: Mapping[type[nn.Module], tuple[Divides, ...]] = {
    _ConvNd: (Divides("groups", "in_channels"), Divides("groups", "out_channels")),
    nn.GroupNorm: (Divides("num_groups", "num_channels"),),
    nn.MultiheadAttention: (Divides("num_heads", "embed_dim"),),
}


def _lookup(table: Mapping[Any, Any], kind: type, default: Any) -> Any:
    for base in kind.__mro__:
        for key in (base, f"{base.__module__}.{base.__qualname__}"):
            if key in table:
                return table[key]
    return default


def is_known(layer: nn.Module) -> bool:
    """Whether the table knows the layer's type."""
    return bool(_lookup(FOLLOWS, type(layer), {}))


def mended(resized: Resized) -> dict[str, Any]:
    """The attributes of a known layer that change, with their new values; {} for a type that is not in the table.

    Raises:
        ValueError: the shapes cannot belong to such a layer (groups that do not divide the channels, a projection
            as wide as what it projects).
    """
    layer = resized.layer
    rules: Mapping[str, Rule] = _lookup(FOLLOWS, type(layer), {})
    values = {name: rule(resized) for name, rule in rules.items() if hasattr(layer, name)}
    changes = {
        name: value
        for name, value in values.items()
        if value != getattr(layer, name) and not (value is None and name != "padding_idx")
    }
    after = {**{name: getattr(layer, name) for name in values}, **changes, **resized.planned}
    for law in _lookup(DIVIDES, type(layer), ()):
        parts, whole = after.get(law.parts, getattr(layer, law.parts)), after[law.whole]
        if parts < 1 or whole % parts:
            raise ValueError(f"{law.whole} becomes {whole}, which {law.parts}={parts} does not divide")
    if 0 < after.get("hidden_size", 0) <= after.get("proj_size", 0):
        raise ValueError(
            f"proj_size={after['proj_size']} must stay below hidden_size, which becomes {after['hidden_size']}"
        )
    return changes


def refresh(layer: nn.Module) -> None:
    """Let a layer rebuild what it derives from its tensors (recurrent layers keep a flat list of weights)."""
    if isinstance(layer, RNNBase):
        layer._init_flat_weights()


def shapes_of(layer: nn.Module, shape: Callable[[Tensor], Shape]) -> dict[str, Shape]:
    """Shapes of all parameters and buffers of the layer and its children, by local name."""
    named = [*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False)]
    return {name: shape(tensor) for name, tensor in named}
