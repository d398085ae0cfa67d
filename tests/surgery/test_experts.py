"""Experts removed: the model is the dense one whose tokens pass them over, and counts follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.errors import InputError, SurgeryError, UnknownNameError, VerificationError
from prunus.surgery.experts import find_mixtures
from prunus.surgery.verify import check_values

from .helpers import lively


class Listed(nn.Module):
    """A mixture as users write it: a linear gate and a list of experts."""

    def __init__(self, *, sigmoid: bool = False, top_k: int = 2) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.sigmoid = 6, top_k, sigmoid
        self.gate = nn.Linear(4, 6)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(self.num_experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        scores = logits.sigmoid() if self.sigmoid else logits.softmax(-1)
        weights, chosen = scores.topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(chosen == index)
            out = out.index_add(0, token, weights[token, place, None] * expert(x[token]))
        return out


class Fused(nn.Module):
    """All experts in two tensors; the router's matrix reads from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 6
        self.router = nn.Parameter(torch.randn(4, 6))
        self.up, self.down = nn.Parameter(torch.randn(6, 4, 5)), nn.Parameter(torch.randn(6, 5, 4))
        self.shift = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        best = (x @ self.router).argmax(-1)
        hidden = torch.einsum("td,tdh->th", x, self.up[best]).relu()
        return torch.einsum("th,thd->td", hidden, self.down[best]) + self.shift[best]


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
STAYS = [0, 2, 5]


def passed_over(model: nn.Module, x: Tensor) -> Tensor:
    """The dense model's output with -inf for the experts that go, computed at the router's output."""
    gone = [i for i in range(6) if i not in STAYS]
    if isinstance(model, Fused):
        logits = x @ model.router
        logits[:, gone] = -torch.inf
        best = logits.argmax(-1)
        hidden = torch.einsum("td,tdh->th", x, model.up[best]).relu()
        return torch.einsum("th,thd->td", hidden, model.down[best]) + model.shift[best]

    def without(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor(gone), -torch.inf)

    handle = model.get_submodule("gate").register_forward_hook(without)
    try:
        return model(x)
    finally:
        handle.remove()


@pytest.mark.parametrize("build", [Listed, lambda: Listed(sigmoid=True), lambda: Listed(top_k=3), Fused])
def test_tokens_pass_the_removed_experts_over(build: Any):
    model = lively(build()).eval()
    result = prunus.prune_experts(model, X, keep=STAYS)
    with torch.no_grad():
        torch.testing.assert_close(result.model(X), passed_over(model, X))
        assert (result.model(X) - model(X)).abs().max() > 1e-3
    assert result.verified is not None
    assert result.verified.equal
    assert result.model.num_experts == 3
    assert model.num_experts == 6
    assert result.report.kinds == {"expert": (6, 3)}
    count = sum(p.numel() for p in result.model.parameters())
    assert result.report.after.parameters == count < result.report.before.parameters
    if isinstance(model, Listed):
        assert isinstance(result.model, Listed)
        assert (len(result.model.experts), result.model.gate.out_features) == (3, 3)
        assert torch.equal(result.model.experts[1][0].weight, model.experts[2][0].weight)
    else:
        assert torch.equal(result.model.up, model.up[STAYS])
        assert torch.equal(result.model.router, model.router[:, STAYS])


def test_a_wrong_expert_is_found():
    model = lively(Listed()).eval()
    result = prunus.prune_experts(model, X, keep=STAYS)
    with torch.no_grad():
        result.model.experts[1][0].weight.copy_(model.experts[1][0].weight)
    plan = prunus.from_json(prunus.to_json(result.plan))
    with pytest.raises(VerificationError, match="differs"):
        check_values(model, result.model, plan)


def test_the_worst_scored_experts_go():
    model = lively(Listed()).eval()
    with torch.no_grad():
        for index in (1, 4):
            for parameter in model.experts[index].parameters():
                parameter.mul_(0.01)
    cut = prunus.prune_experts(model, X, ratio=0.4).plan.cuts[0]
    assert cut.keep == (0, 2, 3, 5)
    scores = {"": torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])}
    assert prunus.prune_experts(model, X, ratio=0.5, scores=scores).plan.cuts[0].keep == (0, 1, 2)


def test_in_place_and_through_a_file(tmp_path: Path):
    model = lively(Listed()).eval()
    expected = passed_over(model, X)
    result = prunus.prune_experts(model, X, keep=STAYS, inplace=True)
    assert result.model is model
    assert len(model.experts) == 3
    torch.testing.assert_close(model(X), expected)
    prunus.save(model, tmp_path / "small")
    torch.testing.assert_close(prunus.load(tmp_path / "small", Listed()).eval()(X), expected)


