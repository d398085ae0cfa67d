"""Masks survive what happens to a model: saving, copying, training, averaging, distributing."""

from __future__ import annotations

import copy
import socket

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from prunus.errors import InputError, ShapeError, UnknownNameError
from prunus.masks import attach, dense_weight, detach, finalize, mask_of, masks_of
from prunus.training.ema import Ema


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def half(tensor: torch.Tensor) -> torch.Tensor:
    return torch.rand(tensor.shape, generator=torch.Generator().manual_seed(0)) > 0.5


def masked(gradient: str = "zero") -> nn.Sequential:
    model = network()
    return attach(model, {f"{i}.weight": half(model[i].weight) for i in (0, 4)}, gradient)


X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def train(model, optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()


def zeros_hold(model) -> bool:
    return all(
        bool((model.get_submodule(name.rpartition(".")[0]).weight[~mask] == 0).all())
        for name, mask in masks_of(model).items()
    )


def test_a_masked_model_computes_what_the_zeroed_one_does():
    model = network()
    zeroed = copy.deepcopy(model)
    mask = half(model[0].weight)
    with torch.no_grad():
        zeroed[0].weight.masked_fill_(~mask, 0)
    assert torch.equal(attach(model, {"0.weight": mask})(X), zeroed(X))


def test_the_state_dict_holds_the_masks_and_brings_them_back():
    model, other = masked(), network()
    attach(other, {name: torch.ones_like(mask) for name, mask in masks_of(model).items()})
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(mask, masks_of(other)[name]) for name, mask in masks_of(model).items())
    assert torch.equal(model.eval()(X), other.eval()(X))


def test_a_copy_has_masks_of_its_own_and_either_can_change_without_the_other():
    model = masked().eval()
    before = model(X)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(X), before)
    attach(twin, {"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool)})
    assert torch.equal(model(X), before)
    attach(twin, {"0.bias": torch.zeros(4, dtype=torch.bool)})
    assert torch.equal(model(X), before)
    finalize(twin)
    assert torch.equal(model(X), before)
    assert float(twin[0].bias.detach().abs().sum()) == 0
    finalize(model)
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("gradient", ["zero", "dense"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, weight_decay=0.1),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_momentum_and_weight_decay_bring_no_zero_back(optimizer, gradient):
    model = network()
    stepper = optimizer(model.parameters())
    train(model, stepper)  # momentum is there before the masks are
    attach(model, {f"{i}.weight": half(model[i].weight) for i in (0, 4)}, gradient)
    before = model[4].weight.detach().clone()
    train(model, stepper)
    assert zeros_hold(model)
    assert not torch.equal(model[4].weight, before)
    final = finalize(model)[4].weight
    assert torch.equal(final == 0, ~half(final))


@pytest.mark.parametrize("gradient", ["zero", "dense"])
def test_gradients_under_the_mask_are_zero_or_dense(gradient):
    model, zeroed = masked(gradient), network()
    zeroed.load_state_dict(finalize(copy.deepcopy(model)).state_dict())
    for net in (model, zeroed):
        net(X).square().mean().backward()
    mask, found = masks_of(model)["4.weight"], dense_weight(model[4], "weight").grad
    full = zeroed[4].weight.grad
    torch.testing.assert_close(found, full if gradient == "dense" else full * mask)
    assert (full[~mask] != 0).any()


def test_weights_under_a_dense_mask_move_and_come_back_as_they_are_then():
    model = masked("dense")
    under = dense_weight(model[4], "weight").detach().clone()
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    moved = dense_weight(model[4], "weight").detach().clone()
    mask = masks_of(model)["4.weight"].clone()
    assert (moved[~mask] != under[~mask]).any()
    attach(model, {"4.weight": torch.ones_like(mask)}, "dense")
    assert torch.equal(model[4].weight, moved)


def test_a_mask_changes_in_place():
    model = masked()
    buffer = masks_of(model)["4.weight"]
    attach(model, {"4.weight": torch.zeros_like(buffer)})
    assert masks_of(model)["4.weight"] is buffer
    assert float(model[4].weight.detach().abs().sum()) == 0


def test_an_average_of_the_weights_keeps_the_zeros():
    model = masked()
    ema, optimizer = Ema(model, 0.9), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        train(model, optimizer, 1)
        ema.update(model)
    with ema.shown_by(model):
        assert zeros_hold(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    assert masks_of(averaged.module).keys() == {"0.weight", "4.weight"}
    assert zeros_hold(averaged.module)


def test_finalize_writes_the_zeros_to_the_bit_and_again_changes_nothing():
    model = masked().eval()
    parameter, before = dense_weight(model[0], "weight"), model(X)
    used = model[0].weight.detach().clone()
    finalize(model)
    assert type(model[0]) is nn.Conv2d
    assert model[0].weight is parameter
    assert torch.equal(model[0].weight, used)
    assert not torch.signbit(model[0].weight[used == 0]).any()
    assert not parametrize.is_parametrized(model[0])
    assert torch.equal(model(X), before)
    state = copy.deepcopy(model.state_dict())
    assert state.keys() == network().state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in finalize(model).state_dict().items())


def test_detach_gives_the_dense_model_back():
    model = network()
    state = copy.deepcopy(model.state_dict())
    attach(model, {"0.weight": half(model[0].weight)})
    detach(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_half_precision_and_memory_formats_take_the_mask_along():
    model = masked().to(torch.bfloat16).to(memory_format=torch.channels_last)
    assert model[0].weight.dtype is torch.bfloat16
    assert mask_of(model[0], "weight").mask.is_contiguous(memory_format=torch.channels_last)
    assert zeros_hold(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_share_one_mask():
    model = Tied()
    attach(model, {"head.weight": half(model.head.weight)})
    assert torch.equal(model.embedding.weight, model.head.weight)
    twin = copy.deepcopy(model)
    attach(twin, {"embedding.weight": torch.zeros(7, 4, dtype=torch.bool)})
    assert float(twin.head.weight.detach().abs().sum()) == 0
    assert float(model.head.weight.detach().abs().sum()) > 0
    finalize(model)
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_see_their_masks(kind):
    model, x = kind(3, 4), torch.randn(5, 2, 3)
    attach(model, {"weight_ih_l0": torch.zeros_like(model.weight_ih_l0, dtype=torch.bool)})
    silent = model(torch.zeros_like(x))[0]
    assert torch.equal(model(x)[0], silent)
    assert torch.equal(copy.deepcopy(model)(x)[0], silent)
    finalize(model)
    assert torch.equal(model(x)[0], silent)
    with torch.no_grad():
        model.weight_ih_l0.fill_(1.0)
    assert not torch.equal(model(x)[0], silent)


def test_attention_sees_its_masks_in_both_modes():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    zeroed, x = copy.deepcopy(layer), torch.randn(2, 5, 8)
    mask = half(layer.self_attn.in_proj_weight)
    with torch.no_grad():
        zeroed.self_attn.in_proj_weight.mul_(mask)
    attach(layer, {"self_attn.in_proj_weight": mask})
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), zeroed.train(mode)(x))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), zeroed(x))


@pytest.fixture
def process_group():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_training_steps_as_one_process_does():
    alone, model = masked(), masked()
    alone.load_state_dict(model.state_dict())
    distributed = nn.parallel.DistributedDataParallel(model)
    train(distributed, torch.optim.SGD(distributed.parameters(), 0.1, momentum=0.9))
    train(alone, torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9))
    assert zeros_hold(model)
    torch.testing.assert_close(model[4].weight, alone[4].weight)


