"""Prove that a cut model is what its plan says: shapes of every operator, and outputs against zeroing.

Everything is done on copies in eval mode: buffers, gradients, train flags and random states stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..errors import SurgeryError, VerificationError
from ..graph import inputs as example_inputs
from ..graph import shapes_of
from ..graph.outputs import leaves_of
from ..graph.parametrized import computed_tensors
from ..graph.vocabulary import with_inputs
from ..types import Plan, Vocabulary
from . import tensors
from .examples import batches, example_of, untouched_randomness
from .operators import Recorder, check_shapes
from .parametrized import rescaled_lengths
from .precision import AnyPrecision
from .reference import NotUnderstood, ReadConstants, Restrict, not_understood, watched
from .routing import RouterMode

PRECISIONS = ((torch.float64, 1e-5), (torch.float32, 1e-4))
"""Types to compare outputs in, best first, each with its tolerance relative to the largest output."""

FLOOR = 1e-9
"""Differences below this are rounding, however small the outputs are."""


@dataclass(frozen=True)
class Verified:
    """What was proven of a cut model. Every operator's shape is as planned in any case.

    `equal`: its outputs equal those of the dense model without the removed units; `how` says what they were compared
    with, or why only shapes were. `constants` are numbers that the code computes from a size and that follow the cut,
    "operator in module: before -> after".
    """

    equal: bool
    how: str
    constants: tuple[str, ...] = ()


ZEROED = "outputs equal those of the dense model with zeros in the place of what was removed"
ROUTED = "outputs equal those of the dense model with the router logits of removed experts at -inf"
TOKENS = "outputs of kept tokens, for inputs of kept tokens, equal those of the dense model"
RESTRICTED = f"{ZEROED}, its means, norms and softmaxes taken over the units that stay"


def verify(dense: nn.Module, cut: nn.Module, plan: Plan, *, record: Recorder = shapes_of) -> Verified:
    """Check a cut model against its plan and the dense model. Changes neither.

    Returns:
        What was proven: equal outputs, or only shapes and why.

    Raises:
        VerificationError: names the first difference: operator, module, what was expected and what came.
    """
    check_shapes(cut, plan, record)
    if tensors.device_of(dense).type == "meta":
        return Verified(False, "shapes only: the model has no values (meta device)")
    return check_values(dense, cut, plan)


# ------------------------------------------------------------------------------------------------------------ values


def masked_copy(dense: tensors.ModuleT, plan: Plan, dtype: torch.dtype | None = None) -> tensors.ModuleT:
    """A copy of the dense model with zeros in every position that the plan removes, in eval mode.

    A running variance gets ones there, so that a removed channel is 0 / 1 and not 0 / 0. With `dtype` all floating
    point tensors are converted.
    """
    keeps: dict[int, list[tuple[int, tuple[int, ...], float]]] = defaultdict(list)
    for tensor_cut in plan.tensors:
        fill = 1.0 if tensor_cut.tensor.rpartition(".")[2] == "running_var" else 0.0
        keeps[id(tensors.find(dense, tensor_cut.tensor))].append((tensor_cut.dim, tensor_cut.keep, fill))

    def masked(old: Tensor) -> Tensor | None:
        if id(old) not in keeps and dtype is None:
            return None
        return tensors.converted(old, lambda data: _masked(_cast(data, dtype), keeps.get(id(old), [])))

    originals = [old for computed in computed_tensors(dense) for old in computed.tensors() if id(old) in keeps]
    scaled = rescaled_lengths(dense, {id(old): new for old in originals if (new := masked(old)) is not None}, {})
    return tensors.copy_with(dense, lambda old: scaled[id(old)] if id(old) in scaled else masked(old)).eval()


def _masked(data: Tensor, keeps: list[tuple[int, tuple[int, ...], float]]) -> Tensor:
    data = data.clone()
    for dim, keep, fill in keeps:
        gone = torch.ones(data.shape[dim], dtype=torch.bool)
        gone[list(keep)] = False
        data.index_fill_(dim, gone.nonzero().flatten().to(data.device), fill)
    return data


def _cast(data: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None and data.is_complex():
        return data.to(dtype.to_complex())
    return data.to(dtype) if dtype is not None and data.is_floating_point() else data


def check_values(dense: nn.Module, cut: nn.Module, plan: Plan) -> Verified:
    """Compare the cut model's outputs with those of the masked dense model, of a plan that is not neutral with the
    reference of `prunus.surgery.reference`; where there is none, only that they are finite wherever the dense model's
    are.

    Compared in float64 to 1e-5 of the largest output; in float32 to 1e-4 where a model does not run in float64.

    Raises:
        VerificationError: the outputs differ, or the cut model does not run.
        SurgeryError: the dense model itself does not run on the example inputs.
    """
    failure: Exception | None = None
    example = tree_map_only(Tensor, lambda t: t.to(tensors.device_of(dense)), example_of(plan))
    for dtype, tolerance in PRECISIONS:
        for given in [example] if plan.mixtures else batches(example):  # few tokens visit few experts
            trial = _Trial(dense, cut, plan, given, dtype, tolerance)
            try:
                if plan.mixtures:
                    return trial.routed()
                return trial.zeroed() if plan.neutral and not plan.vocabulary else trial.restricted()
            except _DenseFails as error:  # a constant that stays float32, or a batch size written into the model
                failure = error
    assert failure is not None
    cause = failure.__cause__
    raise SurgeryError(
        f"the dense model does not run on the example inputs ({type(cause).__name__}: {cause}), so the cut cannot "
        "be checked: trace with example inputs that it runs on, or apply with verify=False"
    ) from failure


class _DenseFails(Exception):
    """The dense model does not run in this precision or on this batch."""


class _Leaf(NamedTuple):
    """One tensor of a model's output. `main` is False for by-products such as caches, whose shape a plan may change."""

    path: str
    tensor: Tensor
    main: bool


