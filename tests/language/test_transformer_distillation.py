"""Losses between a student and its teacher: zero where they agree, by hand where they do not, blind to padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunus import sparsify
from prunus.errors import InputError, ShapeError
from prunus.language.distillation import (
    Distilled,
    TransformerDistillation,
    attention_loss,
    hidden_loss,
    layer_pairs,
    token_soft_targets,
)
from prunus.masks import zeros_held


def test_soft_targets_by_hand_and_without_padding():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = 0.0
    for n, t in ((0, 0), (0, 1), (1, 0)):
        p, q = (teacher[n, t] / 3).softmax(0), (student[n, t] / 3).softmax(0)
        expected += float((p * (p / q).log()).sum()) * 9 / 3
    assert float(token_soft_targets(student, teacher, temperature=3.0, mask=mask)) == pytest.approx(expected, rel=1e-5)
    assert float(token_soft_targets(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    teacher[0, 2] = 100.0  # padding
    again = token_soft_targets(student, teacher, temperature=3.0, mask=mask)
    assert float(again) == pytest.approx(expected, rel=1e-5)


def test_hidden_states_by_hand_and_through_a_projection():
    student = [torch.randn(2, 3, 4) for _ in range(2)]
    teacher = [torch.randn(2, 3, 4) for _ in range(4)]
    pairs = layer_pairs(2, 4)
    assert pairs == ((0, 1), (1, 3))
    expected = (F.mse_loss(student[0], teacher[1]) + F.mse_loss(student[1], teacher[3])) / 2
    assert float(hidden_loss(student, teacher, pairs)) == pytest.approx(float(expected), rel=1e-6)
    narrow = [torch.randn(2, 3, 2)]
    with pytest.raises(ShapeError, match="projection"):
        hidden_loss(narrow, teacher, ((0, 0),))
    wide = nn.Linear(2, 4)
    assert float(hidden_loss(narrow, teacher, ((0, 0),), projection=wide)) == pytest.approx(
        float(F.mse_loss(wide(narrow[0]), teacher[0])), rel=1e-6
    )


def test_attention_by_hand_and_with_fewer_heads():
    student, teacher = torch.randn(2, 4, 3, 3).softmax(-1), torch.randn(2, 4, 3, 3).softmax(-1)
    expected = (teacher * (teacher / student).log()).sum(-1).mean()
    assert float(attention_loss([student], [teacher], ((0, 0),))) == pytest.approx(float(expected), rel=1e-5)
    assert float(attention_loss([teacher], [teacher], ((0, 0),))) == pytest.approx(0.0, abs=1e-6)
    assert float(attention_loss([teacher[:, :2].mean(1, keepdim=True)], [teacher[:, :2]], ((0, 0),))) == pytest.approx(
        0.0, abs=1e-6
    )
    hard = torch.eye(3).expand(2, 4, 3, 3)  # probabilities of exactly 0
    assert torch.isfinite(attention_loss([student], [hard], ((0, 0),)))


def test_layers_are_spread_over_the_teachers():
    assert layer_pairs(4, 12) == ((0, 2), (1, 5), (2, 8), (3, 11))
    with pytest.raises(InputError, match="cannot follow"):
        layer_pairs(3, 2)


def bert(layers: int = 2) -> Any:
    transformers = pytest.importorskip("transformers", reason="builds a BERT")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=16, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


BATCH = {
    "input_ids": torch.arange(12).reshape(2, 6),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]),
    "labels": torch.tensor([0, 2]),
}


def test_a_copy_of_the_teacher_has_nothing_to_learn_but_the_labels():
    teacher = bert().eval()
    how = TransformerDistillation(hidden=1.0, attention=1.0)
    both = Distilled(copy.deepcopy(teacher), teacher, how)
    found = both(**BATCH)
    for part in ("logits_loss", "hidden_loss", "attention_loss"):
        assert float(found[part]) == pytest.approx(0.0, abs=1e-6)
    assert float(found["loss"]) == pytest.approx(float(teacher(**BATCH).loss), rel=1e-5)
    assert len(list(both.parameters())) == len(list(teacher.parameters()))
    assert not [p for p in teacher.parameters() if p.grad is not None]


def test_a_pruned_student_comes_nearer_to_its_teacher_and_keeps_its_zeros():
    teacher = bert(4).eval()
    student = sparsify(bert(2), sparsity=0.5, keep=["classifier"]).finalize()
    how = TransformerDistillation(labels=0.0, logits=1.0, hidden=0.5, attention=0.5)
    both = Distilled(student, teacher, how)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with zeros_held(student) as masks:
        optimizer = torch.optim.AdamW(both.parameters(), lr=3e-3)
        losses = []
        for _ in range(15):
            loss = both(**BATCH)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    for name, mask in masks.items():
        assert not student.get_parameter(name)[~mask].any()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_what_cannot_be_is_refused():
    teacher = bert()
    with pytest.raises(InputError, match="itself"):
        Distilled(teacher, teacher)
    with pytest.raises(InputError, match="all factors are 0"):
        TransformerDistillation(labels=0, logits=0)
    teacher.set_attn_implementation("sdpa")
    student = bert()
    student.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="eager"):
        Distilled(student, teacher, TransformerDistillation(attention=1.0))(**BATCH)