def test_wrong_arguments_are_refused_before_anything_changes():
    model = lively(Listed()).eval()
    with pytest.raises(InputError, match=r"keep 1 of 6 experts, but each token visits 2"):
        prunus.prune_experts(model, X, keep=[3])
    with pytest.raises(InputError, match=r"has experts 0\.\.5"):
        prunus.prune_experts(model, X, keep=[3, 6])
    with pytest.raises(InputError, match="one of them"):
        prunus.prune_experts(model, X)
    with pytest.raises(UnknownNameError, match="mixture"):
        prunus.prune_experts(model, X, keep={"layers.0": [1, 2]})
    with pytest.raises(SurgeryError, match="no mixture of experts was found"):
        prunus.prune_experts(nn.Linear(4, 2), X, ratio=0.5)
    assert len(model.experts) == 6


def test_a_top_k_without_experts_is_no_mixture():
    class Ranked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.softmax(self.head(x), -1).topk(2).values

    with pytest.raises(SurgeryError, match="no mixture"):
        find_mixtures(Ranked(), X)


# -------------------------------------------------------------------------------------------------------- Hugging Face

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("name", ["mixtral", "qwen2 moe"])
def test_hugging_face_mixtures(name: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    build, config = {
        "mixtral": (transformers.MixtralForCausalLM, lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4)),
        "qwen2 moe": (
            transformers.Qwen2MoeForCausalLM,
            lambda: transformers.Qwen2MoeConfig(
                **SMALL, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8
            ),
        ),
    }[name]
    torch.manual_seed(0)
    model = build(config()).eval()
    inputs = {"input_ids": torch.randint(0, 40, (2, 6))}
    found = find_mixtures(model, inputs)
    assert [m.name for m in found] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    keep = {"model.layers.0.mlp": [0, 2, 3], "model.layers.1.mlp": [1, 2, 3]}
    result = prunus.prune_experts(model, inputs, keep=keep)
    small = result.model
    assert result.verified is not None
    assert result.verified.equal
    field = "num_local_experts" if name == "mixtral" else "num_experts"
    assert (getattr(small.config, field), getattr(model.config, field)) == (3, 4)
    for layer, (path, kept) in enumerate(keep.items()):
        experts, dense = (m.get_submodule(f"{path}.experts") for m in (small, model))
        assert experts.num_experts == 3
        assert torch.equal(experts.gate_up_proj, dense.gate_up_proj[kept])
        assert small.get_submodule(f"{path}.gate").weight.shape[0] == 3, layer
    small.save_pretrained(tmp_path / "small")
    again = build.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, small(**inputs).logits)
    with pytest.raises(InputError, match="the same number of experts in each"):
        prunus.prune_experts(model, inputs, keep={"model.layers.0.mlp": [0, 2, 3]})


class InGroups(nn.Module):
    """Routing as in DeepSeek-V3: sigmoid scores with a bias, groups by their two best experts, then experts."""

    def __init__(self, top_groups: int) -> None:
        super().__init__()
        self.num_experts, self.n_group, self.topk_group, self.top_k = 8, 2, top_groups, 2
        self.weight = nn.Parameter(torch.randn(8, 4))
        self.register_buffer("bias", torch.rand(8) * 0.1)
        self.up, self.down = nn.Parameter(torch.randn(8, 4, 5)), nn.Parameter(torch.randn(8, 5, 4))

    def chosen(self, x: Tensor, keep: list[int] | None = None) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        choice = scores + self.bias
        if keep is not None:
            gone = [i for i in range(8) if i not in keep]
            choice = choice.index_fill(-1, torch.tensor(gone), -torch.inf)
        groups = choice.view(-1, self.n_group, self.num_experts // self.n_group)
        best = groups.topk(2, -1)[0].sum(-1).topk(self.topk_group, -1)[1]
        mask = torch.zeros(len(x), self.n_group).scatter(1, best, 1.0).bool()[:, :, None]
        choice = choice.masked_fill(~mask.expand_as(groups).reshape(-1, self.num_experts), -torch.inf)
        index = choice.topk(self.top_k, -1)[1]
        weights = scores.gather(1, index)
        return index, weights / weights.sum(-1, keepdim=True)

    def forward(self, x: Tensor, keep: list[int] | None = None) -> Tensor:
        index, weights = self.chosen(x, keep)
        out = torch.zeros_like(x)
        for expert in range(self.num_experts):
            token, place = torch.where(index == expert)
            hidden = (x[token] @ self.up[expert]).relu() @ self.down[expert]
            out = out.index_add(0, token, weights[token, place, None] * hidden)
        return x + out


@pytest.mark.parametrize("top_groups", [1, 2])
def test_experts_in_groups_go_alike_from_each(top_groups: int):
    torch.manual_seed(0)
    model = InGroups(top_groups).eval()
    stays = [0, 2, 3, 4, 5, 7]
    result = prunus.prune_experts(model, X, keep=stays)
    with torch.no_grad():
        torch.testing.assert_close(result.model(X), model(X, stays))
        assert (result.model(X) - model(X)).abs().max() > 1e-3
    assert result.verified is not None
    assert result.verified.equal
    kept = prunus.prune_experts(model, X, ratio=0.5).plan.cuts[0].keep
    assert sum(index < 4 for index in kept) == 2
    with pytest.raises(InputError, match=r"2 groups of 4 experts .* not \[4, 2\]"):
        prunus.prune_experts(model, X, keep=[0, 1, 2, 3, 4, 5])
