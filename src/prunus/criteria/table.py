"""The criteria by name, what each one needs, and how a user's own callable becomes one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..types import Role
from . import diversity, elementwise, gradients, maps, propagated, reconstruction, similarity, weights

Reduction = Literal["mean", "sum", "max", "first"]
Level = Literal["unit", "weight"]


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a criterion's function takes as the argument of that name.

    `per_unit`: the argument is (units,), else (units, elements); `shape` says it where it is neither: names, or a
    number. `data`: it comes from data. `given`: one pass of `collect` cannot tell it, `gather` computes it.
    """

    per_unit: bool
    data: bool
    what: str
    shape: tuple[str | int, ...] = ()
    given: bool = False


NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "weight": Need(False, False, "the weights"),
        "kernels": Need(False, False, "the weights by input channel", shape=("units", "channels", "positions")),
        "norm_scale": Need(True, False, "absolute scale of the normalisation after the unit"),
        "norm_shift": Need(True, False, "shift of the normalisation after the unit"),
        "generator": Need(True, False, "a seeded torch.Generator"),
        "weight_gradient": Need(False, True, "mean gradient of the loss over all examples"),
        "weight_gradient_square": Need(False, True, "mean over mini-batches of the squared gradient"),
        "unit_taylor": Need(True, True, "mean over mini-batches of (sum over the unit of g w)^2"),
        "gate_taylor": Need(True, True, "mean over mini-batches of (gamma dgamma + beta dbeta)^2"),
        "activation_taylor": Need(True, True, "mean over examples of |mean over positions of dL/dA A|"),
        "activation_gradient": Need(True, True, "mean over examples of |mean over positions of dL/dA|"),
        "zero_fraction": Need(True, True, "share of activations that are 0"),
        "positive_fraction": Need(True, True, "share of activations above 0"),
        "map_rank": Need(True, True, "mean rank of the maps"),
        "map_std": Need(True, True, "mean standard deviation of a map"),
        "map_l1": Need(True, True, "mean L1 norm of a map"),
        "map_entropy_2d": Need(True, True, "mean two-dimensional entropy of a map, in bits"),
        "dct_uniqueness": Need(True, True, "mean of 1 - largest |cosine| with another unit's map"),
        "label_information": Need(True, True, "mean mutual information of maps and labels, in bits"),
        "pooled": Need(False, True, "mean over positions, per example: (units, examples)"),
        "class_scatter": Need(True, True, "scatter between and within classes", shape=("units", 2)),
        "map_cosine": Need(True, True, "mean cosine between maps", shape=("units", "units")),
        "map_gram": Need(True, True, "mean inner products of maps", shape=("units", "units")),
        "map_ssim": Need(True, True, "mean structural similarity of maps", shape=("units", "units")),
        "map_psnr": Need(True, True, "mean PSNR between maps, in dB", shape=("units", "units")),
        "map_fsim": Need(True, True, "mean FSIM between maps", shape=("units", "units")),
        "phash_similarity": Need(True, True, "mean share of equal hash bits", shape=("units", "units")),
        "contribution_moment": Need(
            True, True, "mean products of the units' contributions to the next layer", shape=("units", "units")
        ),
        "inbound_variance": Need(True, True, "largest variance of a unit's contribution to a map"),
        "activation_taylor_abs": Need(True, True, "mean over examples of the mean over positions of |dL/dA A|"),
        "propagated_importance": Need(True, True, "importance of the final responses, propagated back", given=True),
        "relevance": Need(True, True, "mean relevance of the unit for the right class", given=True),
        "loss_change": Need(True, True, "loss without the unit minus loss", given=True),
        "hessian_diagonal": Need(False, True, "second derivatives of the mean loss", given=True),
        "gradient_flow": Need(False, True, "Hessian times gradient of the mean loss", given=True),
        "synaptic_gradient": Need(False, True, "gradient of the flow of ones through absolute weights", given=True),
        "input_norm": Need(False, True, "L2 norm of each input feature over the data", shape=("elements",), given=True),
    }
)


@dataclass(frozen=True)
class Criterion:
    """A score per unit, or per single weight, from plain tensors.

    `function` takes one keyword argument per name in `needs`, for one place (tensor and dimension) of a group, and
    returns (units,) scores; higher means keep. With `level` "weight" it returns one score per entry of `weight`, in its
    shape, instead. `places` are the roles of the places that it reads, an empty tuple means any. `reduction` combines
    the scores of a group's places. `ordered` criteria depend on the order of the units by definition.
    """

    name: str
    function: Callable[..., Tensor]
    needs: frozenset[str]
    places: tuple[Role, ...] = ("out",)
    reduction: Reduction = "mean"
    paper: str = ""
    ordered: bool = False
    level: Level = "unit"

    @property
    def data_needs(self) -> frozenset[str]:
        """What has to come from data; empty for a criterion that needs none."""
        return frozenset(need for need in self.needs if NEEDS[need].data)


