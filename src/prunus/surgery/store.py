"""Save a cut or masked model as data and load it again: safetensors for weights, JSON for the rest, nothing pickled.

A folder holds `model.safetensors` (every parameter and buffer), `plan.json` (the plans of all rounds of pruning, oldest
first) and `manifest.json` (versions, checksums, and how to build the dense model). Loading builds the dense model,
replays the plans on it and puts the weights in.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import __version__
from ..errors import InputError, StoredFileError, SurgeryError
from ..masks import attach, detach, gradient_of, masks_of
from ..types import Plan
from . import tensors
from .cut import apply, plans_of
from .files import CONVERT, PICKLES, check_file, check_writable, read_weights, replace_folder, sha256
from .serialise import from_json, to_json

FORMAT = "prunus.model/1"

_MASK = re.compile(r"(.*\.|)parametrizations\.(\w+)\.0\.mask")

WEIGHTS, PLAN_FILE, MANIFEST = "model.safetensors", "plan.json", "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What is in a saved folder, and how to build the dense model that its plans start from.

    `tied` maps further names of a tensor to the one under which it is stored, `masks` the names of masked tensors to
    the kind of gradient under their masks; the masks themselves stand among the weights. `factory` is "zoo:NAME",
    "package.module:function" or "" when the dense model has to be given. `parameters` and `bytes` are those of the
    stored model, `macs` those of its last plan (None without plans).
    """

    class_name: str
    factory: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    bytes: int = 0
    macs: int | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    format: str = FORMAT
    prunus: str = __version__
    torch: str = str(torch.__version__)


