"""Distillation of transformers: soft targets per token, hidden states and attention, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, ShapeError
from ..training.precision import logits_of


@dataclass(frozen=True, kw_only=True)
class TransformerDistillation:
    """How a student listens to its teacher: factors of the parts of the loss; a part with factor 0 is not computed.

    Attributes:
        labels: of the student's own loss, where the batch has labels.
        logits: of the soft targets, see `token_soft_targets`.
        hidden: of the hidden states, see `hidden_loss`.
        attention: of the attention maps, see `attention_loss`.
        temperature: T of the soft targets.
        layers: pairs (student layer, teacher layer), from 0; None spreads the student's over the teacher's.
    """

    labels: float = 1.0
    logits: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 2.0
    layers: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "logits", "hidden", "attention"):
            if not getattr(self, name) >= 0:
                raise InputError(f"TransformerDistillation: {name}={getattr(self, name)!r} must be 0 or more")
        if not self.temperature > 0:
            raise InputError(f"TransformerDistillation: temperature={self.temperature!r} must be above 0")
        if not any((self.labels, self.logits, self.hidden, self.attention)):
            raise InputError("TransformerDistillation: all factors are 0; there is nothing to learn from")


def layer_pairs(student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Each of the student's layers with the last teacher layer of an equal share.

    >>> layer_pairs(3, 12), layer_pairs(2, 2)
    (((0, 3), (1, 7), (2, 11)), ((0, 0), (1, 1)))

    Raises:
        InputError: the student has more layers, or one has none.
    """
    if not 1 <= student <= teacher:
        raise InputError(f"layer_pairs: {student} layers cannot follow {teacher}; name pairs with layers=")
    return tuple((i, (i + 1) * teacher // student - 1) for i in range(student))


def _token_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (N, T) values over the places that count."""
    if mask is None:
        return values.mean()
    weight = mask.to(values)
    return (values * weight).sum() / weight.sum().clamp_min(1)


def token_soft_targets(
    student: Tensor, teacher: Tensor, *, temperature: float = 2.0, mask: Tensor | None = None
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the tokens that count.

    Args:
        student, teacher: (N, T, words) or (N, classes) logits; no gradient flows into the teacher's.
        temperature: T.
        mask: (N, T), 1 or True where a token counts; None is all. Not read for (N, classes).

    Raises:
        ShapeError: the logits differ in shape.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531.
    """
    _same("logits", student, teacher)
    target = F.log_softmax(teacher.detach().float() / temperature, -1)
    guess = F.log_softmax(student.float() / temperature, -1)
    divergence = F.kl_div(guess, target, reduction="none", log_target=True).sum(-1)
    return _token_mean(divergence, mask if divergence.dim() == 2 else None) * temperature**2


def hidden_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    *,
    mask: Tensor | None = None,
    projection: nn.Module | None = None,
) -> Tensor:
    """Mean squared difference of hidden states, averaged over pairs of layers, tokens that count, and the width.

    Args:
        student, teacher: (N, T, width) after each layer.
        pairs: (student layer, teacher layer).
        mask: (N, T).
        projection: from the student's width to the teacher's, learnt with the student; needed where they differ.

    Source: Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", EMNLP Findings 2020,
    arXiv:1909.10351, eq. 8.
    """
    losses = []
    for mine, other in pairs:
        state = student[mine] if projection is None else projection(student[mine])
        _same("hidden states", state, teacher[other], "give projection=, a linear layer between the widths")
        losses.append(_token_mean((state.float() - teacher[other].detach().float()).square().mean(-1), mask))
    return torch.stack(losses).mean()


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) of the attention of each token, averaged over pairs of layers, tokens that count, and
    heads. Where the numbers of heads differ, the mean over each side's heads is compared.

    Args:
        student, teacher: (N, heads, T, T) attention probabilities of each layer.
        pairs: (student layer, teacher layer).
        mask: (N, T) of the tokens that look.

    Source: Wang et al., "MiniLM: Deep Self-Attention Distillation", NeurIPS 2020, arXiv:2002.10957, eq. 1, there for
    the last layer.
    """
    losses = []
    for mine, other in pairs:
        guess, target = student[mine].float(), teacher[other].detach().float()
        if guess.shape[1] != target.shape[1]:
            guess, target = guess.mean(1, keepdim=True), target.mean(1, keepdim=True)
        _same("attention", guess, target)
        tiny = torch.finfo(torch.float32).tiny
        divergence = (target * (target.clamp_min(tiny).log() - guess.clamp_min(tiny).log())).sum(-1)
        losses.append(_token_mean(divergence.mean(1), mask))
    return torch.stack(losses).mean()


def _same(what: str, student: Tensor, teacher: Tensor, remedy: str = "both must see the same batch") -> None:
    if student.shape != teacher.shape:
        raise ShapeError(
            f"distillation: the student's {what} are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            f"{remedy}"
        )


class Distilled(nn.Module):
    """A student that brings its distillation with it: called with a batch, it returns the loss and its logits.

    It takes the place of the model in a loop, or in `transformers.Trainer` with `remove_unused_columns=False`;
    `student` is what is saved afterwards.

    Args:
        student: a Hugging Face model, trained in place.
        teacher: its dense original, say; it is not a part of this module and not trained.
        how: factors and pairs of layers.
        projection: see `hidden_loss`; it is a part of this module.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        how: TransformerDistillation | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if student is teacher:
            raise InputError("Distilled: teacher is the student itself; give a copy of the model as it was")
        self.student = student
        self.projection = projection
        self.how = how or TransformerDistillation()
        self._teacher = [teacher]  # in a list, so that it is no part of this module

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """`loss`, `logits`, and each part of the loss by name."""
        how = self.how
        wanted: dict[str, Any] = {}
        if how.hidden or how.attention:
            wanted = {"output_hidden_states": bool(how.hidden), "output_attentions": bool(how.attention)}
        output = self.student(**batch, **wanted)
        taught: Any = None
        if how.logits or how.hidden or how.attention:
            teacher = self._teacher[0]
            training = teacher.training
            teacher.eval()
            with torch.no_grad():
                taught = teacher(**{k: v for k, v in batch.items() if k != "labels"}, **wanted)
            teacher.train(training)
        parts = self._parts(output, taught, batch)
        total = torch.stack([getattr(how, name) * value for name, value in parts.items()]).sum()
        return {"loss": total, "logits": logits_of(output), **{f"{name}_loss": v.detach() for name, v in parts.items()}}

    def _parts(self, output: Any, taught: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        how, mask = self.how, _mask(batch)
        parts: dict[str, Tensor] = {}
        if how.labels and "labels" in batch:
            parts["labels"] = output.loss
        if how.logits:
            parts["logits"] = token_soft_targets(
                logits_of(output), logits_of(taught), temperature=how.temperature, mask=mask
            )
        if how.hidden:
            # The first hidden state is the embeddings'.
            mine, other = output.hidden_states[1:], taught.hidden_states[1:]
            pairs = how.layers or layer_pairs(len(mine), len(other))
            parts["hidden"] = hidden_loss(mine, other, pairs, mask=mask, projection=self.projection)
        if how.attention:
            mine, other = _attentions(output, "student"), _attentions(taught, "teacher")
            pairs = how.layers or layer_pairs(len(mine), len(other))
            parts["attention"] = attention_loss(mine, other, pairs, mask=mask)
        if not parts:
            raise InputError("Distilled: only the labels' loss is asked for, and the batch has no labels")
        return parts


def _mask(batch: Mapping[str, Any]) -> Tensor | None:
    """(N, T) of the tokens that are there."""
    mask = batch.get("attention_mask")
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _attentions(output: Any, who: str) -> Sequence[Tensor]:
    found = getattr(output, "attentions", None)
    if not found or any(one is None for one in found):
        raise InputError(
            f"Distilled: the {who} gives no attention maps; load it with attn_implementation='eager', "
            "or leave attention at 0"
        )
    return found
