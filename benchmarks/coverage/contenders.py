"""Prune one case with prunus or with torch-pruning, and check what comes out."""

from __future__ import annotations

import contextlib
import copy
import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attention
import torch
from case import Case, disturb, other_inputs
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.errors import PrunusError
from prunus.graph.outputs import held
from prunus.surgery.parametrized import with_permanent

Row = dict[str, Any]

RATIO = 0.5
ENOUGH = 0.35
"""Share of the parameters that must be gone for a network to count as pruned."""

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest difference between cut and masked network, relative to the largest output, in the type that they are compared
in: float32 only where an operator of the dense network takes no float64."""


def with_prunus(case: Case) -> Row:
    """Verdict, sizes, seconds and error of prunus on one case."""
    model, inputs = _built(case)
    expected = outputs(model, inputs)
    dense = _macs(model, inputs)
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = prunus.prune(model, inputs, ratio=RATIO, scope="group")
    except PrunusError as error:
        return {"verdict": "refused", "reason": f"{type(error).__name__}: {error}"[:400]}
    except Exception as error:
        return {"verdict": "broken", "reason": f"crash: {type(error).__name__}: {error}"[:400]}
    row: Row = {"seconds": round(time.process_time() - start, 2), "neutral": result.plan.neutral}
    problem = _unlike(expected, result.model, inputs)
    if not problem and result.plan.neutral:
        row["error"], problem = _masked_error(model, result, other_inputs(inputs))
    row |= _sizes(model, result.model)
    if not problem:
        row["macs_left"] = _share(_macs(result.model, inputs), dense)
    left_out = [f"{r.what}: {r.reason}" for r in result.refused if r.reason]
    return {**row, **_verdict(problem, row, left_out)}


def with_torch_pruning(case: Case) -> Row:
    """Verdict, sizes and seconds of torch-pruning on one case, set up as its documentation says.

    Output layers are kept, the outputs are named, attention heads are given and the attributes that hold their sizes
    are set afterwards. Where the dimensions of heads cannot be cut, whole heads are tried: the better one counts.
    """
    model, inputs = _built(case)
    expected = outputs(model, inputs)
    dense = _macs(model, inputs)
    row = _with_torch_pruning(model, inputs, expected, dense, {})
    if row["verdict"] == "broken" and attention.heads(model):
        whole = _with_torch_pruning(model, inputs, expected, dense, attention.WHOLE_HEADS)
        row = row if whole["verdict"] == "broken" else whole
    return row


def _with_torch_pruning(
    model: nn.Module, inputs: Any, expected: list[Tensor], dense: int, settings: Mapping[str, Any]
) -> Row:
    import torch_pruning  # type: ignore[import-not-found]

    smaller = copy.deepcopy(model)
    start = time.process_time()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                smaller,
                inputs,
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=RATIO,
                ignored_layers=_output_layers(smaller, inputs),
                num_heads=attention.heads(smaller),
                output_transform=held,
                **settings,
            )
            pruner.step()
            attention.mend(smaller, pruner.num_heads)
    except Exception as error:
        return {"verdict": "broken", "reason": f"crash: {type(error).__name__}: {error}"[:400]}
    row: Row = {"seconds": round(time.process_time() - start, 2)}
    problem = _unlike(expected, smaller, inputs)
    row |= _sizes(model, smaller)
    if not problem:
        row["macs_left"] = _share(_macs(smaller, inputs), dense)
    return {**row, **_verdict(problem, row, [])}


TOOLS: dict[str, Callable[[Case], Row]] = {"prunus": with_prunus, "torch-pruning": with_torch_pruning}


def _built(case: Case) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, inputs = case.build()
    return disturb(model), inputs


def _verdict(problem: str, row: Row, left_out: list[str]) -> Row:
    if problem:
        return {"verdict": "broken", "reason": problem}
    if row["parameters_left"] <= 1 - ENOUGH:
        return {"verdict": "pruned"}
    return {"verdict": "barely", "reason": "; ".join(left_out[:4])[:600]}


def _sizes(dense: nn.Module, smaller: nn.Module) -> Row:
    before, after = (sum(p.numel() for p in model.parameters()) for model in (dense, smaller))
    return {"parameters": before, "parameters_left": _share(after, before)}


def _share(after: int, before: int) -> float | None:
    return round(after / before, 4) if before else None


def _macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of matrix products and convolutions, as torch counts them, of all inputs together."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:  # the counter's module tracker trips over views of parameters that ask for gradients
        parameter.requires_grad_(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _call(model, inputs)
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The output tensors in the order in which they are nested, without by-products such as caches."""
    with torch.no_grad():
        torch.manual_seed(0)
        return held(_call(model, inputs))


