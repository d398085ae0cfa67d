"""Which blocks and units of a checkpoint on disk matter least: one pass of the dense model, or the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..criteria import block_magnitude
from ..criteria.reading import unit_matrix
from ..errors import InputError
from ..graph.counting import unit_positions
from ..surgery.choose_blocks import check_depth_argument, named, number_of
from ..types import Block, Graph, Place, Scores
from .chain import Chain
from .checkpoint import Checkpoint
from .skeleton import Skeleton


@dataclass(frozen=True)
class Reading:
    """What one pass of the dense model saw.

    Attributes:
        influence: of each block: 1 - cosine of what enters and leaves, mean over tokens.
        norms: name of a linear layer -> (in,) L2 norm of each feature that it reads, over all tokens.
    """

    influence: Sequence[float]
    norms: Mapping[str, Tensor] = field(repr=False)


def read_chain(chain: Chain) -> Reading:
    """Pass the dense model block by block.

    Args:
        chain: with calibration tokens; it is begun anew first.

    Source of the influence: Men et al., "ShortGPT", 2024, arXiv:2403.03853, eq. 1.
    """
    chain.restart()
    influence: list[float] = []
    norms: dict[str, Tensor] = {}
    for index, name in enumerate(chain.names):
        distances: list[Tensor] = []
        moments = chain.look(index, lambda given, made, to=distances: to.append(_distances(given, made)))
        influence.append(float(torch.cat(distances).mean()))
        norms.update({f"{name}.{layer}": one.norm.cpu() for layer, one in moments.items()})
    return Reading(influence, norms)


def _distances(given: Tensor, made: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(given.double(), made.double(), dim=-1).flatten()


def gone_blocks(
    skeleton: Skeleton, checkpoint: Checkpoint, depth: float | int | Sequence[str] | None, reading: Reading | None
) -> list[str]:
    """Names of the blocks that are left out, in order.

    Args:
        skeleton, checkpoint: of the model.
        depth: a share, a number, or names and patterns; None leaves none out.
        reading: of the dense model; None ranks by mean absolute weights.

    Raises:
        InputError, UnknownNameError: no such blocks, or all of them.
    """
    if depth is None:
        return []
    check_depth_argument(depth, "block")
    candidates = [Block(name, "block") for name in skeleton.blocks]
    if isinstance(depth, Sequence):
        gone = {block.name for block in named(depth, candidates)}
    else:
        count = number_of(depth, candidates, "block")
        if count == 0:
            return []
        values = _magnitudes(skeleton, checkpoint) if reading is None else reading.influence
        ranked = sorted(range(len(skeleton)), key=lambda index: values[index])
        gone = {skeleton.blocks[index] for index in ranked[:count]}
    if len(gone) == len(skeleton):
        raise InputError(f"depth={depth!r} would leave out all {len(skeleton)} blocks; keep one at least")
    return [name for name in skeleton.blocks if name in gone]


def _magnitudes(skeleton: Skeleton, checkpoint: Checkpoint) -> list[float]:
    return [
        block_magnitude([checkpoint.read(stored).float() for stored in skeleton.tensors(index).values()])
        for index in range(len(skeleton))
    ]


def contributions(graph: Graph, weights: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> Scores:
    """L2 norm, over all calibration tokens, of what each unit adds to the outputs of the layer that reads it.

    ||x_j w_j^T|| = ||x_j|| ||w_j|| with x_j what the unit gives at each token and w_j the weights that read it; units
    that are read in several positions or places add their squares.

    Args:
        graph: whose groups are scored.
        weights: by tensor name.
        norms: name of a layer -> (in,) L2 norm of each feature that it reads.

    Raises:
        InputError: no layer that was seen reads a group.
    """
    return Scores(
        "contribution", {group.name: _of_group(group.name, group.places, weights, norms) for group in graph.groups}
    )


def _of_group(name: str, places: Sequence[Place], weights: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> Tensor:
    total: Tensor | None = None
    for place in places:
        norm = norms.get(place.tensor.rpartition(".")[0])
        if place.role != "in" or norm is None or len(norm) != place.axis.size:
            continue
        positions = torch.from_numpy(unit_positions(place.axis, name))
        read = unit_matrix(weights[place.tensor], place, name)
        read = read.reshape(*positions.shape, -1).square().sum(2)
        squares = (read * norm.to(read)[positions].square()).sum(1)
        total = squares if total is None else total + squares
    if total is None:
        raise InputError(f"no linear layer that was seen reads the units of {name!r}: give a criterion of the weights")
    return total.sqrt()