def test_wrong_masks_are_refused_before_anything_changes():
    model = network()
    good = half(model[0].weight)
    with pytest.raises(UnknownNameError, match=r"'0.wight': did you mean '0.weight'"):
        attach(model, {"0.weight": good, "0.wight": good})
    with pytest.raises(ShapeError, match=r"\(4, 3, 3, 3\), its mask \(4, 3\)"):
        attach(model, {"0.weight": good[:, :, 0, 0]})
    with pytest.raises(InputError, match="bool"):
        attach(model, {"0.weight": good.float()})
    with pytest.raises(UnknownNameError, match="gradient"):
        attach(model, {"0.weight": good}, "some")
    with pytest.raises(InputError, match="no parameter"):
        attach(model, {"1.running_mean": torch.ones(4, dtype=torch.bool)})
    nn.utils.parametrizations.weight_norm(model[4])
    with pytest.raises(InputError, match="another parametrization"):
        attach(model, {"0.weight": good, "4.weight": half(model[4].weight)})
    assert masks_of(model) == {}


@pytest.mark.parametrize("kind", [lambda: nn.Linear(4, 3), lambda: nn.LSTM(4, 3), lambda: nn.MultiheadAttention(4, 2)])
def test_parameters_return_to_their_places(kind):
    module = kind()
    before = [(name, id(parameter)) for name, parameter in module.named_parameters()]
    names = [name for name, parameter in module._parameters.items() if parameter is not None and parameter.dim() > 1]
    masks = {name: torch.ones_like(module.get_parameter(name), dtype=torch.bool) for name in names}
    attach(module, masks)
    detach(module, names[:1])
    attach(module, {names[0]: masks[names[0]]})
    finalize(copy.deepcopy(module))
    finalize(module)
    assert [(name, id(parameter)) for name, parameter in module.named_parameters()] == before