def _criterion(
    function: Callable[..., Tensor],
    *needs: str,
    places: tuple[Role, ...] = ("out",),
    reduction: Reduction = "mean",
    paper: str = "",
) -> Criterion:
    return Criterion(function.__name__, function, frozenset(needs), places, reduction, paper)


def _elementwise(function: Callable[..., Tensor], *needs: str, paper: str = "") -> Criterion:
    return Criterion(function.__name__, function, frozenset(needs), paper=paper, level="weight")


_LI = "Li et al., ICLR 2017, arXiv:1608.08710"
_SFP = "He et al., IJCAI 2018, arXiv:1808.06866"
_FPGM = "He et al., CVPR 2019, arXiv:1811.00250"
_SLIMMING = "Liu et al., ICCV 2017, arXiv:1708.06519"
_TAYLOR_WEIGHT = "Molchanov et al., CVPR 2019, arXiv:1906.10771"
_OBD = "LeCun et al., NIPS 1989"
_TAYLOR_ACTIVATION = "Molchanov et al., ICLR 2017, arXiv:1611.06440"

CRITERIA: Mapping[str, Criterion] = MappingProxyType(
    {
        criterion.name: criterion
        for criterion in (
            # Averaging over places would draw the scores of widely shared groups to the middle: one draw per group.
            _criterion(weights.random, "weight", "generator", places=(), reduction="first"),
            _criterion(weights.l1_norm, "weight", paper=_LI),
            _criterion(weights.l2_norm, "weight", paper=_SFP),
            _criterion(weights.lp_norm, "weight", paper=_SFP),
            _criterion(weights.geometric_median, "weight", paper=_FPGM),
            _criterion(weights.batchnorm_scale, "weight", places=("scale",), paper=_SLIMMING),
            _criterion(similarity.cosine_cluster, "weight", paper="Ayinde et al., 2019, arXiv:1802.07653"),
            _criterion(similarity.icp_clustering, "weight", paper="Chang et al., KBS 2023 (reconstructed)"),
            _criterion(similarity.fpfs, "weight", paper="Zhang, Wang, Neurocomputing 2022 (reconstructed)"),
            _criterion(similarity.pearson_pairs, "weight", paper="Singh et al., WACV 2020, arXiv:1811.10559"),
            _criterion(similarity.sfi, "weight", paper="Yang et al., Pattern Recognition 2024 (reconstructed)"),
            _criterion(similarity.clr_rnf, "weight", paper="Lin et al., TNNLS 2022, arXiv:2202.07190"),
            _criterion(similarity.vngep, "weight", paper="Shi et al., Neurocomputing 2023 (reconstructed)"),
            _criterion(similarity.cshe, "weight", "kernels", paper="Shao et al., IJMLC 2022 (reconstructed)"),
            _criterion(
                similarity.ccprune, "weight", "norm_scale", paper="Chen et al., Neurocomputing 2021 (reconstructed)"
            ),
            _criterion(maps.apoz, "zero_fraction", paper="Hu et al., 2016, arXiv:1607.03250"),
            _criterion(maps.activation_entropy, "pooled", paper="Luo, Wu, 2017, arXiv:1706.05791"),
            _criterion(maps.hrank, "map_rank", paper="Lin et al., CVPR 2020, arXiv:2002.10179"),
            _criterion(maps.msd_mcs, "map_std", "map_cosine", paper="Li et al., IJCAI 2020, arXiv:2005.12193"),
            _criterion(maps.qsfm, "map_ssim", "map_l1", paper="Wang et al., 2021, arXiv:2105.06052"),
            _criterion(maps.qsfm_psnr, "map_psnr", "map_l1", paper="Wang et al., 2021, arXiv:2105.06052"),
            _criterion(maps.fcs_bins, "map_gram", "map_l1", paper="Yang, Xiao, 2022 (reconstructed)"),
            replace(
                _criterion(maps.phash_hamming, "phash_similarity", paper="Li et al., Pattern Recognition Letters 2023"),
                ordered=True,
            ),
            _criterion(maps.fsim_entropy, "map_entropy_2d", "map_fsim", paper="Liu et al., 2023 (reconstructed)"),
            _criterion(maps.dct_uniqueness, "dct_uniqueness", paper="Zhang et al., 2023 (reconstructed)"),
            _criterion(maps.hrel, "label_information", paper="Sarvani et al., 2022, arXiv:2202.10716"),
            _criterion(maps.trace_ratio, "class_scatter", paper="Hu et al., TNNLS 2023"),
            _criterion(maps.hidden_entropy, "positive_fraction", paper="Mantena, Sim, SLT 2016 (reconstructed)"),
            _criterion(
                reconstruction.thinet, "contribution_moment", places=("in",), paper="Luo et al., 2017, arXiv:1707.06342"
            ),
            _criterion(
                reconstruction.lasso_channel,
                "contribution_moment",
                places=("in",),
                paper="He et al., ICCV 2017, arXiv:1707.06168",
            ),
            _criterion(
                reconstruction.inbound_variance,
                "inbound_variance",
                places=("in",),
                paper="Polyak, Wolf, IEEE Access 2015",
            ),
            _criterion(propagated.nisp, "propagated_importance", paper="Yu et al., CVPR 2018, arXiv:1711.05908"),
            _criterion(propagated.lrp, "relevance", paper="Yeom et al., 2021, arXiv:1912.08881"),
            _criterion(
                diversity.curating, "kernels", "loss_change", paper="Pattanayak et al., JSA 2021 (reconstructed)"
            ),
            _criterion(gradients.mean_gradient, "activation_gradient", paper="Liu, Wu, 2019 (reconstructed)"),
            _criterion(
                gradients.sensitivity_hessian,
                "weight",
                "weight_gradient_square",
                paper="Yang, Liu, Neurocomputing 2022",
            ),
            _criterion(gradients.taylor_weight, "weight", "weight_gradient_square", paper=_TAYLOR_WEIGHT),
            _criterion(gradients.taylor_joint, "unit_taylor", paper=_TAYLOR_WEIGHT),
            _criterion(gradients.taylor_gate, "gate_taylor", places=("scale",), paper=_TAYLOR_WEIGHT),
            _criterion(gradients.taylor_activation, "activation_taylor", paper=_TAYLOR_ACTIVATION),
            _criterion(gradients.taylor_activation_abs, "activation_taylor_abs", paper=_TAYLOR_ACTIVATION),
            _elementwise(elementwise.magnitude, "weight", paper="Han et al., NIPS 2015, arXiv:1506.02626"),
            _elementwise(elementwise.random_weight, "weight", "generator"),
            _elementwise(
                elementwise.snip, "weight", "weight_gradient", paper="Lee et al., ICLR 2019, arXiv:1810.02340"
            ),
            _elementwise(elementwise.grasp, "weight", "gradient_flow", paper="Wang et al., 2020, arXiv:2002.07376"),
            _elementwise(
                elementwise.synflow, "weight", "synaptic_gradient", paper="Tanaka et al., 2020, arXiv:2006.05467"
            ),
            _elementwise(elementwise.taylor_element, "weight", "weight_gradient_square", paper=_TAYLOR_WEIGHT),
            _elementwise(elementwise.obd, "weight", "hessian_diagonal", paper=_OBD),
            _elementwise(elementwise.obd_fisher, "weight", "weight_gradient_square", paper=_OBD),
            _elementwise(elementwise.wanda, "weight", "input_norm", paper="Sun et al., ICLR 2024, arXiv:2306.11695"),
        )
    }
)

ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "l1_filter": "l1_norm",
        "l2_filter": "l2_norm",
        "lp_filter": "lp_norm",
        "fpgm": "geometric_median",
        "taylor": "taylor_activation",
    }
)
"""Other names that the literature has for a criterion."""


