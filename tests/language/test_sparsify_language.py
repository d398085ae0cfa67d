from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunus.errors import InputError, UnknownNameError
from prunus.language import OWL, BlockOptions, find_blocks, prune_block, sparsify_language

transformers = pytest.importorskip("transformers")


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
        )
    ).eval()


MODELS = {
    "llama": (llama, ["model.layers.0", "model.layers.1", "model.layers.2"], 7),
    "gpt2": (gpt2, ["transformer.h.0", "transformer.h.1"], 4),
    "bert": (bert, ["encoder.layer.0", "encoder.layer.1"], 6),
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(50, (6, 12), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens)[0]


@pytest.mark.parametrize("family", MODELS)
def test_blocks_are_found_without_knowing_the_family(family, tokens):
    make, names, _ = MODELS[family]
    assert list(find_blocks(make(), tokens)) == names


@pytest.mark.parametrize("family", MODELS)
def test_wanda_equals_norms_read_from_the_half_pruned_model(family, tokens):
    """The reference runs the whole model for each block and reads inputs with its own hooks."""
    make, names, linears = MODELS[family]
    model = make()
    result = sparsify_language(model, tokens, method="wanda", sparsity=0.5)
    assert len(result.masks) == linears * len(names)
    expected = make()
    for name in names:
        layers = {n: m for n, m in expected.get_submodule(name).named_modules() if getattr(m, "weight", m) is not m}
        layers = {n: m for n, m in layers.items() if m.weight.dim() == 2}
        seen: dict[str, Tensor] = {}
        handles = [
            m.register_forward_pre_hook(lambda m, a, n=n, to=seen: to.__setitem__(n, a[0].reshape(-1, a[0].shape[-1])))
            for n, m in layers.items()
        ]
        logits(expected, tokens)
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for n, layer in layers.items():
                weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
                order = (weight.abs() * seen[n].norm(dim=0)).argsort(dim=1)[:, : weight.shape[1] // 2]
                weight.scatter_(1, order, 0.0)
    found = dict(result.finalize().named_parameters())
    for n, parameter in expected.named_parameters():
        assert torch.equal(found[n] == 0, parameter == 0), n
    torch.testing.assert_close(logits(result.model, tokens), logits(expected, tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["sparsegpt", "alps", "magnitude"])
def test_zero_sparsity_gives_the_model_bit_for_bit(method, tokens):
    model = llama()
    result = sparsify_language(model, tokens, method=method, sparsity=0.0)
    for name, parameter in result.finalize().named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])


def test_the_model_is_left_alone_and_the_result_opens_again(tokens, tmp_path):
    model = llama()
    before, output = copy.deepcopy(model.state_dict()), logits(model, tokens)
    result = sparsify_language(model, tokens, method="sparsegpt", sparsity="2:4")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(logits(model, tokens), output)
    assert model.config.use_cache
    assert result.report.sparsity == 0.5
    assert torch.equal(result.model.lm_head.weight, model.lm_head.weight)
    result.finalize().save_pretrained(tmp_path)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again, tokens), logits(result.model, tokens))


def test_dense_propagation_prunes_each_block_as_if_alone(tokens):
    model = llama()
    hidden: list[Tensor] = []
    handle = model.model.layers[2].register_forward_pre_hook(lambda m, a, k: hidden.append((a, k)), with_kwargs=True)
    logits(model, tokens)
    handle.remove()
    (args, kwargs) = hidden[0]
    alone = copy.deepcopy(model.model.layers[2])
    kwargs["past_key_values"] = None

    def run(block: nn.Module, x: Tensor) -> Tensor:
        out = block(x, *args[1:], **kwargs)
        return out if isinstance(out, Tensor) else out[0]

    prune_block(alone, [args[0]], BlockOptions("wanda", 0.5), run=run)
    result = sparsify_language(model, tokens, method="wanda", sparsity=0.5, propagate="dense").finalize()
    for name, parameter in alone.named_parameters():
        assert torch.equal(parameter, dict(result.model.layers[2].named_parameters())[name])


def test_owl_keeps_the_mean_and_gives_each_block_its_own(tokens):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[:, 3] *= 100
    result = sparsify_language(model, tokens, method="wanda", sparsity=0.6, allocation=OWL(multiple=3.0, spread=0.1))
    values = list(result.sparsities.values())
    assert sum(values) / 3 == pytest.approx(0.6)
    assert max(values) - min(values) == pytest.approx(0.2)


def test_what_is_kept_stays_dense(tokens):
    keep = ("model.layers.0", "*.down_proj", "model.layers.2.self_attn.q_proj")
    result = sparsify_language(llama(), tokens, keep=keep)
    assert not any(name.startswith("model.layers.0.") or "down_proj" in name for name in result.masks)
    assert "model.layers.2.self_attn.q_proj.weight" not in result.masks
    assert len(result.masks) == 6 + 5


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"keep": ("layers.9",)}, UnknownNameError, "layers.9"),
        ({"allocation": "owls"}, UnknownNameError, "owl"),
        ({"allocation": "owl", "sparsity": "2:4"}, InputError, "owl"),
        ({"method": "wnda"}, UnknownNameError, "wanda"),
    ],
)
def test_wrong_arguments(tokens, arguments, error, says):
    with pytest.raises(error, match=says):
        sparsify_language(llama(), tokens, **arguments)


def test_tokens_of_several_shapes_are_refused(tokens):
    with pytest.raises(InputError, match="one shape"):
        sparsify_language(llama(), [tokens, tokens[:, :5]])


def test_models_without_blocks_are_refused(tokens):
    with pytest.raises(InputError, match=r"prunus\.sparsify"):
        sparsify_language(nn.Embedding(50, 4), tokens)


def test_states_of_an_encoder_are_refused():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layers = nn.Embedding(50, 8), nn.ModuleList([Inner() for _ in range(2)])

        def forward(self, ids: Tensor) -> Tensor:
            x = memory = self.embed(ids)
            for layer in self.layers:
                x = layer(x, memory)
            return x

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return x + self.linear(torch.tanh(x)) * memory

    ids = torch.randint(50, (4, 3), generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="depends on the tokens"):
        sparsify_language(Reads(), [ids[:2], ids[2:]])
