from __future__ import annotations

import pytest
import torch

from prunus.criteria import CRITERIA, NEEDS, Criterion, criterion_of
from prunus.errors import InputError, UnknownNameError


@pytest.mark.parametrize("name", CRITERIA)
def test_each_line_of_the_table_is_complete(name):
    criterion = CRITERIA[name]
    assert criterion.name == name == criterion.function.__name__
    assert criterion.needs
    assert criterion.needs <= NEEDS.keys()
    assert "Source:" in (criterion.function.__doc__ or "") or name.startswith("random")
    assert bool(criterion.paper) or name.startswith("random")


def test_only_what_comes_from_data_has_to_be_collected():
    assert CRITERIA["l1_norm"].data_needs == CRITERIA["random"].data_needs == frozenset()
    assert CRITERIA["taylor_weight"].data_needs == {"weight_gradient_square"}


def test_a_name_close_to_a_known_one_is_suggested():
    with pytest.raises(UnknownNameError, match="l2_norm"):
        criterion_of("l2norm")


def test_options_are_set_or_refused_by_name():
    assert criterion_of("lp_norm", p=1).function(weight=torch.tensor([[3.0, 4.0]])).item() == 7
    with pytest.raises(InputError, match=r"'q'.*options are p"):
        criterion_of("lp_norm", q=1)
    with pytest.raises(InputError, match="has no options"):
        criterion_of("l1_norm", p=1)


def test_a_callable_says_by_its_signature_what_it_needs():
    def by_name(weight, weight_gradient, power=2):
        return (weight * weight_gradient).sum(1).abs() ** power

    assert criterion_of(by_name).needs == {"weight", "weight_gradient"}
    assert criterion_of(by_name, power=1).function(weight=torch.ones(1, 2), weight_gradient=-torch.ones(1, 2)) == 2
    assert criterion_of(lambda w: w.sum(1)).function(weight=torch.ones(2, 3)).tolist() == [3, 3]
    same = Criterion("same", by_name, frozenset({"weight"}))
    assert criterion_of(same) is same


def test_what_is_no_criterion_is_refused_with_what_would_be():
    with pytest.raises(InputError, match=r"foo, bar.*weight_gradient"):
        criterion_of(lambda foo, bar: foo)
    with pytest.raises(InputError, match="got int"):
        criterion_of(3)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="hessian"):
        criterion_of(Criterion("x", torch.sum, frozenset({"hessian"})))
