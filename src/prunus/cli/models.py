"""The model and the inputs that a verb's arguments name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .options import keywords, shape

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Named:
    """What the arguments of a verb say about a model.

    Attributes:
        name: see `prunus.pipeline.names.build_model`.
        weights: a safetensors file.
        pairs: `key=value` strings for the factory.
        input_shape: of one sample, as text.
        data: a data spec.
    """

    name: str
    weights: str | None = None
    pairs: Sequence[str] | None = None
    input_shape: str | None = None
    data: str | None = None
    arguments: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.arguments.update(keywords(self.pairs))

    def model(self) -> nn.Module:
        """The model, with its weights, in evaluation mode."""
        import torch

        from ..pipeline.names import build_model, load_weights, weights_file

        path = weights_file(self.weights) if self.weights else None
        torch.manual_seed(0)  # a model without weights should at least be the same one each time
        model = build_model(self.name, self.arguments)
        if path is not None:
            load_weights(model, path)
        return model.eval()

    def example(self) -> Tensor:
        """Inputs to trace the model with."""
        from ..pipeline.names import example_inputs

        return example_inputs(self.name, shape(self.input_shape), self.data)

    def factory(self) -> dict[str, Any]:
        """How `prunus.save` is told to build the dense model; nothing for kinds that it does not know."""
        from ..pipeline.names import factory_of

        return factory_of(self.name, self.arguments)
