"""`package.module:factory`: the user's own data."""

from __future__ import annotations

import sys

import pytest

from prunus.data import load
from prunus.errors import InputError, ShapeError, UnknownNameError

MODULE = """
import numpy as np, torch
from prunus.data import blobs as source

images, labels = np.zeros((12, 4, 4), dtype=np.uint8), np.arange(12) % 3

def three(): return (images, labels), (images[:3], labels[:3]), (images[:6], labels[:6])
def two(): return [(torch.from_numpy(images), torch.from_numpy(labels)), (images[:6], labels[:6])]
def wrong(): return images
def wrong_pairs(): return (images, labels)
def bad_labels(): return (images, labels[:5]), (images, labels)
def raising(): raise RuntimeError("no such disk")
def needs(argument): pass
class Nested:
    make = staticmethod(three)
number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_own_data.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # the working folder is importable
    yield
    sys.modules.pop("my_own_data", None)


def test_pairs_of_arrays_or_tensors_become_a_source():
    three = load("my_own_data:three")
    assert [len(s) for s in three.splits.values()] == [12, 3, 6]
    assert three.classes == 3
    two = load("my_own_data:two", validation=0.25)
    assert [len(s) for s in two.splits.values()] == [9, 3, 6]
    assert load("my_own_data:Nested.make").hashes == three.hashes


def test_a_source_is_taken_as_it_is():
    assert load("my_own_data:source").name == "blobs"
    assert len(load("my_own_data:source", limit=40).train) == 40


def test_the_search_path_is_left_as_it_was():
    before = list(sys.path)
    load("my_own_data:three")
    with pytest.raises(InputError):
        load("my_own_data:absent")
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("my_own_data:absent", InputError, "cannot import 'absent' from 'my_own_data'"),
        ("my_own_dota:three", InputError, "cannot import 'three'.*importable from"),
        ("my_own_data:number", InputError, "'number' is a int, not something to call"),
        ("my_own_data:raising", InputError, "the factory raised RuntimeError: no such disk"),
        ("my_own_data:needs", InputError, "the factory raised TypeError"),
        ("my_own_data:wrong", InputError, "returned a ndarray; it must return"),
        ("my_own_data:wrong_pairs", InputError, "must return"),
        ("my_own_data:bad_labels", ShapeError, r"labels are \(5,\) for 12 images"),
        ("my_own_data:", UnknownNameError, "package.module:factory"),
        (":three", UnknownNameError, "known: "),
    ],
)
def test_what_cannot_be_used_says_why(spec, error, says):
    with pytest.raises(error, match=says):
        load(spec)
