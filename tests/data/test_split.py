"""Batches are a pure function of seed and epoch, and every sample comes once."""

from __future__ import annotations

import dataclasses
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.data import DataSource, ShiftFlip, Split, blobs, normalise
from prunus.errors import InputError, ShapeError


def numbered(count: int, augmentation: ShiftFlip | None = None) -> Split:
    """Images of one pixel value each, which is also the label, so that a batch shows which samples it took."""
    inputs = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return Split(inputs, torch.arange(count), augmentation=augmentation)


def taken(split: Split, batch_size: int, **options) -> list[list[int]]:
    return [y.tolist() for _, y in split.batches(batch_size, **options)]


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 60), size=st.integers(1, 70), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_every_sample_comes_once_whatever_the_sizes(count, size, seed, epoch):
    split = numbered(count)
    plain, shuffled = taken(split, size), taken(split, size, shuffle=True, seed=seed, epoch=epoch)
    assert list(chain.from_iterable(plain)) == list(range(count))
    assert sorted(chain.from_iterable(shuffled)) == list(range(count))
    assert [len(b) for b in plain] == [len(b) for b in shuffled]
    assert len(plain) == split.count_batches(size)
    dropped = taken(split, size, drop_last=True)
    assert dropped == [b for b in plain if len(b) == size]
    assert len(dropped) == split.count_batches(size, drop_last=True)


def test_seed_and_epoch_determine_the_batches_and_nothing_else_does():
    split = blobs(samples=(50, 8, 8)).train
    split = dataclasses.replace(split, augmentation=ShiftFlip(2))
    options = {"shuffle": True, "augment": True, "seed": 3, "epoch": 2}
    first = list(split.batches(16, **options))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = list(split.batches(16, **options))
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second))
    assert torch.equal(state, torch.get_rng_state()), "the global generator was used"
    for other in ({"seed": 4}, {"epoch": 3}):
        assert not torch.equal(first[0][0], next(split.batches(16, **{**options, **other}))[0])


def test_seed_and_epoch_are_not_added_up():
    """Epoch 1 of seed 0 must not be epoch 0 of seed 1."""
    split = numbered(40)
    assert taken(split, 40, shuffle=True, seed=0, epoch=1) != taken(split, 40, shuffle=True, seed=1, epoch=0)


def test_starting_in_the_middle_gives_the_rest_of_the_same_epoch():
    split = numbered(50, ShiftFlip(2))
    options = {"shuffle": True, "augment": True, "seed": 7, "epoch": 1}
    whole, rest = list(split.batches(8, **options)), list(split.batches(8, start=4, **options))
    assert len(rest) == len(whole) - 4
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[4:], rest))


def test_augmentation_of_a_sample_does_not_hang_on_the_batch_size():
    split = dataclasses.replace(blobs(samples=(24, 8, 8)).train, augmentation=ShiftFlip(3))
    small = torch.cat([x for x, _ in split.batches(5, augment=True, seed=1)])
    assert torch.equal(small, next(split.batches(24, augment=True, seed=1))[0])


def test_inputs_are_normalised_per_channel_and_stay_as_they_were():
    pixels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 2, 1, 2)
    split = Split(pixels, torch.tensor([0]), mean=(0.2, 0.4), std=(0.5, 0.1))
    x, y = next(split.batches(1))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(x, torch.tensor([[[[-0.4, 0.0]], [[0.0, 6.0]]]]))
    assert torch.equal(split.inputs, pixels)
    floats = Split(pixels.float() / 255, torch.tensor([0]), mean=(0.2, 0.4), std=(0.5, 0.1))
    torch.testing.assert_close(next(floats.batches(1))[0], x)


def test_inputs_that_are_not_normalised_are_not_handed_out_to_be_changed():
    split = Split(torch.rand(4, 3), torch.arange(4))
    before = split.inputs.clone()
    next(split.batches(4))[0].zero_()
    assert torch.equal(split.inputs, before)


