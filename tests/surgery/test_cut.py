"""Cutting: tensors, attributes, ties, all or nothing."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

from prunus.errors import InputError, SurgeryError, VerificationError
from prunus.surgery import apply, attributes, cut, plans_of
from prunus.types import AttributeChange, TensorCut

from .helpers import FakeRecorder, SmallNet, assert_unchanged, lively, plan_of, small_net_plan, state


@pytest.fixture(autouse=True)
def _hand_written_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut, "verify_cut", partial(cut.verify_cut, record=FakeRecorder()))


# --------------------------------------------------------------------------------------------------------- the result


def test_channels_are_removed_and_attributes_follow():
    model = lively(SmallNet())
    result = apply(model, small_net_plan((0, 2, 5)))
    assert isinstance(result, SmallNet)
    assert torch.equal(result.conv1.weight, model.conv1.weight[[0, 2, 5]])
    assert torch.equal(result.state_dict()["conv1.bias"], model.state_dict()["conv1.bias"][[0, 2, 5]])
    assert torch.equal(result.state_dict()["bn1.running_var"], model.state_dict()["bn1.running_var"][[0, 2, 5]])
    assert torch.equal(result.conv2.weight, model.conv2.weight[:, [0, 2, 5]])
    assert (result.conv1.out_channels, result.bn1.num_features, result.conv2.in_channels) == (3, 3, 3)
    assert (result.conv1.in_channels, result.conv2.out_channels) == (3, 4)


def test_the_dense_model_is_left_as_it_was():
    model = lively(SmallNet()).train()
    before, seed = state(model), torch.get_rng_state()
    apply(model, small_net_plan())
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), seed)


def test_the_copy_shares_no_memory_with_the_dense_model():
    model = lively(SmallNet())
    result = apply(model, small_net_plan())
    ours = {t.data_ptr() for t in model.state_dict().values()}
    assert not ours & {t.data_ptr() for t in result.state_dict().values()}


def test_parameters_keep_type_gradient_flag_dtype_and_mode():
    model = lively(SmallNet()).double().train()
    model.conv1.weight.requires_grad_(False)
    result = apply(model, small_net_plan(example=torch.randn(2, 3, 8, 8).double()))
    assert type(result.conv1.weight) is nn.Parameter
    assert not result.conv1.weight.requires_grad
    assert result.conv2.weight.requires_grad
    assert result.conv1.weight.dtype is torch.float64
    assert result.training
    assert result.bn1.training


def test_channels_last_weights_stay_channels_last():
    model = lively(SmallNet()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    result = apply(model, small_net_plan())
    assert result.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not result.conv1.weight.is_contiguous()


def test_inplace_changes_the_model_itself_to_the_same_values():
    model = lively(SmallNet())
    expected = apply(model, small_net_plan())
    untouched = model.head.weight
    assert apply(model, small_net_plan(), inplace=True) is model
    assert model.head.weight is untouched
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.conv2.in_channels == 3


def test_the_result_copies_saves_and_trains_like_any_module():
    result = apply(lively(SmallNet()).train(), small_net_plan())
    again = copy.deepcopy(result)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    assert torch.equal(again.eval()(x), copy.deepcopy(result).eval()(x))

    file = io.BytesIO()
    torch.save(result.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))

    optimiser = torch.optim.SGD(result.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(result(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_model_remembers_its_plans_through_copies():
    first, second = small_net_plan((0, 2, 5)), small_net_plan((0, 2), shapes=(), before=small_net_plan().before)
    second = plan_of(tuple(TensorCut(c.tensor, c.dim, 3, (0, 2)) for c in second.tensors))
    assert plans_of(SmallNet()) == ()
    result = apply(apply(lively(SmallNet()), first), second)
    assert plans_of(copy.deepcopy(result)) == (first, second)
    assert result.conv1.out_channels == 2


def test_cutting_twice_equals_cutting_the_union():
    model = lively(SmallNet())
    twice = apply(
        apply(model, small_net_plan((0, 2, 4, 5))),
        plan_of(tuple(TensorCut(c.tensor, c.dim, 4, (1, 3)) for c in small_net_plan().tensors)),
    )
    once = apply(model, small_net_plan((2, 5)))
    for name, tensor in once.state_dict().items():
        assert torch.equal(twice.state_dict()[name], tensor), name


# ----------------------------------------------------------------------------------------------------- kinds of tensor


class Tied(nn.Module):
    """Embedding and output layer share one weight; a plain attribute points at it too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6, padding_idx=9)
        self.output = nn.Linear(6, 10, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("scale", torch.arange(6.0))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.embedding(tokens) * self.scale)


