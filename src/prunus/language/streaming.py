"""Prune a checkpoint on disk, one block in memory at a time; what is done stays done.

```
shards ─▶ embedding ─▶ hidden states on disk ─▶ block 0 ─▶ hidden states on disk ─▶ block 1 ─▶ ...
                                                  └▶ shard, manifest                 └▶ shard, manifest     index last
```

A block reads one file of hidden states and writes the other, and the manifest names a block only when its shard and its
outputs are on the disk. A run that was killed therefore finds the inputs of its next block untouched.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..layerwise import solver_of
from ..surgery.files import check_writable
from .allocation import ERK, Rule, allocate
from .block import BlockOptions
from .budget import Machine, Need, StreamPlan, bytes_of, plan_stream
from .chain import Chain
from .checkpoint import DTYPES, Checkpoint, Entry, open_checkpoint
from .in_memory import per_block
from .manifest import Manifest, describe_run, resume
from .on_disk import OnDisk, checked_tokens, computed_in
from .shards import write_shard
from .skeleton import Skeleton, build_skeleton
from .writer import WORK, check_disk, copy_outside, finish, record_of, shard_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Streamed:
    """A pruned checkpoint: `directory` opens with `from_pretrained`.

    Attributes:
        plan: what was predicted.
        blocks: what became of each block, as the manifest has it.
        parameters, zeros: of the weights that were pruned.
        resumed: blocks that an earlier run had finished.
    """

    directory: Path
    plan: StreamPlan
    blocks: tuple[dict[str, Any], ...]
    resumed: int

    @property
    def parameters(self) -> int:
        return sum(weight["entries"] for block in self.blocks for weight in block["weights"])

    @property
    def zeros(self) -> int:
        return sum(weight["zeros"] for block in self.blocks for weight in block["weights"])


def stream(
    directory: str | Path,
    tokens: Tensor | None,
    out: str | Path,
    options: BlockOptions | Sequence[BlockOptions],
    *,
    rule: Rule | None = None,
    machine: Machine | None = None,
    say: Callable[[str], None] = log.info,
) -> Streamed:
    """Prune a checkpoint of transformers on disk, block by block, in bounded memory; go on with a run broken off.

    Args:
        directory: config.json and safetensors files.
        tokens: (samples, length) calibration ids without padding; None for a method that reads none, which then runs
            no block.
        out: a new or empty folder, or that of the same run, which then goes on at its next block and comes to the same
            bytes.
        options: for all blocks, or one for each.
        rule: gives blocks or weights sparsities of their own.
        machine: device, dtype, memory.
        say: takes the plan before anything is computed, and a line for each block.

    Returns:
        The folder, the plan, and what became of each weight.

    Raises:
        InputError: a wrong argument, or a model that is no chain of blocks.
        BudgetError: `max_ram` or the disk is too small; nothing was begun.
        StoredFileError: the checkpoint, or what an earlier run left, is damaged.
        MissingExtraError: transformers is not installed.
    """
    machine = machine or Machine()
    limit = bytes_of(machine.max_ram)
    checkpoint = open_checkpoint(directory)
    path = check_writable(out)
    if path == checkpoint.directory:
        raise InputError(f"out={str(out)!r} is the folder that is read; give another one")
    skeleton = build_skeleton(checkpoint)
    asked = per_block(options, len(skeleton))
    ids = _checked(tokens, skeleton, asked, rule)
    on_disk = OnDisk(skeleton, checkpoint, computed_in(machine.dtype, checkpoint, skeleton), machine.device)
    manifest = resume(path, describe_run(checkpoint, ids, asked, rule, str(on_disk.dtype).removeprefix("torch.")))
    if manifest.finished:
        return _streamed(path, manifest, len(skeleton))
    plan = plan_stream(
        _need(on_disk, asked[0], ids, rule), batch=manifest.plan.get("batch", machine.batch), max_ram=limit
    )
    say(str(plan))
    if not manifest.plan:
        check_disk(path, plan.disk)
        path.mkdir(parents=True, exist_ok=True)
        manifest.plan = dataclasses.asdict(plan)
        manifest.write(path)
    chain = on_disk.chain(ids, plan.batch, path / WORK)
    _prepare(chain, skeleton, checkpoint, manifest, (path, asked, rule))
    chosen = [dataclasses.replace(one, **given) for one, given in zip(asked, manifest.chosen)]
    resumed = len(manifest.blocks)
    for index in range(resumed, len(chain)):
        start = time.perf_counter()
        record = _one_block(chain, skeleton, checkpoint, index, (chosen[index], path))
        record["seconds"] = time.perf_counter() - start
        manifest.blocks.append(record)
        manifest.write(path)
        say(f"block {index + 1} of {len(skeleton)}: {record['seconds']:.1f} s, {record['file']}")
    finish(checkpoint, path, manifest)
    return _streamed(path, manifest, resumed)


# ------------------------------------------------------------------------------------------------------------- steps


def _need(on_disk: OnDisk, options: BlockOptions, ids: Tensor | None, rule: Rule | None) -> Need:
    """What the plan is made from."""
    skeleton, checkpoint, dtype = on_disk.skeleton, on_disk.checkpoint, on_disk.dtype
    if ids is None:
        return Need(checkpoint, skeleton, options, None, (0, 0, 0), dtype, 0)
    seen = on_disk.first(ids)
    extra = 0 if rule is None else getattr(rule, "passes", 0)
    shape = (ids.shape[0], ids.shape[1], seen.hidden)
    return Need(checkpoint, skeleton, options, seen.calls[0], shape, dtype, seen.held, extra)


def _prepare(
    chain: Chain,
    skeleton: Skeleton,
    checkpoint: Checkpoint,
    manifest: Manifest,
    asked: tuple[Path, Sequence[BlockOptions], Rule | None],
) -> None:
    """Hidden states before the first block, sparsities by block, and everything outside the blocks; once in a run."""
    path, options, rule = asked
    if manifest.embedded:
        return
    chain.restart()
    chosen = allocate(chain, options, rule)
    copy_outside(skeleton, checkpoint, path)
    manifest.chosen = [{"sparsity": one.sparsity, "by_weight": dict(one.by_weight)} for one in chosen]
    manifest.embedded = True
    manifest.write(path)


def _one_block(
    chain: Chain, skeleton: Skeleton, checkpoint: Checkpoint, index: int, how: tuple[BlockOptions, Path]
) -> dict[str, Any]:
    """Prune a block, put its outputs and its shard on the disk; what the manifest says of it."""
    options, path = how
    block, result = chain.prune(index, options)
    values = block.state_dict()
    changed = {weight.name for weight in result.weights}
    tensors: dict[str, Tensor | Entry] = {}
    for local, stored in skeleton.tensors(index).items():
        entry = checkpoint.entries[stored]
        tensors[stored] = values[local].to(DTYPES[entry.dtype]) if local in changed else entry
    file = path / shard_name(index + 1, len(skeleton))
    write_shard(file, tensors)
    return {
        **record_of(file),
        "weights": [dataclasses.asdict(weight) for weight in result.weights],
        "left": [dataclasses.asdict(refusal) for refusal in result.left],
    }


def _streamed(path: Path, manifest: Manifest, resumed: int) -> Streamed:
    plan = StreamPlan(**{**manifest.plan, "notes": tuple(manifest.plan["notes"])})
    return Streamed(path, plan, tuple(manifest.blocks), resumed)


# ------------------------------------------------------------------------------------------------------------ checks


def _checked(
    tokens: Tensor | None, skeleton: Skeleton, options: Sequence[BlockOptions], rule: Rule | None
) -> Tensor | None:
    if tokens is None:
        reading = [one.method for one in options if solver_of(one.method).reads != "nothing"]
        if reading or not (rule is None or isinstance(rule, ERK)):
            who = f"method {reading[0]!r}" if reading else f"allocation {type(rule).__name__}"
            raise InputError(f"{who} reads calibration tokens: give tokens, or prune by 'magnitude'")
        return None
    return checked_tokens(tokens, skeleton)
