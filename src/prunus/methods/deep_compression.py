"""Pruning followed by coding: Deep Compression (shared weights, exact codes) and DeepSZ (bounded errors)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..compression import compress, decode_bounded, encode_bounded, share
from ..errors import InputError
from .card import Card
from .magnitude import magnitude_iterative
from .masked import check_range, holder_of, part_of, shares, sites_of, stored, train
from .task import Outcome, Task


class SharedWeight(nn.Module):
    """Code book -> weight: entry `codes[i]` of the book at position i, zeros elsewhere.

    The gradient of an entry is the sum of those of the weights that share it.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("codes", codes)  # 0 is pruned, 1 the first entry

    def forward(self, book: Tensor) -> Tensor:
        """The weight."""
        return torch.cat([book.new_zeros(1), book])[self.codes].reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The code book of a weight that is shared already; what the parametrization starts from."""
        flat = weight.detach().reshape(-1)
        count = int(self.codes.max())
        book = flat.new_zeros(count + 1)
        book[self.codes] = flat
        return book[1:]


def share_weights(model: nn.Module, masks: Mapping[str, Tensor], bits: Mapping[str, int]) -> None:
    """Replace the weights that stay by 2^bits values for each tensor, in place, trainable as its code book."""
    for name, mask in masks.items():
        holder, local = holder_of(model, name)
        weight = getattr(holder, local)
        mask = mask.to(weight.device)
        if not mask.any():
            continue
        book, codes = share(weight.detach()[mask].cpu(), 2 ** bits[name])
        numbers = torch.zeros(weight.numel(), dtype=torch.int64)
        numbers[mask.reshape(-1).cpu()] = codes + 1
        with torch.no_grad():
            weight.zero_()
            weight[mask] = book.to(weight.device)[codes.to(weight.device)]
        sharing = SharedWeight(numbers.to(weight.device), weight.shape)
        parametrize.register_parametrization(holder, local, sharing, unsafe=True)


def fix_weights(model: nn.Module) -> None:
    """Make shared weights plain parameters again, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for local, chain in list(module.parametrizations.items()):  # type: ignore[union-attr]
                if isinstance(chain[0], SharedWeight):
                    parametrize.remove_parametrizations(module, local, leave_parametrized=True)


def _bits(task: Task, conv: int, other: int) -> dict[str, int]:
    for name, value in (("conv_bits", conv), ("linear_bits", other)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16:
            raise InputError(f"deep_compression: {name}={value!r} must be a whole number of bits, 1 to 16")
    names = sites_of(task, "deep_compression")
    return {name: conv if stored(task.model, name).dim() > 2 else other for name in names}


def deep_compression(
    task: Task,
    *,
    conv_bits: int = 8,
    linear_bits: int = 5,
    rounds: int = 3,
    share_epochs: float = 0.3,
    share_rate: float = 0.01,
    **options: Any,
) -> Outcome:
    """Prune by magnitude, let the weights that stay share 2^bits values in each layer, code both by Huffman.

    Args:
        task: its model is trained; `amount` the sparsity; `training` is divided between pruning and code books.
        conv_bits, linear_bits: of the shared values, and of a stored gap.
        rounds: of pruning, see `magnitude_iterative`, as all other options.
        share_epochs: share of the epochs that fine-tunes the code books.
        share_rate: times the learning rate then; an entry's gradient is the sum over all weights that share it.

    Returns:
        The network with shared weights. The last record of the history has its size: `bytes` of everything in the state
        dict, tables and code books included, `dense_bytes`, `ratio`. `prunus.compression.compress(outcome.model)` gives
        the bytes.

    Source: Han, Mao, Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
    Huffman Coding", ICLR 2016, arXiv:1510.00149.
    """
    check_range("deep_compression", "share_epochs", share_epochs, 0.0, 1.0)
    bits = _bits(task, conv_bits, linear_bits)
    first, second = shares(task.training.epochs, [1 - share_epochs, share_epochs])
    pruned = magnitude_iterative(replace(task, training=part_of(task.training, first)), rounds=rounds, **options)
    network = pruned.model
    share_weights(network, pruned.masks, bits)
    config = part_of(task.training, second, lr=task.training.lr * share_rate)
    records = train(task, network, config)
    fix_weights(network)
    coded = compress(network, bits=bits)
    sizes = {"bytes": coded.nbytes, "dense_bytes": coded.dense_bytes, "ratio": coded.ratio}
    return replace(pruned, model=network, history=(*pruned.history, *records, sizes))


# ------------------------------------------------------------------------------------------------------------- DeepSZ


def deepsz(
    task: Task,
    *,
    tolerance: float = 0.004,
    bounds: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    rounds: int = 3,
    **options: Any,
) -> Outcome:
    """Prune by magnitude, then code the weights of linear layers with the largest errors that the accuracy allows.

    Each layer is tried alone with each bound on the validation split; of all combinations whose losses of accuracy add
    up to no more than `tolerance` the smallest is taken, and tightened while its real loss is more.

    Args:
        task: its model is trained; `amount` the sparsity; needs a validation split.
        tolerance: accuracy that may be lost, a fraction of the examples.
        bounds: largest absolute errors to try, ascending.
        rounds: of pruning, see `magnitude_iterative`, as all other options.

    Returns:
        The network with decoded weights. The last record has the bound of each layer, `bytes`, `dense_bytes`, `ratio`
        and the accuracy before and after.

    Source: Jin et al., "DeepSZ", HPDC 2019. The coder is a simple form of SZ, and which bounds are tried is our choice.
    """
    if task.validation is None:
        raise InputError("deepsz: needs a validation split, on which the errors are judged")
    if not bounds or list(bounds) != sorted(bounds) or not bounds[0] > 0:
        raise InputError(f"deepsz: bounds={tuple(bounds)} must be positive and ascending")
    check_range("deepsz", "tolerance", tolerance, 0.0, 1.0)
    pruned = magnitude_iterative(task, rounds=rounds, **options)
    network = pruned.model
    linear = [n for n in pruned.masks if network.get_parameter(n).dim() == 2]
    before = _hits(network, task)
    tried = {name: _tried(network, name, bounds, before, task) for name in linear}
    allowed = int(tolerance * len(task.validation) + 1e-9)
    chosen = cheapest(tried, allowed)
    notes: tuple[str, ...] = ()
    while True:
        worn = {name: bounds[i] for name, i in chosen.items() if i >= 0}
        decoded = copy.deepcopy(network)
        for name, bound in worn.items():
            _decode_into(decoded, name, bound)
        after = _hits(decoded, task)
        if before - after <= allowed or not worn:
            break
        loosest = max(worn, key=lambda name: worn[name])
        chosen[loosest] -= 1
        notes = ("the losses of the layers did not add up as expected; a bound was tightened",)
    coded = compress(network, bounds=worn)
    record = {
        "bounds": worn, "bytes": coded.nbytes, "dense_bytes": coded.dense_bytes, "ratio": coded.ratio,
        "accuracy_before": before / len(task.validation), "accuracy_after": after / len(task.validation),
    }  # fmt: skip
    return replace(pruned, model=decoded, history=(*pruned.history, record), notes=(*pruned.notes, *notes))


def _hits(model: nn.Module, task: Task) -> int:
    assert task.validation is not None
    training = model.training
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in task.validation.batches(256))
    model.train(training)
    return hits