@pytest.mark.parametrize("inplace", [False, True])
def test_ties_survive_and_both_owners_are_mended(inplace: bool):
    model = Tied()
    plan = plan_of((TensorCut("embedding.weight", 1, 6, (1, 4)), TensorCut("scale", 0, 6, (1, 4))))
    result = apply(model, plan, inplace=inplace, verify=False)
    assert result.output.weight is result.embedding.weight
    assert result.embedding.weight.shape == (10, 2)
    assert (result.embedding.embedding_dim, result.output.in_features) == (2, 2)
    assert torch.equal(result.state_dict()["scale"], torch.tensor([1.0, 4.0]))


def test_a_tied_tensor_named_by_its_other_name_is_cut_once():
    plan = plan_of((TensorCut("output.weight", 1, 6, (1, 4)), TensorCut("embedding.weight", 1, 6, (1, 4))))
    assert apply(Tied(), plan, verify=False).embedding.weight.shape == (10, 2)


def test_several_dimensions_of_one_tensor():
    model = nn.Linear(4, 4)
    plan = plan_of(
        (TensorCut("weight", 0, 4, (0, 3)), TensorCut("weight", 1, 4, (1, 2, 3)), TensorCut("bias", 0, 4, (0, 3)))
    )
    result = apply(model, plan, verify=False)
    assert torch.equal(result.weight, model.weight[[0, 3]][:, [1, 2, 3]])
    assert (result.in_features, result.out_features) == (3, 2)


