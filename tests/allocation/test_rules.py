from __future__ import annotations

import pytest

from prunus.allocation.rules import check_count, check_ratio, per_group
from prunus.errors import InputError

GROUPS = ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "head[0]"]


def test_one_value_is_everybodys():
    assert per_group("ratio", 0.5, GROUPS, 0.0, check_ratio) == dict.fromkeys(GROUPS, 0.5)


def test_an_exact_name_counts_before_the_first_pattern_that_fits():
    given = {"layer1.*": 0.1, "layer*": 0.2, "layer1.1.conv1": 0.3, "head[0]": 0.4}
    assert list(per_group("ratio", given, GROUPS, 0.0, check_ratio).values()) == [0.1, 0.3, 0.2, 0.4]
    assert per_group("ratio", {"layer2*": 0.2}, GROUPS, 0.0, check_ratio)["layer1.0.conv1"] == 0.0


def test_a_pattern_that_fits_nothing_is_an_error_with_names_that_exist():
    with pytest.raises(InputError, match=r"min_keep: 'layr1\.\*' fits no group; .*layer1\.0\.conv1"):
        per_group("min_keep", {"layr1.*": 2}, GROUPS, 1, check_count)


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf"), "half", True, None])
def test_ratios_outside_0_to_1_are_refused(value):
    with pytest.raises(InputError, match=r"ratio\['layer\*'\].*\[0, 1\]"):
        per_group("ratio", {"layer*": value}, GROUPS, 0.0, check_ratio)


def test_a_percentage_is_recognised():
    with pytest.raises(InputError, match=r"did you mean 0\.3"):
        check_ratio("ratio", 30)


@pytest.mark.parametrize("value", [0, -2, 1.5, True, "4"])
def test_counts_are_whole_numbers_above_0(value):
    with pytest.raises(InputError, match=r"round_to=.*1 or more"):
        check_count("round_to", value)


def test_a_kind_of_unit_counts_after_names_and_patterns():
    kinds = {"a.query": "head", "a.up": "neuron", "b.query": "head", "b.up": "neuron"}
    given = {"head": 0.1, "a.*": 0.2, "b.up": 0.3}
    assert list(per_group("ratio", given, kinds, 0.0, check_ratio).values()) == [0.2, 0.2, 0.1, 0.3]
    with pytest.raises(InputError, match="'expert' fits no group; .* or by kind: head, neuron"):
        per_group("ratio", {"expert": 0.5}, kinds, 0.0, check_ratio)
