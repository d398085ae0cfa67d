"""Hugging Face models: the laws of their configs, and whether `from_pretrained` opens what was cut.

A model of transformers is opened by building it from its config and putting the weights in. So a cut model opens that
way only if some config gives its sizes, and if what the constructor computes besides (an attention scale, rotary
frequencies) is what the cut model goes on using. Everything that is particular to transformers stands in this file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..graph import inputs as example
from ..graph.construction import Built, Construction, learn
from ..graph.provenance import is_config
from ..types import AttributeChange, Plan
from . import attributes
from .layers import is_known
from .tensors import device_of
from .verify import untouched_randomness

CONFIG = "config"

NO_SIZES = re.compile(r"(^|[._])(id|ids|version|seed|revision)$|layers$|depths")
"""Settings that are no sizes: token ids and the like; numbers of layers, since other tensors come with them."""

TOLERANCE = 1e-4
"""Largest difference of outputs, relative to the largest output, of the model that was opened."""


@dataclass(frozen=True)
class Opening:
    """How a saved model is opened again: `how`, and why not by `from_pretrained` where that does not work."""

    how: Literal["from_pretrained", "prunus.load"]
    reason: str = ""


def is_pretrained(model: nn.Module) -> bool:
    """Whether the model is one of transformers, which need not be installed."""
    return any(f"{kind.__module__}.{kind.__name__}" == _BASE for kind in type(model).__mro__)


_BASE = "transformers.modeling_utils.PreTrainedModel"


# ------------------------------------------------------------------------------------------------------------ before


def construction_of(model: nn.Module) -> Construction | None:
    """The laws by which the model's sizes follow from its config; None where it cannot be built from it."""
    if not is_pretrained(model):
        return None
    try:
        stated = {f"{CONFIG}.{name}": width for name, width in implicit_widths(model).items()}
        return learn(lambda changed: _built(_skeleton(model, {**stated, **changed})), settings_of(model))
    except Exception:  # remote code may need more than its config
        return None


def settings_of(model: nn.Module) -> dict[str, int]:
    """The whole numbers of 2 and more in the model's config that may be sizes, by attribute path.

    A width that is None in the config, and so left to the hidden size, is among them, as what it stands for.
    """
    stated = {
        path: value
        for path, value in _numbers(getattr(model, CONFIG), CONFIG, set())
        if value >= 2 and not NO_SIZES.search(re.sub(r"\[\d+\]", "", path))
    }
    return {**stated, **{f"{CONFIG}.{name}": width for name, width in implicit_widths(model).items()}}


def _numbers(config: Any, path: str, done: set[int]) -> Iterator[tuple[str, int]]:
    done.add(id(config))
    for name, value in vars(config).items():
        here = f"{path}.{name}"
        if type(value) is int:
            yield here, value
        elif type(value) in (tuple, list):
            yield from ((f"{here}[{i}]", item) for i, item in enumerate(value) if type(item) is int)
        elif is_config(value) and id(value) not in done:
            yield from _numbers(value, here, done)


def _skeleton(model: nn.Module, changed: Mapping[str, int]) -> nn.Module:
    """A model without weights, built from the config with some settings changed."""
    return _build(model, changed, torch.device("meta"))


def _build(model: nn.Module, changed: Mapping[str, int], device: torch.device) -> nn.Module:
    holder: Any = SimpleNamespace(config=copy.deepcopy(getattr(model, CONFIG)))
    for path, value in changed.items():
        attributes.write(holder, path, value)
    with _without_initialisation(), untouched_randomness(model), device:
        return type(model)(holder.config)


def _without_initialisation() -> AbstractContextManager[Any]:
    """Weights are put in afterwards, so that drawing them is left out."""
    try:
        from transformers.initialization import no_init_weights  # pyright: ignore[reportMissingImports]
    except ImportError:
        return nullcontext()
    return no_init_weights()


def _built(model: nn.Module) -> Built:
    """Shapes of what is saved, and the floats and shapes of buffers that the constructor makes anew."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    constants: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            saved = name not in module._non_persistent_buffers_set
            (shapes if saved else constants)[f"{path}.{name}" if path else name] = tuple(buffer.shape)
        for name, value in vars(module).items():
            if type(value) is float:
                constants[f"{path}:{name}"] = value
    return Built(shapes, constants)


# ------------------------------------------------------------------------------------------------------------- after


def with_attributes(model: nn.Module, plan: Plan) -> Plan:
    """The plan with what the constructor would set besides: sizes that modules keep but no forward pass reads.

    Only where the config that the plan leads to gives exactly the sizes that the plan cuts to.
    """
    settings = {c.name: c.new for c in plan.attributes if c.module == "" and c.name.startswith(f"{CONFIG}.")}
    if not settings or not is_pretrained(model):
        return plan
    try:
        dense, cut = _skeleton(model, {}), _skeleton(model, settings)
    except Exception:  # then `opening` says so
        return plan
    shapes = _built(cut).shapes
    if any(shapes.get(name) != shape for name, shape in _planned_shapes(model, plan).items()):
        return plan
    planned = {(change.module, change.name) for change in plan.attributes}
    modules, olds = dict(model.named_modules()), dict(dense.named_modules())
    extra = []
    for path, module in cut.named_modules():
        if path not in modules or path not in olds or is_known(modules[path]):
            continue
        for name, new in vars(module).items():
            old = vars(olds[path]).get(name)
            if type(new) is not int or type(old) is not int or old == new or (path, name) in planned:
                continue
            if vars(modules[path]).get(name) == old:
                extra.append(AttributeChange(path, name, old, new))
    return replace(plan, attributes=(*plan.attributes, *extra))


def _planned_shapes(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes of everything that is saved, as the plan makes them; of tied tensors under one name."""
    shapes = {name: list(shape) for name, shape in _built(model).shapes.items()}
    for cut in plan.tensors:
        if cut.tensor in shapes:
            shapes[cut.tensor][cut.dim] = len(cut.keep)
    return {name: tuple(shape) for name, shape in shapes.items()}


