"""Trained weights for networks of the zoo, from safetensors files in the data folder. Pickles are never opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..data.root import find_root
from ..errors import StoredFileError, UnknownNameError
from .models import MODELS, build

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

PICKLES = frozenset({".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".tar", ".th", ".bin"})


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Trained weights.

    Attributes:
        model: Key of `zoo.MODELS`.
        file: Path below the data folder.
        normalisation: (mean, std) of the inputs that the network was trained with, in units of [0, 1] pixels;
            `DataSource.normalised(*normalisation)` gives it such inputs.
        accuracy: Share of the 10,000 CIFAR-10 test images that it gets right.
        renamed: Prefixes of the file's names -> those of the network.
        source: Who trained it, and the licence.
    """

    model: str
    file: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    accuracy: float
    source: str
    renamed: tuple[tuple[str, str], ...] = ()


_AKAMASTER = "akamaster/pytorch_resnet_cifar10, BSD-2-Clause"
_DISTILLER = "IntelLabs/distiller, Apache-2.0"
_FC = (("fc.", "linear."),)

PRETRAINED: Mapping[str, Pretrained] = {
    "resnet20": Pretrained("resnet20", "pretrained_cifar10/resnet20.safetensors", IMAGENET, 0.9169, _AKAMASTER),
    "resnet44": Pretrained("resnet44", "pretrained_cifar10/resnet44.safetensors", IMAGENET, 0.9310, _AKAMASTER),
    "resnet56": Pretrained("resnet56", "pretrained_cifar10/resnet56.safetensors", IMAGENET, 0.9335, _AKAMASTER),
    "resnet20_b": Pretrained(
        "resnet20_b", "pretrained_cifar10/resnet20_b_dense.safetensors", HALF, 0.9168, _DISTILLER, _FC
    ),
    "resnet20_b_group_lasso": Pretrained(
        "resnet20_b", "pretrained_cifar10/resnet20_b_group_lasso.safetensors", HALF, 0.9080, _DISTILLER, _FC
    ),
}


def weights(name: str, path: str | Path | None = None) -> dict[str, Tensor]:
    """The trained tensors of `name`, under the network's own names.

    Args:
        name: Key of PRETRAINED, or with a `path` also of `zoo.MODELS`.
        path: A .safetensors file, or a data folder; default the data folder that `data.find_root` finds.

    Raises:
        UnknownNameError: There are no such weights.
        StoredFileError: The file is missing, damaged, or a pickle.
    """
    known = PRETRAINED.get(name)
    if known is None and (path is None or Path(path).is_dir() or name not in MODELS):
        raise UnknownNameError.of("pretrained network", name, PRETRAINED)
    if known is not None and (path is None or Path(path).is_dir()):
        path = find_root(path) / known.file
    tensors = read_tensors(Path(path or ""))
    for old, new in known.renamed if known else ():
        tensors = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in tensors.items()}
    return tensors


def load_pretrained(name: str, path: str | Path | None = None) -> nn.Module:
    """A network of the zoo with trained weights, in evaluation mode.

    Its inputs must be normalised as `PRETRAINED[name].normalisation` says.

    Args:
        name, path: As for `weights`.

    Raises:
        StoredFileError: Besides what `weights` raises, names or shapes of the tensors are not the network's. Only the
            `num_batches_tracked` of batch norms may be missing.
    """
    model = build(PRETRAINED[name].model if name in PRETRAINED else name)
    fill(model, weights(name, path), f"the weights given for {name!r}")
    return model.eval()


def fill(model: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into a model's parameters and buffers, all or none.

    Args:
        model: Any module.
        tensors: By the model's own names; only the `num_batches_tracked` of batch norms may be missing.
        what: How an error calls the tensors.

    Raises:
        StoredFileError: Names or shapes are not the model's, or a value is NaN or infinite. The model is as it was.
    """
    own = model.state_dict()
    shared = [k for k in own if k in tensors]
    wrong = [k for k in shared if tensors[k].shape != own[k].shape]
    complaints = {
        "lack": [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")],
        "hold unknown": [k for k in tensors if k not in own],
        "have wrong shapes:": [f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}" for k in wrong],
        "hold NaN or infinite values in": [k for k in shared if not bool(tensors[k].isfinite().all())],
    }
    for complaint, names in complaints.items():
        if names:
            some = ", ".join(names[:4]) + (" ..." if names[4:] else "")
            raise StoredFileError(f"{what} {complaint} {some}; give the weights of this very network")
    model.load_state_dict(dict(tensors), strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        StoredFileError: The file is missing, damaged, or a pickle.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix.lower() in PICKLES:
        raise StoredFileError(
            f"{path} looks like a pickle, which can run any code when it is opened, so it never is. Where you "
            f"trust it, "
            "convert it once: safetensors.torch.save_file(torch.load(PATH, weights_only=True), 'weights.safetensors'), "
            "and give that file"
        )
    if not path.is_file():
        raise StoredFileError(f"{path} does not exist; give a .safetensors file, or set PRUNUS_DATA to the data folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise StoredFileError(f"{path} is no readable safetensors file ({error}); fetch or write it again") from error
