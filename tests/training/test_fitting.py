from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunus.errors import InputError, TrainingError, UnknownNameError
from prunus.training import Distillation, TrainingConfig, fit
from prunus.training.checkpoint import FILE, read
from prunus.training.state import on_cpu

from .small import TensorSplit, blobs, small_convnet

FP32 = {"precision": "fp32", "memory_format": "contiguous", "batch_size": 16}


def trained(config: TrainingConfig, *, model: nn.Module | None = None, **options) -> Any:  # a TrainingResult
    return fit(model or small_convnet(), blobs(), config, progress=False, **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = on_cpu(one), on_cpu(other)
    return all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------ the loop itself


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_it_computes_what_a_loop_written_by_hand_computes(memory_format):
    """Nesterov SGD with decay, a cosine, smoothing and clipping, in float64, step by step with torch's own parts."""
    split = blobs(90, channels=3)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    model = model.double()
    oracle = copy.deepcopy(model)
    config = TrainingConfig(
        epochs=3, batch_size=16, lr=0.2, weight_decay=0.01, decay_norms_and_biases=True,
        label_smoothing=0.1, clip_norm=0.5, seed=4, memory_format=memory_format,
    )  # fmt: skip
    fit(model, split, config, progress=False)

    optimizer = torch.optim.SGD(
        oracle.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=False
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=18)
    clipped = 0
    for epoch in range(3):
        for inputs, labels in split.batches(16, shuffle=True, seed=4, epoch=epoch, augment=True):
            optimizer.zero_grad()
            F.cross_entropy(oracle(inputs.double()), labels, label_smoothing=0.1).backward()
            clipped += bool(nn.utils.clip_grad_norm_(oracle.parameters(), 0.5) > 0.5)
            optimizer.step()
            scheduler.step()
    assert clipped > 0
    for mine, theirs in zip(on_cpu(model).values(), on_cpu(oracle).values()):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_clipping_bounds_the_first_step():
    norms = []

    def watch(info):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in info.model.parameters()]).item())

    trained(TrainingConfig(epochs=1, clip_norm=0.01, **FP32), on_step=watch)
    assert len(norms) == 6
    assert max(norms) <= 0.01 * 1.0001


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "lr": 0.01}, {"ema": 0.9, "clip_norm": 1.0}])
def test_the_same_call_gives_the_same_bits(options):
    config = TrainingConfig(epochs=2, **FP32, **options)
    assert same_weights(trained(config).model, trained(config).model)


def test_a_model_given_in_eval_mode_trains_all_the_same():
    config = TrainingConfig(epochs=1, **FP32)
    assert same_weights(trained(config, model=small_convnet().eval()).model, trained(config).model)


def test_another_seed_gives_other_weights():
    first, second = (TrainingConfig(epochs=1, seed=seed, **FP32) for seed in (0, 1))
    assert not same_weights(trained(first).model, trained(second).model)


def test_bf16_learns_like_fp32(held_out):
    for precision in ("fp32", "bf16"):
        config = TrainingConfig(epochs=10, batch_size=16, precision=precision, memory_format="channels_last")
        result = trained(config, validation=held_out)
        assert result.precision == precision
        assert result.history[-1].validation_accuracy > 0.9
        assert all(parameter.dtype == torch.float32 for parameter in result.model.parameters())