def opening(model: nn.Module, inputs: Any, *, verify: bool = True) -> Opening:
    """Whether `save_pretrained` and `from_pretrained` give this very model, found by building it from its config,
    putting its weights in and comparing the outputs.

    Args:
        model: of any kind; it is only read.
        inputs: that it runs on.
        verify: False leaves the trial out, and so does not know.
    """
    if not is_pretrained(model):
        return Opening("prunus.load", "it is no model of transformers")
    if not verify:
        return Opening("prunus.load", "it was not tried (verify=False)")
    if device_of(model).type == "meta":
        return Opening("prunus.load", "it has no weights yet (meta device)")
    if reason := _refused(model):
        return Opening("prunus.load", reason)
    try:
        rebuilt = _build(model, {}, torch.device("cpu"))
        misfit = _misfit(rebuilt, model)
        if misfit:
            return Opening("prunus.load", misfit)
        rebuilt.load_state_dict(model.state_dict())
        if hasattr(rebuilt, "tie_weights"):
            rebuilt.tie_weights()  # pyright: ignore[reportCallIssue]
        difference = _difference(model, rebuilt, inputs)
    except Exception as error:
        return Opening("prunus.load", f"it cannot be built from its config: {type(error).__name__}: {error}")
    return Opening("prunus.load", difference) if difference else Opening("from_pretrained")


def _refused(model: nn.Module) -> str:
    """Why `save_pretrained` does not write the config, which checks it first; "" where it does."""
    check = getattr(getattr(model, CONFIG), "validate", None)
    try:
        if check is not None:
            check()
    except Exception as error:
        return f"its config is refused: {' '.join(str(error).split())}; choose counts that it takes, with round_to="
    return ""


def config_misfit(model: nn.Module) -> str:
    """Why the model's config does not give the shapes of all its tensors; "" if it does. No weights are needed."""
    try:
        return _misfit(_skeleton(model, {}), model) or _refused(model)
    except Exception as error:
        return f"it cannot be built from its config: {type(error).__name__}: {error}"


IMPLICIT = ("n_inner", "ffn_hidden_size", "intermediate_size", "d_inner")
"""Settings that may be None, which then stands for four times the hidden size."""


def implicit_widths(model: nn.Module) -> dict[str, int]:
    """What None stands for in a model's config, where stating it builds the same model; by the settings' names."""
    config: Any = getattr(model, CONFIG, None)
    hidden = getattr(config, "hidden_size", None)
    if not is_pretrained(model) or not isinstance(hidden, int):
        return {}
    unset = [name for name in IMPLICIT if name in vars(config) and getattr(config, name) is None]
    return {
        name: 4 * hidden for name in unset if not _misfit(_skeleton(model, {f"{CONFIG}.{name}": 4 * hidden}), model)
    }


def state_widths(model: nn.Module) -> tuple[str, ...]:
    """Write into a model's config what None stands for in it; the settings' names.

    The width of a feed-forward layer that the config leaves to the hidden size can be cut only after that.
    """
    widths = implicit_widths(model)
    for name, width in widths.items():
        setattr(getattr(model, CONFIG), name, width)
    return tuple(widths)


def _misfit(rebuilt: nn.Module, model: nn.Module) -> str:
    """The first tensor whose shape no config gives; "" if all fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in rebuilt.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if shapes.get(name) != tuple(tensor.shape):
            wanted = f"of shape {shapes[name]}" if name in shapes else "without it"
            return (
                f"{name} has shape {tuple(tensor.shape)}, and the config builds a model {wanted}; prune with "
                "uniform=True for sizes that a config can give"
            )
    return ""


def _difference(model: nn.Module, rebuilt: nn.Module, inputs: Any) -> str:
    given = tree_map_only(Tensor, lambda tensor: tensor.to(device_of(model)), inputs)
    rebuilt = rebuilt.to(device_of(model)).to(next(model.parameters()).dtype).eval()
    modes = {module: module.training for module in model.modules()}

    def outputs_of(one: nn.Module) -> list[Any]:
        torch.manual_seed(0)  # some draw random masks
        return tree_leaves(example.call(one.eval(), given))

    with untouched_randomness(model), torch.no_grad():
        try:
            outputs = [outputs_of(one) for one in (model, rebuilt)]
        finally:
            for module, mode in modes.items():
                module.training = mode
    for have, want in zip(*outputs):
        if isinstance(have, Tensor) and have.is_floating_point() and have.numel():
            worst, largest = (have - want).abs().max().item(), have.abs().max().item()
            if not worst <= TOLERANCE * largest + 1e-7:
                return (
                    f"the model built from its config gives other outputs (by {worst:.3g} of {largest:.3g}), because "
                    "its constructor computes constants from sizes that were cut; prune with uniform=True"
                )
    return ""
