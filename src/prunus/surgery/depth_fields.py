"""What counts or numbers the members of a stack of layers: attributes of modules, and fields of their configs.

When members go, numbers of layers, per-layer lists and the layers' own indices (which key-value caches go by) follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import SurgeryError
from ..graph.repeats import COUNTS, counters, owner_of
from ..types import Removal
from .attributes import write

Undo = Callable[[], None]

INDICES = frozenset("layer_idx layer_id layer_index layer_number layer_num block_idx block_id block_index".split())
"""Positions of a layer among its siblings, by name."""

PER_LAYER = frozenset(
    "layer_types layers_block_type mlp_layer_types attention_layers no_rope_layers layer_type block_types "
    "per_layer_config num_key_value_heads_per_layer".split()
)
"""Lists with one entry per member."""

DERIVED: Mapping[str, tuple[str, Callable[[Sequence[Any]], Any]]] = {
    "attention_layers": ("attention_types", lambda kinds: [[[kind], 1] for kind in kinds])
}
"""Fields that say the same as a per-layer list, and how it is written in them."""

POSITIONS = frozenset("mlp_only_layers cross_attention_layers full_attn_idxs attn_layers_idx".split())
"""Lists of positions of members."""

STAGES = frozenset("depths num_blocks depth layers".split())
"""Lists of numbers of members, one per stage."""

CACHE_INDEX = "layer_idx"

FAST_PATHS: Mapping[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""Attributes that send torch's layers past their fused kernels, which read the weights of all children."""


def follow_deletions(model: nn.Module, container: str, gone: Sequence[int]) -> list[Undo]:
    """Mend what counts or numbers the members of a container, before those at `gone` are deleted."""
    holder = model.get_submodule(container.rpartition(".")[0])
    members = [m for m in model.get_submodule(container)._modules.values() if m is not None]
    undo = list(_indices(members, set(gone)))
    mine = _counted(holder, len(members), lambda _: True)
    undo += [write(holder, name, len(members) - len(gone)) for name in mine]
    for config, wanted in _configs(model, container):
        undo += _config_fields(config, container, len(members), gone, wanted)
    return undo


def _indices(members: Sequence[nn.Module], gone: set[int]) -> Iterator[Undo]:
    """Layers that know their position get the new one."""
    known: dict[tuple[str, str], dict[int, tuple[nn.Module, int]]] = {}
    for position, member in enumerate(members):
        for path, module in member.named_modules():
            for name, value in vars(module).items():
                if name in INDICES and type(value) is int:
                    known.setdefault((path, name), {})[position] = module, value
    for (_, name), found in known.items():
        if len({value - position for position, (_, value) in found.items()}) == 1:
            for position, (module, value) in found.items():
                before = sum(place < position for place in gone)
                if position not in gone and before:
                    yield write(module, name, value - before)


def follow_branches(model: nn.Module, gone: Iterable[str]) -> list[Undo]:
    """Key-value caches count by the first layer: without its attention the others move up."""
    gone = list(gone)
    undo = list(_slow_paths(model, gone))
    lost: dict[type[nn.Module], list[int]] = {}
    left_out = [model.get_submodule(name) for name in gone]
    inside = {id(module) for top in left_out for module in top.modules()}
    for module in (module for top in left_out for module in top.modules()):
        index = vars(module).get(CACHE_INDEX)
        if type(index) is int:
            lost.setdefault(type(module), []).append(index)
    for module in model.modules():
        index = vars(module).get(CACHE_INDEX)
        if type(index) is int and id(module) not in inside and type(module) in lost and not _is_mixed(module):
            before = sum(each < index for each in lost[type(module)])
            if before:
                undo.append(write(module, CACHE_INDEX, index - before))
    return undo


def follow_runs(model: nn.Module, removals: Iterable[Removal]) -> list[Undo]:
    """What counts the runs of modules that run several times goes down by those that are left out.

    Raises:
        SurgeryError: nothing counts them, or none would be left.
    """
    lost: dict[tuple[str, int], int] = {}
    for removal in removals:
        key = owner_of(model, removal.module), removal.runs
        lost[key] = lost.get(key, 0) + 1
    undo: list[Undo] = []
    for (owner, runs), gone in lost.items():
        found = counters(model, owner, runs)
        if not found or gone >= runs:
            raise SurgeryError(
                f"{gone} of {runs} runs cannot be left out of {owner or 'the model'!r}: nothing counts them"
            )
        undo += [_set(place, name, runs - gone) for place, name in found]
    return undo


