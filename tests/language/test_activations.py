"""Hidden states on disk come back as they were."""

from __future__ import annotations

import pytest
import torch

from prunus.errors import StoredFileError
from prunus.language.activations import Activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_also_after_reopening(tmp_path, dtype):
    values = torch.randn(5, 3, 4).to(dtype)
    states = Activations(tmp_path / "h", (5, 3, 4), dtype, fresh=True)
    assert len(states) == 5
    states.write(3, values[3:])
    states.write(0, values[:3])
    assert torch.equal(states.read(0, 5), values)
    read = states.read(1, 3)
    states.write(1, torch.zeros_like(read))
    assert torch.equal(read, values[1:3])  # a copy
    states.write(1, read)
    states.flush()
    states.close()
    again = Activations(tmp_path / "h", (5, 3, 4), dtype, fresh=False)
    assert torch.equal(again.read(0, 5), values)
    again.close()


def test_a_file_that_is_missing_or_cut_short_is_refused(tmp_path):
    with pytest.raises(StoredFileError, match="missing or cut short"):
        Activations(tmp_path / "h", (2, 2, 2), torch.float32, fresh=False)
    (tmp_path / "h").write_bytes(b"0" * 31)
    with pytest.raises(StoredFileError, match="missing or cut short"):
        Activations(tmp_path / "h", (2, 2, 2), torch.float32, fresh=False)
