"""What the verbs do with a checkpoint of transformers: a folder that `hf:DIR` names."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

Calibration = Annotated[
    str | None,
    typer.Option(help="text:FILE: plain text that a checkpoint hf:DIR is calibrated on.", rich_help_panel="hf:DIR"),
]
Samples = Annotated[int, typer.Option(help="Calibration sequences.", min=1, rich_help_panel="hf:DIR")]
Length = Annotated[
    int | None,
    typer.Option(help="Tokens in each; default 512, or what the model can take.", min=2, rich_help_panel="hf:DIR"),
]
MaxRam = Annotated[
    str | None,
    typer.Option(
        help="Memory, such as 6GB: the checkpoint is pruned on disk, block by block.", rich_help_panel="hf:DIR"
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with a run on disk that was broken off.", rich_help_panel="hf:DIR")
]
Device = Annotated[str, typer.Option(help="cpu or cuda: where blocks are run.", rich_help_panel="hf:DIR")]

DEFAULT_LENGTH = 512


@dataclass(frozen=True, slots=True)
class OnDisk:
    """How a checkpoint is pruned on disk; see the options of the verbs."""

    calibration: str | None = None
    samples: int = 128
    length: int | None = None
    max_ram: str | None = None
    resume: bool = False
    device: str = "cpu"

    def machine(self) -> Any:
        """Where and how blocks are run."""
        from ..language import Machine

        return Machine(device=self.device, max_ram=self.max_ram)

    def tokens(self, folder: Path) -> Tensor | None:
        """(samples, length) ids of the calibration text; None without one."""
        return None if self.calibration is None else tokens_of(folder, self.calibration, self.samples, self.length)

    def check(self, out: Path) -> None:
        """Raise where the folder holds a run that nobody asked to go on with, or none to go on with."""
        from ..language.manifest import FILE

        begun = (out / FILE).is_file()
        if begun and not self.resume:
            raise InputError(f"--out {out} holds a run that was begun: add --resume to go on with it, or give another")
        if self.resume and not begun:
            raise InputError(f"--resume: {out} holds no run that was begun; leave --resume out to start one")


def checkpoint_folder(model: str) -> Path | None:
    """The folder of a checkpoint that `hf:DIR` names; None for everything else."""
    scheme, colon, rest = model.partition(":")
    folder = Path(rest).expanduser()
    return folder if colon and scheme == "hf" and folder.is_dir() else None


def text_file(spec: str, option: str) -> Path:
    """The file of `text:FILE`, or of a plain path.

    Raises:
        InputError: another kind of data, or no such file.
    """
    scheme, colon, rest = spec.partition(":")
    path = Path(rest if colon and scheme == "text" else spec).expanduser()
    if not path.is_file():
        raise InputError(f"{option} {spec!r}: no such file; write text:FILE with a plain text file")
    return path


def tokens_of(folder: Path, spec: str, samples: int, length: int | None) -> Tensor:
    """(samples, length) ids of a text by the checkpoint's own tokenizer."""
    from ..language import calibration_tokens

    file = text_file(spec, "--calibration")
    return calibration_tokens(folder, file, samples, length or min(DEFAULT_LENGTH, longest(folder)))


