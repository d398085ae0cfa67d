"""Make a checkpoint on disk smaller: fewer blocks, narrower ones, without having the model in memory.

```
config ─▶ model on meta ─▶ graph ─▶ scores, tensor by tensor ─▶ plan ─▶ slices of the shards, row by row ─▶ new config
```

The model is traced, planned and checked on the meta device by the same functions as one in memory; only scores and the
cut itself read weights, a tensor or a few rows at a time.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import Rules
from ..allocation.uniform import uniform
from ..criteria import score
from ..errors import InputError
from ..graph import plan_from, trace
from ..graph.counting import size_of
from ..surgery.choose import Aim, Dense, choose
from ..surgery.cut import applied
from ..surgery.depth import renaming, shallower
from ..surgery.files import check_writable
from ..surgery.pretrained import config_misfit, construction_of, state_widths, with_attributes
from ..types import Graph, Plan, Removal
from .budget import Machine, shown
from .checkpoint import CONFIG, Checkpoint, Entry, open_checkpoint
from .manifest import Manifest, describe_source, describe_tokens, resume
from .on_disk import OnDisk, checked_tokens, computed_in
from .ranking import Reading, contributions, gone_blocks, read_chain
from .shards import Sliced, write_shard
from .skeleton import Skeleton, build_skeleton
from .structure_plan import CutPlan, plan_cut
from .writer import WORK, check_disk, finish, record_of, shard_name

log = logging.getLogger(__name__)

CONTRIBUTION = "contribution"
"""Criterion of units: L2 norm over the tokens of what a unit adds to the output of the layer that reads it."""


@dataclass(frozen=True)
class Structure:
    """What is to go.

    Attributes:
        ratio: share of the feed-forward units of each block; or
        target: budget of the whole model, such as {"params": 0.75}, after the blocks that `depth` takes.
        depth: blocks to leave out: a share, a number of them, or names and glob patterns. A share or number takes those
            that change the hidden states least (1 - cosine over the tokens; without tokens those with the smallest mean
            absolute weight).
        criterion: of units: "contribution" with tokens, or a criterion of the weights in `prunus.criteria.CRITERIA`.
            None is "contribution" with tokens, else "l2_norm".
        kinds: of units that go: "neuron", and also "head" where the config can say fewer.
        round_to: widths become multiples of it.
        seed: of random criteria.
    """

    ratio: float | None = None
    target: Mapping[str, float | str] | None = None
    depth: float | int | Sequence[str] | None = None
    criterion: str | None = None
    kinds: tuple[str, ...] = ("neuron",)
    round_to: int = 1
    seed: int = 0

    @property
    def aim(self) -> Aim:
        """What width is to reach."""
        return Aim(self.ratio, self.target, Rules("group", round_to=self.round_to))


@dataclass(frozen=True)
class Narrowed:
    """A smaller checkpoint: `directory` opens with `from_pretrained`.

    Attributes:
        plan: what was predicted.
        before, after: parameters.
        removed: names of the blocks that went.
        widths: group of units -> (before, after).
        resumed: shards that an earlier run had finished.
    """

    directory: Path
    plan: CutPlan
    before: int
    after: int
    removed: tuple[str, ...]
    widths: Mapping[str, tuple[int, int]]
    resumed: int


def cut_checkpoint(
    directory: str | Path,
    out: str | Path,
    structure: Structure,
    tokens: Tensor | None = None,
    *,
    machine: Machine | None = None,
    say: Callable[[str], None] = log.info,
) -> Narrowed:
    """Write a smaller checkpoint, in bounded memory; go on with a run broken off.

    Widths are those that the model's config can give, equal in all blocks, so that the result opens with
    `from_pretrained`. Leaving out named blocks loads no tensor.

    Args:
        directory: config.json and safetensors files.
        out: a new or empty folder, or that of the same run.
        structure: what is to go.
        tokens: (samples, length) calibration ids without padding, for scores that read data: the dense model is passed
            once, block by block.
        machine: device, dtype and memory of that pass.
        say: takes the plan before anything is written, and a line for each shard.

    Raises:
        InputError, UnknownNameError: a wrong argument, or a model that is no chain of blocks.
        BudgetError: the target cannot be met, or `max_ram` or the disk is too small.
        SurgeryError: no config gives the smaller model.
        StoredFileError: the checkpoint, or what an earlier run left, is damaged.
    """
    machine = machine or Machine()
    checkpoint = open_checkpoint(directory)
    path = check_writable(out)
    if path == checkpoint.directory:
        raise InputError(f"out={str(out)!r} is the folder that is read; give another one")
    if structure.depth is None or not structure.aim.is_empty:
        structure.aim.check()
    skeleton = build_skeleton(checkpoint)
    ids = None if tokens is None else checked_tokens(tokens, skeleton)
    run = {**describe_source(checkpoint), **describe_tokens(ids), "structure": dataclasses.asdict(structure)}
    manifest = resume(path, run)
    on_disk = OnDisk(skeleton, checkpoint, computed_in(machine.dtype, checkpoint, skeleton), machine.device)
    if not manifest.plan:
        predicted = plan_cut(on_disk, ids, machine)
        check_disk(path, predicted.disk)
        manifest.plan = dataclasses.asdict(predicted)
    plan = CutPlan(**{**manifest.plan, "notes": tuple(manifest.plan["notes"])})
    say(str(plan))
    if not manifest.chosen:
        path.mkdir(parents=True, exist_ok=True)
        manifest.write(path)
        reading = None if ids is None else read_chain(on_disk.chain(ids, plan.batch, path / WORK))
        manifest.chosen = [_choose(skeleton, checkpoint, structure, reading)]
        manifest.write(path)
    smaller = _Smaller.of(skeleton, manifest.chosen[0])
    resumed = len(manifest.blocks)
    if not manifest.finished:
        _write(smaller, skeleton, checkpoint, path, manifest, say)
    return Narrowed(path, plan, smaller.before, smaller.after, smaller.removed, smaller.widths, resumed)


# ------------------------------------------------------------------------------------------------------------- choice


def _choose(
    skeleton: Skeleton, checkpoint: Checkpoint, structure: Structure, reading: Reading | None
) -> dict[str, Any]:
    """Names of the blocks that go, and indices of the units that stay, by group."""
    removed = gone_blocks(skeleton, checkpoint, structure.depth, reading)
    model = _without(skeleton, removed)
    if structure.aim.is_empty:
        return {"removed": removed, "keep": {}}
    graph = _graph(model)
    named = _Named.of(skeleton, removed)
    groups = tuple(group for group in graph.groups if group.kind in structure.kinds)
    if not groups:
        kinds = ", ".join(sorted({group.kind for group in graph.groups})) or "none"
        raise InputError(f"kinds={structure.kinds}: no such unit of the model can be cut; there are {kinds}")
    part = dataclasses.replace(graph, groups=groups)
    criterion = structure.criterion or ("l2_norm" if reading is None else CONTRIBUTION)
    weights = named.weights(checkpoint)
    if criterion == CONTRIBUTION:
        if reading is None:
            raise InputError(f"criterion={CONTRIBUTION!r} reads calibration tokens: give tokens, or another criterion")
        scores = contributions(part, weights, {named.new(name): norm for name, norm in reading.norms.items()})
    else:
        scores = score(part, criterion, tensors=weights, fallback="l2_norm", seed=structure.seed)
    chosen = choose(structure.aim, model, graph, scores, dense=_dense(skeleton))
    return {"removed": removed, "keep": {cut.group: list(cut.keep) for cut in chosen.plan.cuts}}


def _dense(skeleton: Skeleton) -> Dense:
    return Dense(skeleton.model, size_of(trace(skeleton.model, _ids())))


def _ids() -> Tensor:
    return torch.zeros(2, 4, dtype=torch.int64)


def _without(skeleton: Skeleton, removed: Sequence[str]) -> nn.Module:
    """On the meta device; its config says fewer blocks, and states widths that it left to others."""
    model = shallower(skeleton.model, [Removal(name, "delete") for name in removed])
    state_widths(model)
    return model


def _graph(model: nn.Module) -> Graph:
    return uniform(trace(model, _ids(), construction=construction_of(model)))


@dataclass(frozen=True)
class _Named:
    """Names of tensors in the model without some blocks, and where they are stored."""

    rename: Callable[[str], str | None]
    stored: Mapping[str, str]

    @classmethod
    def of(cls, skeleton: Skeleton, removed: Sequence[str]) -> _Named:
        rename = renaming(skeleton.model, [Removal(name, "delete") for name in removed])
        pairs = {rename(name): stored for name, stored in skeleton.names.items()}
        return cls(rename, {name: stored for name, stored in pairs.items() if name is not None})

    def new(self, name: str) -> str:
        """Of a module or tensor; "" for what is gone."""
        return self.rename(name) or ""

    def weights(self, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
        """The tensors, each read when it is asked for and then forgotten."""
        return _OnDemand(checkpoint, self.stored)


class _OnDemand(Mapping[str, Tensor]):
    def __init__(self, checkpoint: Checkpoint, stored: Mapping[str, str]) -> None:
        self._checkpoint, self._stored = checkpoint, stored

    def __getitem__(self, name: str) -> Tensor:
        return self._checkpoint.read(self._stored[name])

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


# ---------------------------------------------------------------------------------------------------------------- cut


@dataclass(frozen=True)
class _Smaller:
    """The smaller model, without weights, and what of each stored tensor stays in it.

    Attributes:
        config: as JSON data.
        names: name of a tensor in the smaller model -> where it is read, and under which name it is written.
        keep: of the tensors that are cut: dimension -> positions that stay.
        before, after: parameters.
        removed: blocks that went.
        widths: group of units -> (before, after).
    """

    config: Mapping[str, Any]
    names: Mapping[str, tuple[str, str]]
    keep: Mapping[str, Mapping[int, tuple[int, ...]]]
    before: int
    after: int
    removed: tuple[str, ...]
    widths: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, skeleton: Skeleton, chosen: Mapping[str, Any]) -> _Smaller:
        """Planned and checked on the meta device.

        Raises:
            SurgeryError: no config gives this model.
        """
        model = _without(skeleton, chosen["removed"])
        plan: Plan | None = None
        if chosen["keep"]:
            plan = with_attributes(model, plan_from(_graph(model), chosen["keep"]))
            model, _ = applied(model, plan, False, verify=True)
        misfit = config_misfit(model)
        if misfit:
            raise InputError(f"the smaller model has no config that opens it: {misfit}")
        named = _Named.of(skeleton, chosen["removed"])
        return cls(
            model.config.to_dict(),  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            {name: (stored, _stored_as(name, old, stored)) for name, stored, old in _places(skeleton, named)},
            _keeps(model, plan),
            _parameters(skeleton.model),
            _parameters(model),
            tuple(chosen["removed"]),
            {cut.group: (cut.size, len(cut.keep)) for cut in (plan.cuts if plan else ())},
        )

    def part(self, checkpoint: Checkpoint, block: str | None, blocks: Sequence[str]) -> dict[str, Entry | Sliced]:
        """What is written of one block of the result; None is what lies outside all of them."""
        found: dict[str, Entry | Sliced] = {}
        for name, (stored, new) in self.names.items():
            inside = name.startswith(f"{block}.") if block else not name.startswith(tuple(f"{b}." for b in blocks))
            if inside:
                entry = checkpoint.entries[stored]
                found[new] = Sliced(entry, self.keep[name]) if name in self.keep else entry
        return found


def _places(skeleton: Skeleton, named: _Named) -> Iterator[tuple[str, str, str]]:
    """(name in the smaller model, name in the checkpoint, name in the whole model)."""
    for old, stored in skeleton.names.items():
        new = named.rename(old)
        if new is not None:
            yield new, stored, old


def _stored_as(new: str, old: str, stored: str) -> str:
    """The name in the result: the file may leave out, or add, the prefix of the model without its head."""
    if stored == old:
        return new
    if stored.endswith(old):
        return stored.removesuffix(old) + new
    return new.removeprefix(old.removesuffix(stored))


def _keeps(model: nn.Module, plan: Plan | None) -> dict[str, dict[int, tuple[int, ...]]]:
    """What stays of each tensor that is cut, under all names that it has."""
    by_object: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        by_object.setdefault(id(tensor), []).append(name)
    aliases = {name: names for names in by_object.values() for name in names}
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for cut in plan.tensors if plan else ():
        for name in aliases.get(cut.tensor, [cut.tensor]):
            found.setdefault(name, {})[cut.dim] = cut.keep
    return found


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _write(
    smaller: _Smaller,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    path: Path,
    manifest: Manifest,
    say: Callable[[str], None],
) -> None:
    """Shard by shard; the config and the index last."""
    rename = renaming(skeleton.model, [Removal(name, "delete") for name in smaller.removed])
    blocks = [new for name in skeleton.blocks if (new := rename(name)) is not None]
    if not manifest.embedded:
        write_shard(path / shard_name(0, len(blocks)), smaller.part(checkpoint, None, blocks))
        manifest.embedded = True
        manifest.write(path)
    for index in range(len(manifest.blocks), len(blocks)):
        start = time.perf_counter()
        file = path / shard_name(index + 1, len(blocks))
        write_shard(file, smaller.part(checkpoint, blocks[index], blocks))
        manifest.blocks.append({**record_of(file), "seconds": time.perf_counter() - start})
        manifest.write(path)
        say(f"block {index + 1} of {len(blocks)}: {file.name}, {shown(manifest.blocks[-1]['bytes'])}")
    finish(checkpoint, path, manifest, {CONFIG: _merged(checkpoint, smaller.config)})


def _merged(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """The new config; what only the old file says stays."""
    import json

    old = json.loads((checkpoint.directory / CONFIG).read_text(encoding="utf-8"))
    return {**old, **json.loads(json.dumps(dict(config), default=str))}
