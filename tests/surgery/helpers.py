"""Small networks with plans written by hand: the oracles that need no tracer."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunus.types import Cut, InputSpec, OperatorShape, Plan, Size, TensorCut

ModuleT = TypeVar("ModuleT", bound=nn.Module)

NO_SIZE = Size(0, 0, 0)
IMAGE = InputSpec("tensor", {"0": ((2, 3, 8, 8), "float32", 0.0, 0.0)})


class SmallNet(nn.Module):
    """conv(3 -> 6) - bn - relu - conv(6 -> 4) - bn - relu - pool - linear(4 -> 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


def lively(model: ModuleT, seed: int = 0) -> ModuleT:
    """Random statistics and affine terms, so that nothing is zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.rand(tensor.shape, generator=generator) - 0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model


def norm_cuts(name: str, size: int, keep: tuple[int, ...]) -> tuple[TensorCut, ...]:
    return tuple(TensorCut(f"{name}.{t}", 0, size, keep) for t in ("weight", "bias", "running_mean", "running_var"))


def plan_of(tensors: tuple[TensorCut, ...], **changes: object) -> Plan:
    """A plan with these tensor cuts; everything else is empty unless given."""
    fields: dict = {
        "cuts": (),
        "tensors": tensors,
        "attributes": (),
        "shapes": (),
        "inputs": IMAGE,
        "before": NO_SIZE,
        "after": NO_SIZE,
        **changes,
    }
    return Plan(**fields)


def small_net_plan(keep: tuple[int, ...] = (0, 2, 5), **changes: object) -> Plan:
    """Keep some of conv1's six channels, worked out by hand."""
    cuts = (
        TensorCut("conv1.weight", 0, 6, keep),
        TensorCut("conv1.bias", 0, 6, keep),
        *norm_cuts("bn1", 6, keep),
        TensorCut("conv2.weight", 1, 6, keep),
    )
    k = len(keep)
    shapes = (
        OperatorShape("aten::convolution", "conv1", ((2, k, 8, 8),)),
        OperatorShape("aten::convolution", "conv2", ((2, 4, 8, 8),)),
        OperatorShape("aten::addmm", "head", ((2, 5),)),
    )
    return plan_of(cuts, **{"cuts": (Cut("conv1", 6, keep),), "shapes": shapes, **changes})


HOOKED = {nn.Conv2d: "aten::convolution", nn.Linear: "aten::addmm"}


class FakeRecorder:
    """Reports the shapes that hooks see, under the names that the hand-written plans use."""

    def __call__(self, model: nn.Module, inputs: Tensor) -> list[OperatorShape]:
        model = copy.deepcopy(model).eval()
        seen: list[OperatorShape] = []
        handles = []
        for path, module in model.named_modules():
            if type(module) in HOOKED:
                name = HOOKED[type(module)]
                handles.append(
                    module.register_forward_hook(
                        lambda _m, _i, out, path=path, name=name: seen.append(
                            OperatorShape(name, path, (tuple(out.shape),))
                        )
                    )
                )
        try:
            with torch.no_grad():
                model(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def state(model: nn.Module) -> dict[str, dict]:
    """Everything observable of a model: tensor identities and values, attributes, modes."""
    tensors = {n: (id(t), t.detach().clone()) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    plain = {
        f"{path}:{key}": value
        for path, module in model.named_modules()
        for key, value in module.__dict__.items()
        if isinstance(value, int | float | str | tuple | bool)
    }
    return {"tensors": tensors, "plain": plain}


def assert_unchanged(model: nn.Module, before: dict) -> None:
    after = state(model)
    assert after["plain"] == before["plain"]
    assert after["tensors"].keys() == before["tensors"].keys()
    for name, (identity, value) in before["tensors"].items():
        now_identity, now = after["tensors"][name]
        assert now_identity == identity, name
        assert torch.equal(now, value), name
