"""Complex numbers and Fourier transforms: real and imaginary parts are a pair of the same units."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..recorder import Recorder, Rule
from .pointwise import keep_axes, pointwise


def view_as_real(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    recorder.set(out, [*recorder.axes(args[0]), recorder.fixed(2, "real and imaginary parts")])


def view_as_complex(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    axes = recorder.axes(args[0])
    recorder.freeze(axes[-1], "real and imaginary parts")
    recorder.set(out, axes[:-1])


def transform(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A Fourier transform mixes the positions of the dimensions that it names."""
    source: Tensor = args[0]
    mixed = {d % source.dim() for d in args[1]}
    axes = list(recorder.axes(source))
    for dim in mixed:
        recorder.freeze(axes[dim], "a Fourier transform mixes its positions")
        axes[dim] = recorder.fixed(out.shape[dim])
    recorder.set(out, axes)


RULES: dict[str, Rule] = {
    "aten::view_as_real": view_as_real,
    "aten::view_as_complex": view_as_complex,
    "aten::_conj": keep_axes,
    "aten::_neg_view": keep_axes,
    "aten::conj_physical": keep_axes,
    "aten::complex": pointwise,
    "aten::polar": pointwise,
    "aten::_fft_r2c": transform,
    "aten::_fft_c2c": transform,
    "aten::_fft_c2r": transform,
}
