"""Names become objects here, once: models, weights, data sets, functions. The recipe and the command line share it."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MissingExtraError, StoredFileError, UnknownNameError
from ..masks import PATTERNS

if TYPE_CHECKING:
    from ..data import DataSource

SCHEMES = (
    "zoo:NAME",
    "package.module:factory",
    "timm:NAME",
    "torchvision:NAME",
    "hf:PATH_OR_ID",
    "a directory that prunus.save wrote",
)


def build_model(name: str, kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """The model that a name stands for, as its factory makes it.

    Args:
        name: `zoo:NAME`, `package.module:factory`, `timm:NAME`, `torchvision:NAME`, `hf:PATH_OR_ID`, or a directory
            that `prunus.save` wrote.
        kwargs: passed to the factory.

    Raises:
        InputError: the name is of no known kind, or its factory failed or made something else than a module.
        MissingExtraError: timm, torchvision or transformers is not installed.
    """
    scheme, colon, rest = name.partition(":")
    if not colon or Path(name).is_dir():
        return _saved(name, kwargs or {})
    factory = _FACTORIES.get(scheme)
    make = (lambda: factory(rest, **(kwargs or {}))) if factory else (lambda: imported(name, "model")(**(kwargs or {})))
    try:
        model = make()
    except (InputError, MissingExtraError, StoredFileError):
        raise
    except Exception as error:
        raise InputError(
            f"model {name!r} with {dict(kwargs or {})} could not be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r} is a {type(model).__name__}: its factory must return a torch.nn.Module")
    return model


def imported(name: str, what: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; the working directory is importable too.

    Raises:
        InputError: there is no such module or no such function.
    """
    module_name, _, attribute = name.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(
            f"{what} {name!r}: known forms are {', '.join(SCHEMES) if what == 'model' else 'package.module:function'}"
        )
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{what} {name!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise InputError(f"{what} {name!r} is a {type(found).__name__}, not a function")
    return found


def weights_file(given: str, root: str | Path | None = None) -> Path:
    """The file that `weights` names: as given, else below the data folder.

    Raises:
        StoredFileError: it is not there, or of a kind that is never opened.
    """
    if Path(given).suffix != ".safetensors":
        raise StoredFileError(
            f"weights {given!r}: only .safetensors files are opened, because pickles (.pt, .pth, .bin) can run code; "
            "convert it with safetensors.torch.save_file(state_dict, path)"
        )
    from ..data import find_root

    path = Path(given).expanduser()
    if path.is_file():
        return path.resolve()
    below = find_root(root) / given
    if below.is_file():
        return below.resolve()
    raise StoredFileError(f"weights {given!r} not found: neither {path.absolute()} nor {below} is a file")


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the model from a safetensors file; only `num_batches_tracked` counters may be missing.

    Raises:
        StoredFileError: the file is damaged, names or shapes differ from the model's, or a value is not finite; the
            model is left as it was.
    """
    from ..zoo.pretrained import fill, read_tensors

    fill(model, read_tensors(path), f"weights {str(path)!r}")


def check_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Raise InputError naming the first tensors that hold NaN or infinity."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise InputError(f"{what}: NaN or infinite values in {', '.join(bad[:5])}: repair or retrain the model first")


# ------------------------------------------------------------------------------------------------- kinds of models


def _zoo(name: str, **kwargs: Any) -> nn.Module:
    from .. import zoo

    return zoo.build(name, **kwargs)


def _timm(name: str, **kwargs: Any) -> nn.Module:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise _edge("timm", "timm", f"model timm:{name}", error) from error
    return timm.create_model(name, **kwargs)


def _torchvision(name: str, **kwargs: Any) -> nn.Module:
    try:
        from torchvision.models import get_model  # pyright: ignore[reportMissingImports]
    except Exception as error:
        raise _edge("torchvision", "torchvision", f"model torchvision:{name}", error) from error
    return get_model(name, **kwargs)


def _hugging_face(name: str, *, auto: str = "", **kwargs: Any) -> nn.Module:
    """A model of transformers, of the class that its config names or of an auto class; a folder is read as it is, and
    only safetensors are opened."""
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except Exception as error:
        raise _edge("transformers", "prunus[transformers]", f"model hf:{name}", error) from error
    local = Path(name).is_dir()
    chosen = auto or (_architecture(Path(name), transformers) if local else "AutoModel")
    kind = getattr(transformers, chosen, None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise UnknownNameError.of("auto class", auto, [n for n in dir(transformers) if n.startswith("AutoModel")])
    if local and not any(Path(name).glob("*.safetensors")):
        raise StoredFileError(
            f"model hf:{name}: the folder holds no .safetensors file; pickles (.bin) are not opened, because they can "
            "run code: load it where you trust it and save it with save_pretrained"
        )
    return kind.from_pretrained(name, use_safetensors=True, **({"local_files_only": True} if local else {}), **kwargs)


def _architecture(folder: Path, transformers: Any) -> str:
    """The class that a saved config names, head included."""
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
    except (OSError, ValueError) as error:
        raise StoredFileError(f"model hf:{folder}: config.json cannot be read: {error}") from error
    return next((name for name in names if hasattr(transformers, name)), "AutoModel")


def _edge(package: str, install: str, purpose: str, error: Exception) -> MissingExtraError:
    if isinstance(error, ImportError):
        return MissingExtraError(f"{purpose} needs {package}, which is not installed: pip install '{install}'")
    return MissingExtraError(f"{purpose} needs {package}, which is installed but fails to import: {error}")


def _saved(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    if not Path(name).is_dir():
        raise InputError(f"model {name!r}: no such directory; known forms are {', '.join(SCHEMES)}")
    from ..surgery import load

    return load(name, **kwargs)


_FACTORIES: Mapping[str, Callable[..., nn.Module]] = {
    "zoo": _zoo,
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _hugging_face,
}


# --------------------------------------------------------------------------------------------------- example inputs

BATCH = 2
"""Samples in example inputs made from a shape: with one, the batch would look like a broadcast axis."""


def example_inputs(name: str, shape: tuple[int, ...] | None = None, data: str | None = None) -> Tensor:
    """Inputs to trace a named model with: real ones from data, else random ones of the shape that is given or known.

    Args:
        name: as for `build_model`.
        shape: of one sample.
        data: a data spec; its first training samples are taken.

    Raises:
        InputError: nothing tells the shape.
    """
    if data is not None:
        from ..data import load

        return next(iter(load(data).train.batches(BATCH)))[0]
    known = shape or _known_shape(name)
    if known is None:
        raise InputError(
            f"model {name!r}: nothing tells the shape of its inputs; give --input-shape, e.g. 3,224,224, or --data"
        )
    return torch.randn(BATCH, *known, generator=torch.Generator().manual_seed(0))


def _known_shape(name: str) -> tuple[int, ...] | None:
    scheme, _, rest = name.partition(":")
    if scheme == "zoo":
        from ..zoo import MODELS

        return MODELS[rest].input_shape if rest in MODELS else None
    if scheme in ("timm", "torchvision"):
        return (3, 224, 224)
    return _stored_shape(name) if Path(name).is_dir() else None


def _stored_shape(directory: str) -> tuple[int, ...] | None:
    """The shape that a saved model was traced with, for a single tensor."""
    from ..surgery import read_plans

    plans = read_plans(directory)
    tensors = list(plans[-1].inputs.tensors.values()) if plans else []
    return tensors[0][0][1:] if len(tensors) == 1 and tensors[0][1].startswith("float") else None


# --------------------------------------------------------------------------------------------------------------- data


def load_source(
    spec: str, limit: int | None = None, mean: str | None = None, std: str | None = None, seed: int = 0
) -> DataSource:
    """The data that a spec names, normalised by the comma-separated numbers where they are given."""
    from ..data import load

    source = load(spec, limit=limit, seed=seed)
    return source.normalised(_numbers("mean", mean), _numbers("std", std)) if mean and std else source


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{option} {text!r}: write numbers separated by commas, one per channel") from None


def factory_of(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How `prunus.save` is told to build the dense model; nothing for kinds of names that it does not know."""
    scheme, colon, _ = name.partition(":")
    if not colon or Path(name).is_dir() or scheme in ("timm", "torchvision", "hf"):
        return {}
    return {"factory": name, "arguments": dict(arguments)}


def criterion_named(name: str) -> str | Callable[..., Any]:
    """A criterion's name as it is, or the function that `package.module:function` names."""
    return function_named(name, "criterion")


def function_named(name: str, what: str) -> str | Callable[..., Any]:
    """A name as it is, or the function that `package.module:function` names; `what` it is for messages."""
    return imported(name, what) if ":" in name else name


def pattern_named(text: str) -> str | Callable[..., Any]:
    """A pattern as `sparsify` reads it ("2:4", "column_balanced:4x1"), or the function that `package.module:function`
    names."""
    package, colon, _ = text.partition(":")
    if not colon or package.isdigit() or package in PATTERNS:
        return text
    return imported(text, "pattern")
