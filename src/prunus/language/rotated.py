"""Decoders whose residual stream is rotated and narrower from block to block: their modules, saving and loading."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import InputError, StoredFileError
from ..surgery import check_writable, read_weights
from .residual import Stream

FORMAT = "prunus.rotated/1"


class ScaleFreeNorm(nn.Module):
    """x / sqrt(sum x^2 / width + eps) along the last dimension: the root mean square norm of a stream of that width.

    Args:
        width: of the stream before it was sliced.
        eps: of the norm that it replaces.

    >>> ScaleFreeNorm(4, 0.0)(torch.tensor([3.0, 4.0]))
    tensor([1.2000, 1.6000])
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """The normed stream, computed in single precision or better."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.width + self.eps)).to(hidden.dtype)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"width={self.width}, eps={self.eps}"


class RotatedBlock(nn.Module):
    """A pre-norm block with a matrix on each of its two shortcuts: x S1 + f(norm(x)), then the same with S2 and g.

    Args:
        block: whose modules are taken over, under their names.
        parts: names in it: (norm, modules of the branch) twice.
        shortcuts: S1, S2.
    """

    def __init__(
        self, block: nn.Module, parts: Sequence[tuple[str, Sequence[str]]], shortcuts: Sequence[Tensor]
    ) -> None:
        super().__init__()
        for norm, names in parts:
            for name in (norm, *names):
                self.add_module(name, block.get_submodule(name))
        self.parts = tuple((norm, tuple(names)) for norm, names in parts)
        self.shortcut_0, self.shortcut_1 = (nn.Parameter(matrix) for matrix in shortcuts)
        self.given = tuple(inspect.signature(block.forward).parameters)[1:]
        self.train(block.training)

    def branch(self, number: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the first (0) or second (1) branch adds; the arguments of the block go to the first module of the
        first."""
        norm, names = self.parts[number]
        value = self.get_submodule(norm)(hidden)
        first: Any = self.get_submodule(names[0])
        if number == 0:
            value = first(value, **_accepted(first, {**dict(zip(self.given, args)), **kwargs}))
        else:
            value = first(value)
        for name in names[1:]:
            value = self.get_submodule(name)(_tensor(value))
        return _tensor(value)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The stream behind the block."""
        hidden = hidden_states @ self.shortcut_0 + self.branch(0, hidden_states, *args, **kwargs)
        return hidden @ self.shortcut_1 + self.branch(1, hidden)


def _tensor(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))


def _accepted(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(module.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


@dataclass(frozen=True)
class Rotation:
    """How a dense model becomes one with rotated blocks: names only, so that it is stored as JSON.

    Attributes:
        width: of the dense stream.
        blocks: name -> ((norm, modules of the branch) twice), local names.
        eps: of each norm, by full name.
    """

    width: int
    blocks: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    eps: Mapping[str, float]

    @classmethod
    def of(cls, stream: Stream, eps: Mapping[str, float]) -> Rotation:
        """From what was found in a model."""
        blocks = {
            name: tuple(
                (b.norm.removeprefix(f"{name}."), tuple(m.removeprefix(f"{name}.") for m in b.modules)) for b in pair
            )
            for name, pair in stream.blocks.items()
        }
        return cls(stream.width, blocks, dict(eps))

    def install(self, model: nn.Module) -> None:
        """Put scale-free norms and rotated blocks with identities on their shortcuts into a dense model, in place."""
        for name, eps in self.eps.items():
            _put(model, name, ScaleFreeNorm(self.width, eps))
        for name, parts in self.blocks.items():
            block = model.get_submodule(name)
            like = next(block.parameters())
            eye = torch.eye(self.width, dtype=like.dtype, device=like.device)
            _put(model, name, RotatedBlock(block, parts, (eye, eye.clone())))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    path, _, local = name.rpartition(".")
    setattr(model.get_submodule(path), local, module)


def set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a parameter of another shape in the place of one, and mend what its layer says of its sizes, in place."""
    path, _, local = name.rpartition(".")
    layer: Any = model.get_submodule(path)
    setattr(layer, local, nn.Parameter(value.contiguous()))
    if local != "weight":
        return
    sizes = {"out_features": 0, "in_features": 1, "embedding_dim": 1, "nx": 0, "nf": 1}  # nx, nf: transformers' Conv1D
    for attribute, dim in sizes.items():
        if hasattr(layer, attribute):
            setattr(layer, attribute, value.shape[dim])


def save_rotated(model: Any, rotation: Rotation, directory: str | Path) -> Path:
    """Write weights, config and rotation to a folder; `load_rotated` opens it.

    Raises:
        InputError: the folder cannot be written, or the model is none of transformers.
    """
    from safetensors.torch import save_file

    if not hasattr(model, "config") or not hasattr(model.config, "to_json_file"):
        raise InputError("save_rotated: the model has no config of transformers, so that it could not be built again")
    path = check_writable(directory)
    path.mkdir(parents=True, exist_ok=True)
    model.config.to_json_file(str(path / "config.json"))
    said = {"format": FORMAT, "class": type(model).__name__, **asdict(rotation)}
    for name, write in (
        ("model.safetensors", lambda file: save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)),
        ("rotation.json", lambda file: Path(file).write_text(json.dumps(said, indent=1), encoding="utf-8")),
    ):
        write(str(path / f".{name}.new"))
        os.replace(path / f".{name}.new", path / name)
    return path


def load_rotated(directory: str | Path) -> nn.Module:
    """The model that `save_rotated` wrote, in eval mode.

    Raises:
        StoredFileError: the folder is none that `save_rotated` wrote, or its files do not fit each other.
        MissingExtraError: transformers is not installed.
    """
    path = Path(directory).expanduser()
    try:
        said = json.loads((path / "rotation.json").read_text(encoding="utf-8"))
        if said.pop("format") != FORMAT:
            raise StoredFileError(f"{path / 'rotation.json'} is of another format than {FORMAT!r}")
        kind, rotation = said.pop("class"), Rotation(**said)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredFileError(f"{path} holds no rotation.json that can be read: {error}") from error
    model = _skeleton(path, kind)
    rotation.install(model)
    weights = read_weights(path / "model.safetensors")
    wanted = set(model.state_dict())
    if wanted != set(weights):
        raise StoredFileError(f"{path}: the weights do not fit the config: {sorted(wanted ^ set(weights))[:3]}")
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in weights.items():
        if name in parameters:
            set_tensor(model, name, value)
        else:
            model.get_buffer(name).copy_(value)
    return model.eval()


def _skeleton(path: Path, kind: str) -> nn.Module:
    from ..errors import MissingExtraError

    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError.of("transformers", "transformers", "opening a rotated model") from error
    config = transformers.AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    return getattr(transformers, kind)(config)
