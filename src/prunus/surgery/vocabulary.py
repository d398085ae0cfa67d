"""Remove tokens from a language model: rows of the embedding, outputs of tied and untied heads, ids in the config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..graph import inputs as example
from ..graph import plan_from
from ..graph.provenance import MENDED_BY_TABLE
from ..graph.vocabulary import VocabularyGraph, trace_vocabulary, with_inputs
from ..types import AttributeChange, Plan, Vocabulary
from .attributes import integers
from .cut import applied, plans_of
from .report import Report, report_of
from .verify import Verified

ModuleT = TypeVar("ModuleT", bound=nn.Module)

SIZES = frozenset("vocab_size n_vocab vocabulary_size num_tokens n_tokens ntoken ntokens num_embeddings".split())
"""Names of attributes that hold the number of tokens, where they have its value."""

IDS = frozenset("padding_idx pad_idx pad_id eos_id bos_id unk_id mask_id sep_id cls_id".split())
"""Names of attributes that hold a token id; so do all that end in "_token_id"."""


@dataclass(frozen=True)
class PrunedVocabulary(Generic[ModuleT]):
    """A model with fewer tokens.

    Attributes:
        model: the cut model.
        plan: what was cut.
        report: sizes before and after.
        token_map: old token id -> new one, of all tokens that stay. Ids in data must be mapped before the model sees
            them; `token_map(model)` gives it for a saved and loaded model too.
        verified: what was proven of the model.
    """

    model: ModuleT
    plan: Plan
    report: Report
    token_map: Mapping[int, int]
    verified: Verified | None


def prune_vocabulary(
    model: ModuleT,
    keep_ids: Sequence[int] | Tensor,
    example_inputs: Any = None,
    *,
    table: str | None = None,
    heads: Collection[str] | None = None,
    inplace: bool = False,
    verify: bool = True,
) -> PrunedVocabulary[ModuleT]:
    """Keep only some tokens of a model's vocabulary. Their embeddings and outputs stay as they are.

    New ids are 0, 1, 2 ... in the order of the old ones. For inputs of kept tokens the outputs of kept tokens are those
    of the dense model (where the model itself normalises over the vocabulary, those normalised over the kept tokens).
    Sizes and special ids in the model's config follow. The tokenizer is not touched.

    Args:
        model: a language model, or any module that looks up an embedding by ids from its inputs.
        keep_ids: token ids that stay, in any order; all special ones of the model's config must be among them.
        example_inputs: as for `prunus.trace`. Default: a batch of two rows of eight ids.
        table, heads: names of the embedding and of the output layers, where they are not found by themselves; see
            `prunus.graph.vocabulary.trace_vocabulary`.
        inplace, verify: as for `prunus.apply`.

    Raises:
        InputError: an id is out of range or repeated, or a special token would be removed.
        SurgeryError: no table was found, or its rows cannot be removed; says why.
        VerificationError: the result differs from the dense model.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    given = _default_inputs(model) if example_inputs is None else example_inputs
    example.check(given)
    found = trace_vocabulary(model, given, table, heads)
    keep = _checked(keep_ids, found.size)
    plan = _plan(model, found, keep, with_inputs(given, found.inputs, _numbered) if example_inputs is None else given)
    result, verified = applied(model, plan, inplace, verify=verify)
    report = report_of(found.graph, plan)
    report = replace(report, widths=tuple(width for width in report.widths if width.group in found.groups))
    new_ids = {old: new for new, old in enumerate(keep)}
    return PrunedVocabulary(result, replace(plan, example=None), report, new_ids, verified)


def special_ids(model: nn.Module) -> set[int]:
    """Token ids that the model's config, or a module, names: they must stay."""
    found: set[int] = set()
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, MENDED_BY_TABLE):
            continue
        for name, value in integers(module, "", seen):
            last = name.rpartition(".")[2].partition("[")[0]
            if (last in IDS or last.endswith("_token_id")) and value >= 0:
                found.add(value)
    return found


def token_map(model: nn.Module) -> dict[int, int]:
    """Old token id -> new one, over all rounds in which tokens were removed; {} where none were."""
    result: dict[int, int] | None = None
    for plan in plans_of(model):
        if plan.vocabulary is not None:
            step = {old: new for new, old in enumerate(plan.vocabulary.keep)}
            result = step if result is None else {old: step[new] for old, new in result.items() if new in step}
    return result or {}


def _default_inputs(model: nn.Module) -> Any:
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    if not tables:
        raise InputError("the model has no nn.Embedding: give example_inputs with token ids")
    config: Any = getattr(model, "config", None)
    ids = torch.zeros(2, 8, dtype=torch.long)  # there is a row 0 in every table
    if not hasattr(config, "to_dict"):
        return ids
    decoder = {"decoder_input_ids": ids.clone()} if getattr(config, "is_encoder_decoder", False) else {}
    return {"input_ids": ids, **decoder}


def _numbered(ids: Tensor) -> Tensor:
    """Different ids of the same shape."""
    return torch.arange(ids.numel()).reshape(ids.shape)


def _checked(keep_ids: Sequence[int] | Tensor, size: int) -> tuple[int, ...]:
    ids = [int(i) for i in (keep_ids.tolist() if isinstance(keep_ids, Tensor) else keep_ids)]
    keep = tuple(sorted(set(ids)))
    if not keep or len(keep) != len(ids) or keep[0] < 0 or keep[-1] >= size:
        raise InputError(f"keep_ids must be different ids in [0, {size}), at least one; got {len(ids)}: {ids[:8]} ...")
    return keep


def _plan(model: nn.Module, found: VocabularyGraph, keep: tuple[int, ...], given: Any) -> Plan:
    plan = plan_from(found.graph, dict.fromkeys(found.groups, keep))
    new_ids = torch.full((found.size,), -1)
    new_ids[list(keep)] = torch.arange(len(keep))

    def mapped(ids: Tensor) -> Tensor:
        """Ids of kept tokens become the new ones, others any."""
        old = (ids if ids.device.type != "meta" else _numbered(ids)).cpu().long() % found.size
        new = new_ids[old]
        return torch.where(new < 0, old % len(keep), new).to(ids.dtype)

    inputs = with_inputs(given, found.inputs, mapped)
    planned = {(change.module, change.name) for change in plan.attributes}
    follow = tuple(c for c in _following(model, found.size, keep) if (c.module, c.name) not in planned)
    return replace(
        plan,
        attributes=(*plan.attributes, *follow),
        inputs=example.describe(inputs),
        example=inputs,
        vocabulary=Vocabulary(found.size, keep, found.inputs),
    )


# --------------------------------------------------------------------------------------------------------- attributes


def _following(model: nn.Module, size: int, keep: tuple[int, ...]) -> Iterator[AttributeChange]:
    """Numbers of tokens and token ids that modules and configs hold."""
    new_ids = {old: new for new, old in enumerate(keep)}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, MENDED_BY_TABLE):
            continue
        for name, value in integers(module, "", seen):
            last = name.rpartition(".")[2].partition("[")[0]
            if last in SIZES and value == size and len(keep) != size:
                yield AttributeChange(path, name, value, len(keep))
            elif (last in IDS or last.endswith("_token_id")) and 0 <= value < size:
                if value not in new_ids:
                    raise InputError(
                        f"keep_ids leaves out {value}, which is {name} of {path or 'the model'}: add it, or set that "
                        "to None first"
                    )
                if new_ids[value] != value:
                    yield AttributeChange(path, name, value, new_ids[value])
