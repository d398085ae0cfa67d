"""`collect`: one pass over data that gathers what criteria need. All hooks on a user's model are set here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import InputError, UnknownNameError
from ..graph.recorder import ModuleStack
from ..types import Graph, Statistics
from .accumulators import ACCUMULATORS, NEED_GRAPH, Accumulator, Batch
from .inputs import INPUT_ACCUMULATORS, InputAccumulator
from .map_accumulators import MAP_ACCUMULATORS, MapAccumulator
from .sites import MapMode, Site
from .state import preserved, seeded

Loss = Callable[[Any, Any], Tensor]

NOT_COLLECTED = frozenset({"weight", "kernels", "norm_scale", "norm_shift", "generator"})
"""Needs of criteria that take no data; they may be asked for and are passed over."""

COMPUTED_APART = frozenset(
    "propagated_importance relevance loss_change hessian_diagonal gradient_flow synaptic_gradient input_norm".split()
)
"""Needs that one pass cannot tell; `gather` knows how."""


def collect(
    model: nn.Module,
    batches: Iterable[Any],
    needs: Iterable[str],
    *,
    loss: Loss | None = None,
    graph: Graph | None = None,
    device: torch.device | str | None = None,
    max_batches: int | None = None,
    training: bool = False,
    seed: int = 0,
) -> Statistics:
    """Run the model over data once and accumulate what criteria need. The model is left exactly as it was.

    Memory does not depend on the number of batches. Modes, hooks, gradients, grad flags, buffers (such as running
    statistics) and the global random state come back as they were, on errors too.

    Args:
        model: the traced one.
        batches: (inputs, target) pairs, examples first; inputs are a tensor, a tuple of positional or a dict of keyword
            arguments. Or dicts that are passed to the model whole, which then returns its own `loss`. Where no need
            reads gradients or labels, bare input tensors will do.
        needs: names in `ACCUMULATORS` or `MAP_ACCUMULATORS`, for instance `CRITERIA["taylor_weight"].data_needs`.
        loss: (output, target) -> mean loss over the batch, a scalar. None is the output's own `loss` if it has one,
            else cross-entropy for integer targets.
        graph: of the model; needed by what is collected per unit.
        device: to run on; if the model is elsewhere, a copy is moved. None is the model's own.
        max_batches: stop after so many.
        training: run in training mode (dropout and batch statistics active) instead of evaluation mode.
        seed: of dropout and the like.

    Returns:
        The statistics, on the CPU.

    Raises:
        UnknownNameError: a need that nobody can collect.
        InputError: no batches, a loss that is missing, not a scalar or not finite, or a graph that is missing.
    """
    wanted = _checked_needs(needs, graph, max_batches)
    if not wanted:
        return Statistics({}, 0, 0)
    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        first = next(model.parameters(), None)
        where = (
            torch.device(device) if device is not None else (first.device if first is not None else torch.device("cpu"))
        )
        if first is not None and first.device != where:
            model = copy.deepcopy(model).to(where)
        stack.enter_context(preserved(model))
        model.train(training)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        accumulators = {need: ACCUMULATORS[need](model, graph) for need in wanted if need in ACCUMULATORS}
        makers = {**MAP_ACCUMULATORS, **INPUT_ACCUMULATORS}
        maps = {} if graph is None else {n: makers[n](graph) for n in wanted if n in makers}
        watchers = _Watchers(list(accumulators.values()), list(maps.values()))
        count, examples = _run(model, batches, watchers, loss, where, max_batches)
        values = {need: accumulator.result() for need, accumulator in (accumulators | maps).items()}
    return Statistics(values, count, examples)


def _checked_needs(needs: Iterable[str], graph: Graph | None, max_batches: int | None) -> list[str]:
    if isinstance(needs, str):
        needs = (needs,)
    wanted = sorted(set(needs) - NOT_COLLECTED)
    for need in wanted:
        known = {*ACCUMULATORS, *MAP_ACCUMULATORS, *INPUT_ACCUMULATORS}
        if need in COMPUTED_APART:
            raise InputError(f"{need!r} takes more than one pass over the data: prunus.statistics.gather computes it")
        if need not in known:
            raise UnknownNameError.of("need", need, known)
        if need in known - (ACCUMULATORS.keys() - NEED_GRAPH) and graph is None:
            raise InputError(f"collecting {need!r} is done per unit: give graph=prunus.trace(model, example_inputs)")
    if max_batches is not None and max_batches < 1:
        raise InputError(f"max_batches={max_batches} must be 1 or more, or None for all")
    return wanted


@dataclass(frozen=True)
class _Watchers:
    """Everything that looks at a forward and backward pass."""

    gradients: list[Accumulator]
    maps: list[MapAccumulator | InputAccumulator]

    @contextmanager
    def seeing(self, model: nn.Module, labels: Tensor | None) -> Iterator[None]:
        """Feed the map accumulators while the model runs."""
        if not self.maps:
            yield
            return
        by_site: dict[Site, list[MapAccumulator | InputAccumulator]] = {}
        for accumulator in self.maps:
            for site in accumulator.sites.values():
                by_site.setdefault(site, []).append(accumulator)

        def see(site: Site, output: Tensor, arguments: Any) -> None:
            for accumulator in by_site[site]:
                if isinstance(accumulator, InputAccumulator):
                    accumulator.read(site, arguments)
                else:
                    accumulator.see(site.key, site.maps(output), labels)

        stack = ModuleStack(model)
        with stack.watching(), MapMode(stack, by_site, see):
            yield


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    watchers: _Watchers,
    loss: Loss | None,
    device: torch.device,
    max_batches: int | None,
) -> tuple[int, int]:
    """Feed every accumulator; returns the numbers of batches and of examples."""
    names = frozenset().union(*(a.parameters for a in watchers.gradients))
    parameters = {name: p for name, p in model.named_parameters() if name in names}
    modules = frozenset().union(*(a.modules for a in watchers.gradients))
    count = examples = 0
    for given in batches:
        batch = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, given)
        size = _examples(batch)
        if not watchers.gradients:
            inputs, labels = _parts(batch)
            with torch.no_grad(), watchers.seeing(model, labels):
                _call(model, inputs)
        else:
            with _watched(model, modules) as seen, watchers.seeing(model, _parts(batch)[1]):
                value = _loss(model, batch, loss, count)
                outputs = [(module, output) for module, calls in seen.items() for output in calls]
            wanted = [*parameters.values(), *(output for _, output in outputs)]
            gradients = torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ()
            result = _as_batch(size, parameters, outputs, gradients)
            for accumulator in watchers.gradients:
                accumulator.add(result)
        count, examples = count + 1, examples + size
        if count == max_batches:
            break
    if not count:
        raise InputError("batches: there are none; give at least one (inputs, target) pair")
    return count, examples


def _parts(batch: Any) -> tuple[Any, Tensor | None]:
    """The inputs of a batch, and its class numbers if it has some."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
        return batch, labels if isinstance(labels, Tensor) else None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1] if isinstance(batch[1], Tensor) else None
    return batch, None


