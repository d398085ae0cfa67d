"""Tokenizers with fewer tokens: which of them a corpus needs, and the same tokenizer with no more than those.

A Hugging Face fast tokenizer is data (its JSON form). Its vocabulary, merges, added tokens and the ids that its
post-processor inserts are rewritten; how text is normalised and split stays.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ..errors import InputError, MissingExtraError, UnknownNameError

CHUNK = 1000
"""Texts that are tokenised at a time."""


def token_counts(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """How often each token id occurs in the texts; special tokens are not added.

    Args:
        tokenizer: of Hugging Face.
        texts: read once, some at a time.
    """
    counts: Counter[int] = Counter()
    source = iter(texts)
    while chunk := list(islice(source, CHUNK)):
        for ids in tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]:
            counts.update(ids)
    return counts


def needed_ids(
    tokenizer: Any, counts: Mapping[int, int], *, min_count: int = 1, also: Collection[int] = ()
) -> tuple[int, ...]:
    """The ids that a smaller tokenizer must have, ascending.

    Args:
        tokenizer: a fast one of Hugging Face.
        counts: of token ids, see `token_counts`.
        min_count: tokens that occur as often stay.
        also: further ids.

    Returns:
        Those tokens, all special and added ones, and what it takes to make them: the parts of merged tokens, the base
        alphabet where there is no token for the unknown, and the bytes of a byte fallback. Texts that consist of
        tokens that stay are then split as before.

    Raises:
        InputError: no fast tokenizer, or an id that it does not have.
    """
    form = _form(tokenizer)
    vocabulary = _vocabulary(form)
    ids = set(vocabulary.values()) | {entry["id"] for entry in form["added_tokens"]}
    wanted = {int(id_) for id_, count in counts.items() if count >= min_count} | {int(id_) for id_ in also}
    if wanted - ids:
        raise InputError(f"needed_ids: the tokenizer has no ids {sorted(wanted - ids)[:8]}")
    wanted |= {entry["id"] for entry in form["added_tokens"]} | set(tokenizer.all_special_ids)
    return tuple(sorted(wanted | _closure(form["model"], vocabulary, wanted)))


def smaller_tokenizer(tokenizer: Any, keep_ids: Sequence[int]) -> Any:
    """The same tokenizer with only these tokens; their ids are 0, 1, 2 ... in the order of the old ones.

    Args:
        tokenizer: a fast one of Hugging Face; left as it is.
        keep_ids: as from `needed_ids`; what `prunus.prune_vocabulary` kept.

    Returns:
        A tokenizer with `save_pretrained`. Words of which no token stays become the unknown token.

    Raises:
        InputError: no fast tokenizer, or ids that leave out a special token.
        UnknownNameError: a kind of tokenizer that is not known.
        MissingExtraError: transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
        from transformers import PreTrainedTokenizerFast  # pyright: ignore[reportMissingImports]
    except Exception as error:  # its own imports may fail in other ways than ImportError
        raise MissingExtraError.of("transformers", "transformers", "writing a tokenizer") from error
    form = _form(tokenizer)
    new_ids = {old: new for new, old in enumerate(sorted(set(map(int, keep_ids))))}
    lost = [entry["content"] for entry in form["added_tokens"] if entry["id"] not in new_ids and entry["special"]]
    if lost:
        raise InputError(f"smaller_tokenizer: keep_ids leaves out the special tokens {', '.join(lost)}")
    kind = form["model"]["type"]
    if kind not in _REWRITERS:
        raise UnknownNameError.of("kind of tokenizer", kind, _REWRITERS)
    _REWRITERS[kind](form["model"], new_ids)
    form["added_tokens"] = [
        {**entry, "id": new_ids[entry["id"]]} for entry in form["added_tokens"] if entry["id"] in new_ids
    ]
    for part in ("post_processor", "padding"):
        if form.get(part) is not None:
            form[part] = _renumbered(form[part], new_ids)
    settings = {name: getattr(tokenizer, name) for name in _SETTINGS if getattr(tokenizer, name, None) is not None}
    made = Tokenizer.from_str(json.dumps(form))
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokenizer.special_tokens_map, **settings)


