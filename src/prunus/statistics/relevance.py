"""What flows back from the output: importance through absolute weights, and relevance by the z+ rule.

Both are computed with gradients of a changed copy of the network, so that any architecture of linear, convolutional,
pooling, normalising and adding operators will do. The model is only read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from ..errors import InputError
from ..graph import inputs as example
from ..graph.counting import unit_positions
from ..types import Graph, Statistics
from .accumulators import Channel, _channels
from .collect import _watched
from .initialisation import _ones

_TINY = 1e-12

# -------------------------------------------------------------------------------------------------------------- NISP


def infinite_feature_selection(features: Tensor, alpha: float = 0.5) -> Tensor:
    """How much a feature lies on paths of any length through a graph of spread and unlike features.

    Edges are alpha max(std_i, std_j) + (1 - alpha) (1 - |Spearman correlation|); the score is the row sum of
    (I - r A)^-1 - I with r = 0.9 / spectral radius.

    Args:
        features: (examples, features).
        alpha: weight of the standard deviations, in [0, 1].

    Returns:
        (features,) scores in float64, >= 0.

    Source: Roffo, Melzi, Cristani, "Infinite Feature Selection", ICCV 2015, as Yu et al., CVPR 2018, use it.
    """
    from scipy.stats import rankdata  # scikit-learn brings scipy

    values = features.double().cpu()
    count = values.shape[1]
    if count == 1:
        return torch.ones(1, dtype=torch.float64)
    ranks = torch.from_numpy(np.asarray(rankdata(values.numpy(), axis=0)))
    ranks = ranks - ranks.mean(0)
    length = torch.linalg.vector_norm(ranks, dim=0)
    unit = ranks / length.clamp_min(_TINY)
    alike = (unit.T @ unit).abs().clamp(0, 1)
    spread = values.std(0, correction=0)
    edges = alpha * torch.maximum(spread[:, None], spread) + (1 - alpha) * (1 - alike)
    radius = torch.linalg.eigvalsh(edges).abs().amax()
    if radius <= _TINY:
        return torch.ones(count, dtype=torch.float64)
    eye = torch.eye(count, dtype=torch.float64)
    return (torch.linalg.inv(eye - 0.9 / radius * edges) - eye).sum(1)


def final_responses(model: nn.Module, graph: Graph, batches: Iterable[Any], layer: str | None = None) -> Tensor:
    """(examples, features) inputs of the classifier in eval mode; maps are averaged over positions.

    Args:
        model: only read.
        graph: of it.
        batches: inputs, or (inputs, target).
        layer: name of the classifier; None is the last layer with weights that runs.
    """
    name = classifier_of(graph) if layer is None else layer
    twin = copy.deepcopy(model).eval()
    seen: list[Tensor] = []
    twin.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(_pooled(args[0]).cpu()))
    with torch.no_grad():
        for batch in batches:
            example.call(twin, batch[0] if isinstance(batch, tuple | list) else batch)
    if not seen:
        raise InputError("final_responses: there are no batches; give at least one")
    return torch.cat(seen)


def classifier_of(graph: Graph) -> str:
    """Module of the last operator that multiplies with a parameter."""
    for operator in reversed(graph.operators):
        if operator.weight:
            return operator.weight.rpartition(".")[0]
    raise InputError("the model has no layer with weights")


def _pooled(values: Tensor) -> Tensor:
    return values if values.dim() == 2 else values.flatten(2).mean(2)


def propagated_importance(
    model: nn.Module, graph: Graph, final: Tensor, *, example_inputs: Any, layer: str | None = None
) -> Statistics:
    """s_l = |W_{l+1}|^T s_{l+1}, from scores of the inputs of the classifier back to the units of every group.

    It is the gradient of the weighted sum of these inputs in a network of absolute weights at inputs of ones, where
    everything is positive and rectifiers pass everything; norms multiply by |gamma| / sigma, pooling passes on to the
    largest value or to all alike, branches add up. A convolution's unit gets the sum over its positions.

    Args:
        model: only read.
        graph: of it.
        final: (features,) scores of the classifier's inputs, >= 0.
        example_inputs: only shapes count.
        layer: the classifier; None is the last layer with weights that runs.

    Returns:
        Statistics with the need "propagated_importance", by unit key. Linear in `final`.

    Raises:
        InputError: `final` does not have one score per input of the classifier.

    Source: Yu et al., CVPR 2018, arXiv:1711.05908. Maximum pooling passes importance to one position of each window
    instead of all; where windows do not overlap this changes no ranking.
    """
    twin = copy.deepcopy(model).double().eval()
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        if tensor.is_floating_point():
            local = name.rpartition(".")[2]
            tensor.data = torch.zeros_like(tensor) if local == "running_mean" else tensor.data.abs()
            if local == "bias":
                tensor.data.fill_(1)
    seen: list[Tensor] = []
    classifier = twin.get_submodule(classifier_of(graph) if layer is None else layer)
    classifier.register_forward_pre_hook(lambda _, args: seen.append(_pooled(args[0])))
    ones = tree_map(lambda leaf: _ones(leaf) if isinstance(leaf, Tensor) else leaf, example_inputs)

    def weighted() -> Tensor:
        example.call(twin, ones)
        if seen[-1].shape[1:] != final.shape:
            raise InputError(
                f"final has shape {tuple(final.shape)}, but the classifier reads {seen[-1].shape[1]} features"
            )
        return (seen[-1] * final.to(seen[-1])).sum()

    channels = _channels(twin, graph)
    found = _sums(twin, channels, weighted, times_output=False)
    return Statistics(
        {"propagated_importance": {key: value.sum(0).float().cpu() for key, value in found.items()}}, 1, 1
    )


# --------------------------------------------------------------------------------------------------------------- LRP


def relevance(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    per_class: bool = False,
) -> Statistics:
    """How the decision for the right class, 1 for each example, is shared out among the units of each layer (z+ rule).

    R_j = sum_k (a_j w_jk)^+ / (sum_j' (a_j' w_j'k)^+) R_k in linear and convolutional layers; batch norm passes
    relevance on as it is; biases get none. In a chain of layers the units of each add up to 1.

    Args:
        model: only read, in eval mode. Its output are logits (examples, classes).
        graph: of it.
        batches: (inputs, class numbers); one to ten examples of each class are enough.
        per_class: (classes, units), the mean over the examples of each class that occurs, in the order of the class
            numbers, instead of the mean over all examples.

    Returns:
        Statistics with the need "relevance", by unit key.

    Raises:
        InputError: there are no batches.

    Source: Yeom et al., Pattern Recognition 2021, arXiv:1912.08881. Each example starts with 1 instead of its logit, so
    that all count alike. Layers other than these are passed with gradient times activation, which conserves the total
    where they are linear or rectify; layer norm and attention do not.
    """
    twin = copy.deepcopy(model).double().eval()
    _share_out(twin)
    channels = _channels(twin, graph)
    sums: dict[str, dict[int, Tensor]] = {}
    counts: dict[int, int] = {}
    batch_count = 0
    for inputs, target in batches:

        def decision(inputs: Any = inputs, target: Tensor = target) -> Tensor:
            logits = example.call(twin, _double(inputs)).gather(1, target[:, None])
            return (logits / _apart_from_zero(logits.detach())).sum()

        found = _sums(twin, channels, decision, times_output=True)
        batch_count += 1
        for label in target.unique().tolist():
            mine = target == label
            counts[label] = counts.get(label, 0) + int(mine.sum())
            for key, value in found.items():
                by_class = sums.setdefault(key, {})
                by_class[label] = by_class.get(label, torch.zeros(value.shape[1]).to(value)) + value[mine].sum(0)
    if not batch_count:
        raise InputError("relevance: there are no batches; give at least one (inputs, class numbers)")
    values = {}
    for key, by_class in sums.items():
        stacked = torch.stack([by_class[label] for label in sorted(counts)])
        numbers = torch.tensor([counts[label] for label in sorted(counts)]).to(stacked)
        values[key] = (stacked / numbers[:, None] if per_class else stacked.sum(0) / numbers.sum()).float().cpu()
    return Statistics({"relevance": values}, batch_count, sum(counts.values()))


def _double(inputs: Any) -> Any:
    def cast(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return tree_map(cast, inputs)


def _apart_from_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < _TINY, torch.full_like(values, _TINY), values)


def _pass_through(_norm: nn.Module, args: Any, out: Tensor) -> Tensor:
    return _with_gradient_of(args[0], out)


def _share_out(network: nn.Module) -> None:
    """Hook every layer so that gradient times activation is relevance: outputs stay, gradients follow the rule."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | _ConvNd)]
    parts = {layer: (_part(layer, 1), _part(layer, -1)) for layer in layers}
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for layer, (positive, negative) in parts.items():
        layer.register_forward_hook(_ruled(positive, negative))
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.register_forward_hook(_pass_through)


def _part(layer: nn.Module, sign: int) -> nn.Module:
    """The layer with its positive (or minus its negative) weights and without bias."""
    part = copy.deepcopy(layer)
    for name, parameter in part.named_parameters():
        parameter.data = torch.zeros_like(parameter) if name == "bias" else (sign * parameter.data).clamp_min(0)
        parameter.requires_grad_(True)  # so that the first layer's output has a gradient too
    return part


def _ruled(positive: nn.Module, negative: nn.Module) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        # Positive contributions only: those of positive activations and, of inputs below zero, of negative weights.
        given = args[0]
        return _with_gradient_of(positive(given.clamp_min(0)) + negative((-given).clamp_min(0)), out)

    return hook


def _with_gradient_of(source: Tensor, out: Tensor) -> Tensor:
    """The values of `out`; its gradient goes to `source`, scaled so that gradient times value is the same in both."""
    values = source.detach()
    ratio = torch.where(values.abs() > _TINY, out.detach() / _apart_from_zero(values), torch.zeros_like(values))
    return out.detach() + ratio * (source - values)


# ------------------------------------------------------------------------------------------------------------- parts


def _sums(network: nn.Module, channels: Sequence[Channel], run: Any, times_output: bool) -> dict[str, Tensor]:
    """(examples, units) sums over positions of the gradient, or of gradient times output, of what `run` returns."""
    with torch.enable_grad(), _watched(network, frozenset(channel.module for channel in channels)) as seen:
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        value = run()
        outputs = {module: list(calls) for module, calls in seen.items()}
        wanted = [output for calls in outputs.values() for output in calls]
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
    of = {id(output): gradient for output, gradient in zip(wanted, gradients)}
    found: dict[str, Tensor] = {}
    for channel in channels:
        for output in outputs.get(channel.module, ()):
            gradient = of[id(output)]
            if gradient is None:
                gradient = torch.zeros_like(output)
            product = gradient.detach() * output.detach() if times_output else gradient.detach()
            rows = product.movedim(output.dim() + channel.dim_from_end, -1)
            rows = rows.reshape(len(output), -1, channel.axis.size).sum(1)
            positions = torch.from_numpy(unit_positions(channel.axis, channel.group)).to(rows.device)
            total = rows[:, positions].sum(2)
            found[channel.key] = found[channel.key] + total if channel.key in found else total
    return found
