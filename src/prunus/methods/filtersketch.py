"""FilterSketch: the filters that stay get weights that keep the second moments of the whole layer."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from ..allocation import plan
from ..criteria import score
from ..criteria.similarity import cosine_similarity
from ..errors import InputError
from ..graph import trace
from ..graph.counting import unit_positions
from ..surgery import apply
from ..training import recalibrate_batchnorm
from ..types import Graph, Plan
from .card import Card
from .rounds import kept_units, train_on
from .task import Outcome, Task


def frequent_directions(rows: Tensor, size: int) -> Tensor:
    """A few rows whose Gram matrix comes close to that of many.

    Rows are put into the sketch until it is full; then the squares of its singular values are lowered by the smallest
    of them, which empties a row.

    Args:
        rows: (n, elements): the filters.
        size: of the sketch, 1 or more.

    Returns:
        (size, elements) rows B with 0 <= x^T (A^T A - B^T B) x <= ||A||_F^2 / size for unit vectors x, in float64.

    Raises:
        InputError: `size` is below 1.

    Source: Liberty, "Simple and Deterministic Matrix Sketching", KDD 2013, arXiv:1206.0594.
    """
    if size < 1:
        raise InputError(f"frequent_directions: size={size} must be 1 or more")
    rows = rows.double()
    sketch = torch.zeros(size, rows.shape[1], dtype=torch.float64, device=rows.device)
    filled = 0
    for row in rows:
        if filled == size:
            _, values, directions = torch.linalg.svd(sketch, full_matrices=False)
            least = values[-1].square() if len(values) == size else values.new_zeros(())
            shrunk = (values.square() - least).clamp_min(0).sqrt()
            sketch.zero_()
            sketch[: len(values)] = shrunk[:, None] * directions
            # The last row is zero now; so are all beyond the rank.
            filled = min(size - 1, int((shrunk > 1e-12 * values[0].clamp_min(1e-300)).sum()))
        sketch[filled] = row
        filled += 1
    return sketch


def matched(sketch: Tensor, rows: Tensor) -> Tensor:
    """The sketch's rows in the order, and with the signs, in which they resemble these rows most."""
    from scipy.optimize import linear_sum_assignment  # scikit-learn brings scipy

    alike = cosine_similarity(torch.cat([rows.double(), sketch.double()]))[: len(rows), len(rows) :]
    mine, its = linear_sum_assignment(-alike.abs().cpu().numpy())
    signs = torch.where(alike[mine, its] < 0, -1.0, 1.0).to(sketch)
    return torch.empty_like(sketch).index_copy(
        0, torch.from_numpy(mine).to(sketch.device), signs[:, None] * sketch[its]
    )


def filtersketch(task: Task, *, criterion: str = "l2_norm") -> Outcome:
    """Cut every layer, and give the filters that stay the sketch of all filters of the layer; then fine-tune.

    Args:
        task: `amount` or `target`; `training.epochs` of fine-tuning follow, none if 0.
        criterion: says which positions stay: norms and the next layer's columns are those of these filters, and the
            sketch is put in the order in which it resembles them most.

    Source: M. Lin, Cao, Li, Ye, Tian, Liu, Q. Tian, Ji, "Filter Sketch for Network Pruning", TNNLS 2021,
    arXiv:2001.08514. Order and signs, which the sketch leaves open, are our choice. Batch norm is recalibrated.
    """
    graph = trace(task.model, task.example_inputs, keep=task.keep)
    if not graph.groups:
        raise InputError("filtersketch: nothing in the model can be pruned")
    scores = score(graph, criterion, model=task.model, fallback="l2_norm")
    amount = {"ratio": task.wanted()} if task.target is None else {"target": task.target}
    made = plan(graph, scores, **amount)  # type: ignore[arg-type]
    model = apply(_sketched(task.model, graph, made), made)
    recalibrate_batchnorm(model, task.train.batches(task.training.batch_size), max_batches=20)
    return Outcome(model, plan=made, history=tuple(train_on(model, task, task.training.epochs)))


def _sketched(model: nn.Module, graph: Graph, made: Plan) -> nn.Module:
    """A copy in which the filters that stay hold the sketch of their layer."""
    result = copy.deepcopy(model)
    tensors = dict(result.named_parameters(remove_duplicate=False))
    cut = {one.group for one in made.cuts}
    for name, kept in kept_units(graph, made).items():
        for place in graph.group(name).places if name in cut else ():
            tensor = tensors.get(place.tensor)
            if place.role == "out" and tensor is not None and tensor.dim() > 1:
                _write(tensor, place.dim, unit_positions(place.axis, name), kept)
    return result


def _write(tensor: nn.Parameter, dim: int, positions: np.ndarray, kept: Tensor) -> None:
    index = torch.from_numpy(positions).to(tensor.device)
    with torch.no_grad():
        rows = tensor.movedim(dim, 0)
        shape = rows.shape[1:]
        units = rows[index.reshape(-1)].reshape(len(index), -1)
        stay = kept.to(tensor.device)
        sketch = matched(frequent_directions(units, int(stay.sum())), units[stay]).to(tensor.dtype)
        rows[index[stay].reshape(-1)] = sketch.reshape(-1, *shape)


CARD = Card(
    id="filtersketch",
    title="Filter Sketch for Network Pruning",
    paper="M. Lin, Cao, Li, Ye, Tian, Liu, Q. Tian, Ji; TNNLS 2021; arXiv:2001.08514",
    level="filter",
    when="after training",
    rate="given",
    selection="reconstruction",
    needs=(),
    specification="standard",
    entry="method",
    how='prunus.methods.run("filtersketch", Task(model, x, train, validation, amount=0.5, training=config))',
    formula="W' = frequent directions of W: min |W W^T - W' W'^T|",
    cost="a small singular value decomposition per filter beyond those that stay",
    departures="order and signs of the sketch follow the filters of largest norm, so that the next layer fits; "
    "batch norm is recalibrated",
    run=filtersketch,
)
