"""A language model without weights: its class on the meta device, its blocks, and where their tensors lie on disk.

Of what lies outside the blocks only that is read which runs before them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, MissingExtraError, StoredFileError
from .checkpoint import CONFIG, Checkpoint
from .stack import Recorder, find_blocks


@dataclass
class Skeleton:
    """The model on the meta device.

    Attributes:
        model: parameters are on the meta device, buffers that no checkpoint holds have their values.
        blocks: names of the blocks, in order ("model.layers.0", ...).
        names: parameter or buffer of the model -> its name in the checkpoint.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> nn.Module:
        """A block, without weights."""
        return self.model.get_submodule(self.blocks[index])

    def tensors(self, index: int) -> dict[str, str]:
        """Local name -> name in the checkpoint, of everything that block `index` stores."""
        start = f"{self.blocks[index]}."
        return {name.removeprefix(start): stored for name, stored in self.names.items() if name.startswith(start)}

    def outside(self) -> dict[str, str]:
        """Name -> name in the checkpoint, of everything that no block stores."""
        starts = tuple(f"{block}." for block in self.blocks)
        return {name: stored for name, stored in self.names.items() if not name.startswith(starts)}

    def held(self) -> int:
        """Bytes of the parameters that have values now."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if not p.is_meta)

    def block(self, index: int, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
        """A copy of one block with its weights, in evaluation mode."""
        made = copy.deepcopy(self[index])
        _load(made, self.tensors(index), checkpoint, dtype)
        return made.eval()


def _load(module: nn.Module, names: Mapping[str, str], checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    """Read some of a module's tensors (local name -> name in the checkpoint), those of floating point in one dtype."""
    given = {}
    for local, stored in names.items():
        value = checkpoint.read(stored)
        given[local] = value.to(dtype) if value.is_floating_point() else value
    module.load_state_dict(given, strict=False, assign=True)
    for tensor in module.parameters():
        tensor.requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------- building


def build_skeleton(checkpoint: Checkpoint) -> Skeleton:
    """The model that a checkpoint's config describes, without weights.

    Raises:
        MissingExtraError: transformers is not installed.
        StoredFileError: there is no readable config.json.
        InputError: transformers does not know the architecture, no repeated blocks were found, or the checkpoint
            names its tensors otherwise than the model.
    """
    model = model_on_meta(checkpoint.directory)
    blocks = find_blocks(model, torch.zeros(2, 4, dtype=torch.int64))
    return Skeleton(model, blocks, _stored_names(model, blocks, checkpoint))


def model_on_meta(directory: Path) -> nn.Module:
    """The model of a config.json, its parameters on the meta device, its buffers real.

    Raises:
        MissingExtraError, StoredFileError, InputError: as in `build_skeleton`.
    """
    file = directory / CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        architecture = (settings.get("architectures") or [""])[0]
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise StoredFileError(f"{file} cannot be read: {error}") from error
    try:
        import transformers
    except Exception as error:  # its own imports may fail in other ways than ImportError
        raise MissingExtraError.of("transformers", "transformers", "pruning a language model on disk") from error
    from accelerate import init_empty_weights

    kind: Any = getattr(transformers, architecture, None) if architecture else None
    if kind is None:
        raise InputError(
            f"{file} names the architecture {architecture!r}; transformers {transformers.__version__} does not have it"
        )
    config = kind.config_class.from_pretrained(directory)
    with init_empty_weights(include_buffers=False), _without_initialisation():
        model = kind(config).eval()
    model.tie_weights()  # tensors become separate ones on the way to the meta device
    return model


def _without_initialisation() -> Any:
    try:
        from transformers.initialization import no_init_weights  # pyright: ignore[reportMissingImports]
    except ImportError:
        return nullcontext()
    return no_init_weights()


def _stored_names(model: nn.Module, blocks: tuple[str, ...], checkpoint: Checkpoint) -> dict[str, str]:
    """The name in the checkpoint of each tensor of the model; a tied one outside the blocks may be missing there."""
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    absent: list[str] = []
    parameters = {name for name, _ in model.named_parameters()}
    inside = tuple(f"{block}." for block in blocks)
    for name in model.state_dict():
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        stored = next((one for one in candidates if one in checkpoint.entries), None)
        if stored is not None:
            names[name] = stored
        elif name.startswith(inside) and name in parameters:
            absent.append(name)
    if absent:
        raise InputError(
            f"{checkpoint.directory} does not hold {absent[0]!r} and {len(absent) - 1} more tensors of "
            f"{type(model).__name__}: the file names them otherwise, and transformers converts them when it loads "
            "(mixtures of experts); load it whole and use prunus.sparsify"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, stored in names.items():
        if checkpoint.entries[stored].shape != shapes[name]:
            raise InputError(
                f"{stored!r} has shape {checkpoint.entries[stored].shape} in {checkpoint.directory}, and the config "
                f"gives {shapes[name]}"
            )
    return names


# --------------------------------------------------------------------------------------------------------- recording


@contextmanager
def recording(skeleton: Skeleton, checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[Recorder]:
    """A recorder of a model whose weights lie on disk."""
    undo = [
        _lazy(name, module, skeleton, checkpoint, dtype)
        for name, module in skeleton.model.named_modules()
        if not f"{name}.".startswith(tuple(f"{block}." for block in skeleton.blocks))
    ]
    try:
        with Recorder(skeleton.model, [skeleton[index] for index in range(len(skeleton))]) as recorder:
            yield recorder
    finally:
        for one in undo:
            one()


def _lazy(
    name: str, module: nn.Module, skeleton: Skeleton, checkpoint: Checkpoint, dtype: torch.dtype
) -> Callable[[], None]:
    """Have a module read its own tensors when it first runs; returns what takes them away again."""
    dot = f"{name}." if name else ""
    own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    stored = {local: skeleton.names[dot + local] for local in own if dot + local in skeleton.names}
    waiting = dict(stored)

    def fetch(_module: nn.Module, _inputs: Any) -> None:
        _load(module, waiting, checkpoint, dtype)
        waiting.clear()

    handle = module.register_forward_pre_hook(fetch)

    def undo() -> None:
        handle.remove()
        for local in stored:
            setattr(module, local, own[local])

    return undo
