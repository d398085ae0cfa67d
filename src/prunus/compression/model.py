"""A whole pruned model as bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import InputError, ShapeError, StoredFileError
from ..masks import find_sites
from .bounded import decode_bounded, encode_bounded
from .sparse import decode_sparse, encode_sparse

_DECODERS = {"sparse": decode_sparse, "bounded": decode_bounded}


@dataclass(frozen=True)
class Compressed:
    """Coded tensors of a model.

    Attributes:
        tensors: name -> how it is coded ("sparse", exact; "bounded", within an error; "raw"), and its bytes.
        dense_bytes: of the same tensors without any coding.
    """

    tensors: Mapping[str, tuple[str, bytes]] = field(repr=False)
    dense_bytes: int

    @property
    def nbytes(self) -> int:
        """Length of `to_bytes()`: everything that is needed to have the tensors back."""
        return len(self.to_bytes())

    @property
    def ratio(self) -> float:
        """How many times smaller than dense."""
        return self.dense_bytes / self.nbytes

    def to_bytes(self) -> bytes:
        """One string of bytes; `from_bytes` reads it."""
        index = [[name, form, len(data)] for name, (form, data) in self.tensors.items()]
        text = json.dumps([self.dense_bytes, index], separators=(",", ":")).encode()
        return struct.pack("<I", len(text)) + text + b"".join(data for _, data in self.tensors.values())

    @classmethod
    def from_bytes(cls, data: bytes) -> Compressed:
        """Read what `to_bytes` wrote.

        Raises:
            StoredFileError: the bytes are damaged.
        """
        try:
            (length,) = struct.unpack_from("<I", data)
            dense, index = json.loads(data[4 : 4 + length])
            at, tensors = 4 + length, {}
            for name, form, size in index:
                tensors[name] = (form, data[at : at + size])
                at += size
        except (struct.error, ValueError, TypeError):
            raise StoredFileError("the bytes are no compressed model: the index is damaged or cut off") from None
        if at != len(data):
            raise StoredFileError(f"a compressed model of {at} bytes has {len(data)}")
        return cls(tensors, int(dense))

    def decoded(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors, those stored raw with the type and shape that they have in `like`."""
        result = {}
        for name, (form, data) in self.tensors.items():
            if name not in like:
                raise InputError(f"the compressed model has a tensor {name!r} that this model has not")
            if form == "raw":
                if len(data) != like[name].numel() * like[name].element_size():
                    raise ShapeError(f"{name!r} has {len(data)} bytes, not those of shape {tuple(like[name].shape)}")
                flat = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)
                result[name] = flat.view(like[name].dtype).reshape(like[name].shape)
            else:
                result[name] = _DECODERS[form](data)[0]
            if result[name].shape != like[name].shape:
                raise ShapeError(f"{name!r}: coded {tuple(result[name].shape)}, model {tuple(like[name].shape)}")
        return result

    def into(self, model: nn.Module) -> nn.Module:
        """Write the decoded tensors into a model of the same structure, in place; returns it."""
        state = model.state_dict()
        model.load_state_dict(self.decoded(state), strict=True)
        return model


def compress(
    model: nn.Module, *, bounds: Mapping[str, float] | None = None, bits: int | Mapping[str, int] | None = None
) -> Compressed:
    """Code the state dict of a model without masks (finalize it first).

    Args:
        model: only read.
        bounds: weight name -> largest absolute error; the others are coded exactly.
        bits: of a gap; None is 8 for convolutions and 5 for the others, as in Deep Compression. Or by weight name.

    Raises:
        InputError: `bounds` names no weight.
    """
    weights = {site.name: site for site in find_sites(model)[0]}
    for name in bounds or {}:
        if name not in weights:
            raise InputError(f"compress: bounds= names {name!r}; the weights are {', '.join(weights)}")
    tensors: dict[str, tuple[str, bytes]] = {}
    dense = 0
    for name, value in model.state_dict().items():
        dense += value.numel() * value.element_size()
        if name in weights:
            usual = 8 if len(weights[name].shape) > 2 else 5
            width = bits.get(name, usual) if isinstance(bits, Mapping) else bits or usual
            bound = (bounds or {}).get(name)
            coded = encode_sparse(value, bits=width) if bound is None else encode_bounded(value, bound, bits=width)
            tensors[name] = ("sparse" if bound is None else "bounded", coded)
        else:
            raw = value.detach().cpu().contiguous().reshape(-1)
            tensors[name] = ("raw", raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    return Compressed(tensors, dense)
