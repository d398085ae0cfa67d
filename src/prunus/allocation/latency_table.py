"""A network's latency from measured times of its layers at several widths.

Each layer with weights is timed alone on the device, on a grid of input and output widths; in between, times are
interpolated. What the layers do not explain of the whole network's measured time (normalisation, activations, copies,
calls) is the remainder, taken to be proportional to the entries that the other operators write.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph.counting import groups_of, size
from ..types import Axis, Graph, Operator

Clock = Callable[[], float]
Counts = Mapping[str, int]

_PER_SECOND = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer: `seconds[i][j]` at `out_widths[i]` and `in_widths[j]`, both ascending."""

    out_axis: Axis
    in_axis: Axis
    out_widths: tuple[int, ...]
    in_widths: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def at(self, counts: Counts | None) -> float:
        """Interpolated seconds when the groups keep `counts` units."""
        wide = [np.interp(size(self.in_axis, counts), self.in_widths, row) for row in self.seconds]
        return float(np.interp(size(self.out_axis, counts), self.out_widths, wide))


@dataclass(frozen=True)
class LatencyTable:
    """Measured layer times and what they leave unexplained, in seconds. `correction` multiplies every prediction."""

    layers: tuple[LayerTime, ...]
    remainder: float
    dense: float
    device: str
    correction: float = 1.0


def predict(table: LatencyTable, graph: Graph, counts: Counts | None = None) -> float:
    """Predicted seconds of one run of the network on its example inputs when the groups keep `counts` units."""
    layers = sum(layer.at(counts) for layer in table.layers)
    remainder = table.remainder * _written(graph, counts) / max(_written(graph, None), 1)
    return table.correction * (layers + remainder)


def _written(graph: Graph, counts: Counts | None) -> int:
    """Entries that operators without weights write."""
    outputs = (axes for operator in graph.operators if not operator.weight for axes in operator.outputs)
    return sum(reduce(mul, (size(axis, counts) for axis in axes), 1) for axes in outputs)


def seconds_of(given: float | str, dense: float) -> float:
    """A latency target in seconds: a fraction of `dense` (a number in (0, 1] or "50%"), or text such as "8ms".

    Raises:
        InputError: neither.
    """
    if isinstance(given, str):
        match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|ms|us|µs|%)", given.strip())
        if match and float(match[1]) > 0:
            return float(match[1]) * (dense / 100 if match[2] == "%" else _PER_SECOND[match[2]])
    elif isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= 1:
        return float(given) * dense
    raise InputError(
        f"target latency={given!r} must be a fraction of the dense model's in (0, 1], such as 0.5 or '50%', or a time "
        "such as '8ms' or '300us'"
    )


# ------------------------------------------------------------------------------------------------------- measuring


