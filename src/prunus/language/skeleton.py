"""A language model without weights: its class on the meta device, its repeated blocks, and how they are called.

Nothing is known here about families. The blocks are the repeated children of one `nn.ModuleList`; how the model calls
them (positions, masks, rotary tables) is recorded from its own forward pass, with the blocks replaced by recorders. Of
what lies outside the blocks only that is read which runs before them. A model that does more between its blocks than
hand the hidden states on is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from ..errors import InputError, MissingExtraError, StoredFileError
from .checkpoint import CONFIG, Checkpoint

HIDDEN = "hidden_states"


@dataclass(frozen=True)
class Call:
    """How a block is called, hidden states apart: they stand first, or are the keyword of that name.

    Attributes:
        args: positional arguments after the hidden states.
        kwargs: keywords.
        keyword: the hidden states are given as a keyword.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyword: bool = False

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The hidden states that the block makes from (batch, length, hidden)."""
        kwargs = {**self.kwargs, **({HIDDEN: hidden} if self.keyword else {})}
        return hidden_of(block(*(() if self.keyword else (hidden,)), *self.args, **kwargs))

    def to(self, device: torch.device | str) -> Call:
        """The same with its tensors elsewhere."""
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), (self.args, dict(self.kwargs)))
        return Call(args, kwargs, self.keyword)

    def same(self, other: Call) -> bool:
        """Whether both give a block the same: equal tensors, equal other values."""
        (mine, shape), (theirs, its) = (tree_flatten((one.args, dict(one.kwargs))) for one in (self, other))
        return shape == its and self.keyword == other.keyword and all(map(_equal, mine, theirs))


def _equal(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, Tensor) or isinstance(theirs, Tensor):
        return mine is theirs or (
            isinstance(mine, Tensor)
            and isinstance(theirs, Tensor)
            and mine.shape == theirs.shape
            and torch.equal(mine, theirs)
        )
    return type(mine) is type(theirs) and (mine is theirs or mine == theirs)


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns: itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise InputError(f"a block returned {type(first).__name__}, not hidden states")
    return first


@dataclass
class Skeleton:
    """The model on the meta device.

    Attributes:
        model: parameters are on the meta device, buffers that no checkpoint holds have their values.
        blocks: name of the list of blocks ("model.layers").
        names: parameter or buffer of the model -> its name in the checkpoint.
    """

    model: nn.Module
    blocks: str
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.list)

    @property
    def list(self) -> nn.ModuleList:
        """The blocks, without weights."""
        found = self.model.get_submodule(self.blocks)
        assert isinstance(found, nn.ModuleList)
        return found

    def tensors(self, index: int) -> dict[str, str]:
        """Local name -> name in the checkpoint, of everything that block `index` stores."""
        start = f"{self.blocks}.{index}."
        return {name.removeprefix(start): stored for name, stored in self.names.items() if name.startswith(start)}

    def outside(self) -> dict[str, str]:
        """Name -> name in the checkpoint, of everything that no block stores."""
        return {name: stored for name, stored in self.names.items() if not name.startswith(f"{self.blocks}.")}

    def held(self) -> int:
        """Bytes of the parameters that have values now."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if not p.is_meta)

    def block(self, index: int, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
        """A copy of one block with its weights, in evaluation mode."""
        made = copy.deepcopy(self.list[index])
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
    model = _on_meta(checkpoint)
    blocks = find_blocks(model)
    return Skeleton(model, blocks, _stored_names(model, blocks, checkpoint))


def _on_meta(checkpoint: Checkpoint) -> nn.Module:
    file = checkpoint.directory / CONFIG
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
    config = kind.config_class.from_pretrained(checkpoint.directory)
    with init_empty_weights(include_buffers=False), _without_initialisation():
        return kind(config).eval()


def _without_initialisation() -> Any:
    try:
        from transformers.initialization import no_init_weights  # pyright: ignore[reportMissingImports]
    except ImportError:
        return nullcontext()
    return no_init_weights()


def find_blocks(model: nn.Module) -> str:
    """Name of the `nn.ModuleList` of repeated blocks: of one class, two or more, with most of the model's parameters.

    Raises:
        InputError: there is none, or there are two stacks (an encoder and a decoder).

    >>> stack = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    >>> find_blocks(nn.ModuleDict({"embed": nn.Embedding(5, 4), "layers": stack}))
    'layers'
    """
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in sizes):
            continue
        size = sum(parameter.numel() for parameter in module.parameters())
        if len(module) >= 2 and len({type(child) for child in module}) == 1 and size:
            sizes[name] = size
    if not sizes:
        raise InputError(
            f"{type(model).__name__} has no list of two or more blocks of one class, so it cannot be pruned block by "
            "block; load it whole and use prunus.sparsify"
        )
    largest = max(sizes, key=lambda name: sizes[name])
    others = [name for name in sizes if name != largest and sizes[name] > sizes[largest] / 4]
    if others:
        raise InputError(
            f"{type(model).__name__} has several stacks of blocks ({', '.join([largest, *others])}), which are not one "
            "chain; load it whole and use prunus.sparsify"
        )
    return largest