_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "clean_up_tokenization_spaces")


def _form(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{type(tokenizer).__name__} is no fast tokenizer of Hugging Face: load it with AutoTokenizer")
    return json.loads(backend.to_str())


def _vocabulary(form: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = form["model"].get("vocab", {})
    if isinstance(vocabulary, Mapping):
        return dict(vocabulary)
    return {piece: index for index, (piece, _) in enumerate(vocabulary)}


# -------------------------------------------------------------------------------------- what tokens need of each other


def _closure(model: Mapping[str, Any], vocabulary: Mapping[str, int], wanted: set[int]) -> set[int]:
    """Further ids that the kind of tokenizer cannot do without."""
    found: set[int] = set()
    if model.get("unk_token") in vocabulary:
        found.add(vocabulary[model["unk_token"]])
    if model.get("unk_id") is not None:
        found.add(model["unk_id"])
    if model.get("byte_fallback"):
        found |= {vocabulary[name] for byte in range(256) if (name := f"<0x{byte:02X}>") in vocabulary}
    if model["type"] == "BPE":
        found |= _parts(model, vocabulary, wanted)
    return found


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(left, right, what they make) of each merge."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right, left + right.removeprefix(prefix)


def _parts(model: Mapping[str, Any], vocabulary: Mapping[str, int], wanted: set[int]) -> set[int]:
    """The parts of which merged tokens are made; and without an unknown token all that no merge makes."""
    made_of: dict[str, list[tuple[str, str]]] = {}
    for left, right, whole in _merges(model):
        made_of.setdefault(whole, []).append((left, right))
    names = {id_: name for name, id_ in vocabulary.items()}
    todo = [names[id_] for id_ in wanted if id_ in names]
    if model.get("unk_token") is None:
        todo += [name for name in vocabulary if name not in made_of]
    seen = set(todo)
    while todo:
        for pair in made_of.get(todo.pop(), ()):
            for part in pair:
                if part in vocabulary and part not in seen:
                    seen.add(part)
                    todo.append(part)
    return {vocabulary[name] for name in seen}


# ------------------------------------------------------------------------------------------------------- rewriting


def _rewrite_table(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    model["vocab"] = {name: new_ids[id_] for name, id_ in model["vocab"].items() if id_ in new_ids}


def _rewrite_merges(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    _rewrite_table(model, new_ids)
    there = model["vocab"]
    keep = [all(part in there for part in merge) for merge in _merges(model)]
    model["merges"] = [merge for merge, stays in zip(model["merges"], keep) if stays]


def _rewrite_pieces(model: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    model["vocab"] = [piece for index, piece in enumerate(model["vocab"]) if index in new_ids]
    if model.get("unk_id") is not None:
        model["unk_id"] = new_ids[model["unk_id"]]


_REWRITERS: Mapping[str, Callable[[dict[str, Any], Mapping[int, int]], None]] = {
    "WordPiece": _rewrite_table,
    "WordLevel": _rewrite_table,
    "BPE": _rewrite_merges,
    "Unigram": _rewrite_pieces,
}

_ID_KEYS = frozenset({"id", "ids", "pad_id"})


def _renumbered(part: Any, new_ids: Mapping[int, int]) -> Any:
    """Ids in a post-processor or a padding: {"id": 5} may be a name too, ["[SEP]", 102] is a token and its id."""
    if isinstance(part, Mapping):
        return {
            key: _ids(value, new_ids) if key in _ID_KEYS else _renumbered(value, new_ids) for key, value in part.items()
        }
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int):
            return [part[0], new_ids[part[1]]]
        return [_renumbered(value, new_ids) for value in part]
    return part


def _ids(value: Any, new_ids: Mapping[int, int]) -> Any:
    if isinstance(value, list):
        return [_ids(one, new_ids) for one in value]
    return new_ids[value] if isinstance(value, int) else value