def longest(folder: Path) -> int:
    """Tokens that the config says the model can take."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return DEFAULT_LENGTH
    found = [config.get(name) for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")]
    return next((size for size in found if isinstance(size, int) and size > 1), DEFAULT_LENGTH)


# ------------------------------------------------------------------------------------------------------------ in memory


def example_ids(model: nn.Module) -> Tensor | None:
    """Token ids to trace a language model with; None for models without a vocabulary."""
    import torch

    config: Any = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        return None
    length = min(16, getattr(config, "max_position_embeddings", None) or 16)
    return torch.arange(2 * length).reshape(2, length) % size


def next_tokens(ids: Tensor, batch: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of (ids, the tokens that follow each one)."""
    import torch

    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    return list(zip(ids.split(batch), targets.split(batch)))


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when nothing was raised.

    Raises:
        InputError: `out` holds files.
    """
    from ..surgery.files import check_writable, replace_folder

    path = check_new(out)
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        yield temporary
        replace_folder(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(out: Path) -> Path:
    """The absolute path of a folder that can be made or is empty."""
    from ..surgery.files import check_writable

    path = check_writable(out)
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"--out {out} holds files; give a new or empty folder")
    return path


def save_pretrained(model: nn.Module, source: Path, folder: Path, extra: Mapping[str, Any]) -> None:
    """Model, what lies beside the weights of the checkpoint that it comes from, and some JSON files."""
    from ..language.writer import WEIGHTS

    for file in sorted(source.iterdir()):
        kept = file.suffix.lower() not in WEIGHTS and not file.name.endswith(".index.json") and ".bin." not in file.name
        if file.is_file() and kept:
            shutil.copyfile(file, folder / file.name)
    model.save_pretrained(folder)  # type: ignore[operator]
    for name, data in extra.items():
        (folder / name).write_text(data if isinstance(data, str) else json.dumps(data, indent=1), encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------- on disk


def sparsify_on_disk(
    folder: Path, out: Path, wanted: Mapping[str, Any], how: OnDisk, say: Callable[[str], None]
) -> dict[str, Any]:
    """`prunus.language.stream`, and its result as JSON data.

    Args:
        folder: of the checkpoint.
        out: of the result.
        wanted: method, sparsity, pattern, keep, allocation.
        how: tokens and memory.
        say: takes plan and progress.
    """
    from ..language import BlockOptions, stream
    from ..language.allocation import rule_of

    how.check(out)
    options = BlockOptions(wanted["method"], wanted["sparsity"], wanted["pattern"], keep=tuple(wanted["keep"]))
    options.target  # noqa: B018 - reading it checks it
    rule = rule_of(wanted["allocation"], wanted["sparsity"])
    done = stream(folder, how.tokens(folder), out, options, rule=rule, machine=how.machine(), say=say)
    weights = [weight for block in done.blocks for weight in block["weights"]]
    return {
        "directory": str(done.directory),
        "criterion": wanted["method"],
        "sparsity": done.zeros / max(1, done.parameters),
        "zeros": done.zeros,
        "pruned_parameters": done.parameters,
        "blocks": [_of_block(number, block) for number, block in enumerate(done.blocks)],
        "left": [refusal for block in done.blocks for refusal in block["left"]],
        "worst": max(weights, key=lambda weight: weight["error"] or 0.0, default=None),
        "resumed_at_block": done.resumed,
        "plan": {"memory": done.plan.peak, "disk": done.plan.disk, "seconds": done.plan.seconds},
        "loads_with": "from_pretrained",
    }


def _of_block(number: int, block: Mapping[str, Any]) -> dict[str, Any]:
    errors = [weight["error"] for weight in block["weights"] if weight["error"] is not None]
    entries = sum(weight["entries"] for weight in block["weights"])
    return {
        "block": number,
        "file": block["file"],
        "sparsity": sum(weight["zeros"] for weight in block["weights"]) / max(1, entries),
        "mean_error": sum(errors) / len(errors) if errors else None,
    }


def prune_on_disk(
    folder: Path, out: Path, wanted: Mapping[str, Any], how: OnDisk, say: Callable[[str], None]
) -> dict[str, Any]:
    """`prunus.language.cut_checkpoint`, and its result as JSON data.

    Args:
        folder, out, how, say: as in `sparsify_on_disk`.
        wanted: fields of `prunus.language.Structure`.
    """
    from ..language import Structure, cut_checkpoint

    how.check(out)
    done = cut_checkpoint(folder, out, Structure(**wanted), how.tokens(folder), machine=how.machine(), say=say)
    return {
        "directory": str(done.directory),
        "before": {"parameters": done.before},
        "after": {"parameters": done.after},
        "depth": list(done.removed),
        "groups": [{"group": name, "before": a, "after": b} for name, (a, b) in done.widths.items()],
        "resumed_at_block": done.resumed,
        "plan": {"memory": done.plan.peak, "disk": done.plan.disk, "seconds": done.plan.seconds},
        "loads_with": "from_pretrained",
    }
