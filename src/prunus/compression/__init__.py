"""Weights to smaller codes, and back: shared values, gaps between the weights that stay, Huffman codes, error bounds.

```
weight ─▶ share (k values) or bounded (steps of 2 x bound) ─▶ sparse (codes, gaps) ─▶ Huffman ─▶ bytes
```

Decoding gives the encoded weight back bit by bit; sizes are lengths of real byte strings, tables and code books
included.
"""

from .bounded import decode_bounded, encode_bounded
from .huffman import decode, encode
from .model import Compressed, compress
from .share import assign, share, sharing_rate
from .sparse import decode_sparse, encode_sparse, gap_fields, positions_of

__all__ = [
    "Compressed",
    "assign",
    "compress",
    "decode",
    "decode_bounded",
    "decode_sparse",
    "encode",
    "encode_bounded",
    "encode_sparse",
    "gap_fields",
    "positions_of",
    "share",
    "sharing_rate",
]
