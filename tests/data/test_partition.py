"""Stratified choices: exact sizes, proportions within one sample, disjoint and complete parts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunus.data.partition import split_off, stratified
from prunus.errors import InputError


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_every_class_gives_its_share_within_one_sample(sizes, share, seed):
    targets = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    count = round(share * len(targets))
    chosen = stratified(targets, count, seed=seed)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    for label, size in enumerate(sizes):
        assert abs((targets[chosen] == label * 3).sum() - size * count / len(targets)) < 1


@given(count=st.integers(1, 80), fraction=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_what_is_split_off_and_what_stays_make_the_whole(count, fraction, seed):
    targets = np.arange(count) % 3
    stay, gone = split_off(targets, fraction, seed=seed)
    assert sorted([*stay, *gone]) == list(range(count))
    assert len(gone) == round(count * fraction)
    again = split_off(targets, fraction, seed=seed)
    assert np.array_equal(gone, again[1])


def test_the_seed_chooses():
    targets = np.arange(100) % 2
    assert not np.array_equal(split_off(targets, 0.3, seed=0)[1], split_off(targets, 0.3, seed=1)[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_fractions_outside_the_range_are_refused(fraction):
    with pytest.raises(InputError, match="at least 0 and below 1"):
        split_off(np.zeros(4), fraction, seed=0)