def _stored_names(model: nn.Module, blocks: str, checkpoint: Checkpoint) -> dict[str, str]:
    """The name in the checkpoint of each tensor of the model; a tied one outside the blocks may be missing there."""
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    absent: list[str] = []
    parameters = {name for name, _ in model.named_parameters()}
    for name in model.state_dict():
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        stored = next((one for one in candidates if one in checkpoint.entries), None)
        if stored is not None:
            names[name] = stored
        elif name.startswith(f"{blocks}.") and name in parameters:
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


class _Reached(Exception):
    """Ends a forward pass at the last block."""


@contextmanager
def recording(skeleton: Skeleton, checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[Recorder]:
    """A recorder of a model whose weights lie on disk."""
    undo = [
        _lazy(name, module, skeleton, checkpoint, dtype)
        for name, module in skeleton.model.named_modules()
        if not f"{name}.".startswith(f"{skeleton.blocks}.")
    ]
    try:
        with Recorder(skeleton.model, skeleton.list) as recorder:
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


class Recorder:
    """Runs a model up to its blocks and notes how each is called; a context, inside which the blocks are replaced.

    Attributes:
        calls: of each block, the same for all inputs; an input that would change them is refused.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        self.model, self.blocks = model, list(blocks)
        self.calls: list[Call] = []
        self._seen: list[Call] = []
        self._first: Tensor | None = None
        self._last: Tensor | None = None
        self._form: Any = None
        self._config: Any = getattr(model, "config", None)
        self._caching: bool | None = None

    def __enter__(self) -> Recorder:
        self._caching = getattr(self._config, "use_cache", None)
        if self._caching is not None:
            self._config.use_cache = False  # a cache would be one more thing that a block is called with
        for index, block in enumerate(self.blocks):
            block.forward = MethodType(lambda _self, *args, _at=index, **kwargs: self._record(_at, args, kwargs), block)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._caching is not None:
            self._config.use_cache = self._caching
        for block in self.blocks:
            vars(block).pop("forward", None)

    def __call__(self, ids: Tensor) -> Tensor:
        """The hidden states (batch, length, hidden) that reach the first block.

        Args:
            ids: (batch, length) token ids, without padding.

        Raises:
            InputError: the model does more between its blocks than hand the hidden states on, or calls them
                differently from one input to the next.
        """
        self._seen, self._first, self._last = [], None, None
        try:
            with torch.no_grad():
                self.model(input_ids=ids)
        except _Reached:
            pass
        if len(self._seen) != len(self.blocks) or self._first is None:
            raise self._refused(f"called {len(self._seen)} of its {len(self.blocks)} blocks")
        if not self.calls:
            self.calls = self._seen
        for index, (before, now) in enumerate(zip(self.calls, self._seen)):
            if not before.same(now):
                raise self._refused(f"calls block {index} with arguments that depend on the text")
        return self._first

    def _record(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        keyword = not args
        hidden = kwargs.pop(HIDDEN, None) if keyword else args[0]
        if not isinstance(hidden, Tensor) or hidden.dim() != 3:
            raise self._refused(f"calls block {index} without hidden states (batch, length, hidden)")
        if index != len(self._seen) or (index > 0 and hidden is not self._last):
            raise self._refused(f"does more before block {index} than hand the hidden states on")
        call = Call(args[1:], kwargs, keyword)
        self._seen.append(call)
        if index == 0:
            self._first = hidden
            if self._form is None:
                self._form = self._returned(self.blocks[0], call, hidden)
        if index == len(self.blocks) - 1:
            raise _Reached
        self._last = hidden.clone()  # an object of its own, so that the next block's input can be recognised
        return self._form(self._last)

    def _returned(self, block: nn.Module, call: Call, hidden: Tensor) -> Any:
        """How the block hands hidden states back: tried on the meta device."""
        trial = copy.deepcopy(block)
        vars(trial).pop("forward", None)
        output = trial.to("meta")
        moved = call.to("meta")
        kwargs = {**moved.kwargs, **({HIDDEN: hidden.to("meta")} if call.keyword else {})}
        output = trial(*(() if call.keyword else (hidden.to("meta"),)), *moved.args, **kwargs)
        if isinstance(output, tuple):
            return lambda given: (given, *output[1:])
        return lambda given: given

    def _refused(self, what: str) -> InputError:
        return InputError(
            f"{type(self.model).__name__} {what}, so it cannot be pruned block by block; load it whole and use "
            "prunus.sparsify"
        )
