from __future__ import annotations

import pytest
import torch

from prunus.criteria import CRITERIA, check_criterion
from prunus.errors import InputError


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_of_the_table_keeps_the_laws(name):
    report = check_criterion(name)
    assert report.ok
    assert len(report.kept) == 5


def test_a_users_callable_that_keeps_them_passes():
    assert check_criterion(lambda w: w.abs().amax(1)).ok


def _zeroes(weight):
    scores = weight.abs().sum(1)
    weight.zero_()
    return scores


@pytest.mark.parametrize(
    ("law", "function"),
    [
        ("one score per unit", lambda weight: weight.abs().sum(0)),
        ("one score per unit", lambda weight: weight.sum(1) > 0),
        ("finite scores", lambda weight: weight.abs().sum(1) / weight.abs().sum()),
        ("finite scores", lambda weight: (weight / weight.norm(dim=1, keepdim=True)).sum(1)),
        ("same values, same scores", lambda weight: torch.rand(len(weight))),
        ("scores follow the units", lambda weight: weight.abs().sum(1) * torch.arange(len(weight))),
        ("arguments left unchanged", _zeroes),
        ("finite scores", lambda weight: weight.undefined()),
    ],
)
def test_a_broken_law_is_named_in_the_report(law, function):
    report = check_criterion(function, strict=False)
    assert law in report.broken
    assert f"broken  {law}" in str(report)
    with pytest.raises(InputError, match=law):
        check_criterion(function)


def test_the_report_quotes_what_the_function_raised():
    assert "AttributeError" in str(check_criterion(lambda weight: weight.undefined(), strict=False))