def _decode_into(model: nn.Module, name: str, bound: float) -> int:
    weight = model.get_parameter(name)
    data = encode_bounded(weight, bound, bits=5)
    with torch.no_grad():
        weight.copy_(decode_bounded(data)[0])
    return len(data)


def _tried(network: nn.Module, name: str, bounds: Sequence[float], before: int, task: Task) -> list[tuple[int, int]]:
    """(hits lost, bytes) of each bound on this layer alone."""
    result = []
    for bound in bounds:
        alone = copy.deepcopy(network)
        size = _decode_into(alone, name, bound)
        result.append((max(0, before - _hits(alone, task)), size))
    return result


def cheapest(tried: Mapping[str, Sequence[tuple[int, int]]], allowed: int) -> dict[str, int]:
    """The choice of one option per layer with the fewest bytes whose losses add up to `allowed` or less.

    Args:
        tried: layer -> (loss, bytes) of each option; losses are whole numbers >= 0.
        allowed: >= 0.

    Returns:
        Layer -> number of the option; the first one, the most careful, where none fits.

    >>> cheapest({"a": [(0, 9), (2, 5)], "b": [(0, 8), (1, 6)]}, 2)
    {'a': 1, 'b': 0}
    """
    best: dict[int, tuple[int, dict[str, int]]] = {0: (0, {})}  # loss so far -> (bytes, choice)
    for name, options in tried.items():
        least = min(loss for loss, _ in options)
        following: dict[int, tuple[int, dict[str, int]]] = {}
        for spent, (size, choice) in best.items():
            for i, (loss, more) in enumerate(options):
                total = spent + loss
                if (total <= allowed or loss == least) and (
                    total not in following or size + more < following[total][0]
                ):
                    following[total] = (size + more, {**choice, name: i})
        best = following
    within = {total: found for total, found in best.items() if total <= allowed}
    if not within:
        return dict.fromkeys(tried, 0)
    return min(within.values(), key=lambda found: found[0])[1]


CARDS = (
    Card(
        id="deep_compression",
        title="Deep Compression: Pruning, Trained Quantization and Huffman Coding",
        paper="Han, Mao, Dally; ICLR 2016; arXiv:1510.00149",
        level="weight",
        when="after training",
        rate="given",
        selection="criterion",
        needs=("labels", "training"),
        specification="standard",
        entry="method",
        how='prunus.methods.run("deep_compression", Task(model, x, train, validation, amount=0.9, training=config))',
        formula="prune by |w|; k-means of the rest, 2^b values, linear start; Huffman codes of values and gaps",
        cost="one training, divided; k-means of each layer",
        departures="biases and norms are stored as they are; 8 bits for convolutions, 5 for linear layers",
        run=deep_compression,
    ),
    Card(
        id="deepsz",
        title="DeepSZ: Compressing Deep Neural Networks by Using Error-Bounded Lossy Compression",
        paper="Jin, Di, Liang, Tian, Tao, Cappello; HPDC 2019",
        level="weight",
        when="after training",
        rate="given",
        selection="criterion",
        needs=("labels", "training"),
        specification="reconstructed",
        entry="method",
        how='prunus.methods.run("deepsz", Task(model, x, train, validation, amount=0.9, training=config))',
        formula="prune by |w|; each w of linear layers in steps of 2 e_l, with the e_l that lose no more than allowed",
        cost="layers times bounds passes over the validation split",
        departures="SZ in its simplest form: last-value prediction, linear steps, Huffman; gaps are Huffman-coded too",
        run=deepsz,
    ),
)
