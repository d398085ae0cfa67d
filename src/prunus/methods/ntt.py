"""Neural Tangent Transfer: a sparse network that trains as its dense teacher would, found without labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ..errors import InputError
from ..masks import count_of, lowest
from .card import Card
from .masked import check_range, sites_of, trained_with
from .task import Outcome, Task

LARGEST = 20_000_000
"""Entries of a Jacobian: examples times outputs times parameters. Beyond, the method refuses."""


def output_and_jacobian(model: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, O) and their Jacobian (B, O, P) with respect to all `weights` together.

    Args:
        model: that the weights belong to; in evaluation mode.
        weights: parameter name -> values; the order is that of P.
        inputs: (B, ...).
    """

    def outputs(values: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, dict(values), (x[None],))[0]

    jacobian = vmap(jacrev(outputs), in_dims=(None, 0))(dict(weights), inputs)
    flat = torch.cat([jacobian[name].flatten(2) for name in weights], 2)
    return functional_call(model, dict(weights), (inputs,)), flat


def tangent_kernel(first: Tensor, second: Tensor) -> Tensor:
    """J1 J2^T of two Jacobians (B, O, P), as (B1 O, B2 O)."""
    return first.flatten(0, 1) @ second.flatten(0, 1).T


class Student:
    """Masked weights and their distance from a teacher.

    Args:
        model: the dense teacher: its weights are those that the student starts from.
        names: weights that are masked; all other parameters are trained dense.
        sparsity: of the masked weights, one ranking over all of them if `scope` is "global".
        scope: "layer" or "global".
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], sparsity: float, scope: str) -> None:
        self.model, self.sparsity, self.scope = model, sparsity, scope
        self.teacher = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.weights = {name: value.clone().requires_grad_() for name, value in self.teacher.items()}
        self.masks = {name: torch.ones_like(self.teacher[name], dtype=torch.bool) for name in names}
        self.choose()

    def choose(self) -> None:
        """The masks anew: the largest magnitudes stay."""
        sizes = {name: self.weights[name].detach().abs() for name in self.masks}
        if self.scope == "layer":
            for name, size in sizes.items():
                gone = lowest(size.reshape(1, -1), count_of(self.sparsity, size.numel()))
                self.masks[name] = ~gone.reshape(size.shape)
            return
        flat = torch.cat([size.flatten() for size in sizes.values()])[None]
        pieces = (~lowest(flat, count_of(self.sparsity, flat.numel())))[0].split([s.numel() for s in sizes.values()])
        self.masks = {name: piece.reshape(sizes[name].shape) for name, piece in zip(sizes, pieces)}

    def masked(self) -> dict[str, Tensor]:
        """The weights that the student computes with."""
        return {n: w * self.masks[n] if n in self.masks else w for n, w in self.weights.items()}

    def loss(self, inputs: Tensor, kernel: float, decay: float) -> tuple[Tensor, float, float]:
        """kernel ||K_S - K_T||^2 / |K| + ||f_S - f_T||^2 / |f| + decay / density ||m theta||^2, and its first two parts
        without their factors. K pairs the two halves of the batch."""
        half = len(inputs) // 2
        worn = self.masked()
        output, jacobian = output_and_jacobian(self.model, worn, inputs)
        # By the chain rule the Jacobian with respect to theta is that with respect to m theta, masked.
        mask = torch.cat([self.masks[n].flatten() if n in self.masks else torch.ones_like(w).flatten().bool()
                          for n, w in self.weights.items()])  # fmt: skip
        jacobian = jacobian * mask
        with torch.no_grad():
            wanted, of_teacher = output_and_jacobian(self.model, self.teacher, inputs)
            goal = tangent_kernel(of_teacher[:half], of_teacher[half:])
        apart = (tangent_kernel(jacobian[:half], jacobian[half:]) - goal).square().mean()
        outputs = (output - wanted).square().mean()
        size = torch.stack([worn[name].square().sum() for name in self.masks]).sum()
        value = kernel * apart + outputs + decay / max(1 - self.sparsity, 1e-12) * size
        return value, float(apart.detach()), float(outputs.detach())


def _batches(task: Task, size: int, count: int) -> Iterator[Tensor]:
    epoch = done = 0
    while done < count:
        for inputs, _ in task.train.batches(size, shuffle=True, seed=task.seed, epoch=epoch, drop_last=True):
            if done == count:
                return
            done += 1
            yield inputs
        epoch += 1


def ntt(
    task: Task,
    *,
    steps: int = 200,
    batch_size: int = 16,
    rate: float = 1e-3,
    kernel: float = 1e-2,
    decay: float = 1e-6,
    update_every: int = 50,
    scope: str = "global",
) -> Outcome:
    """Fit outputs and tangent kernel of a sparse student to those of the dense random network, then train it.

    Args:
        task: its model is freshly initialised, and the teacher; `amount` is the sparsity. Labels are only used by the
            training that follows.
        steps: of Adam on the student.
        batch_size: even; half of it is paired with the other half.
        rate: of Adam. kernel: factor of the kernels' distance. decay: of the squared weights, divided by the density.
        update_every: steps after which the mask is chosen anew by magnitude; not in the last such period.
        scope: "global" or "layer".

    Returns:
        The trained sparse network. Records tell the distances of kernels and outputs on one batch that is held out
        (of the validation split, if there is one) before the first step and whenever the mask was chosen.

    Raises:
        InputError: an option is out of range, or the network is too large for its Jacobian.

    Source: T. Liu, Zenke, "Finding trainable sparse networks through Neural Tangent Transfer", ICML 2020,
    arXiv:2006.08228. The factors and step numbers are ours.
    """
    amount = task.wanted()
    if scope not in ("layer", "global"):
        raise InputError(f"ntt: scope={scope!r} must be 'layer' or 'global'")
    for name, value, least in (("steps", steps, 0), ("batch_size", batch_size, 2), ("update_every", update_every, 1)):
        if value < least:
            raise InputError(f"ntt: {name}={value} must be {least} or more")
    if len(task.train) < batch_size or batch_size % 2:
        raise InputError(f"ntt: batch_size={batch_size} must be even, and no more than the training examples")
    check_range("ntt", "rate", rate, 0.0, 10.0, open_low=True)
    names = sites_of(task, "ntt")
    model = copy.deepcopy(task.model).eval()
    student = Student(model, names, amount, scope)
    _check_size(model, student, next(_batches(task, batch_size, 1)))
    optimizer = torch.optim.Adam(student.weights.values(), lr=rate)
    held, _ = next(iter((task.validation or task.train).batches(2 * batch_size)))
    history: list[dict[str, Any]] = [_record(0, student, held)]
    for step, inputs in enumerate(_batches(task, batch_size, steps), 1):
        value, _, _ = student.loss(inputs, kernel, decay)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % update_every == 0 and step <= steps - update_every:
            student.choose()
        if step == steps or step % update_every == 0:
            history.append(_record(step, student, held))
    network = copy.deepcopy(task.model)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(student.weights[name])
    masks = {name: mask.clone() for name, mask in student.masks.items()}
    return trained_with(task, network, masks, task.training.epochs, history)


def _record(step: int, student: Student, held: Tensor) -> dict[str, Any]:
    _, apart, outputs = student.loss(held[: len(held) // 2 * 2], 1.0, 0.0)
    return {"step": step, "kernel": apart, "outputs": outputs}


def _check_size(model: nn.Module, student: Student, inputs: Tensor) -> None:
    with torch.no_grad():
        out = model(inputs)
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise InputError("ntt: the model must return logits (examples, classes)")
    entries = out.numel() * sum(weight.numel() for weight in student.weights.values())
    if entries > LARGEST:
        raise InputError(
            f"ntt: the Jacobian of {len(inputs)} examples has {entries:,} entries, more than {LARGEST:,}: "
            "take a smaller batch_size=, or a smaller network"
        )


CARD = Card(
    id="ntt",
    title="Finding trainable sparse networks through Neural Tangent Transfer",
    paper="T. Liu, Zenke; ICML 2020; arXiv:2006.08228",
    level="weight",
    when="at initialisation",
    rate="given",
    selection="reconstruction",
    needs=("activations", "gradients", "training"),
    specification="verified",
    entry="method",
    how='prunus.methods.run("ntt", Task(model, x, train, validation, amount=0.9, training=config), steps=200)',
    formula="min l_K ||K_S - K_T||^2 / |K| + ||f_S - f_T||^2 / |f| + l_2 / density ||m theta||^2; m by |theta|",
    cost="Jacobians of every mini-batch: examples x outputs x parameters; tiny networks only",
    departures="factors and numbers of steps are ours; norms and dropout in evaluation mode",
    evidence="a network of 64 hidden units on 800 digits at 95% sparsity, 200 steps of rate 5e-3, three seeds: on held "
    "out digits the outputs' distance from the teacher falls to 21-33% and the kernel's to 29-38%; after 10 epochs of "
    "training 53-63% of the test digits are right, with masks of the largest initial weights 32-45%, with random masks "
    "22-41%, with SNIP, which reads labels, 75-83%. 400 steps come nearer to the kernel and learn no better. With 16 "
    "hidden units it does not beat masks of the largest initial weights (90%: 44-54% against 59%)",
    run=ntt,
)
