"""What is compared: every criterion and every whole method that a trained network can be given, as a table of cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from setting import CALIBRATION_BATCHES, EPOCHS, MACS, SPARSITY, Setting
from torch import nn

import prunus
from prunus.criteria import CRITERIA
from prunus.criteria.table import ALIASES
from prunus.graph import blocks
from prunus.masks import attach
from prunus.methods import methods, run

Make = Callable[[Setting, float, int], nn.Module]
"""(setting, budget, seed) -> the pruned network, not recovered unless the method trains by itself."""


@dataclass(frozen=True)
class Case:
    """One way to prune.

    Attributes:
        method: its id in `prunus.methods.methods()`, or the name of a criterion that has no card.
        kind: "filter" or "weight".
        make: prunes a copy of the dense network to a budget.
        variant: what else tells it from the other cases of the method, such as the scope.
        seeded: its result depends on the seed: on the images that it reads, or on what it draws.
        trains: it spends the epochs of the recovery itself, so that there is no row without recovery.
        budgets: that it can be run at.
    """

    method: str
    kind: str
    make: Make
    variant: str = ""
    seeded: bool = False
    trains: bool = False
    budgets: tuple[float, ...] = ()


SLOW = frozenset(
    {"fsim_entropy", "curating", "msvfp", "coarse_fine", "lfpc", "obd", "feature_relevance_gradual", "cac_sensitivity"}
)
"""Methods that take longer than all others; they come last."""


def id_of(criterion: str) -> str:
    """The id of the card that stands for a criterion, or its own name where it has none."""
    names = [card for card, name in ALIASES.items() if name == criterion and card in methods()]
    return names[0] if names else criterion


# ------------------------------------------------------------------------------------------------------------ filters


GLOBAL: Mapping[str, str] = {
    "random": "none",
    "l1_norm": "mean",
    "l2_norm": "mean",
    "batchnorm_scale": "none",
    "taylor_weight": "none",
    "taylor_joint": "none",
    "taylor_gate": "none",
    "taylor_activation": "none",
    "mean_gradient": "none",
    "sensitivity_hessian": "none",
    "lrp": "mean",
}
"""Criteria that are also ranked over all layers, and how their scores are normalised then: those published so, and
norms."""

GRADIENTS = ("taylor_weight", "taylor_joint", "taylor_gate", "taylor_activation", "mean_gradient")
"""Criteria of gradients, which are small and noisy on images that the network has learned: also with more of these."""

MORE_THAN_A_RANKING = frozenset({"thinet", "lasso_channel", "pearson_pairs"})
"""Criteria whose method also repairs or trains; by themselves they are a variant of it."""

SAME_AS_L2 = frozenset({"lp_norm"})
"""Criteria that are, with their default options, another one of the table."""


def _by_criterion(criterion: str, scope: str, batches: int = CALIBRATION_BATCHES, variant: str = "") -> Case:
    normalise = GLOBAL[criterion] if scope == "global" else "mean"

    def make(setting: Setting, budget: float, seed: int) -> nn.Module:
        scores = setting.scores(criterion, seed, batches)
        plan = prunus.plan(setting.graph, scores, target={"macs": budget}, scope=scope, normalise=normalise)
        return prunus.apply(setting.dense, plan)

    seeded = bool(CRITERIA[criterion].data_needs) or criterion == "random"
    if criterion in MORE_THAN_A_RANKING:
        variant = "ranking only"
    return Case(id_of(criterion), "filter", make, variant, seeded, budgets=MACS)


def filter_criteria() -> list[Case]:
    """Every criterion of whole units; all layers lose the same share, and only the choice within a layer differs."""
    names = [name for name, criterion in CRITERIA.items() if criterion.level == "unit" and name not in SAME_AS_L2]
    return [
        *(_by_criterion(name, "group") for name in names),
        *(_by_criterion(name, "global", variant="global") for name in GLOBAL),
        *(_by_criterion(name, "group", 8 * CALIBRATION_BATCHES, "4,096 images") for name in GRADIENTS),
    ]


def _to_target(setting: Setting, budget: float) -> dict[str, Any]:
    return {"target": {"macs": budget}}


def _to_ratio(setting: Setting, budget: float) -> dict[str, Any]:
    return {"amount": setting.ratio(budget)}


def _to_macs(setting: Setting, budget: float) -> dict[str, Any]:
    return {"amount": 1 - budget}


def _to_blocks(setting: Setting, budget: float) -> dict[str, Any]:
    """The fewest blocks with which the budget holds, as a share of those that can go."""
    free = [b for b in blocks(setting.dense, setting.example) if b.unit == "block" and not b.why_not]
    total = prunus.plan(setting.graph, setting.scores("l2_norm", 0), ratio=0.0).before.macs
    least = min(b.macs for b in free)
    count = next((n for n in range(1, len(free)) if total - n * least <= budget * total), len(free))
    return {"amount": (count + 0.01) / len(free) if count < len(free) else 0.999}


def _whole(
    method: str,
    amount: Callable[[Setting, float], dict[str, Any]],
    trains: bool = False,
    variant: str = "",
    **options: Any,
) -> Case:
    def make(setting: Setting, budget: float, seed: int) -> nn.Module:
        task = setting.task(seed, epochs=EPOCHS if trains else 0, **amount(setting, budget))
        return run(method, task, **options).model

    data_free = method in ("filtersketch", "wacp_jsd")
    return Case(method, "filter", make, variant, seeded=not data_free, trains=trains, budgets=MACS)


FILTER_METHODS: tuple[Case, ...] = (
    _whole("thinet", _to_target),
    _whole("lasso_channel", _to_target),
    _whole("filtersketch", _to_target),
    _whole("wacp_jsd", _to_ratio),
    _whole("lfpc", _to_ratio),
    _whole("discriminative_layer_pruning", _to_blocks),
    _whole("layer_imprint", _to_blocks),
    _whole("block_dbp", _to_blocks),
    _whole("msvfp", _to_target, variant="128 images, steps of 20%", batches=1, batch_size=128, step=0.2),
    _whole("coarse_fine", _to_macs),
)
"""Whole methods that are done before the recovery."""

FILTER_TRAINING: tuple[Case, ...] = (
    _whole("sfp", _to_ratio, trains=True),
    _whole("asfp", _to_ratio, trains=True),
    _whole("srfp", _to_ratio, trains=True),
    _whole("asrfp", _to_ratio, trains=True),
    _whole("prune_while_training", _to_ratio, trains=True),
    _whole("mask_aware_conv", _to_ratio, trains=True),
    _whole("multilevel_filter", _to_ratio, trains=True),
    _whole("feature_relevance_gradual", _to_ratio, trains=True),
    _whole("pearson_pairs", _to_ratio, trains=True, tolerance=1.0),
    _whole("cac_sensitivity", _to_ratio, trains=True),
)
"""Whole methods that train: the epochs of the recovery are all that they get."""


# ------------------------------------------------------------------------------------------------------------ weights


WEIGHT_CRITERIA: tuple[tuple[str, str], ...] = (
    ("random_weight", "layer"),
    ("magnitude", "layer"),
    ("magnitude", "global"),
    ("magnitude", "lamp"),
    ("magnitude", "erk"),
    ("magnitude", "erdos_renyi"),
    ("magnitude", "uniform_plus"),
    ("magnitude", "deviation"),
    ("random_weight", "erk"),
    ("wanda", "layer"),
    ("taylor_element", "layer"),
    ("taylor_element", "global"),
    ("obd_fisher", "layer"),
    ("obd_fisher", "global"),
    ("snip", "layer"),
    ("snip", "global"),
    ("grasp", "layer"),
    ("grasp", "global"),
    ("synflow", "layer"),
    ("synflow", "global"),
)
"""Criteria of single weights, and how the sparsity is divided among layers."""

FORMS = ("backpropagated", "fisher", "hutchinson")
"""Of the diagonal of the Hessian that Optimal Brain Damage reads, here in one ranking of all layers."""

PATTERNS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("2:4", (0.5,)),
    ("4x1", SPARSITY),
    ("kernel", SPARSITY),
    ("stripe", SPARSITY),
    ("filter_shape", SPARSITY),
)
"""Patterns of magnitude pruning, and the sparsities that they can have; every layer gets the same."""


def _masked(
    criterion: str,
    scope: str,
    pattern: str | None = None,
    budgets: tuple[float, ...] = SPARSITY,
    form: str | None = None,
) -> Case:
    def make(setting: Setting, budget: float, seed: int) -> nn.Module:
        found = setting.statistics({form} if form else CRITERIA[criterion].data_needs, seed)
        result = prunus.sparsify(
            setting.dense, sparsity=budget, criterion=criterion, pattern=pattern, scope=scope, statistics=found,
            seed=seed,
        )  # fmt: skip
        return result.model

    needs = CRITERIA[criterion].data_needs - {"synaptic_gradient"}
    seeded = bool(needs) or criterion == "random_weight"
    return Case(criterion, "weight", make, form or pattern or scope, seeded, budgets=budgets)


def _whole_weight(method: str, trains: bool = False, **options: Any) -> Case:
    def make(setting: Setting, budget: float, seed: int) -> nn.Module:
        outcome = run(method, setting.task(seed, epochs=EPOCHS if trains else 0, amount=budget), **options)
        return outcome.model if trains else attach(outcome.model, outcome.masks)

    return Case(method, "weight", make, "whole method", seeded=method != "synflow", trains=trains, budgets=SPARSITY)


WEIGHT_METHODS: tuple[Case, ...] = (_whole_weight("synflow"),)

WEIGHT_TRAINING: tuple[Case, ...] = (
    _whole_weight("magnitude_iterative", True),
    _whole_weight("agp_cubic", True),
    _whole_weight("lamp", True),
    _whole_weight("admm_weight", True, rounds=10),
    _whole_weight("l1_weight_reg", True),
    _whole_weight("obd", True, form="backpropagated"),
    _whole_weight("deep_rewiring", True),
    _whole_weight("deep_compression", True),
    _whole_weight("deepsz", True),
    _whole_weight("increg", True),
    _whole_weight("group_brain_damage", True),
)

LEFT_OUT: Mapping[str, str] = {
    "snip_isometry": "starts from new orthogonal weights: needs training from the start",
    "sbp_sr": "draws the weights anew: needs training from the start",
    "edge_popup": "searches a subnetwork of random weights: needs training from the start",
    "lottery_imp": "rewinds to the first weights and trains in every round: needs training from the start",
    "early_bird": "a ticket of the first epochs: needs training from the start",
    "prune_early": "prunes in the first epochs: needs training from the start",
    "prunetrain": "prunes while the network is trained: needs training from the start; finds its own rate",
    "l0_hard_concrete": "finds its own rate by a penalty: needs a long training",
    "auto_threshold": "finds its own rate by a penalty: needs a long training",
    "ssl": "finds its own rate by a penalty: needs a long training",
    "hier_group_sparse": "finds its own rate by a penalty: needs a long training",
    "gates_multilevel": "finds its own rate by penalties: needs a long training",
    "deformable_soft_mask": "finds its own rate by a penalty: needs a long training",
    "pff_stripe": "finds its own rate by a penalty: needs a long training",
    "bi_cnn_pruning": "finds its own rate by a search over retrained networks",
    "mixed_thinning": "removes filters and weights together: no budget of this table",
    "mixed_pruning_fpga": "removes filters and weights together and quantises: no budget of this table",
    "obs": "linear layers only: this network has one",
    "lp_filter": "with its default exponent it is the L2 norm",
}
"""Methods that are not in the table, and why."""


def all_cases() -> list[Case]:
    """Everything, baselines first."""
    weights = [_masked(criterion, scope) for criterion, scope in WEIGHT_CRITERIA]
    curvatures = [_masked("obd", "global", form=form) for form in FORMS]
    patterns = [_masked("magnitude", "layer", pattern, budgets) for pattern, budgets in PATTERNS]
    found = [
        *filter_criteria(), *FILTER_METHODS, *FILTER_TRAINING, *weights, *curvatures, *WEIGHT_METHODS, *patterns,
        *WEIGHT_TRAINING,
    ]  # fmt: skip
    return sorted(found, key=lambda case: not is_baseline(case))


BASELINES: Mapping[str, tuple[str, str]] = {"filter": ("random", "l2_norm"), "weight": ("random_weight", "magnitude")}
"""By kind: the random choice and the norm that every other method is compared with, layer by layer both."""


def is_baseline(case: Case) -> bool:
    """Whether other cases are compared with it."""
    return case.method in BASELINES[case.kind] and case.variant in ("", "layer")