def test_digits_are_learned_in_seconds():
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    targets = torch.tensor(digits.target)
    train, test = (TensorSplit(images[part], targets[part]) for part in (order[:1400], order[1400:]))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    config = TrainingConfig(epochs=6, batch_size=64, precision="fp32")
    result: Any = fit(model, train, config, validation=test, progress=False)
    assert result.history[-1].validation_accuracy > 0.95
    model.eval()
    accuracy = (model(test.inputs).argmax(1) == test.targets).float().mean().item()
    assert accuracy == pytest.approx(result.history[-1].validation_accuracy)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same():
    plain = trained(TrainingConfig(epochs=1, **FP32), model=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    config = TrainingConfig(epochs=1, compile=True, **FP32)
    compiled = trained(config, model=nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    assert compiled.steps == plain.steps
    assert compiled.history[0].loss > 0


# --------------------------------------------------------------------------------------------- what is left behind


def test_the_model_comes_back_trained_but_otherwise_as_it_was():
    model = small_convnet().eval()
    model[1].train()
    model[0].requires_grad_(False)
    frozen, strides = model[0].weight.clone(), [p.stride() for p in model.parameters()]
    result = trained(TrainingConfig(epochs=1, batch_size=16, memory_format="channels_last"), model=model)
    assert result.model is model
    assert [module.training for module in model] == [False, True, False, False, False, False]
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert [p.stride() for p in model.parameters()] == strides
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model[0].weight, frozen)


def test_the_callers_random_states_are_left_alone():
    model = small_convnet()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    trained(TrainingConfig(epochs=1, **FP32), model=model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == states[2]


def test_the_teacher_comes_back_untouched():
    model, teacher = small_convnet(0), small_convnet(1, width=9)
    teacher[3].eval()
    before = on_cpu(teacher)
    config = TrainingConfig(epochs=1, distillation=Distillation(features=(("0", "0"), ("2", "2"))), **FP32)
    trained(config, model=model, teacher=teacher)
    assert all(torch.equal(value, before[name]) for name, value in on_cpu(teacher).items())
    assert [module.training for module in teacher] == [True, True, True, False, True, True]
    assert not any(module._forward_hooks for module in [*model.modules(), *teacher.modules()])
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())


def test_no_epochs_train_nothing():
    model = small_convnet()
    before = on_cpu(model)
    result = trained(TrainingConfig(epochs=0), model=model)
    assert (result.steps, result.epochs_run, result.history, result.best) == (0, 0, (), None)
    assert all(torch.equal(value, before[name]) for name, value in on_cpu(model).items())


def test_the_result_is_plain_data_beside_the_model(held_out):
    import json

    result = trained(TrainingConfig(epochs=2, ema=0.5, **FP32), validation=held_out)
    data = json.loads(json.dumps(result.to_dict()))
    assert [record["epoch"] for record in data["history"]] == [1, 2]
    assert data["steps"] == 12
    assert data["execution"]["precision"] == "fp32"
    assert (result.device, result.memory_format, result.kept) == ("cpu", "contiguous", "last")
    assert result.seconds >= sum(record.seconds for record in result.history) * 0.99


# ------------------------------------------------------------------------------------- selection by validation


class Scripted(nn.Module):
    """Learns nothing useful: its validation accuracy follows a script, one entry per evaluation."""

    def __init__(self, script: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.script = list(script)

    def forward(self, inputs):
        right = torch.ones(len(inputs))
        if not self.training:
            right[round(self.script.pop(0) * len(inputs)) :] = -1
        logits = torch.stack([right, -right], 1)
        return logits + self.weight  # its gradient is 0, decay spares it


HALVES = TensorSplit(torch.zeros(10, 1), torch.zeros(10, dtype=torch.int64))


def test_early_stop_waits_for_patience():
    config = TrainingConfig(epochs=10, batch_size=10, patience=2, precision="fp32")
    result = fit(Scripted([0.5, 0.7, 0.6, 0.7, 0.9]), HALVES, config, validation=HALVES, progress=False)
    assert result.stopped_early
    assert result.epochs_run == 4
    assert result.best is not None
    assert result.best.epoch == 2
    assert [record.validation_accuracy for record in result.history] == pytest.approx([0.5, 0.7, 0.6, 0.7])


def test_improvements_keep_it_going():
    config = TrainingConfig(epochs=5, batch_size=10, patience=2, precision="fp32")
    result = fit(Scripted([0.1, 0.0, 0.2, 0.1, 0.3]), HALVES, config, validation=HALVES, progress=False)
    assert not result.stopped_early
    assert result.epochs_run == 5


def test_the_best_weights_are_kept_when_asked(held_out):
    """A rate that explodes at the end spoils the last weights; the best ones validate as was recorded."""
    config = {"epochs": 6, "lr": 0.05, "schedule": "constant", **FP32}

    def spoil(info):
        if info.epoch > 4:
            for parameter in info.model.parameters():
                parameter.data.add_(3 * torch.randn_like(parameter))

    results = {
        keep: trained(TrainingConfig(keep=keep, **config), validation=held_out, on_step=spoil)
        for keep in ("best", "last")
    }
    accuracy = {}
    for keep, result in results.items():
        result.model.eval()
        with torch.no_grad():
            accuracy[keep] = (result.model(held_out.inputs).argmax(1) == held_out.targets).float().mean().item()
    assert results["best"].kept == "best"
    assert results["best"].best == results["last"].best or results["best"].best.epoch == results["last"].best.epoch
    assert accuracy["best"] == pytest.approx(results["best"].best.validation_accuracy)
    assert accuracy["last"] == pytest.approx(results["last"].history[-1].validation_accuracy)
    assert accuracy["last"] < accuracy["best"]


def test_the_average_is_what_is_validated_and_returned(held_out):
    result = trained(TrainingConfig(epochs=3, ema=0.8, **FP32), validation=held_out)
    plain = trained(TrainingConfig(epochs=3, **FP32), validation=held_out)
    assert not same_weights(result.model, plain.model)
    assert [r.loss for r in result.history] == [r.loss for r in plain.history]  # training itself is the same
    result.model.eval()
    loss = F.cross_entropy(result.model(held_out.inputs), held_out.targets).item()
    assert loss == pytest.approx(result.history[-1].validation_loss, rel=1e-5)


# -------------------------------------------------------------------------------------------- additions to a step


def test_a_penalty_is_part_of_the_loss():
    """With an L2 penalty of c/2 |w|^2 the loop does what weight decay c does in plain SGD without decay on biases."""
    config = {"epochs": 2, "momentum": 0.0, "lr": 0.1, **FP32}
    decayed = trained(TrainingConfig(weight_decay=0.3, decay_norms_and_biases=True, **config))
    penalised = trained(
        TrainingConfig(weight_decay=0.0, **config),
        penalty=lambda model: 0.15 * sum(p.square().sum() for p in model.parameters()),
    )
    for one, other in zip(decayed.model.parameters(), penalised.model.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert penalised.history[0].loss > decayed.history[0].loss


def test_on_step_comes_after_every_step_and_its_changes_stay():
    seen = []

    def mask(info):
        seen.append((info.epoch, info.step, info.steps))
        info.model[0].weight.data[:3] = 0

    result = trained(TrainingConfig(epochs=2, ema=0.9, **FP32), on_step=mask)
    assert seen == [(1 + i // 6, i + 1, 12) for i in range(12)]
    # The average started from the unmasked weights, so it only comes near zero; the model trained on zeros.
    assert result.model[0].weight[:3].abs().max() < 1e-2
    plain = trained(TrainingConfig(epochs=2, **FP32), on_step=mask)
    assert plain.model[0].weight[:3].abs().max() == 0


def test_a_student_imitates_its_teacher():
    """Taught by logits alone on a task whose labels are noise, the student agrees with the teacher."""
    teacher = trained(TrainingConfig(epochs=8, **FP32)).model
    noise = blobs()
    noise.targets = torch.randint(3, (96,), generator=torch.Generator().manual_seed(9))
    config = TrainingConfig(epochs=12, distillation=Distillation(weight=1.0, temperature=2.0), **FP32)
    student = small_convnet(7, width=4)
    fit(student, noise, config, teacher=teacher, progress=False)
    fresh = blobs(60, seed=3).inputs
    student.eval()
    teacher.eval()
    assert (student(fresh).argmax(1) == teacher(fresh).argmax(1)).float().mean() > 0.9


def test_features_pull_the_attention_together():
    from prunus.training import attention_transfer

    teacher = trained(TrainingConfig(epochs=5, **FP32)).model.eval()
    fresh = blobs(60, seed=3).inputs

    def distance(features) -> float:
        config = TrainingConfig(epochs=8, distillation=Distillation(features=features), **FP32)
        student: Any = fit(small_convnet(7, width=4), blobs(), config, teacher=teacher, progress=False).model.eval()
        with torch.no_grad():
            return attention_transfer(student[:3](fresh), teacher[:3](fresh)).item()

    assert distance((("2", "2"),)) < 0.5 * distance(())


# ------------------------------------------------------------------------------------------------- when it goes wrong


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path):
    spoiled = blobs()

    class Spoiled(TensorSplit):
        def batches(self, batch_size, **options):
            for number, (inputs, labels) in enumerate(super().batches(batch_size, **options)):
                yield (inputs * torch.nan if options["epoch"] == 1 and number == 3 else inputs), labels

    data = Spoiled(spoiled.inputs, spoiled.targets)
    config = TrainingConfig(epochs=3, checkpoint_every=1, **FP32)
    with pytest.raises(TrainingError) as error:
        fit(small_convnet(), data, config, checkpoint=tmp_path, progress=False)
    message = str(error.value)
    assert "nan at step 10 (epoch 2, batch 4)" in message
    assert "lower lr (now 0.05)" in message
    assert "clip_norm" in message
    assert str(tmp_path) in message
    snapshot = read(tmp_path)
    assert snapshot is not None
    assert snapshot.facts["position"]["step"] == 9
    assert all(bool(torch.isfinite(t.double()).all()) for t in snapshot.part("model").values())


def test_a_weight_that_is_not_finite_is_found_before_the_checkpoint(tmp_path):
    def spoil(info):
        if info.step == 12:
            info.model[5].weight.data[0, 0] = torch.inf

    with pytest.raises(TrainingError, match=r"after step 12 \(epoch 2\): 5\.weight"):
        trained(TrainingConfig(epochs=3, **FP32), on_step=spoil, checkpoint=tmp_path)
    snapshot = read(tmp_path)
    assert snapshot is not None
    assert snapshot.facts["position"]["step"] == 6


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (TrainingConfig(patience=2), {}, "patience needs validation="),
        (TrainingConfig(keep="best"), {}, "keep='best' needs validation="),
        (TrainingConfig(distillation=Distillation()), {}, "only the config was given"),
        (TrainingConfig(), {"teacher": small_convnet()}, "only the teacher was given"),
        (TrainingConfig(device="cuda:9"), {}, "device='cuda:9' cannot be used here"),
        (TrainingConfig(precision="fp16"), {}, "fp16"),
        (TrainingConfig(), {"validation": [1]}, "validation= must be a split"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(config, options, says, tmp_path):
    model = small_convnet()
    before = on_cpu(model)
    with pytest.raises(InputError) as error:
        trained(config, model=model, checkpoint=tmp_path / "run", **options)
    assert says in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in on_cpu(model).items())
    assert not (tmp_path / "run" / FILE).exists()


def test_models_that_cannot_be_trained_are_refused():
    model = small_convnet()
    with pytest.raises(InputError, match="nothing to train"):
        trained(TrainingConfig(), model=model.requires_grad_(False))
    broken = small_convnet()
    broken[1].running_var[0] = torch.nan
    with pytest.raises(InputError, match=r"NaN or infinite values in 1\.running_var"):
        trained(TrainingConfig(), model=broken)
    with pytest.raises(InputError, match="the model itself"):
        trained(TrainingConfig(distillation=Distillation()), model=model.requires_grad_(True), teacher=model)


def test_wrong_feature_names_list_the_modules():
    config = TrainingConfig(epochs=1, distillation=Distillation(features=(("0", "layer1"),)), **FP32)
    with pytest.raises(UnknownNameError, match="module of the teacher.*'layer1'.*known: 0, 1, 2"):
        trained(config, teacher=small_convnet(1))


def test_a_penalty_must_be_a_number():
    with pytest.raises(InputError, match="one entry"):
        trained(TrainingConfig(epochs=1, **FP32), penalty=lambda model: model[0].weight)


def test_segmentation_counts_pixels():
    split = TensorSplit(torch.randn(12, 1, 4, 4), torch.zeros(12, 4, 4, dtype=torch.int64))
    result: Any = fit(
        nn.Conv2d(1, 3, 1), split, TrainingConfig(epochs=5, lr=1.0, **FP32), validation=split, progress=False
    )
    assert result.history[-1].validation_accuracy > 0.9
    assert result.history[-1].accuracy > 0.9
