"""What a measure is given, and what is checked before it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunus.errors import InputError, UnknownNameError
from prunus.evaluation.context import Context, Measure, batches_of
from prunus.types import Measurement


class Split:
    def __init__(self) -> None:
        self.asked = []

    def batches(self, batch_size: int):
        self.asked.append(batch_size)
        yield torch.randn(batch_size, 4), torch.zeros(batch_size, dtype=torch.int64)


def test_a_split_is_asked_for_batches_of_the_contexts_size():
    split = Split()
    context = Context(nn.Linear(4, 2), split, batch_size=7)
    assert context.predictions().n == 7
    assert split.asked == [7]


def test_predictions_are_computed_once_per_model():
    split = Split()
    context = Context(nn.Linear(4, 2), split, reference=nn.Linear(4, 2))
    assert context.predictions() is context.predictions()
    assert context.reference_predictions() is not context.predictions()
    assert len(split.asked) == 2


def test_a_missing_reference_is_named():
    with pytest.raises(InputError, match="reference="):
        Context(nn.Linear(4, 2), Split()).reference_predictions()


@pytest.mark.parametrize(
    ("data", "said"),
    [(3, "int"), ("digits", "str"), (torch.randn(3, 4), "Tensor"), ([torch.randn(3, 4)], "not a pair")],
)
def test_data_of_another_kind_are_refused(data, said):
    with pytest.raises(InputError, match=said):
        list(batches_of(data, 4))


def test_options_default_in_the_measure_and_unknown_ones_are_refused():
    measure = Measure(lambda c: Measurement("m", c.options["a"] + c.options["b"], "1", ""), options={"a": 1, "b": 2})
    context = Context(nn.Linear(4, 2), options={"a": 10})
    assert measure(context).value == 12
    assert measure(context, {"b": 5}).value == 6
    with pytest.raises(UnknownNameError, match="'bb': did you mean 'b'"):
        measure(context, {"bb": 5}, name="m")


def test_needs_are_checked_first():
    measure = Measure(lambda c: pytest.fail("it ran"), needs=("data", "example_inputs"))
    with pytest.raises(InputError, match=r"measure 'm' needs example_inputs: pass example_inputs="):
        measure(Context(nn.Linear(4, 2), data=[]), name="m")


def test_the_device_of_a_model_without_parameters_is_the_cpu():
    assert Context(nn.ReLU()).device == torch.device("cpu")
    assert Context(nn.Linear(2, 2, device="meta")).device == torch.device("meta")