class Plain(nn.Module):
    """Sizes in attributes of all kinds, a plain tensor attribute, a parameter list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.arange(6.0))])
        self.table = torch.arange(6.0)
        self.shape = (6, 2)
        self.config = {"widths": [6, 6]}
        self.pads = 6

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights[0] * self.table


@pytest.mark.parametrize("inplace", [False, True])
def test_attribute_paths_and_plain_tensors(inplace: bool):
    model = Plain()
    widths = model.config["widths"]
    plan = plan_of(
        (TensorCut("weights.0", 0, 6, (0, 1)), TensorCut("table", 0, 6, (0, 1))),
        attributes=(
            AttributeChange("", "shape[0]", 6, 2),
            AttributeChange("", "config.widths[1]", 6, 2),
            AttributeChange("", "pads", 6, 2),
        ),
    )
    result = apply(model, plan, inplace=inplace, verify=False)
    assert (result.shape, result.config, result.pads) == ((2, 2), {"widths": [6, 2]}, 2)
    assert torch.equal(result.table, torch.tensor([0.0, 1.0]))
    assert torch.equal(result(torch.ones(2)), torch.tensor([0.0, 1.0]))
    assert widths == [6, 6]  # a list may be shared with others: it is replaced, not written to


def test_a_subclassed_parameter_keeps_its_class_and_attributes():
    class Marked(nn.Parameter):
        pass

    model = nn.Linear(3, 4)
    model.weight = Marked(model.weight.detach())
    model.weight.note = "kept"  # type: ignore[attr-defined]
    result = apply(model, plan_of((TensorCut("weight", 1, 3, (0, 2)),)), verify=False)
    assert type(result.weight) is Marked
    assert result.weight.note == "kept"  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (TensorCut("conv9.weight", 0, 6, (0,)), "no tensor 'conv9.weight'"),
        (TensorCut("conv1.gain", 0, 6, (0,)), "no tensor 'conv1.gain'"),
        (TensorCut("conv1.weight", 0, 7, (0,)), r"from size 7, but the tensor has shape \(6, 3, 3, 3\)"),
        (TensorCut("conv1.weight", 4, 6, (0,)), "dimension 4"),
        (TensorCut("conv1.weight", 0, 6, (0, 6)), r"outside \[0, 6\)"),
        (TensorCut("conv1.weight", 0, 6, ()), "or none"),
    ],
)
def test_a_plan_that_does_not_fit_says_where(change: TensorCut, message: str):
    model = lively(SmallNet())
    before = state(model)
    with pytest.raises(SurgeryError, match=message):
        apply(model, plan_of((change,)), inplace=True)
    assert_unchanged(model, before)


def test_a_plan_applied_twice_is_refused():
    result = apply(lively(SmallNet()), small_net_plan())
    with pytest.raises(SurgeryError, match="to the model it was made for, once"):
        apply(result, small_net_plan())


def test_an_attribute_with_another_old_value_is_refused():
    plan = plan_of((), attributes=(AttributeChange("conv1", "groups", 2, 1),))
    with pytest.raises(SurgeryError, match=r"conv1\.groups is 1, but the plan expects 2"):
        apply(SmallNet(), plan)


def test_an_attribute_that_contradicts_the_tensors_is_refused():
    plan = small_net_plan(attributes=(AttributeChange("conv1", "out_channels", 6, 5),))
    with pytest.raises(SurgeryError, match=r"conv1\.out_channels: the plan sets 5, but its cut tensors make it 3"):
        apply(SmallNet(), plan)


def test_two_different_cuts_of_one_dimension_are_refused():
    plan = plan_of((TensorCut("embedding.weight", 1, 6, (1, 4)), TensorCut("output.weight", 1, 6, (1, 3))))
    with pytest.raises(SurgeryError, match="in two different ways"):
        apply(Tied(), plan, verify=False)


def test_wrong_argument_types_are_named():
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module, got str"):
        apply("resnet", small_net_plan())  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"plan must be a prunus Plan, got dict"):
        apply(SmallNet(), {})  # type: ignore[arg-type]


def test_parametrised_lazy_and_wrapped_tensors_are_refused_with_a_remedy():
    parametrised = nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)))
    name = "0.parametrizations.weight.original"
    with pytest.raises(SurgeryError, match="remove_parametrizations"):
        apply(parametrised, plan_of((TensorCut(name, 0, 4, (0,)),)))
    with pytest.raises(SurgeryError, match="run the model once"):
        apply(nn.LazyLinear(4), plan_of((TensorCut("weight", 0, 4, (0,)),)))

    sparse = nn.Linear(3, 4)
    sparse.register_buffer("mask", torch.eye(4).to_sparse())
    with pytest.raises(SurgeryError, match="to_dense"):
        apply(sparse, plan_of((TensorCut("mask", 0, 4, (0,)),)))


def test_masks_of_torch_prune_are_refused_with_a_remedy():
    layer = nn.Linear(3, 4)
    l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(SurgeryError, match=r"prune\.remove"):
        apply(nn.Sequential(layer), plan_of((TensorCut("0.weight", 0, 4, (0,)),)))
    with pytest.raises(SurgeryError, match="cannot be copied"):
        apply(nn.Sequential(layer), plan_of((TensorCut("0.weight_orig", 0, 4, (0,)),)))


def test_a_tensor_in_a_python_list_is_refused_in_place_only():
    model = lively(SmallNet())
    model.__dict__["extra"] = [model.conv1.weight]
    before = state(model)
    with pytest.raises(SurgeryError, match=r"'extra': use inplace=False"):
        apply(model, small_net_plan(), inplace=True)
    assert_unchanged(model, before)
    result = apply(model, small_net_plan())
    assert result.__dict__["extra"][0] is result.conv1.weight


# --------------------------------------------------------------------------------------------------- all or nothing


def _fail_at(monkeypatch: pytest.MonkeyPatch, target: object, name: str, call: int) -> None:
    """Make the `call`-th use of target.name raise."""
    real, seen = getattr(target, name), [0]

    def failing(*args: object, **kwargs: object) -> object:
        seen[0] += 1
        if seen[0] == call:
            raise RuntimeError("injected")
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, failing)


@pytest.mark.parametrize(
    ("target", "name", "call"),
    [
        (cut.tensors, "sliced", 1),
        (cut.tensors, "sliced", 4),
        (cut, "mended", 2),
        (cut.tensors, "copy_with", 1),
        (cut, "verify_cut", 1),
        (cut.tensors, "holders", 1),  # while committing
        (attributes, "write", 4),  # three attributes are written to the copy, then three to the model
        (attributes, "write", 6),
        (cut, "_refresh_all", 2),
    ],
)
def test_a_failure_at_any_stage_leaves_the_model_as_it_was(monkeypatch, target, name, call):
    model = lively(SmallNet()).train()
    before = state(model)
    with monkeypatch.context() as patch:
        _fail_at(patch, target, name, call)
        with pytest.raises(RuntimeError, match="injected"):
            apply(model, small_net_plan(), inplace=True)
    assert_unchanged(model, before)
    assert plans_of(model) == ()
    assert apply(model, small_net_plan(), inplace=True).conv1.out_channels == 3  # and it still works


def test_a_wrong_prediction_is_caught_and_nothing_changes():
    model = lively(SmallNet())
    before = state(model)
    right = small_net_plan()
    wrong = small_net_plan((0, 2))
    with pytest.raises(VerificationError, match=r"convolution in module 'conv1' was to give shape \(2, 2, 8, 8\)"):
        apply(model, small_net_plan(right.cuts[0].keep, shapes=wrong.shapes), inplace=True)
    assert_unchanged(model, before)
