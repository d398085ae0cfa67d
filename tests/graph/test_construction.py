"""Laws of constructors, against formulas known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest
import torch
from torch import nn

import prunus
from prunus.graph.construction import Built, Monomial, learn

SETTINGS = {"width": 12, "heads": 4, "pairs": 2, "depth": 3}


def constructor(
    size: Callable[[Mapping[str, int]], int], constant: Callable[[Mapping[str, int]], object] = lambda s: 0
) -> Callable[[Mapping[str, int]], Built]:
    """A constructor of one tensor with one dimension."""

    def build(changed: Mapping[str, int]) -> Built:
        settings = {**SETTINGS, **changed}
        if settings["width"] % settings["heads"]:
            raise ValueError("heads must divide width")
        names = ["a"] * 1 + [f"layer{i}" for i in range(settings["depth"])]
        return Built({name: (size(settings),) for name in names}, {"c": constant(settings)})

    return build


@pytest.mark.parametrize(
    "size",
    [
        lambda s: s["width"],
        lambda s: 3 * s["width"],
        lambda s: s["heads"] * s["pairs"],
        lambda s: s["width"] // s["heads"],
        lambda s: s["width"] + 2 * s["pairs"] + 5,
        lambda s: s["width"] // s["heads"] * (s["heads"] + 2 * s["pairs"]),
        lambda s: 7,
    ],
    ids=["one", "multiple", "product", "quotient", "sum", "fused", "literal"],
)
def test_a_law_gives_the_size_for_other_settings_too(size):
    law = learn(constructor(size), SETTINGS).sizes["a", 0]
    for settings in (SETTINGS, {"width": 36, "heads": 6, "pairs": 5}, {"width": 10, "heads": 5, "pairs": 1}):
        value = Fraction(0)
        for monomial in law:
            term = monomial.factor
            for name, power in monomial.powers:
                term *= Fraction(settings[name]) ** power
            value += term
        assert value == size(settings)


def test_a_setting_that_makes_other_tensors_is_left_alone():
    built = learn(constructor(lambda s: s["width"] * s["depth"]), SETTINGS)
    assert built.sizes["a", 0] == (Monomial(Fraction(3), (("width", 1),)),)


def test_a_constant_of_a_quotient_keeps_the_quotient_only():
    built = learn(constructor(lambda s: s["width"], lambda s: (s["width"] / s["heads"]) ** -0.5), SETTINGS)
    assert built.constants == ((Monomial(Fraction(1), (("width", 1), ("heads", -1))),),)


def test_a_constant_of_one_setting_keeps_the_setting():
    built = learn(constructor(lambda s: s["width"], lambda s: s["pairs"] ** 0.5), SETTINGS)
    assert built.constants == ((Monomial(Fraction(1), (("pairs", 1),)),),)


class BlockConfig:
    """What a config object looks like."""

    def __init__(self) -> None:
        self.width, self.hidden = 8, 12


class Blocks(nn.Module):
    """Two blocks of the same settings; only the constructor says that they are alike."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(5, config.width)
        self.up = nn.ModuleList(nn.Linear(config.width, config.hidden) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(config.hidden, config.width) for _ in range(2))
        self.token = nn.Parameter(torch.randn(config.width))
        self.head = nn.Linear(config.width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        for up, down in zip(self.up, self.down):
            h = h + down(torch.relu(up(h)))
        return self.head(h + self.token if self.training else h)


def build_blocks(changed: Mapping[str, int]) -> Built:
    config = BlockConfig()
    for path, value in changed.items():
        setattr(config, path.removeprefix("config."), value)
    return Built({n: tuple(p.shape) for n, p in Blocks(config).named_parameters()}, {})


def test_laws_couple_repeated_layers_and_name_the_setting_that_follows():
    torch.manual_seed(0)
    model, x = Blocks(BlockConfig()), torch.randn(2, 5)
    laws = learn(build_blocks, {"config.width": 8, "config.hidden": 12})
    graph = prunus.trace(model, x, construction=laws)
    sizes = {g.name: g.size for g in graph.groups}
    assert sizes == {"first": 8, "up.0": 12, "up.1": 12}
    assert [dict(c.steps) for c in graph.coupled] == [{"up.0": 1, "up.1": 1}]
    plan = prunus.plan(graph, prunus.score(graph, "l2_norm", model=model), ratio=0.5)
    assert {(a.name, a.new) for a in plan.attributes} == {("config.width", 4), ("config.hidden", 6)}
    cut = prunus.apply(model, plan)
    assert (cut.config.width, cut.config.hidden) == (4, 6)
    assert model.config.width == 8
    assert cut.token.shape == (4,)  # the unread token has the width's units
    assert Blocks(cut.config).load_state_dict(cut.state_dict())
    assert cut.train()(x).shape == (2, 3)


class ReadsConfig(nn.Module):
    """A forward pass that takes its sizes from the config object."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BlockConfig()
        self.config.heads = 4  # type: ignore[attr-defined]
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).view(len(x), self.config.heads, -1)  # type: ignore[attr-defined]
        return self.second(torch.relu(h).flatten(1))


def test_sizes_read_from_a_config_object_follow_in_a_copy_of_it():
    torch.manual_seed(0)
    model, x = ReadsConfig(), torch.randn(2, 5)
    result = prunus.prune(model, x, ratio=0.5)
    assert result.model.config.heads == 2
    assert result.model.first.out_features == 2
    assert model.config.heads == 4