def criterion_of(given: str | Criterion | Callable[..., Tensor], **options: Any) -> Criterion:
    """The criterion that a name, a Criterion or a user's callable stands for, with its options set.

    A callable is read by its signature: the names of its required parameters are its needs (see `NEEDS`); with one
    required parameter of another name it gets the weights, (units, elements). It returns (units,) scores.

    >>> criterion_of("lp_norm", p=1).needs
    frozenset({'weight'})
    >>> criterion_of(lambda w: w.amax(1)).needs
    frozenset({'weight'})

    Raises:
        UnknownNameError: no criterion of that name.
        InputError: not a criterion, or an option that it does not have.
    """
    if isinstance(given, str):
        name = ALIASES.get(given, given)
        if name not in CRITERIA:
            raise UnknownNameError.of("criterion", given, CRITERIA)
        criterion = CRITERIA[name]
    elif isinstance(given, Criterion):
        criterion = given
    elif callable(given):
        criterion = _from_callable(given)
    else:
        raise InputError(f"criterion must be a name, a Criterion or a callable, got {type(given).__name__}")
    unknown_needs = criterion.needs - NEEDS.keys()
    if unknown_needs:
        raise UnknownNameError.of("need of a criterion", min(unknown_needs), NEEDS)
    if not options:
        return criterion
    known = [name for name in _parameters(criterion.function) if name not in criterion.needs]
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has no options"
            raise InputError(f"criterion {criterion.name!r} has no option {option!r}: {has}")
    return replace(criterion, function=functools.partial(criterion.function, **options))


def _from_callable(function: Callable[..., Tensor]) -> Criterion:
    name = getattr(function, "__name__", type(function).__name__)
    parameters = _parameters(function)
    required = [n for n, p in parameters.items() if p.default is p.empty] or list(parameters)[:1]
    if required and all(n in NEEDS for n in required):
        return Criterion(name, function, frozenset(required))
    if len(required) == 1:
        return Criterion(name, lambda weight: function(weight), frozenset({"weight"}))
    raise InputError(
        f"criterion {name!r} takes {', '.join(required) or 'no arguments'}: let it take one argument, the weights "
        f"(units, elements), or name its arguments after what it needs, out of {', '.join(NEEDS)}"
    )


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some C functions have no signature: taken as functions of the weights
        return {"weight": inspect.Parameter("weight", inspect.Parameter.POSITIONAL_OR_KEYWORD)}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in parameters.items() if p.kind not in variadic}