def _slow_paths(model: nn.Module, gone: Iterable[str]) -> Iterator[Undo]:
    around = {name.rpartition(".")[0] for name in gone}
    around |= {path.rpartition(".")[0].rpartition(".")[0] for path in around}
    for module in (model.get_submodule(path) for path in sorted(around)):
        for kind, (name, value) in FAST_PATHS.items():
            if isinstance(module, kind) and hasattr(module, name):
                yield write(module, name, value)


def _is_mixed(module: nn.Module) -> bool:
    """Whether layers keep different kinds of caches, which are made by position."""
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    return kinds is not None and len(set(kinds)) > 1


# ------------------------------------------------------------------------------------------------------------ configs


def _configs(model: nn.Module, container: str) -> Iterator[tuple[Any, Callable[[str], bool]]]:
    """The configs that speak of a container, each with which of its counts do.

    The nearest one around the container; and the model's own where an encoder or decoder has a copy of it.
    """
    path = container.rpartition(".")[0]
    side = _side(container)
    nearest = None
    while nearest is None:
        nearest = getattr(model.get_submodule(path), "config", None)
        if not path:
            break
        path = path.rpartition(".")[0]
    if nearest is None:
        return
    root = getattr(model, "config", None)
    both = _is_of_both(nearest)
    yield nearest, lambda name: _speaks_of(name, side, alone=not both)
    if side and root is not None and root is not nearest and not _holds(root, nearest):
        yield root, lambda name: _speaks_of(name, side, alone=False)


def _side(container: str) -> str:
    for part in reversed(container.split(".")):
        for side in ("decoder", "encoder"):
            if side in part:
                return side
    return ""


def _is_of_both(config: Any) -> bool:
    """Whether one config counts the layers of an encoder and of a decoder."""
    names = {name for name in vars(config) if name in COUNTS}
    halves = any("encoder" in n for n in names) and any("decoder" in n for n in names)
    return halves or (getattr(config, "is_encoder_decoder", False) and not getattr(config, "is_decoder", False))


def _speaks_of(name: str, side: str, *, alone: bool) -> bool:
    """Whether a count is one of that side: a name without a side is the encoder's, or that of the only stack."""
    other = {"decoder": "encoder", "encoder": "decoder"}.get(side, "")
    if other and other in name:
        return False
    return alone or side != "decoder" or side in name


def _holds(config: Any, inner: Any) -> bool:
    return any(value is inner for value in vars(config).values())


def _config_fields(
    config: Any, container: str, count: int, gone: Sequence[int], wanted: Callable[[str], bool]
) -> Iterator[Undo]:
    stays = [i for i in range(count) if i not in set(gone)]
    changes: dict[str, Any] = dict.fromkeys(_counted(config, count, wanted), len(stays))
    for name, value in vars(config).items():
        if not isinstance(value, list | tuple):
            continue
        if name in PER_LAYER and len(value) == count:
            changes[name] = type(value)(value[i] for i in stays)
            other, written = DERIVED.get(name, ("", None))
            if written is not None and other in vars(config):
                changes[other] = written(changes[name])
        elif name in POSITIONS and all(type(v) is int for v in value):
            changes[name] = type(value)(stays.index(v) for v in value if v in stays)
        elif name in STAGES and (stage := _stage(container)) < len(value) and value[stage] == count:
            changes[name] = type(value)(len(stays) if i == stage else v for i, v in enumerate(value))
    yield from (_set(config, name, value) for name, value in changes.items())


def _counted(holder: Any, count: int, wanted: Callable[[str], bool]) -> list[str]:
    fields: Mapping[str, Any] = vars(holder)
    return [n for n, value in fields.items() if n in COUNTS and type(value) is int and value == count and wanted(n)]


def _stage(container: str) -> int:
    """The stage that a container belongs to: the last number in its path."""
    numbers = [int(part) for part in container.split(".") if part.isdigit()]
    return numbers[-1] if numbers else 10**9


def _set(config: Any, name: str, value: Any) -> Undo:
    old = vars(config)[name]
    setattr(config, name, value)
    return lambda: setattr(config, name, old)