_Outputs = list[_Leaf]


@dataclass(frozen=True)
class _Trial:
    """One comparison, in one precision and on one batch."""

    dense: nn.Module
    model: nn.Module
    plan: Plan
    given: Any
    dtype: torch.dtype
    tolerance: float

    def zeroed(self) -> Verified:
        """Against zeros in the place of what was removed."""
        reference = masked_copy(self.dense, self.plan, self.dtype)
        expected, got = self._expected(reference), self._got(self.model)
        difference = _difference(expected, got, self.tolerance)
        if not difference:
            return Verified(True, ZEROED)
        if _is_random(reference, self.given, self.dtype):
            return Verified(False, _RANDOM)
        found = self.restricted()
        if not found.constants:
            raise VerificationError(difference)
        return found

    def restricted(self) -> Verified:
        """Against zeros, with statistics over what stays and the constants of the cut model."""
        if reason := not_understood(self.plan):
            return self._finite(reason)
        converted = converted_copy(self.model, self.dtype)
        with watched(ReadConstants(converted)) as read:
            got = self._got(converted)
        tokens = self.plan.vocabulary
        reference = (
            masked_copy(self.dense, self.plan, self.dtype) if tokens is None else converted_copy(self.dense, self.dtype)
        )
        try:
            with watched(Restrict(reference, self.plan, read.constants)) as mode:
                expected = self._expected(reference)
        except NotUnderstood as error:
            return self._finite(str(error))
        if tokens is not None:
            pairs = zip(expected, got)
            expected = [want._replace(tensor=_of_tokens(want.tensor, have.tensor, tokens)) for want, have in pairs]
        if mode.missed:
            return self._finite(f"{mode.missed} was not met again")
        if difference := _difference(expected, got, self.tolerance):
            if _is_random(reference, self.given, self.dtype):
                return Verified(False, _RANDOM)
            raise VerificationError(difference)
        how = TOKENS if tokens is not None else RESTRICTED if self.plan.reductions else ZEROED
        return Verified(True, how, mode.changes())

    def routed(self) -> Verified:
        """Against the dense model whose tokens pass the removed experts over."""
        reference = converted_copy(self.dense, self.dtype)
        got = self._got(self.model)
        with RouterMode(reference, {m.router: m.keep for m in self.plan.mixtures}) as mode:
            expected = self._expected(reference)
        if missed := {m.router for m in self.plan.mixtures} - mode.routers.keys():
            return self._finite(f"router {min(missed)} was not met again")
        if difference := _difference(expected, got, self.tolerance):
            raise VerificationError(difference)
        return Verified(True, ROUTED)

    def _finite(self, reason: str) -> Verified:
        """Only that nothing became NaN or infinite."""
        expected = self._expected(converted_copy(self.dense, self.dtype))
        _compare_finite(expected, self._got(self.model))
        return Verified(False, f"shapes only: {reason}")

    def _expected(self, reference: nn.Module) -> _Outputs:
        try:
            return _run(reference, _dense_ids(self.given, self.plan.vocabulary), self.dtype)
        except NotUnderstood:
            raise
        except Exception as error:
            raise _DenseFails from error

    def _got(self, model: nn.Module) -> _Outputs:
        try:
            converted = model if model is not self.model else converted_copy(model, self.dtype)
            return _run(converted, self.given, self.dtype)
        except Exception as error:
            self._expected(converted_copy(self.dense, self.dtype))  # where the dense model does not run either
            raise VerificationError(f"the cut model does not run: {type(error).__name__}: {error}") from error


