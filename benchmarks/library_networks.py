"""Networks of other libraries that the benchmarks time, in full size with random weights, and inputs for them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Built = tuple[nn.Module, Any]


def image() -> Tensor:
    return torch.randn(2, 3, 224, 224)


def import_torchvision() -> Any:
    """torchvision, also beside a torch for which its compiled operators do not load: no model here needs them."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[module]  # half imported
        return importlib.import_module("torchvision")


def torchvision_model(name: str) -> Callable[[], Built]:
    def build() -> Built:
        return getattr(import_torchvision().models, name)(weights=None).eval(), image()

    return build


def timm_model(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        import timm  # pyright: ignore[reportMissingImports]

        return timm.create_model(name).eval(), image()

    return build


def llama_1b(layers: int = 16, vocabulary: int = 128256) -> Built:
    """A LLaMA-shaped decoder of 1.24 billion parameters in bfloat16: 16 layers, hidden 2048, 32 heads in 8 groups."""
    import_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype=torch.bfloat16)  # pyright: ignore[reportCallIssue, reportArgumentType]
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02, generator=generator)
    for module in model.modules():
        if hasattr(module, "inv_freq"):  # a computed buffer, lost on the meta device
            module.inv_freq = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)  # type: ignore[assignment]
            module.original_inv_freq = module.inv_freq.clone()  # type: ignore[union-attr]
    return model, {"input_ids": torch.arange(16).view(2, 8)}


LIBRARY_NETWORKS: dict[str, Callable[[], Built]] = {
    "torchvision resnet50": torchvision_model("resnet50"),
    "torchvision densenet121": torchvision_model("densenet121"),
    "torchvision vit_b_16": torchvision_model("vit_b_16"),
    "timm vit_base_patch16_224": timm_model("vit_base_patch16_224"),
    "torchvision swin_b": torchvision_model("swin_b"),
    "timm swin_base_patch4_window7_224": timm_model("swin_base_patch4_window7_224"),
    "torchvision convnext_base": torchvision_model("convnext_base"),
    "transformers llama 1b, 4 layers": lambda: llama_1b(4, 8192),
    "transformers llama 1b": llama_1b,
}
