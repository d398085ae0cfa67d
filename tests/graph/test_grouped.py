"""Products of groups of rows with a matrix each, as mixtures of experts make them: they shrink in their widths, in
steps that keep rows at 16 bytes. Oracles: the dense model with zeros, every expert computed by a loop in float64."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunus
from prunus.graph.algebra import AxisAlgebra, Reason
from prunus.graph.equations import solve
from prunus.graph.recorder import Multiple
from prunus.graph.shortcuts import output_of

grouped_mm = getattr(F, "grouped_mm", None)
needs_grouped_mm = pytest.mark.skipif(grouped_mm is None, reason="this torch has no grouped_mm")


class Experts(nn.Module):
    """Tokens sorted by expert, then one grouped product per layer; `loop` computes the same expert by expert."""

    def __init__(
        self, width: int = 16, inner: int = 24, *, interleaved: bool = False, rows_first: bool = False
    ) -> None:
        super().__init__()
        self.num_experts, self.interleaved, self.rows_first = 4, interleaved, rows_first
        self.stem, self.router = nn.Linear(6, width), nn.Linear(width, self.num_experts)
        shapes = ((width, 2 * inner), (inner, width))
        self.up, self.down = (
            nn.Parameter(torch.randn(self.num_experts, *(shape if rows_first else shape[::-1])) * 0.3)
            for shape in shapes
        )
        self.head = nn.Linear(width, 3)

    def gated(self, x: Tensor) -> Tensor:
        gate, up = (x[:, ::2], x[:, 1::2]) if self.interleaved else x.chunk(2, -1)
        return F.silu(gate) * up

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        weight, expert = self.router(x).softmax(-1).max(-1)
        expert, order = expert.sort()
        ends = torch.histc(expert.float(), self.num_experts, 0, self.num_experts - 1).cumsum(0, dtype=torch.int32)
        up, down = (w if self.rows_first else w.transpose(1, 2) for w in (self.up, self.down))
        assert grouped_mm is not None
        out = grouped_mm(self.gated(grouped_mm(x[order], up, offs=ends)), down, offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return self.head(x + out[back] * weight[:, None])

    def loop(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        weight, expert = self.router(x).softmax(-1).max(-1)
        up, down = (w if self.rows_first else w.transpose(1, 2) for w in (self.up, self.down))
        rows = [self.gated(x[i : i + 1] @ up[e]) @ down[e] for i, e in enumerate(expert.tolist())]
        return self.head(x + torch.cat(rows) * weight[:, None])


X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))


def zeroed(model: Experts, plan: prunus.Plan) -> Experts:
    masked = copy.deepcopy(model).double()
    tensors = dict(masked.named_parameters())
    with torch.no_grad():
        for cut in plan.tensors:
            gone = sorted(set(range(cut.size)) - set(cut.keep))
            tensors[cut.tensor].index_fill_(cut.dim, torch.tensor(gone), 0)
    return masked


@needs_grouped_mm
@pytest.mark.parametrize("ratio", [0.5, 0.3])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rows_first", [False, True])
def test_cutting_is_zeroing_as_a_loop_over_experts_computes_it(ratio: float, interleaved: bool, rows_first: bool):
    model = Experts(32, 48, interleaved=interleaved, rows_first=rows_first).eval()
    result = prunus.prune(model, X, ratio=ratio)
    cut = result.model
    with torch.no_grad():
        expected = zeroed(model, result.plan).loop(X.double())
        torch.testing.assert_close(copy.deepcopy(cut).double().loop(X.double()), expected)
        torch.testing.assert_close(cut(X).double(), expected, atol=1e-5, rtol=1e-5)
        assert (expected - copy.deepcopy(model).double().loop(X.double())).abs().max() > 1e-3
    width, inner = cut.stem.out_features, cut.down.shape[1 if rows_first else 2]
    assert (width, inner) == ({0.5: 16, 0.3: 24}[ratio], {0.5: 24, 0.3: 40}[ratio])
    assert cut.up.shape == ((4, width, 2 * inner) if rows_first else (4, 2 * inner, width))
    assert result.verified is not None
    assert result.verified.equal


@needs_grouped_mm
@pytest.mark.parametrize(("width", "inner", "steps"), [(16, 24, {8}), (20, 12, {4}), (16, 12, {8, 4})])
def test_widths_keep_rows_of_whole_16_bytes(width: int, inner: int, steps: set[int]):
    graph = prunus.trace(Experts(width, inner).eval(), X)
    found = [set(c.steps.values()) for c in graph.coupled]
    assert set().union(*found) == steps
    assert all("16 bytes" in c.reason for c in graph.coupled)
    assert sum("has no rule" in r.reason for r in graph.unprunable) == 0


@needs_grouped_mm
def test_multiply_adds_are_those_of_the_formula():
    width, inner, tokens = 16, 24, len(X)
    graph = prunus.trace(Experts(width, inner).eval(), X)
    done = sum(
        coefficient * math.prod(axis.size for axis in axes)
        for o in graph.operators
        for coefficient, axes in o.multiply_adds
    )
    assert done == tokens * (6 * width + width * 4 + width * 2 * inner + inner * width + width * 3)


@needs_grouped_mm
def test_experts_go_as_before():
    model = Experts().eval()
    found = [int(e) for e in model.router(model.stem(X).relu()).argmax(-1)]
    stays = sorted(set(found))[:2]
    result = prunus.prune_experts(model, X, keep=stays)
    assert result.model.up.shape[0] == result.model.num_experts == 2
    assert result.verified is not None
    assert result.verified.equal
    torch.testing.assert_close(result.model(X), result.model.loop(X), atol=1e-5, rtol=1e-5)


@needs_grouped_mm
def test_empty_outputs_are_those_of_torch():
    ends = torch.tensor([2, 4, 6], dtype=torch.int32)
    operator = torch.ops.aten._grouped_mm.default
    assert grouped_mm is not None
    for dtype in (torch.float32, torch.bfloat16):
        rows, matrices = torch.randn(6, 16, dtype=dtype), torch.randn(3, 24, 16, dtype=dtype).transpose(1, 2)
        expected = grouped_mm(rows, matrices, offs=ends)
        got = output_of(operator, (rows.to("meta"), matrices.to("meta"), ends.to("meta")), {})
        assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)
    with pytest.raises(RuntimeError):  # rows of 60 bytes: left to torch
        output_of(operator, (rows[:, :15].float().to("meta"), matrices[:, :15].float().to("meta"), ends.to("meta")), {})


# ------------------------------------------------------------------------------------------------------------ multiples


def sizes_reachable(algebra: AxisAlgebra, node: int, steps: dict[int, dict[int, int]]) -> set[int]:
    """Every size that an axis takes as its classes lose steps, by trying them all."""
    classes = [c for c in steps if set(steps[c]) & set(algebra.atoms(node))]
    count = {c: next(algebra.size(a) // s for a, s in steps[c].items()) for c in classes}
    found = set()
    for left in itertools.product(*(range(1, count[c] + 1) for c in classes)):
        size = {a: s * n for c, n in zip(classes, left) for a, s in steps[c].items()}
        found.add(algebra.fold(node, lambda a, size=size: size.get(a, algebra.size(a)), math.prod, sum))
    return found


def test_every_size_that_a_plan_can_reach_is_a_multiple():
    algebra = AxisAlgebra()
    a, b, c, d = (algebra.atom(n) for n in (16, 8, 6, 10))
    twice = algebra.concat([a, a])
    mixed = algebra.concat([algebra.product([b, c]), a])
    odd = algebra.concat([d, algebra.atom(6, Reason("given"))])
    multiples = [Multiple(twice, 8, "wanted", "", ""), Multiple(mixed, 4, "wanted", "", "")]
    solution = solve(algebra, [], [*multiples, Multiple(odd, 4, "wanted", "", "")])
    assert sizes_reachable(algebra, twice, solution.steps) == {8, 16, 24, 32}
    assert all(size % 4 == 0 for size in sizes_reachable(algebra, mixed, solution.steps))
    assert len(sizes_reachable(algebra, mixed, solution.steps)) > 4
    assert algebra.atom_frozen(d) is not None  # 10 is no multiple of 4
    assert algebra.atom_frozen(c) is None


# --------------------------------------------------------------------------------------------------------- transformers


def decoder(name: str, **settings: Any) -> nn.Module:
    """A small decoder with experts, every constant in it random."""
    transformers = pytest.importorskip("transformers", reason="the model is one of transformers")
    config = getattr(transformers, f"{name}Config")(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        num_experts_per_tok=2,
        **settings,
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if parameter.dim() == 1 else torch.randn_like(parameter))
    return model


DECODERS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "head_dim": 8, "moe_intermediate_size": 32},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
}
TOKENS = {"input_ids": torch.arange(14).view(2, 7)}


@needs_grouped_mm
@pytest.mark.parametrize("name", DECODERS)
def test_decoders_with_experts_shrink_in_width_and_in_experts(name: str):
    model = decoder(name, **DECODERS[name])
    result = prunus.prune(model, TOKENS, ratio=0.5)
    assert result.report.after.parameters < 0.4 * result.report.before.parameters
    assert result.verified is not None
    assert result.verified.equal
    before, after = (m.model.layers[0].mlp.experts.down_proj for m in (model, result.model))
    assert tuple(after.shape) == (4, before.shape[1] // 2, before.shape[2] // 2)
    fewer = prunus.prune_experts(result.model, TOKENS, ratio=0.5)
    assert fewer.report.kinds == {"expert": (8, 4)}
    assert fewer.verified is not None
    assert fewer.verified.equal


@needs_grouped_mm
def test_a_decoder_with_experts_is_planned_without_weights():
    model = decoder("Mixtral", num_local_experts=4)
    with_weights = prunus.trace(model, TOKENS)
    without = prunus.trace(copy.deepcopy(model).to("meta"), TOKENS)
    assert with_weights.groups == without.groups
    assert with_weights.coupled == without.coupled
