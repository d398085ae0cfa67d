"""`prunus vocabulary`: a language model without the tokens that a corpus does not need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import check_new, checkpoint_folder, example_ids, save_pretrained, text_file, written
from .models import Named
from .options import Json, Keywords
from .output import Output, table

MAP = "token_map.json"


def vocabulary(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="hf:DIR, a checkpoint with its tokenizer.")],
    corpus: Annotated[
        list[str], typer.Option("--corpus", help="A plain text file whose tokens stay; repeat it.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the smaller model.", show_default=False)],
    min_count: Annotated[int, typer.Option(help="Tokens that occur as often stay.", min=1)] = 1,
    kwarg: Keywords = None,
    json: Json = False,
) -> None:
    """Keep the tokens of a corpus, the special ones, and what the tokenizer needs to make them.

    Writes the model, its tokenizer with the new ids, and token_map.json (old id to new id). Texts of tokens that stay
    get the same outputs as before.

    Example: prunus vocabulary hf:models/bert --corpus train.txt --out small
    """
    from transformers import AutoTokenizer

    from ..errors import InputError
    from ..language import needed_ids, smaller_tokenizer, token_counts
    from ..surgery import prune_vocabulary
    from ..surgery.vocabulary import special_ids

    speak = Output(json)
    folder = checkpoint_folder(model)
    if folder is None:
        raise InputError(f"model {model!r}: write hf:DIR with a folder that save_pretrained wrote, tokenizer included")
    files = [text_file(one, "--corpus") for one in corpus]
    check_new(out)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    speak.say(f"prunus vocabulary: {model} to the tokens of {', '.join(map(str, files))}, verified, into {out}")
    dense = Named(model, None, kwarg).model()
    counts = token_counts(tokenizer, _lines(files))
    size = int(dense.config.vocab_size)  # type: ignore[union-attr,arg-type] # pyright: ignore[reportArgumentType,reportAttributeAccessIssue]
    also = {one for one in special_ids(dense) if one < size}
    keep = [one for one in needed_ids(tokenizer, counts, min_count=min_count, also=also) if one < size]
    result = prune_vocabulary(dense, keep, example_ids(dense))
    with written(out) as temporary:
        mapping = {str(old): new for old, new in result.token_map.items()}
        save_pretrained(result.model, folder, temporary, {MAP: mapping})
        for stale in ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model"):
            (temporary / stale).unlink(missing_ok=True)
        smaller_tokenizer(tokenizer, keep).save_pretrained(temporary)
    before, after = result.plan.before, result.plan.after
    rows = [
        ("tokens", f"{size:,}", f"{len(keep):,}"),
        ("parameters", f"{before.parameters:,}", f"{after.parameters:,}"),
        ("bytes", f"{before.bytes:,}", f"{after.bytes:,}"),
    ]
    data = {
        "directory": str(out),
        "tokens": {"before": size, "after": len(keep)},
        "parameters": {"before": before.parameters, "after": after.parameters},
        "counted": sum(counts.values()),
        "token_map": MAP,
        "loads_with": "from_pretrained",
    }
    speak.result(data, table(f"{model}, smaller vocabulary: {out}", ("", "before", "after"), rows))


def _lines(files: list[Path]) -> Iterator[str]:
    from ..language.calibration import pieces

    for file in files:
        for piece in pieces(file):
            yield from piece.splitlines()
