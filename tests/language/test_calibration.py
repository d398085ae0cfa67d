"""Calibration tokens: the beginning of the text, whatever the pieces."""

from __future__ import annotations

import pytest

from prunus.errors import InputError, StoredFileError
from prunus.language import calibration
from prunus.language.calibration import pack, pieces


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_pieces_are_the_text_and_end_at_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "CHARACTERS", 5)
    text = "one\ntwo and more\n\nthree"
    (tmp_path / "text").write_text(text)
    found = list(pieces(tmp_path / "text"))
    assert "".join(found) == text
    assert len(found) > 1
    assert all(piece.endswith("\n") for piece in found[:-1])
    assert pack(iter(found), codes, 4, 3).flatten().tolist() == codes(text)[:12]


def test_no_more_is_read_than_needed():
    def texts():
        yield "abcd"
        raise AssertionError("read too far")

    assert pack(texts(), codes, 2, 2).shape == (2, 2)


def test_too_little_text_is_an_error_that_says_how_much_there_is(tmp_path):
    with pytest.raises(InputError, match=r"5 tokens, and 2 samples of 3 need 6.*up to 1 samples"):
        pack(iter(["abcde"]), codes, 2, 3)
    with pytest.raises(InputError, match="1 or more"):
        pack(iter(["abcde"]), codes, 0, 3)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoredFileError, match="as text"):
        list(pieces(tmp_path / "bytes"))