def measure_latency_table(
    model: nn.Module,
    graph: Graph,
    dense_seconds: float,
    *,
    fractions: Sequence[float] = (0.125, 0.25, 0.5, 0.75, 1.0),
    device: torch.device | str | None = None,
    min_seconds: float = 0.01,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Time each layer with weights alone, at fractions of its widths. The model is only read.

    Args:
        model: the traced one.
        graph: its graph; layers see inputs of the sizes that were traced, batch included.
        dense_seconds: measured time of one run of the whole model on the traced inputs, by the protocol that the result
            will be judged with.
        fractions: of each layer's input and output width, in (0, 1].
        device: to measure on; None is the model's.
        min_seconds: time spent on each width at least, so that short layers are repeated more often.
        clock: seconds.

    Returns:
        The table. Layers of kinds that are not in `BUILDERS` are part of the remainder.
    """
    if not dense_seconds > 0:
        raise InputError(f"dense_seconds={dense_seconds} must be the measured seconds of one run of the dense model")
    first = next(model.parameters(), None)
    where = torch.device(device or (first.device if first is not None else "cpu"))
    measured: dict[object, float] = {}
    layers = []
    for operator in graph.operators:
        module = _owner(model, operator)
        if module is not None:
            layers.append(_layer_time(module, operator, graph, fractions, _Timer(where, min_seconds, clock, measured)))
    explained = sum(layer.at(None) for layer in layers)
    # Layers timed alone may take longer than inside the network (caches are colder): then nothing is left over, and the
    # correction takes what is too much.
    remainder = max(dense_seconds - explained, 0.0)
    correction = dense_seconds / (explained + remainder)
    return LatencyTable(tuple(layers), remainder, dense_seconds, str(where), correction)


def _owner(model: nn.Module, operator: Operator) -> nn.Module | None:
    """The layer whose weight an operator multiplies with, if its kind can be built at other widths."""
    if not operator.weight.endswith("weight") or not operator.multiply_adds:
        return None
    try:
        module = model.get_submodule(operator.weight.removesuffix("weight").rstrip("."))
    except AttributeError:
        return None
    return module if type(module) in BUILDERS else None


@dataclass(frozen=True)
class _Timer:
    device: torch.device
    min_seconds: float
    clock: Clock
    measured: dict[object, float]

    def __call__(self, key: object, layer: Callable[[], nn.Module], x: Callable[[], Tensor]) -> float:
        """Median seconds of one call; layers of the same kind and sizes are timed once."""
        if key not in self.measured:
            self.measured[key] = self._median(layer().to(self.device).eval(), x().to(self.device))
        return self.measured[key]

    def _median(self, layer: nn.Module, x: Tensor) -> float:
        times: list[float] = []
        with torch.no_grad():
            layer(x)
            self._wait()
            while len(times) < 5 or (sum(times) < self.min_seconds and len(times) < 1000):
                start = self.clock()
                layer(x)
                self._wait()
                times.append(self.clock() - start)
        return statistics.median(times)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _layer_time(
    module: nn.Module, operator: Operator, graph: Graph, fractions: Sequence[float], timer: _Timer
) -> LayerTime:
    build = BUILDERS[type(module)]
    axes = graph.tensors[operator.weight].axes
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    out_axis, in_axis = (axes[1], axes[0]) if transposed else (axes[0], axes[1])
    outs, ins = _widths(out_axis, fractions), _widths(in_axis, fractions)
    sizes = tuple(size(axis) for axis in operator.outputs[0])

    def seconds(out: int, read: int) -> float:
        layer, shape = build(module, out, read, sizes)
        key = (repr(layer), shape)
        return timer(key, lambda: layer, lambda: torch.zeros(shape, dtype=next(module.parameters()).dtype))

    grid = tuple(tuple(seconds(out, read) for read in ins) for out in outs)
    return LayerTime(out_axis, in_axis, outs, ins, grid)


def _widths(axis: Axis, fractions: Sequence[float]) -> tuple[int, ...]:
    if not groups_of(axis):
        return (axis.size,)
    return tuple(sorted({axis.size, *(max(1, round(fraction * axis.size)) for fraction in fractions)}))


def _convolution(module: nn.Module, out: int, read: int, sizes: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution of other widths and an input shape that gives the traced output size. `read` is per group."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    depthwise = module.groups == module.in_channels == module.out_channels
    groups = out if depthwise else module.groups
    if module.transposed:
        channels, wide = max(read // groups, 1) * groups, out * groups
    else:
        channels, wide = read * groups, max(out // groups, 1) * groups
    weight = module.weight
    options = {
        "stride": module.stride,
        "dilation": module.dilation,
        "groups": groups,
        "bias": module.bias is not None,
        "dtype": weight.dtype,
    }
    layer = type(module)(channels, wide, module.kernel_size, padding=module.padding, **options)  # type: ignore[arg-type]
    return layer, (sizes[0], channels, *_input_extent(module, sizes[2:]))


def _input_extent(module: nn.modules.conv._ConvNd, outputs: tuple[int, ...]) -> tuple[int, ...]:
    extents = []
    for dim, out in enumerate(outputs):
        stride, reach = module.stride[dim], module.dilation[dim] * (module.kernel_size[dim] - 1) + 1
        if module.padding == "same":
            extents.append(out)
            continue
        padding = 0 if isinstance(module.padding, str) else module.padding[dim]
        if module.transposed:
            extents.append(max(1, (out + 2 * padding - reach) // stride + 1))
        else:
            extents.append(max(1, (out - 1) * stride + reach - 2 * padding))
    return tuple(extents)


def _linear(module: nn.Module, out: int, read: int, sizes: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    assert isinstance(module, nn.Linear)
    layer = nn.Linear(read, out, bias=module.bias is not None, dtype=module.weight.dtype)
    return layer, (*sizes[:-1], read)


Builder = Callable[[nn.Module, int, int, tuple[int, ...]], tuple[nn.Module, tuple[int, ...]]]
BUILDERS: Mapping[type[nn.Module], Builder] = MappingProxyType(
    {
        nn.Linear: _linear,
        **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
        **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
    }
)
"""Kind of layer -> (layer, output width, input width per group, output sizes) -> (such a layer, its input shape)."""
