"""Constructs of public networks that once were refused, frozen or cut wrongly; the oracle is the dense network with
zeros in the place of what was removed."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import prunus
from prunus.graph import inputs as example


def lively(model: nn.Module) -> nn.Module:
    """In float64, with random values in what starts as zeros or ones."""
    torch.manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(0.0, 0.5)
    return model


def halved(model: nn.Module, inputs: Any) -> prunus.Pruned[nn.Module]:
    """Pruned by half and equal to its masked self."""
    result = prunus.prune(lively(model), inputs, ratio=0.5)
    assert result.plan.neutral
    masked = copy.deepcopy(model)
    tensors = dict(masked.named_parameters()) | dict(masked.named_buffers())
    with torch.no_grad():
        for cut in result.plan.tensors:
            gone = sorted(set(range(cut.size)) - set(cut.keep))
            tensors[cut.tensor].index_fill_(cut.dim, torch.tensor(gone), 0)
        expected, got = (tree_leaves(example.call(m, inputs)) for m in (masked, result.model))
    assert len(expected) == len(got)
    for want, have in zip(expected, got):
        torch.testing.assert_close(have, want)
    return result


def image(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 3, 8, 8)), dtype=torch.float64)


class AuxiliaryHead(nn.Module):
    """A second classifier that runs only in training mode, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.aux = nn.Conv2d(8, 6, 1)
        self.aux_head = nn.Linear(6, 5)
        self.head = nn.Linear(8, 5)
        self.forgotten = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        out = self.head(x.sum((2, 3)))
        return (out, self.aux_head(self.aux(x).sum((2, 3)))) if self.training else out


def test_layers_that_run_only_in_training_fit_the_cut_model_too():
    result = halved(AuxiliaryHead(), image())
    cut = result.model
    assert cut.aux.weight.shape == (3, 4, 1, 1)
    assert [t.shape for t in cut.train()(image())] == [(2, 5), (2, 5)]
    assert cut.forgotten.weight.shape == (8, 8)
    assert any("nothing reads it" in r.reason for r in result.refused)


class Coordinates(nn.Module):
    """A bias computed by a small network from coordinates in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 8), nn.Linear(8, 4)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("coordinates", torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x) * self.second(torch.relu(self.first(self.coordinates)))))


def test_what_no_layer_makes_is_left_alone():
    result = halved(Coordinates(), torch.randn(2, 6, 4, dtype=torch.float64))
    assert result.model.first.weight.shape == (4, 2)
    assert result.model.coordinates.shape == (6, 2)


class ZeroedKeyBias(nn.Module):
    """Sizes read with numel()."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        length = self.qkv.bias.numel() // 3
        bias = self.qkv.bias.clone()
        bias[length : 2 * length].zero_()
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        return self.head(q * k * v)


def test_sizes_read_with_numel_follow_the_axis():
    assert halved(ZeroedKeyBias(), torch.randn(2, 5, 4, dtype=torch.float64)).model.qkv.weight.shape == (12, 4)


class ListOfImages(nn.Module):
    """Inputs in a list within a tuple, as detectors take them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, images: list[Tensor]) -> dict[str, Tensor]:
        return {"out": self.head(torch.relu(self.conv(torch.stack(images))))}


def test_inputs_may_be_nested():
    images = ([image(3, 8, 8), image(3, 8, 8)],)
    result = halved(ListOfImages(), images)
    assert result.model.conv.weight.shape == (4, 3, 3, 3)
    assert result.graph.batch == 2
    made = example.make(result.plan.inputs)
    assert [t.shape for t in made[0]] == [(3, 8, 8), (3, 8, 8)]


class ChannelsLastPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_pooling_of_channels_last_tensors_keeps_the_channels():
    assert halved(ChannelsLastPooling(), image()).model.conv.weight.shape == (4, 3, 3, 3)


class StandardisedConv(nn.Conv2d):
    """A convolution that normalises its weight over the fan-in."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_layer_with_code_of_its_own_reads_its_attributes_and_standardised_weights_are_not_neutral():
    model = nn.Sequential(StandardisedConv(3, 8, 3, padding=1), nn.ReLU(), StandardisedConv(8, 4, 3)).double()
    result = prunus.prune(model, image(), ratio=0.5)
    first, second = result.model[0], result.model[2]
    assert (first.out_channels, first.weight.shape, second.weight.shape) == (4, (4, 3, 3, 3), (4, 4, 3, 3))
    assert not result.plan.neutral
    kept = torch.tensor(result.plan.cuts[0].keep)
    expected = copy.deepcopy(model)
    expected[0].weight.data, expected[0].bias.data = model[0].weight[kept].data, model[0].bias[kept].data
    expected[0].out_channels, expected[2].weight.data = 4, model[2].weight[:, kept].data
    x = image()
    torch.testing.assert_close(result.model(x), expected(x))


