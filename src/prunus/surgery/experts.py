"""Remove experts from mixtures: rows of the router and the weights of experts, fused in one tensor or in a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..allocation.rules import check_ratio
from ..errors import InputError, SurgeryError, UnknownNameError
from ..graph import inputs as example
from ..graph import trace
from ..graph.counting import size_of
from ..graph.provenance import MENDED_BY_TABLE
from ..graph.running import plain_operators
from ..types import AttributeChange, Cut, Mixture, Plan, Size, TensorCut
from . import tensors
from .attributes import integers
from .cut import applied
from .report import Report, Width
from .routing import Router, RouterMode
from .verify import Verified

ModuleT = TypeVar("ModuleT", bound=nn.Module)

COUNTS = frozenset(
    "num_experts n_experts num_local_experts n_routed_experts num_routed_experts moe_num_experts n_expert num_expert "
    "expert_num n_local_experts number_of_experts".split()
)
"""Names of attributes that hold the number of experts, where they have its value."""

Ids = Sequence[int]


@dataclass(frozen=True)
class FoundMixture:
    """A mixture of experts: the module that holds router and experts, the router, and where the experts' weights are.

    `fused` are tensors whose first dimension counts experts (the router's own among them), `members` the path of a list
    of expert modules, or "".
    """

    name: str
    router: Router
    fused: tuple[tuple[str, int], ...]
    members: str


@dataclass(frozen=True)
class PrunedExperts(Generic[ModuleT]):
    """A model with fewer experts.

    Attributes:
        model: the cut model.
        plan: what was cut; one cut per mixture, named after the module.
        report: sizes before and after. Multiply-adds hardly change: a token visits as many experts as before.
        verified: what was proven of the model.
    """

    model: ModuleT
    plan: Plan
    report: Report
    verified: Verified | None


def prune_experts(
    model: ModuleT,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    keep: Mapping[str, Ids] | Ids | None = None,
    scores: Mapping[str, Tensor] | None = None,
    inplace: bool = False,
    verify: bool = True,
) -> PrunedExperts[ModuleT]:
    """Remove experts from every mixture of a model. The tokens that visited them go to the next best.

    The result is the dense model with the router logits of removed experts at -inf, which is what is verified.

    Args:
        model: a model that routes tokens with a top-k of a matrix product; on real tensors, it is run.
        example_inputs: as for `prunus.trace`.
        ratio: fraction of each mixture's experts to remove, rounded down; the worst-scored ones, as many of each group
            where a router chooses among groups first. Or
        keep: expert ids that stay, for all mixtures or by the mixture's name.
        scores: by mixture's name, one per expert, higher means keep. Default: L2 norm of the expert's weights.
        inplace, verify: as for `prunus.apply`.

    Raises:
        InputError: neither or both of ratio and keep; ids out of range; fewer experts left than a token visits; or a
            model with a config would get different numbers of experts in different mixtures.
        SurgeryError: no mixture was found, or its experts cannot be cut.
        VerificationError: the result differs from the dense model that passes those experts over.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    example.check(example_inputs)
    if (ratio is None) == (keep is None):
        raise InputError("prune_experts: give ratio= (such as 0.5) or keep= (expert ids), one of them")
    if ratio is not None:
        check_ratio("ratio", ratio)
    found = find_mixtures(model, example_inputs)
    stays = _chosen(model, found, ratio, keep, scores)
    plan = _plan(model, found, stays, example_inputs)
    result, verified = applied(model, plan, inplace, verify=verify)
    widths = tuple(Width(cut.group, cut.size, len(cut.keep), "expert") for cut in plan.cuts)
    report = Report(plan.before, plan.after, plan.criterion, widths)
    return PrunedExperts(result, replace(plan, example=None), report, verified)


# ------------------------------------------------------------------------------------------------------------ finding


def find_mixtures(model: nn.Module, example_inputs: Any) -> tuple[FoundMixture, ...]:
    """The mixtures of experts that a model runs through, in the order of their routers' names.

    Raises:
        SurgeryError: the model has no values, does not run, or has no mixture whose weights are found.
    """
    device = tensors.device_of(model)
    if device.type == "meta":
        raise SurgeryError("experts are found by running the model, but it has no values (meta device): load weights")
    copied = tensors.copy_with(model, lambda tensor: tensor).eval()
    given = tree_map_only(Tensor, lambda tensor: tensor.to(device), example_inputs)
    mode = RouterMode(copied)
    try:
        with plain_operators(), mode:
            example.call(copied, given)
    except Exception as error:
        raise SurgeryError(f"the model does not run on the example inputs: {type(error).__name__}: {error}") from error
    found = [mixture for router in mode.routers.values() if (mixture := _mixture(model, router)) is not None]
    if not found:
        raise SurgeryError(
            "no mixture of experts was found: no matrix product reaches a top-k beside which stand as many experts, "
            "fused in tensors (experts, ..., ...) or as modules of a ModuleList"
        )
    return tuple(found)


def _mixture(model: nn.Module, router: Router) -> FoundMixture | None:
    """The nearest module around the router that also holds its experts."""
    owner = router.weight.rpartition(".")[0]
    own = [(router.weight, router.dim), *_along_experts(model, owner, router, skip=router.weight, least=1, most=1)]
    path = owner
    for _ in range(3):
        module = model.get_submodule(path)
        lists = [n for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == router.experts]
        fused = [
            entry
            for name, child in module.named_modules()
            if any(p.dim() > 2 and p.shape[0] == router.experts for p in child.parameters(recurse=False))
            for entry in _along_experts(model, _join(path, name), router, skip=router.weight, least=1, most=9)
        ]
        if len(lists) == 1 or fused:
            members = _join(path, lists[0]) if lists and not fused else ""
            return FoundMixture(path, router, tuple(dict.fromkeys((*own, *fused))), members)
        if not path:
            return None
        path = path.rpartition(".")[0]
    return None


def _along_experts(
    model: nn.Module, path: str, router: Router, *, skip: str, least: int, most: int
) -> Iterator[tuple[str, int]]:
    """Tensors of one module, of so many dimensions, whose first one counts the experts."""
    module = model.get_submodule(path)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        full = _join(path, name)
        if full != skip and least <= tensor.dim() <= most and tensor.shape[0] == router.experts:
            yield full, 0


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


# ----------------------------------------------------------------------------------------------------------- planning


def _chosen(
    model: nn.Module,
    found: Sequence[FoundMixture],
    ratio: float | None,
    keep: Mapping[str, Ids] | Ids | None,
    scores: Mapping[str, Tensor] | None,
) -> dict[str, tuple[int, ...]]:
    """Mixture -> experts that stay, checked."""
    names = [mixture.name for mixture in found]
    for argument, given in (("keep", keep), ("scores", scores)):
        for name in given if isinstance(given, Mapping) else ():
            if name not in names:
                raise UnknownNameError.of(f"mixture in {argument}=", name, names)
    result = {}
    for mixture in found:
        total = mixture.router.experts
        if ratio is not None:
            values = (scores or {}).get(mixture.name)
            values = _norms(model, mixture) if values is None else values
            if values.shape != (total,):
                raise InputError(f"scores[{mixture.name!r}] must have shape ({total},), got {tuple(values.shape)}")
            stays = _best(values, mixture.router.groups, ratio)
        else:
            assert keep is not None
            stays = sorted(keep.get(mixture.name, range(total)) if isinstance(keep, Mapping) else keep)
        if not stays or len(set(stays)) != len(stays) or stays[0] < 0 or stays[-1] >= total:
            raise InputError(f"keep: {mixture.name!r} has experts 0..{total - 1}; got {stays[:8]}")
        if len(stays) < mixture.router.chosen:
            raise InputError(
                f"{mixture.name!r} would keep {len(stays)} of {total} experts, but each token visits "
                f"{mixture.router.chosen}: keep at least as many, or lower top_k first"
            )
        _check_groups(mixture, stays)
        result[mixture.name] = tuple(stays)
    return result


def _best(values: Tensor, groups: int, ratio: float) -> list[int]:
    """The best-scored experts of each group, as many of one as of another."""
    size = len(values) // groups
    order = torch.argsort(values.double().view(groups, size), dim=1, descending=True, stable=True)
    best = order[:, : size - int(ratio * size + 1e-9)] + size * torch.arange(groups)[:, None]
    return sorted(best.flatten().tolist())


def _check_groups(mixture: FoundMixture, stays: Ids) -> None:
    """A router that first chooses among groups of experts needs equally many in each."""
    groups, size = mixture.router.groups, mixture.router.experts // mixture.router.groups
    counts = [sum(index // size == group for index in stays) for group in range(groups)]
    if len(set(counts)) > 1:
        raise InputError(
            f"keep: {mixture.name!r} chooses among {groups} groups of {size} experts (0..{size - 1} are the first): "
            f"keep equally many of each group, not {counts}"
        )


def _norms(model: nn.Module, mixture: FoundMixture) -> Tensor:
    """L2 norm of each expert's weights, the router's row left out."""
    squares = torch.zeros(mixture.router.experts, dtype=torch.float64)
    for name, _ in mixture.fused:
        tensor = tensors.find(model, name).detach()
        if tensor.dim() > 2:
            squares += tensor.double().flatten(1).square().sum(1).cpu()
    if mixture.members:
        for index, expert in enumerate(model.get_submodule(mixture.members).children()):
            squares[index] += sum(float(p.detach().double().square().sum()) for p in expert.parameters())
    return squares.sqrt()


def _plan(model: nn.Module, found: Sequence[FoundMixture], stays: Mapping[str, tuple[int, ...]], inputs: Any) -> Plan:
    cut = [mixture for mixture in found if len(stays[mixture.name]) < mixture.router.experts]
    dims = {(name, dim): stays[m.name] for m in cut for name, dim in m.fused}
    before = size_of(trace(model, inputs))
    return Plan(
        cuts=tuple(Cut(m.name, m.router.experts, stays[m.name]) for m in cut),
        tensors=tuple(
            TensorCut(name, dim, tensors.find(model, name).shape[dim], kept) for (name, dim), kept in dims.items()
        ),
        attributes=tuple(_following(model, cut, stays, len(found))),
        shapes=(),
        inputs=example.describe(inputs),
        before=before,
        after=_after(model, cut, stays, before, example.batch_size(inputs)),
        criterion="l2_norm",
        mixtures=tuple(Mixture(m.router.weight, m.router.experts, stays[m.name], m.members) for m in cut),
        example=inputs,
    )


def _after(
    model: nn.Module, cut: Sequence[FoundMixture], stays: Mapping[str, tuple[int, ...]], before: Size, batch: int
) -> Size:
    """What is left: fused tensors lose their share, lists their members, routers their products."""
    parameters, macs, size = before.parameters, before.macs, before.bytes
    for mixture in cut:
        total, kept = mixture.router.experts, stays[mixture.name]
        gone = total - len(kept)
        macs -= mixture.router.multiply_adds // batch * gone // total
        lost: list[tuple[Tensor, int]] = []
        for name, _ in mixture.fused:
            tensor = tensors.find(model, name)
            lost.append((tensor, prod(tensor.shape) // total * gone))
        if mixture.members:
            removed = [m for i, m in enumerate(model.get_submodule(mixture.members).children()) if i not in kept]
            lost += [(t, t.numel()) for m in removed for t in (*m.parameters(), *m.buffers())]
        parameters -= sum(count for tensor, count in lost if isinstance(tensor, nn.Parameter))
        size -= sum(count * tensor.element_size() for tensor, count in lost)
    return Size(parameters, macs, size)


def _following(
    model: nn.Module, cut: Sequence[FoundMixture], stays: Mapping[str, tuple[int, ...]], mixtures: int
) -> Iterator[AttributeChange]:
    """Numbers of experts that modules and configs hold."""
    counts = {(m.router.experts, len(stays[m.name])) for m in cut}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, MENDED_BY_TABLE):
            continue
        within = [m for m in cut if path == m.name or path.startswith(f"{m.name}.")]
        for name, value in integers(module, "", seen):
            if name.rpartition(".")[2] not in COUNTS:
                continue
            if len(within) == 1 and "." not in name and value == within[0].router.experts:
                yield AttributeChange(path, name, value, len(stays[within[0].name]))
            elif any(value == old for old, _ in counts):
                if len(counts) > 1 or len(cut) < mixtures:
                    raise InputError(
                        f"{path or 'the model'} says {name}={value} for all mixtures: keep the same number of experts "
                        "in each"
                    )
                yield AttributeChange(path, name, value, next(iter(counts))[1])