def _as_batch(
    examples: int,
    parameters: Mapping[str, nn.Parameter],
    outputs: list[tuple[str, Tensor]],
    gradients: tuple[Tensor | None, ...],
) -> Batch:
    by_parameter = {
        name: torch.zeros_like(p) if g is None else g.detach()
        for (name, p), g in zip(parameters.items(), gradients[: len(parameters)])
    }
    for name, gradient in by_parameter.items():
        if not torch.isfinite(gradient).all():
            raise InputError(f"the gradient of {name!r} is NaN or infinite: check the loss and the inputs' range")
    by_module: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (module, output), gradient in zip(outputs, gradients[len(parameters) :]):
        found = torch.zeros_like(output) if gradient is None else gradient.detach()
        by_module.setdefault(module, []).append((output.detach(), found))
    return Batch(examples, {name: p.detach() for name, p in parameters.items()}, by_parameter, by_module)


@contextmanager
def _watched(model: nn.Module, modules: frozenset[str]) -> Iterator[dict[str, list[Tensor]]]:
    """The outputs of each call of these modules."""
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[..., Any]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            seen.setdefault(name, []).append(output)
            # What follows gets a copy, so that an in-place activation leaves the output as it was.
            return output.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in sorted(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _loss(model: nn.Module, batch: Any, loss: Loss | None, index: int) -> Tensor:
    whole = isinstance(batch, Mapping)
    if not whole and not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise InputError(f"batch {index} is a {type(batch).__name__}: it must be an (inputs, target) pair or a dict")
    inputs, target = (batch, batch) if whole else batch
    output = _call(model, inputs)
    own = getattr(output, "loss", None)
    if loss is not None:
        value = loss(output, target)
    elif isinstance(own, Tensor):
        value = own
    elif isinstance(output, Tensor) and isinstance(target, Tensor) and target.dtype == torch.int64:
        value = nn.functional.cross_entropy(output, target)
    else:
        raise InputError(
            f"loss: none was given, the model's output ({type(output).__name__}) has no loss of its own and the target "
            f"({getattr(target, 'dtype', type(target).__name__)}) has no classes: give loss=(output, target) -> scalar"
        )
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"loss must be the mean over the batch, one number that depends on the parameters; got {got}")
    if not torch.isfinite(value):
        raise InputError(f"the loss of batch {index} is {value.item()}: check the weights and the inputs' range")
    return value.reshape(())


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _examples(batch: Any) -> int:
    first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), None)
    return 1 if first is None else first.shape[0]
