"""Zeros in Hugging Face's Trainer: they stay, they grow as the schedule says, and checkpoints open as usual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus import sparsify
from prunus.errors import InputError
from prunus.language import Distilled, TransformerDistillation
from prunus.language.trainer import ZeroKeeper, trainer_callback
from prunus.masks import masks_of
from prunus.schedules import linear


def share_of_zeros(model: nn.Module, names: Any) -> float:
    weights = [model.get_parameter(name) for name in names]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def test_zeros_grow_as_the_schedule_says_and_never_come_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 5))
    names = ("0.weight", "2.weight")
    keeper = ZeroKeeper(linear(0.6, end=6), every=2, criterion="magnitude")
    keeper.start(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    gone: dict[str, torch.Tensor] = {}
    found = []
    for step in range(1, 11):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        keeper.step(model, step)
        assert not masks_of(model)
        for name in names:
            weight = model.get_parameter(name)
            assert not weight[gone.get(name, torch.zeros_like(weight, dtype=torch.bool))].any()
            gone[name] = weight.detach() == 0
        found.append(round(share_of_zeros(model, names), 3))
    assert found == [0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6]


def test_without_a_schedule_the_zeros_that_are_there_are_kept():
    model = sparsify(nn.Linear(10, 10), sparsity=0.3).model
    keeper = ZeroKeeper()
    keeper.start(model)
    assert not masks_of(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    keeper.step(model, 1)
    assert int((model.weight == 0).sum()) == 30


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="every="):
        ZeroKeeper(every=0)
    with pytest.raises(InputError, match="leave out sparsity="):
        ZeroKeeper(sparsity=0.5)
    with pytest.raises(InputError, match="schedule must be"):
        ZeroKeeper(0.5)


class Texts(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 30, (8,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


def test_in_the_trainer(tmp_path):
    transformers: Any = pytest.importorskip("transformers", reason="runs its Trainer")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    callback = trainer_callback(linear(0.5, end=4), every=2, criterion="magnitude")
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=4, save_steps=6, save_strategy="steps",
        report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=1e-2, logging_steps=100,
    )  # fmt: skip
    transformers.Trainer(model=model, args=arguments, train_dataset=Texts(), callbacks=[callback]).train()
    names = list(callback.keeper.masks)
    assert len(names) == 4
    assert share_of_zeros(model, names) == pytest.approx(0.5, abs=1e-3)
    kept = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-6")
    assert share_of_zeros(kept, names) == pytest.approx(0.5, abs=1e-3)

    again = trainer_callback(linear(0.5, end=4), every=2, criterion="magnitude")
    other = transformers.GPT2LMHeadModel(config)
    trainer = transformers.Trainer(model=other, args=arguments, train_dataset=Texts(), callbacks=[again])
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for name in names:
        zero = kept.get_parameter(name) == 0
        assert not other.get_parameter(name)[zero].any()


def test_a_student_with_its_teacher_in_the_trainer(tmp_path):
    transformers: Any = pytest.importorskip("transformers", reason="runs its Trainer")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    teacher = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(10.0 if parameter.dim() == 2 else 1.0)  # at first it has nothing to say
    student = sparsify(teacher, sparsity=0.5, keep=["transformer.wte", "transformer.wpe", "lm_head"]).finalize()
    both = Distilled(student, teacher, TransformerDistillation(labels=0.0, logits=1.0))
    ids = torch.stack([Texts()[i]["input_ids"] for i in range(24)])

    def apart() -> float:
        with torch.no_grad():
            return float((student.eval()(ids).logits - teacher(ids).logits).square().mean())

    zeros = {name: p == 0 for name, p in student.named_parameters() if p.dim() == 2 and "h.0" in name}
    before = apart()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=30, per_device_train_batch_size=8, save_strategy="no", report_to=[],
        use_cpu=True, disable_tqdm=True, learning_rate=5e-3, logging_steps=100,
        remove_unused_columns=False,
    )  # fmt: skip
    transformers.Trainer(model=both, args=arguments, train_dataset=Texts(), callbacks=[trainer_callback()]).train()
    assert apart() < 0.7 * before
    assert all(not student.get_parameter(name)[zero].any() for name, zero in zeros.items())
    assert sum(int(zero.sum()) for zero in zeros.values()) > 0.45 * sum(zero.numel() for zero in zeros.values())
    student.save_pretrained(tmp_path / "student")
    opened = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "student").eval()
    torch.testing.assert_close(opened(ids).logits, student(ids).logits)
