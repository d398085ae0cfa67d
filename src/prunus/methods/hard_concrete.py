"""L0 regularisation: stochastic gates with a hard concrete distribution, on weights or on groups of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from .card import Card
from .masked import check_range, density_of, holder_of, part_of, shares, sites_of, train, trained_with
from .task import Outcome, Task

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature, and the ends that the gates are stretched to before they are clipped to [0, 1]."""

LIMITS = (math.log(1e-2), math.log(1e2))
"""Of log alpha, after each step."""


def sample_gate(log_alpha: Tensor, generator: torch.Generator | None = None, beta: float = BETA) -> Tensor:
    """A random gate in [0, 1] for each entry, differentiable with respect to `log_alpha`; `beta` is the temperature.

    Source: Louizos, Welling, Kingma, ICLR 2018, arXiv:1712.01312, eq. 10 and 11.
    """
    u = torch.rand(log_alpha.shape, generator=generator, dtype=log_alpha.dtype, device=log_alpha.device)
    u = u * (1 - 2e-6) + 1e-6
    smooth = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta)
    return (smooth * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def gate_of_test(log_alpha: Tensor) -> Tensor:
    """The gate that is computed with after training.

    >>> gate_of_test(torch.tensor([0.0, -2.4])).tolist()
    [0.5, 0.0]
    """
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


gate_of_test.__test__ = False  # type: ignore[attr-defined]  # its name is the paper's word, not a test's


def open_probability(log_alpha: Tensor, beta: float = BETA) -> Tensor:
    """Probability that a random gate of this temperature is not zero.

    >>> round(float(open_probability(torch.tensor(0.0))), 6)
    0.831822
    """
    return torch.sigmoid(log_alpha - beta * math.log(-GAMMA / ZETA))


class Gates(nn.Module):
    """One gate for each entry or group of entries of a weight; draws once per forward pass of the layer.

    Args:
        shape: of the gates, which multiplies the weight by broadcasting.
        size: weights that each gate controls.
        drop: share of the gates that is expected to be closed at first.
        generator: of the first values.
    """

    def __init__(self, shape: tuple[int, ...], size: int, drop: float, generator: torch.Generator) -> None:
        super().__init__()
        start = math.log((1 - drop) / drop) + 0.01 * torch.randn(shape, generator=generator)
        # One dimension, so that the optimiser's weight decay leaves it alone.
        self.log_alpha = nn.Parameter(start.flatten())
        self.shape, self.size = shape, size
        self.drawn: Tensor | None = None

    def draw(self) -> None:
        """Draw the gates of the next forward pass."""
        self.drawn = sample_gate(self.log_alpha) if self.training else None

    def values(self) -> Tensor:
        """The gates, in their shape: those drawn, or those of the test."""
        drawn = self.drawn if self.training and self.drawn is not None else gate_of_test(self.log_alpha)
        return drawn.reshape(self.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight."""
        return weight * self.values()

    def expected(self) -> Tensor:
        """Expected number of weights that are not zero."""
        return self.size * open_probability(self.log_alpha).sum()


class BiasGates(nn.Module):
    """The gates of a layer's outputs, on its bias."""

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self.gates = gates

    def forward(self, bias: Tensor) -> Tensor:
        """The gated bias."""
        return bias * self.gates.values().flatten()


def attach_gates(model: nn.Module, names: tuple[str, ...], level: str, drop: float, seed: int) -> dict[str, Gates]:
    """Put gates on weights, in place, by weight name.

    Args:
        model: changed in place.
        names: of weights.
        level: "weight": one gate per weight; "group": one per output map of a convolution (with its bias), one per
            input of any other layer, as in the authors' code.
        drop, seed: see `Gates`.
    """
    generator = torch.Generator().manual_seed(seed)
    gates = {}
    for name in names:
        holder, local = holder_of(model, name)
        weight = holder.get_parameter(local)
        convolution = weight.dim() > 2
        shape = tuple(weight.shape)
        if level == "group":
            shape = (shape[0], *[1] * (weight.dim() - 1)) if convolution else (1, *shape[1:])
        gate = Gates(shape, weight.numel() // math.prod(shape), drop, generator).to(weight)
        gate.train(holder.training)
        parametrize.register_parametrization(holder, local, gate, unsafe=True)
        holder.register_forward_pre_hook(_drawn_anew(gate))
        if level == "group" and convolution and getattr(holder, "bias", None) is not None:
            parametrize.register_parametrization(holder, "bias", BiasGates(gate), unsafe=True)
        gates[name] = gate
    return gates


def _drawn_anew(gate: Gates) -> Callable[[nn.Module, Any], None]:
    def draw(_module: nn.Module, _args: Any) -> None:
        gate.draw()

    return draw


def _plain(model: nn.Module, gates: dict[str, Gates]) -> dict[str, Tensor]:
    """Write the gated values into the parameters, in place, and take the gates off; where the gates are open."""
    masks = {}
    model.eval()
    for gate in gates.values():
        gate.drawn = None
    for name, gate in gates.items():
        holder, local = holder_of(model, name)
        weight = getattr(holder, local)
        masks[name] = (gate.values() > 0).expand_as(weight).clone()
        for tensor in list(holder.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(holder, tensor, leave_parametrized=True)
        holder._forward_pre_hooks.clear()
    return masks


def l0_hard_concrete(
    task: Task,
    *,
    penalty: float = 1.0,
    level: str = "weight",
    drop: float = 0.5,
    gated_epochs: float = 0.8,
) -> Outcome:
    """Train weights with random gates and a penalty on the expected number of open ones; closed ones are zeros.

    Args:
        task: usually freshly initialised. The sparsity is found, by `penalty`; `amount` is not read. AdamW at about
            1e-3 to 1e-2 suits the gates, which have the weights' learning rate.
        penalty: lambda; the expected number of weights is added to the loss times lambda / number of training examples.
        level: "weight", or "group": output maps of convolutions, inputs of other layers.
        drop: share of gates that is expected to be closed at first, in (0, 1).
        gated_epochs: share of the epochs with gates; the rest trains what is left under the mask.

    Returns:
        The network with the gates' test values multiplied in. A record tells the expected and the final density.

    Source: Louizos, Welling, Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
    arXiv:1712.01312. One sample of the gates per mini-batch; weight decay is not weighted by the gates.
    """
    if level not in ("weight", "group"):
        raise InputError(f"l0_hard_concrete: level={level!r} must be 'weight' or 'group'")
    check_range("l0_hard_concrete", "penalty", penalty, 0.0, 1e9)
    check_range("l0_hard_concrete", "drop", drop, 1e-6, 1 - 1e-6)
    check_range("l0_hard_concrete", "gated_epochs", gated_epochs, 0.0, 1.0)
    network = copy.deepcopy(task.model)
    modes = dict(_modes(network))
    gates = attach_gates(network, sites_of(task, "l0_hard_concrete"), level, drop, task.seed)
    share = penalty / len(task.train)
    first, second = shares(task.training.epochs, [gated_epochs, 1 - gated_epochs])

    def keep_within(_: Any) -> None:
        for gate in gates.values():
            gate.log_alpha.data.clamp_(*LIMITS)

    config = part_of(task.training, first, keep="last", ema=None)
    records = train(task, network, config, on_step=keep_within, penalty=lambda _: share * sum_of(gates))
    expected = float(sum_of(gates).detach()) / sum(g.size * g.log_alpha.numel() for g in gates.values())
    masks = _plain(network, gates)
    for name, training in modes.items():
        network.get_submodule(name).training = training
    record = {"expected_density": expected, "density": density_of(masks)}
    return trained_with(task, network, masks, second, [*records, record])


def _modes(network: nn.Module) -> Iterator[tuple[str, bool]]:
    yield from ((name, module.training) for name, module in network.named_modules())


def sum_of(gates: dict[str, Gates]) -> Tensor:
    """Expected number of weights that are not zero, of all gates."""
    return torch.stack([gate.expected() for gate in gates.values()]).sum()


CARD = Card(
    id="l0_hard_concrete",
    title="Learning Sparse Neural Networks through L0 Regularization",
    paper="Louizos, Welling, Kingma; ICLR 2018; arXiv:1712.01312",
    level="any",
    when="during training",
    rate="automatic",
    selection="gates",
    needs=("gradients", "labels", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("l0_hard_concrete", Task(model, x, train, validation, training=config), penalty=1.0)',
    formula="z = clip(1.2 sigmoid((logit u + log a) / beta) - 0.1, 0, 1); + lambda sum |g| P(z_g > 0)",
    cost="one training with a random number for each gate at each step",
    departures="one sample of the gates per mini-batch; a last share of the epochs trains under the mask",
    evidence="with a penalty of 1 it removed nothing from a small residual network in 12 epochs on digits",
    run=l0_hard_concrete,
)