def save(
    model_or_result: Any,
    directory: str | Path,
    *,
    factory: str = "",
    arguments: Mapping[str, Any] | None = None,
    plans: Sequence[Plan] | None = None,
) -> Path:
    """Write a model and the plans that made it to a folder, whole or not at all.

    Args:
        model_or_result: a module, or the result of `prunus.prune` or `prunus.sparsify`. Masks that it wears are kept.
        directory: made if needed. A folder that `save` wrote earlier is replaced in one step; other files in it stay.
        factory: how to build the dense model, so that `load(directory)` needs no model: "zoo:resnet56" or
            "package.module:function".
        arguments: keywords of the factory; plain JSON data.
        plans: the plans that led from the dense model to this one, oldest first. Default: those the model remembers.

    Returns:
        The folder's absolute path.

    Raises:
        InputError: the folder cannot be written or belongs to something else, a tensor cannot be stored, or `arguments`
            are no JSON data. Raised before anything is written.
    """
    path = check_writable(directory)
    check_writable(path.parent)  # where the new folder is written before it takes the old one's place
    _check_target(path)
    model = model_or_result if isinstance(model_or_result, nn.Module) else getattr(model_or_result, "model", None)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"save: expected a module or a result of prunus.prune or sparsify, got {type(model_or_result).__name__}"
        )
    chosen = plans_of(model) if plans is None else tuple(plans)
    stored, tied = _tensors_to_store(model)
    manifest = {
        "class_name": _class_name(model),
        "masks": {name: gradient_of(model, name) for name in masks_of(model)},
        "factory": _checked_factory(factory),
        "arguments": _checked_arguments(arguments or {}),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in stored.values()),
        "macs": chosen[-1].after.macs if chosen else None,
        "tied": tied,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        _write(temporary, stored, chosen, manifest)
        replace_folder(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def load(directory: str | Path, model: nn.Module | None = None, *, trust_factory: bool = False) -> Any:
    """The model that `save` wrote: dense model, plans replayed, weights put in.

    Args:
        directory: the folder.
        model: the dense model, of the architecture that was pruned; its weights do not matter and it is not changed. It
            may lie on the meta device. Without it the manifest's factory builds it.
        trust_factory: allow the manifest's factory to be any function that can be imported ("package.module:function").
            Off by default, since a folder from elsewhere could name any function. The zoo's are always allowed.

    Returns:
        A module of the same class as the dense one, with the stored dtypes, on the device of `model`; it wears the
        masks that it was saved with.

    Raises:
        StoredFileError: a file is missing, cut short, changed, a pickle, or of another format.
        InputError: there is no factory, or it may not be called, and no model was given.
        SurgeryError: the plans or weights do not fit the dense model.
    """
    path = Path(directory).expanduser()
    manifest = read_manifest(path)
    for name in (WEIGHTS, PLAN_FILE):
        check_file(path / name, manifest.files.get(name, {}))
    plans = read_plans(path)
    weights = read_weights(path / WEIGHTS)
    dense: nn.Module = _build(path, manifest, trust_factory) if model is None else model
    for plan in plans:
        worn = _masks_cut_by(plan) - masks_of(dense).keys()
        dense = _masked(dense, {name: manifest.masks.get(name, "zero") for name in worn}, path) if worn else dense
        dense = apply(dense, plan, verify=False)
    if plans and masks_of(dense).keys() - manifest.masks.keys():
        dense = detach(dense)  # finalized after the last plan
    if manifest.masks.keys() - masks_of(dense).keys():
        dense = _masked(dense, manifest.masks, path)
    return _filled(dense, weights, manifest.tied, path)


def read_manifest(directory: str | Path) -> Manifest:
    """What is in a saved folder, checked for damage.

    Raises:
        StoredFileError: no folder that `save` wrote, or its manifest was changed.
    """
    path = Path(directory).expanduser()
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise StoredFileError(f"{path} is not opened: {CONVERT}")
    file = path / MANIFEST
    if not file.is_file():
        what = "is a file" if path.is_file() else "does not exist" if not path.exists() else f"holds no {MANIFEST}"
        raise StoredFileError(f"{path} {what}; expected a folder that prunus.save wrote")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        noted = data.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoredFileError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    if data.get("format") != FORMAT:
        raise StoredFileError(f"{file} has the format {data.get('format')!r}; this version of prunus reads {FORMAT!r}")
    if _digest(data) != noted:
        raise StoredFileError(
            f"{file} was changed after it was saved: its sha256 is {_digest(data)}, it says {noted}. "
            "Restore it from a copy or save it again"
        )
    try:
        return Manifest(**data)
    except TypeError as error:
        raise StoredFileError(f"{file} is damaged: {error}") from error


def read_plans(directory: str | Path) -> tuple[Plan, ...]:
    """The plans in a saved folder, oldest first.

    Raises:
        StoredFileError: the file is missing or malformed.
    """
    file = Path(directory).expanduser() / PLAN_FILE
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoredFileError(f"{file} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise StoredFileError(f"{file} is not a list of plans")
    return tuple(from_json(json.dumps(entry), source=f"{file}, plan {i}") for i, entry in enumerate(entries))


# -------------------------------------------------------------------------------------------------------------- save


def _check_target(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise InputError(f"save: {str(path)!r} holds other files and nothing of prunus; give a new or empty folder")


def _tensors_to_store(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, on the CPU, and the further names of tied ones."""
    stored: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.named_tensors(model).items():
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
            continue
        if tensor.device.type == "meta":
            raise InputError(f"save: {name!r} has no values (meta device): load the weights first")
        if tensor.is_quantized or tensor.layout is not torch.strided:
            raise InputError(f"save: {name!r} is quantised or sparse: call .dequantize() or .to_dense() on it first")
        first[id(tensor)] = name
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    for name in model.state_dict():
        if name.endswith("_extra_state"):
            raise InputError(
                f"save: {name!r} is state outside tensors (get_extra_state), which cannot be stored safely"
            )
    return stored, tied


def _class_name(model: nn.Module) -> str:
    kind = parametrize.type_before_parametrizations(model)
    return f"{kind.__module__}.{kind.__qualname__}"


def _checked_factory(factory: str) -> str:
    if factory:
        _split(factory)
    return factory


def _checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        copied = json.loads(json.dumps(dict(arguments)))
    except (TypeError, ValueError) as error:
        raise InputError(f"save: arguments={arguments!r} must be plain JSON data: {error}") from error
    return copied


def _write(folder: Path, stored: dict[str, Tensor], plans: Sequence[Plan], manifest: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(stored, folder / WEIGHTS)
    text = "[\n" + ",\n".join(to_json(plan) for plan in plans) + "\n]\n"
    (folder / PLAN_FILE).write_text(text, encoding="utf-8")
    (folder / WEIGHTS).chmod(
        (folder / PLAN_FILE).stat().st_mode
    )  # safetensors makes files that only the owner can read
    names = (WEIGHTS, PLAN_FILE)
    files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    data = asdict(Manifest(**manifest, files=files))
    (folder / MANIFEST).write_text(json.dumps({**data, "sha256": _digest(data)}, indent=2) + "\n", encoding="utf-8")
    folder.chmod(0o755)  # mkdtemp makes folders that only the owner can read


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------- load


def _split(factory: str) -> tuple[str, str]:
    module, colon, name = factory.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"factory={factory!r} must be 'zoo:NAME' or 'package.module:function'")
    return module, name


def _build(path: Path, manifest: Manifest, trusted: bool) -> nn.Module:
    if not manifest.factory:
        raise InputError(
            f"load: {path} does not say how to build the dense {manifest.class_name}: pass it as model=, or save with "
            "factory="
        )
    module, name = _split(manifest.factory)
    if module == "zoo":
        from ..zoo import build

        return build(name, **manifest.arguments)
    if not trusted:
        raise InputError(
            f"load: {path} asks to call {manifest.factory!r} to build the dense model. If you trust the folder, pass "
            "trust_factory=True; or build the model yourself and pass it as model="
        )
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"load: the factory {manifest.factory!r} cannot be imported: {error}; pass model=") from error
    model = found(**manifest.arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"load: the factory {manifest.factory!r} returned a {type(model).__name__}, not a module")
    return model


def _masks_cut_by(plan: Plan) -> set[str]:
    """Tensors that wore a mask when the plan was made."""
    found = (_MASK.fullmatch(cut.tensor) for cut in plan.tensors)
    return {match[1] + match[2] for match in found if match is not None}


def _masked(model: nn.Module, masks: Mapping[str, str], path: Path) -> nn.Module:
    """A copy of the model with masks of ones, whose values are among the weights."""
    model = tensors.copy_with(model, lambda _: None)
    for name, gradient in masks.items():
        tensor = tensors.find(model, name)
        try:
            attach(model, {name: torch.ones(tensor.shape, dtype=torch.bool)}, gradient)  # type: ignore[arg-type]
        except InputError as error:
            raise SurgeryError(f"the masks in {path} do not fit the dense model: {error}") from error
    return model


def _filled(dense: nn.Module, weights: Mapping[str, Tensor], tied: Mapping[str, str], path: Path) -> nn.Module:
    """A copy of the model with every tensor replaced by the stored one, whose dtype it takes."""
    stored = {**weights, **{name: weights[first] for name, first in tied.items() if first in weights}}
    dense = _with_biases(dense, stored)
    named = tensors.named_tensors(dense)
    problems = [
        *(f"the folder has no {name}" for name in named.keys() - stored.keys()),
        *(f"the model has no {name}" for name in stored.keys() - named.keys()),
        *(
            f"{name} is {tuple(tensor.shape)} in the model and {tuple(stored[name].shape)} in the folder"
            for name, tensor in named.items()
            if name in stored and stored[name].shape != tensor.shape
        ),
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise SurgeryError(
            f"the weights in {path} do not fit the dense model after its plans: "
            f"{'; '.join(sorted(problems)[:5])}{more}. Pass the dense model of the same architecture and size"
        )
    by_id = {id(tensor): stored[name] for name, tensor in named.items()}
    return tensors.copy_with(dense, lambda old: _take(old, by_id.get(id(old))))


def _with_biases(dense: nn.Module, stored: Mapping[str, Tensor]) -> nn.Module:
    """The model, or a copy that has the stored biases that it lacks: pruning may have made up for what it removed."""
    modules = dict(dense.named_modules())
    new = {
        name: tensor
        for name, tensor in stored.items()
        for module in [modules.get(name.rpartition(".")[0])]
        if name.rpartition(".")[2] == "bias"
        and module is not None
        and module._parameters.get("bias", tensor) is None
        and tensor.shape == (getattr(module, "out_features", getattr(module, "out_channels", None)),)
    }
    if not new:
        return dense
    copy = tensors.copy_with(dense, lambda _: None)
    for name, tensor in new.items():
        copy.get_submodule(name.rpartition(".")[0]).register_parameter("bias", nn.Parameter(torch.empty_like(tensor)))
    return copy


def _take(old: Tensor, new: Tensor | None) -> Tensor | None:
    if new is None:
        return None
    device = "cpu" if old.device.type == "meta" else old.device
    return tensors.converted(old, lambda _: new.to(device))
