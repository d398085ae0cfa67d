"""transformers imports torchvision, whose wheel from PyPI does not find its own operators beside a CPU torch."""

from __future__ import annotations

import torch

for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        torch.library.define(f"torchvision::{_name}", "(Tensor a, Tensor b, float c) -> Tensor")
