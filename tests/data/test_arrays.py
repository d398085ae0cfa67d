"""Arrays in every usual layout become one layout; those that cannot be used say why."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunus.data.arrays import About, from_arrays, measured
from prunus.errors import InputError, ShapeError

LABELS = np.arange(20) % 4


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [
        ((20, 5, 6), (1, 5, 6)),
        ((20, 5, 6, 3), (3, 5, 6)),
        ((20, 3, 5, 6), (3, 5, 6)),
        ((20, 1, 5, 6), (1, 5, 6)),
        ((20, 5, 6, 1), (1, 5, 6)),
        ((20, 7), (7,)),
    ],
)
def test_layouts(shape, becomes):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    source = from_arrays(About("mine"), {"train": (images, LABELS), "test": (images, LABELS)}, validation=0)
    assert source.train.inputs.shape == (20, *becomes)
    assert source.classes == 4
    assert len(source.validation) == 0
    expected = (
        images.transpose(0, 3, 1, 2) if len(shape) == 4 and shape[1] not in (1, 3) else images.reshape(20, *becomes)
    )
    assert np.array_equal(source.test.inputs.numpy(), expected)


def test_missing_parts_are_split_off_stratified():
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1)
    labels = np.arange(100) % 5
    source = from_arrays(About("mine"), {"train": (images, labels)}, seed=1, validation=0.25)
    assert [len(s) for s in source.splits.values()] == [60, 20, 20]
    assert all(s.targets.bincount().unique().numel() == 1 for s in source.splits.values())
    values = torch.cat([s.inputs.flatten() for s in source.splits.values()])
    assert sorted(values.tolist()) == list(range(100))


def test_the_seed_moves_the_validation_split_and_never_a_given_test_split():
    images, labels = np.arange(40, dtype=np.uint8).reshape(40, 1, 1), np.arange(40) % 4
    parts = {"train": (images[:30], labels[:30]), "test": (images[30:], labels[30:])}
    one, two = (from_arrays(About("mine"), parts, seed=s, validation=0.2) for s in (0, 1))
    assert one.hashes["validation"] != two.hashes["validation"]
    assert one.hashes["test"] == two.hashes["test"]


def test_mean_and_std_are_measured_on_the_training_images():
    images = np.zeros((20, 2, 2, 3), dtype=np.uint8)
    images[::2, ..., 0] = 255
    images[..., 1] = 51
    source = from_arrays(About("mine"), {"train": (images, LABELS), "test": (images[:4], LABELS[:4])}, validation=0)
    assert source.mean == (0.5, 0.2, 0.0)
    assert source.std == (0.5, 1.0, 1.0)  # constant channels are only centred
    assert measured(images.transpose(0, 3, 1, 2).astype(np.float32) / 255) == (source.mean, source.std)
    assert measured(np.zeros((4, 7), dtype=np.float32)) == ((), ())


def test_columns_of_labels_and_small_label_types_are_taken():
    images = np.zeros((20, 4, 4), dtype=np.uint8)
    source = from_arrays(About("mine"), {"train": (images, LABELS.astype(np.uint8)[:, None])}, validation=0)
    assert source.train.targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("images", "labels", "error", "says"),
    [
        (np.zeros((20, 4, 4), dtype=object), LABELS, InputError, "mine, train: images hold Python objects"),
        (np.zeros((20, 4, 4), dtype=np.uint8), LABELS.astype(object), InputError, "labels hold Python objects"),
        (np.zeros((20, 4, 4), dtype=np.int64), LABELS, InputError, "images are int64; give uint8"),
        (np.full((20, 4, 4), "a"), LABELS, InputError, "give uint8"),
        (np.zeros((20, 4, 5, 6), dtype=np.uint8), LABELS, ShapeError, "neither dimension 1 nor 3"),
        (np.zeros(20, dtype=np.uint8), LABELS, ShapeError, "give \\(N, H, W\\)"),
        (np.full((20, 4, 4), np.nan, dtype=np.float32), LABELS, InputError, "NaN"),
        (np.zeros((20, 4, 4), dtype=np.uint8), LABELS[:19], ShapeError, "labels are \\(19,\\) for 20 images"),
        (np.zeros((20, 4, 4), dtype=np.uint8), np.eye(20), ShapeError, "argmax"),
        (np.zeros((20, 4, 4), dtype=np.uint8), LABELS + 0.5, InputError, "whole numbers from 0"),
        (np.zeros((20, 4, 4), dtype=np.uint8), LABELS - 1, InputError, "smallest label is -1"),
        (np.zeros((0, 4, 4), dtype=np.uint8), LABELS[:0], InputError, "train split is empty"),
    ],
)
def test_arrays_that_cannot_be_used_say_why(images, labels, error, says):
    with pytest.raises(error, match=says):
        from_arrays(About("mine"), {"train": (images, labels)})


def test_a_test_label_that_training_never_saw_is_refused():
    images = np.zeros((20, 4, 4), dtype=np.uint8)
    with pytest.raises(InputError, match=r"test split lie in \[0, 9\]; with 4 classes"):
        from_arrays(About("mine"), {"train": (images, LABELS), "test": (images[:2], np.array([0, 9]))}, validation=0)
