"""Blocks that are one module run several times, as in ALBERT: a unit of depth is one of its runs.

Such a run can be left out where an attribute counts them, of the module that runs the loop or of its config. The first
run of a module stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import nn

from ..types import Block, Removal
from .flow import Flow, ModuleCall

COUNTS = frozenset(
    "num_hidden_layers n_layer n_layers num_layers num_blocks n_blocks depth encoder_layers decoder_layers "
    "num_encoder_layers num_decoder_layers encoder_num_hidden_layers decoder_num_hidden_layers".split()
)
"""Numbers of members of a stack, or of runs of one, by name: in the module that holds them and in its config."""


class Passing(Protocol):
    """A module call that gives its input back once its branches are gone."""

    @property
    def argument(self) -> str: ...

    @property
    def output(self) -> int: ...

    @property
    def exact(self) -> bool: ...


def owner_of(model: nn.Module, name: str) -> str:
    """The module whose code runs a module: the nearest one around it that is no mere container."""
    path = name.rpartition(".")[0]
    while path and isinstance(model.get_submodule(path), nn.Sequential | nn.ModuleList | nn.ModuleDict):
        path = path.rpartition(".")[0]
    return path


def counters(model: nn.Module, owner: str, runs: int) -> list[tuple[Any, str]]:
    """(object, attribute) of what counts the runs that a module makes: its own attributes and those of its config."""
    holder = model.get_submodule(owner)
    path, config = owner, getattr(holder, "config", None)
    while config is None and path:
        path = path.rpartition(".")[0]
        config = getattr(model.get_submodule(path), "config", None)
    places = [holder] if config is None else [holder, config]
    named = ((place, name, value) for place in places for name, value in vars(place).items() if name in COUNTS)
    return [(place, name) for place, name, value in named if type(value) is int and value == runs]


def repeated(model: nn.Module, flow: Flow, passing: Mapping[int, Passing]) -> Iterator[tuple[int, Block]]:
    """The runs of modules that all run in one loop, outermost modules only, each with the index of the call.

    Args:
        model, flow: of one recorded pass.
        passing: those calls of modules that run several times which give back their input without their branches.
    """
    runs_of = Counter(call.module for call in flow.calls)
    outer = [i for i in passing if not any(around in passing for around in flow.within(flow.calls[i].parent))]
    loops: dict[int, list[int]] = {}
    for index in outer:
        loops.setdefault(flow.calls[index].parent, []).append(index)
    for parent, runs in loops.items():
        owner, here = flow.calls[parent].module, Counter(flow.calls[index].module for index in runs)
        whole = all(runs_of[name] == count and owner_of(model, name) == owner for name, count in here.items())
        whole = whole and _one_after_the_other(flow.calls, runs, passing)
        if whole and counters(model, owner, len(runs)):
            yield from _of_loop(flow.calls, runs, passing, here)


def _one_after_the_other(calls: Sequence[ModuleCall], runs: Sequence[int], passing: Mapping[int, Passing]) -> bool:
    """Whether each run reads what the one before it gave."""
    pairs = zip(runs, runs[1:])
    return all(calls[a].outputs[passing[a].output] == calls[b].arguments[passing[b].argument] for a, b in pairs)


def _of_loop(
    calls: Sequence[ModuleCall], runs: Sequence[int], passing: Mapping[int, Passing], several: Mapping[str, int]
) -> Iterator[tuple[int, Block]]:
    seen = Counter[str]()
    for index in runs:
        name, how = calls[index].module, passing[index]
        run, seen[name] = seen[name], seen[name] + 1
        why = "" if run else "the first run of a module stays"
        removal = Removal(name, "run", how.argument, calls[index].returned, how.output, run, several[name], len(runs))
        block = Block(f"{name}@{run}", "block", enters=(name, how.argument), leaves=(name, how.output), exact=how.exact)
        yield index, replace(block, why_not=why) if why else replace(block, removals=(removal,))
