"""One small network of each family, with inputs: what the deployability benchmark prunes and then deploys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from library_networks import Built, import_torchvision
from torch import Tensor, nn

TOKENS = {"input_ids": torch.arange(16).view(2, 8) % 60}


def pixels(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def vision(name: str, **arguments: Any) -> Callable[[], Built]:
    """A torchvision model."""

    def build() -> Built:
        return getattr(import_torchvision().models, name)(weights=None, num_classes=10, **arguments), pixels()

    return build


def timm(name: str, **arguments: Any) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        import timm as library  # pyright: ignore[reportMissingImports]

        return library.create_model(name, num_classes=10, **arguments), pixels()

    return build


def transformer(kind: str, inputs: dict[str, Tensor], **config: Any) -> Callable[[], Built]:
    """A Hugging Face model: the name of its class and of its configuration class, and the configuration's fields."""

    def build() -> Built:
        import_torchvision()
        import transformers

        model, settings = kind.split("/")
        made = getattr(transformers, settings)(**config)
        if hasattr(made, "use_cache"):
            made.use_cache = False
        return getattr(transformers, model)(made), inputs

    return build


class LanguageLSTM(nn.Module):
    """Embedding, two LSTM layers, a head over the vocabulary."""

    def __init__(self, vocabulary: int = 60, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, 2, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(input_ids))[0])


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


class Split(nn.Module):
    """YOLO's C2f: two halves, of which one runs through blocks; everything is concatenated."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.enter, self.leave = block(width, width), block((2 + depth) * (width // 2), width)
        self.blocks = nn.ModuleList(block(width // 2, width // 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for inner in self.blocks:
            parts.append(inner(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(nn.Module):
    """Backbone, top-down neck and a head at each of two scales, as in one-stage detectors."""

    def __init__(self, width: int = 16, outputs: int = 9) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, width, 2), block(width, 2 * width, 2), Split(2 * width))
        self.deep = nn.Sequential(block(2 * width, 4 * width, 2), Split(4 * width))
        self.neck = nn.Sequential(block(6 * width, 2 * width), Split(2 * width))
        self.heads = nn.ModuleList(nn.Conv2d(w, outputs, 1) for w in (2 * width, 4 * width))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        fine = self.stem(x)
        coarse = self.deep(fine)
        joined = self.neck(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0)], 1))
        return self.heads[0](joined), self.heads[1](coarse)


class UNet(nn.Module):
    """Two levels with skip connections and transposed convolutions."""

    def __init__(self, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.one, self.two, self.three = block(3, width), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)
        self.up_two, self.up_one = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2),
        )
        self.join_two, self.join_one = block(4 * width, 2 * width), block(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        two = self.join_two(torch.cat([two, self.up_two(self.three(two))], 1))
        return self.head(self.join_one(torch.cat([one, self.up_one(two)], 1)))


_SMALL = {"vocab_size": 60, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPEECH = {"input_values": torch.randn(2, 1600, generator=torch.Generator().manual_seed(0))}

DEPLOYABLE: dict[str, Callable[[], Built]] = {
    "ResNet-18": vision("resnet18"),
    "MobileNetV3-S": vision("mobilenet_v3_small"),
    "ViT": timm("vit_tiny_patch16_224", img_size=64, depth=2),
    "Swin": vision("swin_t"),
    "ConvNeXt": timm("convnext_atto"),
    "BERT": transformer("BertModel/BertConfig", TOKENS, intermediate_size=128, **_SMALL),
    "GPT-2": transformer("GPT2LMHeadModel/GPT2Config", TOKENS, vocab_size=60, n_embd=64, n_layer=2, n_head=4),
    "LLaMA": transformer(
        "LlamaForCausalLM/LlamaConfig", TOKENS, intermediate_size=128, num_key_value_heads=2, **_SMALL
    ),
    "T5": transformer(
        "T5ForConditionalGeneration/T5Config",
        {**TOKENS, "decoder_input_ids": TOKENS["input_ids"]},
        vocab_size=60,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
    ),
    "wav2vec 2.0": transformer(
        "Wav2Vec2Model/Wav2Vec2Config",
        _SPEECH,
        intermediate_size=128,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
        layerdrop=0.0,
        **_SMALL,
    ),
    "Mamba": transformer(
        "MambaForCausalLM/MambaConfig", TOKENS, vocab_size=60, hidden_size=64, state_size=8, num_hidden_layers=2
    ),
    "LSTM": lambda: (LanguageLSTM(), TOKENS),
    "U-Net": lambda: (UNet(), pixels(32)),
    "detector": lambda: (Detector(), pixels(64)),
}