def _unlike(expected: list[Tensor], smaller: nn.Module, inputs: Any) -> str:
    """What is wrong with the outputs of a cut model, as far as their form goes; "" when nothing is."""
    try:
        got = outputs(smaller, inputs)
    except Exception as error:
        return f"does not run: {type(error).__name__}: {error}"[:400]
    shapes, wanted = ([tuple(t.shape[1:]) for t in tensors] for tensors in (got, expected))
    if shapes != wanted:
        return f"outputs have shapes {shapes}, not {wanted}"[:400]
    finite = all(bool(t.isfinite().all()) for t in expected if t.is_floating_point())
    if finite and not all(bool(t.isfinite().all()) for t in got if t.is_floating_point()):
        return "outputs are not finite"
    return ""


def _masked_error(model: nn.Module, result: prunus.Pruned[nn.Module], inputs: Any) -> tuple[float | None, str]:
    """Largest relative difference between the cut and the masked dense model, and what is wrong with it."""
    for dtype, tolerance in TOLERANCES.items():
        convert = nn.Module.double if dtype is torch.float64 else nn.Module.float  # complex weights stay complex
        dense = with_permanent(model, result.plan.permanent)
        masked, cut = (convert(copy.deepcopy(m)) for m in (dense, result.model))
        _mask(masked, result.plan)
        given = tree_map_only(Tensor, lambda t, dtype=dtype: t.to(dtype) if t.is_floating_point() else t, inputs)
        with _default(dtype):
            try:
                expected = outputs(masked, given)
            except Exception:  # an operator or a constant of another type
                continue
            return _largest(expected, outputs(cut, given), tolerance)
    return None, ""


def _mask(model: nn.Module, plan: prunus.Plan) -> None:
    """Zeros in the place of everything that the plan removes."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for removed in plan.tensors:
            gone = sorted(set(range(removed.size)) - set(removed.keep))
            tensors[removed.tensor].index_fill_(removed.dim, torch.tensor(gone, dtype=torch.long), 0)


def _largest(expected: list[Tensor], got: list[Tensor], tolerance: float) -> tuple[float | None, str]:
    """The largest relative difference, None where nothing can be compared, and what is wrong; "" when nothing is."""
    worst, compared = 0.0, False
    for want, have in zip(expected, got):
        if not want.is_floating_point() or not want.numel():
            continue
        if want.shape != have.shape:
            return None, f"outputs have shape {tuple(have.shape)}, the masked model's {tuple(want.shape)}"
        if not _varies(want):
            continue
        compared, largest = True, want.abs().max().item()
        worst = max(worst, (want - have).abs().max().item() / largest)
    if not compared:
        return None, ""
    return worst, "" if worst <= tolerance else f"differs from the masked model by {worst:.2g} of the largest output"


def _varies(output: Tensor) -> bool:
    """Whether the samples of a batch differ in an output: one that half a random network no longer moves compares
    nothing."""
    if not output.dim() or len(output) < 2:
        return True
    return bool((output[0] - output[1]).abs().max() > 1e-9 * output.abs().max())


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Layers with weights whose own output is an output of the model; where there is none, the last one that ran."""
    ran: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            ran.append((module, output))

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    try:
        final = outputs(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    stored = {t.untyped_storage().data_ptr() for t in final}
    layers = [m for m, output in ran if output.untyped_storage().data_ptr() in stored]
    return layers or [m for m, _ in ran[-1:]]
