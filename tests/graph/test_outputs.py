from __future__ import annotations

import pytest
import torch

from prunus.graph.outputs import held, leaves_of


def test_everything_in_plain_containers_is_held():
    a, b = torch.zeros(2), torch.ones(3)
    assert [t.shape for t in held({"hidden_states": a, "x": (b, 4)})] == [a.shape, b.shape]


def test_predictions_with_names_are_held_and_caches_are_not():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    first, cache = torch.zeros(1), torch.zeros(2)
    found = outputs.Seq2SeqLMOutput(logits=first, encoder_last_hidden_state=cache, past_key_values=(cache,))
    assert [kept for _, _, kept in leaves_of(found)] == [True, False, False]
    only = outputs.BaseModelOutput(last_hidden_state=first)
    assert [kept for _, _, kept in leaves_of(only)] == [True]


def test_a_second_prediction_keeps_its_shape():
    transformers = pytest.importorskip("transformers")
    from torch import nn
    from transformers.utils.generic import ModelOutput

    import prunus

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classes, self.boxes = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 4)

        def forward(self, x):
            h = self.body(x).relu()
            return ModelOutput(logits=self.classes(h), pred_boxes=self.boxes(h), last_hidden_state=h)

    assert transformers
    result = prunus.prune(Boxes(), torch.randn(2, 6), ratio=0.5)
    out = result.model(torch.randn(2, 6))
    assert (out["logits"].shape[1], out["pred_boxes"].shape[1], out["last_hidden_state"].shape[1]) == (3, 4, 8)
