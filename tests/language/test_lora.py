"""Low-rank updates beside zeros: the merged model computes what the one with updates does, and keeps every zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from prunus import sparsify
from prunus.errors import InputError
from prunus.masks import masks_of

pytest.importorskip("peft", reason="low-rank updates are peft's")

from prunus.language.lora import add_lora


def llama() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=32)
    )


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 40))


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    output = model(ids)
    return output if isinstance(output, torch.Tensor) else output.logits


def trained(model: nn.Module, ids: torch.Tensor, steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(logits(model, ids).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@pytest.mark.parametrize("build", [llama, gpt2, plain])
@pytest.mark.parametrize("masked", [False, True])
def test_merged_is_unmerged_and_zeros_stay_zero(build, masked):
    result = sparsify(build(), sparsity=0.5)
    model = result.model if masked else result.finalize()
    ids = torch.randint(0, 40, (4, 9))
    zeros = {name: mask.clone() for name, mask in result.masks.items()}
    names = sorted(build().state_dict())
    with torch.no_grad():
        dense = logits(model.eval(), ids)
    adapted = add_lora(model, rank=3, alpha=6.0)
    assert set(adapted.masks) == set(zeros)
    assert adapted.trainable == sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    with torch.no_grad():
        torch.testing.assert_close(logits(adapted.model.eval(), ids), dense)  # updates start at zero
    losses = trained(adapted.model, ids)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        unmerged = logits(adapted.model, ids)
        merged = adapted.merge().eval()
        assert not torch.allclose(unmerged, dense, atol=1e-3)
        torch.testing.assert_close(logits(merged, ids), unmerged, rtol=1e-4, atol=1e-5)
    assert type(merged) is type(build())
    assert not masks_of(merged)
    assert sorted(merged.state_dict()) == names
    for name, mask in zeros.items():
        weight = merged.get_parameter(name)
        assert not weight[~mask].any()
        assert (weight[mask] != 0).all()


def test_a_dense_layer_has_a_plain_update_and_kept_layers_none():
    model = plain()
    before = model[3].weight.clone()
    adapted = add_lora(model, rank=2, layers=["1"])
    assert not adapted.masks
    assert adapted.trainable == 2 * (8 + 12)
    trained(adapted.model, torch.randint(0, 40, (4, 9)))
    assert torch.equal(adapted.merge()[3].weight, before)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="rank="):
        add_lora(plain(), rank=0)
    with pytest.raises(InputError, match="no linear layer"):
        add_lora(nn.Sequential(nn.Conv1d(2, 2, 1)))