class UnevenChunks(nn.Module):
    """Three pieces of 4, 4 and 2 channels, each changed by itself: their sizes are those of an uneven chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 10), nn.Linear(10, 3)

    def forward(self, x):
        a, b, c = self.first(x).chunk(3, dim=-1)
        return self.second(torch.cat([a.relu(), b, c.sigmoid()], -1))


def test_chunks_that_do_not_come_out_even_stay_whole_and_say_why():
    graph = prunus.trace(UnevenChunks().eval(), torch.randn(4, 5))
    assert not graph.groups
    reasons = {refusal.what: refusal.reason for refusal in graph.unprunable}
    assert "chunk" in reasons["first.weight dimension 0 (10)"]


class Chooser(nn.Module):
    """The position of the largest of some units says which row of a table is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.vote, self.table, self.head = (
            nn.Linear(6, 12),
            nn.Linear(12, 8),
            nn.Embedding(8, 10),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        votes = self.vote(torch.relu(self.stem(x)))
        best, place = votes.max(-1)
        return self.head(torch.relu(self.table(place)) * best[:, None]) + votes.argmax(-1, keepdim=True)


def test_positions_of_the_largest_entry_are_not_renumbered():
    result = halved(Chooser(), torch.randn(16, 6, dtype=torch.float64))
    assert result.model.vote.weight.shape == (8, 6)
    assert result.model.table.weight.shape == (8, 5)
    assert any("position of its largest" in r.reason for r in result.refused)


class SizesInSums(nn.Module):
    """Heads in one projection, found by slices whose ends are sums and products of attributes, and by a division."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 3
        self.qkv, self.out = nn.Linear(6, 3 * 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.heads * self.width
        x = self.qkv(x)
        q, k, v = x[..., :one], x[..., one : one + self.heads * self.width], x[..., 2 * one :]
        q, k, v = (t.view(*t.shape[:2], 2, self.heads // 2, self.width).movedim(1, 3) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) * 0.1).softmax(-1) @ v
        return self.out(mixed.movedim(3, 1).flatten(2))


def test_an_attribute_is_found_in_a_sum_of_sizes_by_taking_off_the_rest():
    result = halved(SizesInSums(), torch.randn(2, 4, 6, dtype=torch.float64))
    cut = result.model
    assert (cut.heads, cut.width) in ((2, 2), (2, 3), (2, 1))
    assert cut.qkv.out_features == 3 * cut.heads * cut.width
    assert {c.name: c.new for c in result.plan.attributes if c.name == "heads"} == {"heads": 2}


class BorrowedFilter(nn.Module):
    """A depthwise convolution whose weight belongs to a layer that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth, self.head = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 3, groups=8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.conv1d(x, self.depth.weight, self.depth.bias, groups=x.shape[1])
        return self.head(x.sum(2))


def test_the_groups_of_a_borrowed_filter_follow_in_its_layer():
    cut = halved(BorrowedFilter(), torch.randn(2, 3, 9, dtype=torch.float64)).model
    assert (cut.depth.groups, cut.depth.in_channels, cut.depth.weight.shape) == (4, 4, (4, 1, 3))
