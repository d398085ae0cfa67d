from __future__ import annotations

import threading
from itertools import count

import pytest
import torch

from prunus.errors import InputError
from prunus.training import TrainingConfig
from prunus.training.batches import Batches, check_split, prefetched, steps_per_epoch
from prunus.training.processes import Processes

from .small import TensorSplit, blobs

CPU = torch.device("cpu")
CONFIG = TrainingConfig(batch_size=16)


def batches(split: TensorSplit, rank: int = 0, processes: int = 1, memory_format: str = "contiguous") -> Batches:
    return Batches(split, Processes(CPU, rank, processes), torch.float64, memory_format)


def test_an_epoch_can_be_entered_in_the_middle():
    whole = list(batches(blobs()).epoch(CONFIG, 3, 0, 6))
    rest = list(batches(blobs()).epoch(CONFIG, 3, 4, 6))
    assert len(whole) == 6
    assert len(rest) == 2
    for (x, y, _), (x2, y2, _) in zip(whole[4:], rest):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_inputs_get_the_models_type_and_layout():
    inputs, labels, share = next(batches(blobs(channels=3), memory_format="channels_last").epoch(CONFIG, 0, 0, 1))
    assert inputs.dtype == torch.float64
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    assert share == 1.0


def test_token_ids_stay_whole_numbers():
    split = TensorSplit(torch.randint(100, (10, 7)), torch.zeros(10, dtype=torch.int64))
    inputs, _ = next(batches(split).once(4))
    assert inputs.dtype == torch.int64


@pytest.mark.parametrize("samples", [96, 93, 18])
def test_processes_share_every_batch_and_their_shares_weigh_it(samples):
    """The mean over processes of share times local mean is the mean over the batch."""
    split = blobs(samples)
    steps = steps_per_epoch(samples, 16, 3)
    parts = [list(batches(split, rank, 3).epoch(CONFIG, 0, 0, steps)) for rank in range(3)]
    whole = list(batches(split).epoch(CONFIG, 0, 0, steps))
    for (inputs, labels, _), *shares in zip(whole, *parts):
        assert sum(len(x) for x, _, _ in shares) == len(inputs)
        assert sorted(torch.cat([y for _, y, _ in shares]).tolist()) == sorted(labels.tolist())
        mean = sum(share * x.mean() for x, _, share in shares) / 3
        torch.testing.assert_close(mean, inputs.mean())


def test_a_split_that_miscounts_is_found():
    class Short(TensorSplit):
        def __len__(self) -> int:
            return super().__len__() + 32

    short = Short(blobs().inputs, blobs().targets)
    with pytest.raises(InputError, match=r"gave 6 batches of 16 in epoch 1.*128 samples make 8"):
        list(batches(short).epoch(CONFIG, 0, 0, 8))


@pytest.mark.parametrize(
    ("data", "says"),
    [([1, 2], "must be a split.*got list"), (TensorSplit(torch.zeros(0, 1), torch.zeros(0)), "no samples")],
)
def test_what_is_not_a_split_is_refused(data, says):
    with pytest.raises(InputError, match=says):
        check_split(data, "validation")


@pytest.mark.parametrize(
    ("samples", "processes", "steps"), [(32, 1, 2), (33, 1, 2), (34, 1, 3), (35, 2, 2), (36, 2, 3), (1, 1, 1)]
)
def test_a_last_batch_too_small_for_batch_norm_is_left_out(samples, processes, steps):
    assert steps_per_epoch(samples, 16, processes) == steps


def pairs(numbers):
    return ((torch.tensor(n), torch.tensor(-n)) for n in numbers)


def alive() -> int:
    return sum(thread.name == "prunus-batches" for thread in threading.enumerate())


def test_prefetching_changes_nothing():
    assert [int(x) for x, _ in prefetched(pairs(range(50)))] == list(range(50))
    assert alive() == 0


def test_prefetching_ends_with_its_reader():
    stream = prefetched(pairs(count()))
    assert int(next(stream)[0]) == 0
    assert alive() == 1
    stream.close()  # type: ignore[attr-defined]
    assert alive() == 0


def test_errors_of_the_source_reach_the_reader():
    def broken():
        yield torch.tensor(1), torch.tensor(1)
        raise OSError("disk gone")

    stream = prefetched(broken())
    next(stream)
    with pytest.raises(OSError, match="disk gone"):
        next(stream)
    assert alive() == 0
