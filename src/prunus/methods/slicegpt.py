"""SliceGPT: rotate the residual stream to its principal components and cut the weakest ones off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, SurgeryError, UnknownNameError
from ..graph import plan_from
from ..language.residual import Branch, Stream, find_stream
from ..language.rotated import RotatedBlock, Rotation, ScaleFreeNorm, set_tensor
from ..language.stack import BlockCall, calls_of
from ..surgery import apply
from ..surgery.pretrained import with_attributes
from .card import Card
from .rounds import check_count
from .task import Outcome, Task
from .token_models import graph_of, opens_with, recover, some

# ------------------------------------------------------------------------------------------------------ pure: algebra


def principal_axes(second: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors, as columns, and eigenvalues of a second moment, the largest first.

    >>> axes, values = principal_axes(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
    >>> values.tolist(), axes[:, 0].abs().tolist()
    ([4.0, 1.0], [0.0, 1.0])
    """
    values, vectors = torch.linalg.eigh(second.double())
    return vectors.flip(1), values.flip(0).clamp_min(0)


def retained(values: Tensor, count: int) -> float:
    """Share of the variance that the first `count` axes hold."""
    return float(values[:count].sum() / values.sum().clamp_min(torch.finfo(values.dtype).tiny))


def times(weight: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """A tensor whose dimension `dim` is multiplied with a matrix (old, new)."""
    return (weight.movedim(dim, -1) @ matrix.to(weight)).movedim(-1, dim)


def kept_width(width: int, ratio: float, multiple: int) -> int:
    """How many axes stay: a multiple, at most (1 - ratio) of the width.

    >>> kept_width(64, 0.25, 8), kept_width(64, 0.3, 8), kept_width(20, 0.0, 8)
    (48, 40, 20)
    """
    return width if ratio == 0 else max(multiple, int((1 - ratio) * width + 1e-9) // multiple * multiple)


# --------------------------------------------------------------------------------------------------------- fuse norms


def fuse(model: nn.Module, stream: Stream) -> dict[str, float]:
    """Fold the scales (and shifts, and the subtracted mean) of all norms into the matrices around them, in place, and
    untie the head. With `ScaleFreeNorm` in the place of the norms the model computes what it did.

    Returns:
        The eps of each norm.

    Raises:
        SurgeryError: a norm is neither a layer norm nor a root mean square norm.
    """
    for name in stream.tied:
        set_tensor(model, name, model.get_parameter(name).detach().clone())
    config: Any = getattr(model, "config", None)
    if stream.tied and config is not None:
        config.tie_word_embeddings = False
    eps = {}
    ends = [(branch.norm, branch.readers) for pair in stream.blocks.values() for branch in pair]
    for norm, readers in (*ends, (stream.norm, stream.heads)):
        layer = model.get_submodule(norm)
        scale, shift, eps[norm] = _norm(norm, layer, stream.width)
        for tensor, dim in readers:
            _fold(model, tensor, dim, scale, shift)
    if any(isinstance(model.get_submodule(name), nn.LayerNorm) for name in stream.norms):
        _centre(model, stream)
    return eps


def _norm(name: str, layer: nn.Module, width: int) -> tuple[Tensor, Tensor | None, float]:
    """Scale, shift and eps of a norm, tried out on numbers where its class is not known."""
    like = next(layer.parameters())
    if isinstance(layer, nn.LayerNorm):
        return layer.weight.detach(), None if layer.bias is None else layer.bias.detach(), layer.eps
    eps = next((float(getattr(layer, n)) for n in ("variance_epsilon", "eps") if hasattr(layer, n)), None)
    if eps is None:
        raise SurgeryError(f"{name!r}, a {type(layer).__name__}, says nothing of its eps")
    row = torch.linspace(0.5, 1.5, width, dtype=like.dtype, device=like.device)
    rows = torch.stack([row, row.flip(0) ** 2])
    with torch.no_grad():
        scales = layer(rows) / (rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps))
    if not torch.allclose(scales[0], scales[1], rtol=1e-4, atol=1e-6):
        raise SurgeryError(f"{name!r}, a {type(layer).__name__}, is no root mean square norm")
    # What the layer multiplies with, exactly: its weight, or one plus its weight.
    for exact in (like.detach(), like.detach() + 1):
        if torch.allclose(scales[0], exact, rtol=1e-4, atol=1e-6):
            return exact, None, eps
    raise SurgeryError(f"{name!r}, a {type(layer).__name__}, scales by something else than its weight")


def _fold(model: nn.Module, tensor: str, dim: int, scale: Tensor, shift: Tensor | None) -> None:
    layer: Any = model.get_submodule(tensor.rpartition(".")[0])
    weight = model.get_parameter(tensor)
    with torch.no_grad():
        if shift is not None and shift.any():
            moved = weight.movedim(dim, -1) @ shift
            if layer.bias is None:
                layer.bias = nn.Parameter(moved)
            else:
                layer.bias += moved
        weight.copy_((weight.movedim(dim, -1) * scale).movedim(-1, dim))


def _centre(model: nn.Module, stream: Stream) -> None:
    """Take the mean over the stream's dimensions off everything that is written to it."""
    writers = [(name, 1) for name in stream.tables]
    writers += [w for pair in stream.blocks.values() for branch in pair for w in branch.writers]
    writers += [(name, 0) for pair in stream.blocks.values() for branch in pair for name in branch.biases]
    with torch.no_grad():
        for name, dim in writers:
            tensor = model.get_parameter(name)
            tensor -= tensor.mean(dim, keepdim=True)


# ------------------------------------------------------------------------------------------------- block by block


class _Rotating:
    """Rotates and slices a fused model from the embeddings to the head, each rotation found on what the sliced parts
    before it give."""

    def __init__(self, model: nn.Module, stream: Stream, keep: int, batches: Sequence[Tensor]) -> None:
        self.model, self.stream, self.keep = model, stream, keep
        self.calls, self.hidden = calls_of(model, tuple(stream.blocks), batches)
        self.axes = torch.empty(0)
        self.variance: dict[str, float] = {}

    def run(self) -> None:
        self._turn("embeddings")
        for name in self.stream.tables:
            self._set(name, 1, self.axes)
        self.hidden = [h @ self.axes for h in self.hidden]
        for (name, pair), call in zip(self.stream.blocks.items(), self.calls):
            block: Any = self.model.get_submodule(name)
            for number, branch in enumerate(pair):
                self._branch(block, number, branch, call)
        for name, dim in self.stream.heads:
            self._set(name, dim, self.axes)

    def _branch(self, block: RotatedBlock, number: int, branch: Branch, call: BlockCall) -> None:
        before = self.axes
        for name, dim in branch.readers:
            self._set(name, dim, before)
        run = _runner(block, number, call)
        self.hidden = [h @ before.T + run(h) for h in self.hidden]  # in the dense basis: the branch still writes there
        self._turn(branch.norm if number else f"{branch.norm} (out)")
        for name, dim in branch.writers:
            self._set(name, dim, self.axes)
        for name in branch.biases:
            self._set(name, 0, self.axes)
        setattr(block, f"shortcut_{number}", nn.Parameter(before.T @ self.axes))
        self.hidden = [h @ self.axes for h in self.hidden]

    def _turn(self, where: str) -> None:
        """New axes for the present stream."""
        width = self.stream.width
        second = torch.zeros(width, width, dtype=torch.float64, device=self.hidden[0].device)
        for one in self.hidden:
            rows = one.reshape(-1, width).double()
            second += rows.T @ rows
        vectors, values = principal_axes(second)
        self.axes = vectors[:, : self.keep].to(self.hidden[0])
        self.variance[where] = retained(values, self.keep)

    def _set(self, name: str, dim: int, matrix: Tensor) -> None:
        set_tensor(self.model, name, times(self.model.get_parameter(name).detach(), dim, matrix))


def _runner(block: RotatedBlock, number: int, call: BlockCall) -> Callable[[Tensor], Tensor]:
    if number:
        return lambda hidden: block.branch(1, hidden)
    return lambda hidden: block.branch(0, hidden, *call.args, **call.kwargs)


# ----------------------------------------------------------------------------------------------------- one rotation


def _rotate_all(model: nn.Module, stream: Stream, matrix: Tensor) -> None:
    """Multiply everything that touches the stream with one orthogonal matrix, in place."""
    spots = [(name, 1) for name in stream.tables] + list(stream.heads)
    for branch in (b for pair in stream.blocks.values() for b in pair):
        spots += [*branch.readers, *branch.writers, *((name, 0) for name in branch.biases)]
    with torch.no_grad():
        for name, dim in spots:
            weight = model.get_parameter(name)
            weight.copy_(times(weight, dim, matrix))


def _shared_axes(model: nn.Module, stream: Stream, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Principal axes of what all norms of a model read, each token at unit length."""
    second = torch.zeros(stream.width, stream.width, dtype=torch.float64)

    def read(_module: nn.Module, args: Any) -> None:
        rows = nn.functional.normalize(args[0].reshape(-1, stream.width).double(), dim=1).cpu()
        second.add_(rows.T @ rows)

    handles = [model.get_submodule(name).register_forward_pre_hook(read) for name in stream.norms]
    try:
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return principal_axes(second)


def _scaled_norms(model: nn.Module, stream: Stream, eps: dict[str, float], keep: int) -> None:
    """Root mean square norms of the narrow model that divide by the dense width, in place, by scale and eps alone."""
    factor = stream.width / keep
    for name in stream.norms:
        layer: Any = model.get_submodule(name)
        with torch.no_grad():
            layer.weight.fill_(factor**0.5)
        attribute = "variance_epsilon" if hasattr(layer, "variance_epsilon") else "eps"
        setattr(layer, attribute, eps[name] * factor)
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items()) if config is not None else ():
        if name.endswith("eps") and isinstance(value, float) and value in set(eps.values()):
            setattr(config, name, value * factor)


# ------------------------------------------------------------------------------------------------------------- method


def slicegpt(
    task: Task,
    *,
    ratio: float | None = None,
    rotation: str = "block",
    multiple: int = 8,
    batches: int = 8,
    batch_size: int = 16,
) -> Outcome:
    """Rotate the residual stream of a decoder to its principal components, and slice the weakest off.

    Args:
        task: `amount` is the share of the hidden dimensions that goes; `training.epochs` of recovery follow.
        ratio: instead of `amount`; 0 only rotates, which changes no output.
        rotation: "block": new axes before and within every block, with a matrix on each shortcut, as published; the
            result is saved with `prunus.language.save_rotated`. "shared": one rotation for the whole model, so that no
            shortcut needs a matrix and the result opens with `from_pretrained`; for root mean square norms.
        multiple: the width that stays is a multiple of this.
        batches, batch_size: of training inputs that the axes are found on.

    Returns:
        The narrower network; the history has its width and the variance that the axes hold.

    Raises:
        SurgeryError: the model is no pre-norm decoder of the kind that can be rotated.

    Source: Ashkboos, Croci, do Nascimento, Hoefler, Hensman, "SliceGPT: Compress Large Language Models by Deleting Rows
    and Columns", ICLR 2024, arXiv:2401.15024. "shared" is a simplification of ours.
    """
    check_count("slicegpt", multiple=multiple, batches=batches, batch_size=batch_size)
    if rotation not in ("block", "shared"):
        raise UnknownNameError.of("rotation of slicegpt", rotation, ("block", "shared"))
    share = task.wanted() if ratio is None else ratio
    if not 0 <= share < 1:
        raise InputError(f"slicegpt: ratio={share} must lie in [0, 1)")
    stream = find_stream(task.model, task.example_inputs)
    if rotation == "shared" and any(isinstance(task.model.get_submodule(n), nn.LayerNorm) for n in stream.norms):
        raise SurgeryError("slicegpt: rotation='shared' is for root mean square norms; use rotation='block'")
    inputs = [given for given, _ in some(task, batches, batch_size)]
    inputs = [given for given in inputs if given.shape == inputs[0].shape]
    keep = kept_width(stream.width, share, multiple)
    done = _by_block if rotation == "block" else _by_one
    model, variance, note = done(task, stream, keep, inputs)
    record = {"width": keep, "of": stream.width, "variance": variance}
    trained = recover(task, model)
    return Outcome(model, history=(record, *trained), notes=(note,))


Done = tuple[nn.Module, dict[str, float], str]


def _by_block(task: Task, stream: Stream, keep: int, inputs: Sequence[Tensor]) -> Done:
    dtype = next(task.model.parameters()).dtype
    model = copy.deepcopy(task.model).eval().double()
    plan = Rotation.of(stream, fuse(model, stream))
    plan.install(model)
    with torch.no_grad():
        _check_same(task.model, model, inputs[0])
        rotating = _Rotating(model, stream, keep, inputs)
        rotating.run()
    for name in stream.norms:
        assert isinstance(model.get_submodule(name), ScaleFreeNorm)
    model = model.to(dtype).train(task.model.training)
    model.prunus_rotation = plan  # type: ignore[assignment]
    note = "opens with prunus.language.load_rotated after save_rotated(model, model.prunus_rotation, folder)"
    return model, rotating.variance, note


def _by_one(task: Task, stream: Stream, keep: int, inputs: Sequence[Tensor]) -> Done:
    dtype = next(task.model.parameters()).dtype
    model = copy.deepcopy(task.model).eval().double()
    axes, values = _shared_axes(model, stream, inputs)
    eps = fuse(model, stream)
    with torch.no_grad():
        for name in stream.norms:
            model.get_parameter(f"{name}.weight").fill_(1.0)
        _check_same(task.model, model, inputs[0])
    _rotate_all(model, stream, axes.to(inputs[0].device))
    model = model.to(dtype)
    if keep < stream.width:
        rotated = Task(model, task.example_inputs, task.train, keep=task.keep)
        graph = graph_of(rotated, uniform=True)
        group = next(group for group in graph.groups if group.kind == "hidden")
        plan = with_attributes(model, plan_from(graph, {group.name: range(keep)}, "slicegpt"))
        model = apply(model, plan)
    _scaled_norms(model, stream, eps, keep)
    return model.train(task.model.training), {"all": retained(values, keep)}, opens_with(task, model)


def _check_same(dense: nn.Module, fused: nn.Module, ids: Tensor) -> None:
    """Raise if the fused model computes something else."""
    mode = dense.training
    wanted, found = dense.eval()(ids).logits.double(), fused(ids).logits
    dense.train(mode)
    worst, largest = float((wanted - found).abs().max()), float(wanted.abs().max())
    if not worst <= 1e-3 * max(largest, 1.0):
        raise SurgeryError(f"slicegpt: folding the norms changes the outputs by {worst:.3g} of {largest:.3g}")


CARD = Card(
    id="slicegpt",
    title="SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
    paper="Ashkboos, Croci, do Nascimento, Hoefler, Hensman; ICLR 2024; arXiv:2401.15024",
    level="channel",
    when="after training",
    rate="given",
    selection="reconstruction",
    needs=("activations",),
    specification="verified",
    entry="method",
    how='prunus.methods.run("slicegpt", Task(model, ids, TokenSplit.of_text(tokens), amount=0.25))',
    formula="norms folded; E Q, W_in Q, Q'^T W_out, shortcut Q^T Q', Q the first eigenvectors of X^T X at each norm",
    cost="one pass over the calibration inputs and two eigendecompositions of (width, width) per block, in float64",
    departures='the head is sliced, too; axes are oriented as PCA gives them; rotation="shared" is ours: one rotation, '
    "no shortcut matrices, opens with from_pretrained",
    run=slicegpt,
)