def _dense_ids(given: Any, tokens: Vocabulary | None) -> Any:
    """The inputs with the ids that the dense model knows the tokens by."""
    if tokens is None:
        return given
    old = torch.tensor(tokens.keep)
    return with_inputs(given, tokens.inputs, lambda ids: old.to(ids.device)[ids.long()].to(ids.dtype))


def _of_tokens(want: Tensor, have: Tensor, tokens: Vocabulary) -> Tensor:
    """The entries of tokens that stay, in each dimension that has one entry per token."""
    for dim, (whole, part) in enumerate(zip(want.shape, have.shape)):
        if whole == tokens.size and part == len(tokens.keep):
            want = want.index_select(dim, torch.tensor(tokens.keep, device=want.device))
    return want


_RANDOM = "shapes only: the model draws random numbers"


def check_against(
    reference_in: Callable[[torch.dtype], nn.Module], model: nn.Module, device: torch.device, example: Any
) -> None:
    """Compare a model's outputs on an example with those of a reference, which is made in the type of the comparison.

    Raises:
        VerificationError: they differ, or the model does not run. SurgeryError: the reference does not run.
    """
    failure: Exception | None = None
    example = tree_map_only(Tensor, lambda t: t.to(device), example)
    for dtype, tolerance in PRECISIONS:
        reference = reference_in(dtype)
        for given in batches(example):
            try:
                expected = _run(reference, given, dtype)
            except Exception as error:  # a constant that stays float32, or a batch size written into the model
                failure = error
                continue
            try:
                got = _run(converted_copy(model, dtype), given, dtype)
            except Exception as error:
                raise VerificationError(f"the model does not run: {type(error).__name__}: {error}") from error
            if (difference := _difference(expected, got, tolerance)) and not _is_random(reference, given, dtype):
                raise VerificationError(difference)
            return
    raise SurgeryError(
        f"the dense model does not run on the example inputs ({type(failure).__name__}: {failure}), so nothing can be "
        "checked: give example inputs that it runs on"
    ) from failure


def converted_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return tensors.copy_with(model, lambda old: tensors.converted(old, lambda data: _cast(data, dtype).clone())).eval()


def _run(model: nn.Module, example: Any, dtype: torch.dtype) -> list[_Leaf]:
    with untouched_randomness(model), torch.no_grad(), AnyPrecision():
        torch.manual_seed(0)
        output = example_inputs.call(model, tree_map_only(Tensor, lambda tensor: _cast(tensor, dtype), example))
    return [_Leaf(*leaf) for leaf in leaves_of(output)]


def _difference(expected: _Outputs, got: _Outputs, tolerance: float) -> str:
    """How the outputs differ by more than `tolerance` times the largest expected magnitude; "" when they do not."""
    if len(expected) != len(got):
        return f"the model was to give {len(expected)} output tensors, but gives {len(got)}"
    for (path, want, main), (_, have, _) in zip(expected, got):
        where = f"output {path}" if path else "the output"
        if want.shape != have.shape and not main:
            continue
        if want.shape != have.shape:
            return f"{where} was to have shape {tuple(want.shape)}, but has {tuple(have.shape)}"
        if not want.is_floating_point() and not want.is_complex():
            continue  # an argmax of nearly equal values may fall either way
        if not torch.equal(want.isfinite(), have.isfinite()):
            return f"{where} is finite elsewhere than the masked model's"
        want, have = (t.where(t.isfinite(), torch.zeros_like(t)) for t in (want, have))
        largest = want.abs().max().item() if want.numel() else 0.0
        worst = (want - have).abs().max().item() if want.numel() else 0.0
        if worst > tolerance * largest + FLOOR:
            return (
                f"{where} differs by {worst:.3g} from that of the model with zeros in the place of what was removed "
                f"(largest value {largest:.3g}, allowed {tolerance * largest + FLOOR:.3g})"
            )
    return ""


def _compare_finite(expected: _Outputs, got: _Outputs) -> None:
    if all(tensor.isfinite().all() for _, tensor, _ in expected if tensor.is_floating_point()):
        for path, tensor, _ in got:
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise VerificationError(f"output {path or 'tensor'} of the cut model holds NaN or infinity")


def _is_random(model: nn.Module, example: Any, dtype: torch.dtype) -> bool:
    """Whether the model draws random numbers in eval mode, so that two models cannot be compared by their outputs."""
    with untouched_randomness(model), torch.no_grad():
        before = torch.get_rng_state()
        example_inputs.call(model, tree_map_only(Tensor, lambda tensor: _cast(tensor, dtype), example))
        return not torch.equal(before, torch.get_rng_state())
