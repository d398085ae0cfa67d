"""Weights that wrap other tensors: cut in whatever way their class allows, checked, or refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import prunus
from prunus.errors import SurgeryError
from prunus.surgery.wrapped import part_of, values_of, wraps_others

aten = torch.ops.aten


class Wrapper(Tensor):
    """Holds another tensor and computes with it; copies of it are wrappers, nothing else is."""

    inner: Tensor
    keeps_kind = frozenset({aten.detach.default, aten.clone.default})

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Wrapper, lambda t: t.inner, (args, kwargs or {}))
        out = func(*args, **kwargs)
        return cls(out) if func in cls.keeps_kind else out


class Selecting(Wrapper):
    """Keeps its kind under index_select, and cannot be built from one tensor alone."""

    keeps_kind = Wrapper.keeps_kind | {aten.index_select.default}

    @staticmethod
    def __new__(cls, inner: Tensor, made_by: str = "operator") -> Any:
        made = Wrapper.__new__(cls, inner)
        made.made_by = made_by
        return made


class Flattening(Wrapper):
    """Says how it is taken apart."""

    @staticmethod
    def __new__(cls, inner: Tensor, tag: str = "") -> Any:
        made = Wrapper.__new__(cls, inner)
        made.tag = tag
        return made

    def __tensor_flatten__(self) -> Any:
        return ["inner"], "unflattened"

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, context: Any, size: Any, stride: Any) -> Any:
        return cls(inner["inner"], context)


class Centred(Wrapper):
    """Centred as a whole: a part is centred anew, and so has other numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Wrapper.__new__(cls, inner - inner.mean())


def wrapped(kind: type[Wrapper]) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(kind(layer.weight.detach()), requires_grad=False)
    return model


def plain(model: nn.Sequential) -> nn.Sequential:
    result = nn.Sequential(
        *(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in model)
    )
    result.load_state_dict({name: values_of(tensor) for name, tensor in model.state_dict().items()})
    return result


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Wrapper, Selecting, Flattening])
def test_the_cut_model_computes_what_the_plain_one_does(kind: type[Wrapper]):
    model = wrapped(kind)
    result = prunus.prune(model, X, ratio=0.5)
    expected = prunus.prune(plain(copy.deepcopy(model)), X, ratio=0.5)
    assert result.plan.cuts == expected.plan.cuts
    for layer in (result.model[0], result.model[2]):
        assert type(layer.weight) is kind
        assert isinstance(layer.weight, nn.Parameter)
        assert not layer.weight.requires_grad
    assert (result.model[0].out_features, result.model[2].in_features) == (8, 8)
    torch.testing.assert_close(result.model(X), expected.model(X))
    assert result.verified is not None
    assert result.verified.equal


def test_each_way_is_the_one_that_the_class_allows():
    keep = {0: torch.tensor([0, 2])}
    inner = torch.randn(3, 4)
    assert part_of(Selecting(inner, "me"), keep).made_by == "operator"  # type: ignore[union-attr]
    assert part_of(Flattening(inner, "me"), keep).tag == "unflattened"  # type: ignore[union-attr]
    assert torch.equal(values_of(part_of(Wrapper(inner), keep)), inner[[0, 2]])  # type: ignore[arg-type]
    assert not wraps_others(nn.Parameter(inner))


def test_a_part_with_other_numbers_is_refused():
    model = wrapped(Centred)
    before = [values_of(t) for t in model.parameters()]
    with pytest.raises(SurgeryError, match="Centred, which wraps other tensors"):
        prunus.prune(model, X, ratio=0.5)
    assert all(torch.equal(values_of(t), old) for t, old in zip(model.parameters(), before))