def test_normalise_leaves_its_input_alone():
    x = torch.ones(1, 2, 3, 3)
    assert normalise(x, (1.0, 0.0), (1.0, 2.0))[0, :, 0, 0].tolist() == [0.0, 0.5]
    assert x.eq(1).all()
    assert normalise(x, (), ()) is x


def test_a_subset_keeps_the_proportions_and_is_always_the_same():
    targets = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)[torch.randperm(100)]
    split = Split(torch.rand(100, 1, 2, 2), targets)
    part = split.subset(20)
    assert part.targets.bincount().tolist() == [12, 6, 2]
    assert torch.equal(part.inputs, split.subset(20).inputs)
    assert split.subset([3, 1]).targets.tolist() == [int(targets[3]), int(targets[1])]
    assert len(split.subset(0)) == 0
    with pytest.raises(InputError, match="101 samples asked for, but the split has 100"):
        split.subset(101)
    with pytest.raises(InputError, match=r"\[0, 100\]"):
        split.subset([0, 100])


def test_hashes_tell_samples_labels_shapes_and_types_apart():
    base = Split(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    others = [
        Split(torch.zeros(2, 1, 4, 1), torch.tensor([0, 1])),
        Split(torch.zeros(2, 1, 2, 2), torch.tensor([1, 1])),
        Split(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1])),
        Split(torch.full((2, 1, 2, 2), 1e-7), torch.tensor([0, 1])),
    ]
    assert len({s.hash for s in [base, *others]}) == 5
    assert base.hash == Split(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), mean=(0.5,), std=(2.0,)).hash


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"inputs": torch.zeros(3, 1, 2, 2)}, ShapeError, r"inputs \(3, 1, 2, 2\) and targets \(2,\)"),
        ({"inputs": torch.zeros(2)}, ShapeError, "must be"),
        ({"targets": torch.zeros(2, 2, dtype=torch.int64)}, ShapeError, "must be"),
        ({"inputs": torch.zeros(2, 1, 2, 2, dtype=torch.int32)}, InputError, "uint8 in 0..255"),
        ({"targets": torch.zeros(2)}, InputError, "targets.long"),
        ({"inputs": torch.full((2, 1, 2, 2), float("nan"))}, InputError, "NaN"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, ShapeError, "one value for each of the 1 channels"),
        ({"mean": (0.5,)}, ShapeError, "one value for each"),
        ({"mean": (0.5,), "std": (0.0,)}, InputError, "above zero"),
    ],
)
def test_wrong_tensors_are_refused(arguments, error, says):
    right = {"inputs": torch.zeros(2, 1, 2, 2), "targets": torch.tensor([0, 1])}
    with pytest.raises(error, match=says):
        Split(**{**right, **arguments})


def test_wrong_batch_arguments_are_refused_at_once():
    for size, start in ((0, 0), (4, -1)):
        with pytest.raises(InputError, match=f"batch_size={size} .* start={start}"):
            numbered(4).batches(size, start=start)


def test_a_source_checks_that_its_splits_belong_together():
    good = numbered(4)
    with pytest.raises(InputError, match=r"test split lie in \[0, 3\]; with 3 classes they must be 0 to 2"):
        DataSource("mine", 3, good.subset([0, 1]), good.subset([2]), good)
    with pytest.raises(ShapeError, match="validation split"):
        DataSource("mine", 4, good, Split(torch.zeros(1, 1, 2, 2), torch.tensor([0])), good)
    with pytest.raises(InputError, match="2 class names for 4 classes"):
        DataSource("mine", 4, good, good, good, ("a", "b"))


def test_other_normalisation_changes_the_batches_and_not_the_samples():
    source = blobs(samples=(8, 4, 4))
    other = source.normalised((0.0,), (1.0,))
    assert other.hashes == source.hashes
    assert (other.mean, other.std) == ((0.0,), (1.0,))
    torch.testing.assert_close(next(other.test.batches(4))[0], source.test.inputs / 255)
