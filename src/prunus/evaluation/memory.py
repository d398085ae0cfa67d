"""How much memory a model takes: its weights, and the peak of its activations during one forward pass.

MiB is 2^20 bytes everywhere. What is measured depends on the device and is said in each measurement: on CUDA the
allocator's own peak, which includes the workspaces of kernels; on the CPU the peak of the bytes of tensors that are
alive between operators, which does not, but is exact and the same on every machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..types import Measurement
from .context import Context, Measure
from .hardware import describe, device_of, precision_of, synchroniser
from .inputs import bind, rebatch, tensors_of
from .state import eval_mode

MIB = 2**20


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the unique parameters in memory (tied ones once); buffers, gradients and optimiser state are not in it.

    >>> weight_bytes(nn.Linear(3, 2))  # 6 weights and 2 biases of 4 bytes
    32
    """
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def buffer_bytes(model: nn.Module) -> int:
    """Bytes of the unique buffers, such as running statistics."""
    return sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())


class LiveTensors(TorchDispatchMode):
    """Follows the storages that operators make inside: bytes alive now, and the most there ever were.

    A storage counts once, however many views it has, from the operator that returns it until its last owner drops it.
    Storages of `known` tensors never count. Attributes: `live` and `peak`, in bytes.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        # The tensors are kept so that their storages' addresses cannot be given to new ones.
        self._kept = tuple(known)
        self._known = {tensor.untyped_storage()._cdata for tensor in self._kept}
        self._followed: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._follow(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for finalizer in self._followed.values():
            finalizer.detach()

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._followed:
            return
        self.live += size
        self._followed[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._followed[key]


@dataclass(frozen=True)
class Peak:
    """Peak memory of one forward pass beyond the weights and buffers.

    Attributes:
        bytes: The peak, with the inputs in it, in bytes.
        inputs: Bytes of the inputs, which stay alive throughout.
        how: What was measured.
    """

    bytes: int
    inputs: int
    how: str


def peak_activations(model: nn.Module, inputs: Any) -> Peak:
    """Peak memory of one forward pass in eval mode without gradients, beyond weights and buffers.

    Args:
        model: On the device where it is to be measured.
        inputs: One batch as the model takes it: a tensor, tuple or mapping.

    Returns:
        On CUDA the allocator's peak during a second pass (the first warms kernels up) minus what stood before; on other
        devices the peak of the bytes of live tensors, followed through every operator.
    """
    with eval_mode(model), torch.no_grad():
        call = bind(model, inputs)
        if device_of(model).type == "cuda":
            return _allocator_peak(call, device_of(model), inputs)
        return _live_peak(call, model, inputs)


def _live_peak(call: Callable[[], Any], model: nn.Module, inputs: Any) -> Peak:
    size = _bytes_of(inputs)
    known = [*model.parameters(), *model.buffers(), *tensors_of(inputs)]
    with LiveTensors(known) as live:
        call()
    how = "peak bytes of live tensors between operators, inputs included; workspaces inside operators are not seen"
    return Peak(size + live.peak, size, how)


def _allocator_peak(call: Callable[[], Any], device: torch.device, inputs: Any) -> Peak:
    size = _bytes_of(inputs)
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return Peak(size + peak, size, "peak of the CUDA allocator beyond weights and buffers, inputs included")


def resident_peak(call: Callable[[], Any]) -> int | None:
    """How far the process's peak resident memory rises above its resident memory while `call` runs, in bytes.

    Memory that the process's allocator had kept from before is used first and does not show, so this is a lower bound;
    run it early in a fresh process to come close. None where the system does not let a process reset its own peak
    (anything but Linux).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf8")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, StopIteration):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def _bytes_of(inputs: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(inputs))


def _weight_memory(context: Context) -> Measurement:
    """MiB of the parameters as they stand in memory; masked zeros take as much as other numbers."""
    details: dict[str, Any] = {"bytes": weight_bytes(context.model), "buffer_bytes": buffer_bytes(context.model)}
    if context.reference is not None:
        details["reference_bytes"] = weight_bytes(context.reference)
    how = f"unique parameters times their bytes, {precision_of(context.model)}, 1 MiB = 2^20 bytes"
    return Measurement("weight_memory", details["bytes"] / MIB, "MiB", how, details=details)


def _peak_memory(context: Context) -> Measurement:
    """MiB of activations at the peak of a forward pass of `batch` samples; options: `batch`, `resident`."""
    batch = int(context.options["batch"])
    inputs = rebatch(context.example_inputs, batch)
    peak = peak_activations(context.model, inputs)
    details: dict[str, Any] = {
        "bytes": peak.bytes,
        "input_bytes": peak.inputs,
        "weight_bytes": weight_bytes(context.model),
        "batch": batch,
        "hardware": describe(context.device),
    }
    if context.reference is not None:
        details["reference_bytes"] = peak_activations(context.reference, inputs).bytes
    if context.options["resident"]:
        details["resident_bytes"] = _resident(context.model, inputs)
    how = f"{peak.how}; batch {batch}, {precision_of(context.model)}, 1 MiB = 2^20 bytes"
    return Measurement("peak_memory", peak.bytes / MIB, "MiB", how, details=details)


def _resident(model: nn.Module, inputs: Any) -> int | None:
    with eval_mode(model), torch.inference_mode():
        call, synchronise = bind(model, inputs), synchroniser(device_of(model))
        return resident_peak(lambda: (call(), synchronise()))


MEASURES: Mapping[str, Measure] = {
    "weight_memory": Measure(_weight_memory, unit="MiB", better="lower"),
    "peak_memory": Measure(
        _peak_memory,
        needs=("example_inputs",),
        unit="MiB",
        better="lower",
        options={"batch": 1, "resident": False},
    ),
}
