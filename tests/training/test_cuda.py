"""What is special about GPUs; skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prunus.training import Distillation, TrainingConfig, fit
from prunus.training.batches import prefetched
from prunus.training.state import on_cpu

from .small import blobs, small_convnet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def trained(config: TrainingConfig, **options: Any) -> Any:
    held_out = blobs(60, seed=1)
    return fit(small_convnet(), blobs(), config, validation=held_out, progress=False, **options)


def test_a_gpu_is_used_with_mixed_precision_and_the_model_returns_home():
    result = trained(TrainingConfig(epochs=10, batch_size=16, ema=0.8))
    assert result.device.startswith("cuda")
    assert result.precision == ("bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16")
    assert (result.memory_format, result.execution.how) == ("channels_last", "rule for cuda")
    assert result.history[-1].validation_accuracy > 0.9
    assert {value.device.type for value in result.model.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(precision):
    config = TrainingConfig(epochs=10, batch_size=16, precision=precision, clip_norm=1.0)
    assert trained(config).history[-1].validation_accuracy > 0.9


def test_distillation_and_a_model_that_lives_on_the_gpu():
    teacher = small_convnet(1, width=9)
    model = small_convnet().cuda()
    config = TrainingConfig(epochs=2, batch_size=16, distillation=Distillation(features=(("0", "0"),)))
    fit(model, blobs(), config, teacher=teacher, progress=False)
    assert next(model.parameters()).is_cuda
    assert not next(teacher.parameters()).is_cuda


class Killed(Exception):
    pass


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_going_on_changes_no_bit(precision, tmp_path):
    config = TrainingConfig(epochs=4, batch_size=16, precision=precision, checkpoint_every=2, ema=0.9)

    def kill(info):
        if info.step == 9:
            raise Killed

    torch.backends.cudnn.deterministic = True
    try:
        whole = trained(config)
        with pytest.raises(Killed):
            trained(config, checkpoint=tmp_path, on_step=kill)
        resumed = trained(config, checkpoint=tmp_path)
    finally:
        torch.backends.cudnn.deterministic = False
    for one, other in zip(on_cpu(whole.model).values(), on_cpu(resumed.model).values()):
        assert torch.equal(one, other)


def test_batches_are_pinned_ahead():
    source = iter([(torch.randn(2, 2), torch.zeros(2, dtype=torch.int64))])
    inputs, labels = next(prefetched(source, pin=True))
    assert inputs.is_pinned()
    assert labels.is_pinned()
