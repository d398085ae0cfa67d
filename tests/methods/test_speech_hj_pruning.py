"""Joint pruning of a speech network's convolutions and transformer, at a share of its multiply-accumulates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prunus import methods
from prunus.errors import InputError
from prunus.graph import trace
from prunus.graph.counting import macs
from prunus.methods.speech_hj_pruning import gated_groups
from prunus.methods.unit_gates import expected_macs, put_random_gates

from .encoders import at


def wav2vec2() -> Any:
    transformers = pytest.importorskip("transformers", reason="the transformers extra is not installed")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, conv_dim=(8, 8, 8),
        conv_kernel=(5, 3, 3), conv_stride=(4, 2, 2), num_feat_extract_layers=3, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_labels=2, classifier_proj_size=8, apply_spec_augment=False,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config).eval()


class Waves:
    """Two pitches in noise, as a split of data."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(0, 2, (count,), generator=generator)
        time = torch.arange(200.0)
        pitch = torch.where(self.labels == 0, 0.2, 0.6)[:, None]
        self.waves = torch.sin(pitch * time) + 0.3 * torch.randn(count, 200, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, **_: Any) -> Any:
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        for rows in order.split(batch_size):
            yield self.waves[rows], self.labels[rows]


def test_expected_macs_are_those_that_a_counter_sees():
    model = wav2vec2()
    x = torch.randn(2, 200)
    graph = trace(model, x)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert float(expected_macs(graph, {})) == pytest.approx(macs(graph), rel=1e-9)
    assert float(expected_macs(graph, {})) == pytest.approx(counter.get_total_flops() / 2 / 2, rel=0.01)


def test_open_gates_change_nothing_and_channels_that_close_are_those_that_are_cut():
    model = wav2vec2()
    x = torch.randn(2, 200)
    graph = trace(model, x)
    gated = copy.deepcopy(model)
    groups = gated_groups(gated, graph)
    assert {group.kind for group, _ in groups} == {"channel", "head", "neuron"}
    made = put_random_gates(gated, groups, 2 / 3, 12.0, 1.0)
    torch.testing.assert_close(gated(x).logits, model(x).logits)
    name = "wav2vec2.feature_extractor.conv_layers.0.conv"
    with torch.no_grad():
        made.gates[name].factors[3] = -12.0
        expected = gated(x).logits
    kept = made.take_off()
    assert [name_ for name_, stay in kept.items() if not stay.all()] == [name]
    from prunus.methods.unit_gates import without_gates

    smaller, _ = without_gates(gated, graph, kept, "")
    torch.testing.assert_close(smaller(x).logits, expected)
    assert smaller.wav2vec2.feature_extractor.conv_layers[1].conv.in_channels == 7


@pytest.mark.parametrize("constraint", ["total", pytest.param("separate", marks=pytest.mark.slow)])
def test_the_network_shrinks_to_about_what_was_asked_and_tells_the_pitches(constraint: str):
    training = at(epochs=10, lr=2e-3)
    task = methods.Task(wav2vec2(), torch.randn(2, 200), Waves(256, 0), amount=0.4, training=training)
    given = {"constraint": constraint, "gate_lr": 0.1, "multiplier_lr": 0.5, "gated_epochs": 0.7}
    outcome = methods.run("speech_hj_pruning", task, **given)
    record = next(r for r in outcome.history if "expected" in r)
    assert set(record["expected"]) == ({"total"} if constraint == "total" else {"front", "transformer"})
    assert record["left"] < 0.8
    assert outcome.plan is not None
    assert outcome.plan.after.macs == pytest.approx(record["left"] * outcome.plan.before.macs, rel=0.01)
    test = Waves(200, 1)
    with torch.no_grad():
        right = (outcome.model.eval()(test.waves).logits.argmax(1) == test.labels).float().mean()
    assert float(right) > 0.9


def test_wrong_options_are_named():
    task = methods.Task(wav2vec2(), torch.randn(2, 200), Waves(8, 0), amount=0.4, training=at())
    with pytest.raises(InputError, match="constraint"):
        methods.run("speech_hj_pruning", task, constraint="parts")
