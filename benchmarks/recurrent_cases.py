"""Networks and data of `language_recurrent.py`: a language model, a translator, and spoken digits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.evaluation.translation import bleu
from prunus.language import TokenSplit

PAD, START, END, UNKNOWN = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and labels as a split of data."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, **_: object
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A pure function of its arguments."""
        order = torch.arange(len(self))
        if shuffle:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for chosen in order.split(batch_size):
            yield self.inputs[chosen], self.labels[chosen]


# ------------------------------------------------------------------------------------------------------ language model


class WordModel(nn.Module):
    """Words -> (N, words, T) logits of the next word; every passage starts at a state of zeros."""

    def __init__(self, words: int, width: int = 96, hidden: int = 160, dropout: float = 0.4) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, words)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.drop(self.lstm(self.drop(self.embed(words)))[0])).transpose(1, 2)


def treebank(data: Path, length: int = 35) -> tuple[TokenSplit, TokenSplit, int]:
    """Penn Treebank: its validation part to train on (the training part is not public), its test part; words that the
    former has only once are unknown."""
    texts = [
        (data / "penn_treebank" / f"{part}.txt").read_text("utf8").replace("\n", " <eos> ").split()
        for part in ("valid", "test")
    ]
    known = [word for word, count in Counter(texts[0]).most_common() if count > 1 and word != "<unk>"]
    numbers = {word: number for number, word in enumerate(known, 1)}
    splits = []
    for text in texts:
        ids = torch.tensor([numbers.get(word, 0) for word in text])
        splits.append(TokenSplit.of_text(ids[: (len(ids) - 1) // length * length + 1].unfold(0, length + 1, length)))
    return splits[0], splits[1], len(numbers) + 1


@torch.no_grad()
def perplexity(model: nn.Module, split: TokenSplit) -> float:
    """exp of the mean negative log-likelihood per token."""
    model.eval()
    total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in split.batches(64))
    return float(np.exp(total / split.targets.numel()))


# --------------------------------------------------------------------------------------------------------- translation


class Attention(nn.Module):
    """Multi-head attention of queries on a memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        split = (len(x), -1, self.heads, self.size)
        q, k, v = (
            part.reshape(split).transpose(1, 2) for part in (self.query(x), self.key(memory), self.value(memory))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention on itself, on the source if there is one, and a feed-forward layer; norms come first."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float, cross: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if cross else None
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if cross else 2))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor | None = None) -> Tensor:
        y = self.norms[0](x)
        x = x + self.drop(self.attention(y, y, None if self.cross else mask, causal=self.cross is not None))
        if self.cross is not None and memory is not None:
            x = x + self.drop(self.cross(self.norms[1](x), memory, mask))
        return x + self.drop(self.down(F.relu(self.up(self.norms[-1](x)))))


class Translator(nn.Module):
    """An encoder and a decoder. Input: source and the target so far in one tensor, `source` columns of the former.
    Output: (N, words, T) logits of the target's next words."""

    def __init__(self, words: tuple[int, int], source: int, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.source = source
        self.embed = nn.ModuleList(nn.Embedding(count, width) for count in words)
        self.place = nn.Parameter(0.02 * torch.randn(64, width))
        self.encoder = nn.ModuleList(Block(width, heads, 2 * width, 0.1, False) for _ in range(layers))
        self.decoder = nn.ModuleList(Block(width, heads, 2 * width, 0.1, True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = nn.Linear(width, words[1])

    def forward(self, both: Tensor) -> Tensor:
        source, target = both[:, : self.source], both[:, self.source :]
        mask = (source != PAD)[:, None, None, :]
        memory = self.embed[0](source) + self.place[: source.shape[1]]
        for block in self.encoder:
            memory = block(memory, mask)
        x = self.embed[1](target) + self.place[: target.shape[1]]
        memory = self.norms[0](memory)
        for block in self.decoder:
            x = block(x, mask, memory)
        return self.head(self.norms[1](x)).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Captions:
    """Pairs for training and testing, and what the references say."""

    train: Examples
    validation: Examples
    test: Tensor
    references: Sequence[Sequence[str]]
    vocabulary: list[str]
    words: tuple[int, int]
    source: int


def multi30k(data: Path, pairs: int = 14_000, longest: int = 14, known: tuple[int, int] = (2500, 3000)) -> Captions:
    """Multi30k English-German: the first pairs of at most `longest` words on each side, in lower case; rare words are
    unknown. Tested on the pairs of test2016 within the same length."""

    def lines(part: str, language: str) -> list[list[str]]:
        text = (data / "multi30k_en_de" / f"{part}.{language}").read_text("utf8").lower()
        return [re.findall(r"\w+|[^\w\s]", line) for line in text.rstrip("\n").split("\n")]

    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    for part in ("train", "valid", "test2016"):
        both = zip(lines(part, "en"), lines(part, "de"))
        found[part] = [pair for pair in both if max(map(len, pair)) <= longest]
    found["train"] = found["train"][:pairs]
    tables, names = [], []
    for side in (0, 1):
        counts = Counter(word for pair in found["train"] for word in pair[side])
        names.append(["<pad>", "<s>", "</s>", "<unk>", *(word for word, _ in counts.most_common(known[side]))])
        tables.append({word: number for number, word in enumerate(names[side])})

    def padded(sentences: Sequence[Sequence[str]], side: int, size: int, start: bool) -> Tensor:
        ids = torch.full((len(sentences), size), PAD)
        for row, sentence in zip(ids, sentences):
            numbers = [*([START] if start else []), *(tables[side].get(w, UNKNOWN) for w in sentence)]
            row[: len(numbers)] = torch.tensor(numbers)
        return ids

    def examples(part: str) -> Examples:
        english, german = zip(*found[part])
        given = padded(german, 1, longest + 1, start=True)
        labels = torch.cat([given[:, 1:], torch.full((len(given), 1), PAD)], 1)
        lengths = torch.tensor([len(sentence) for sentence in german])
        labels[torch.arange(len(labels)), lengths] = END
        inputs = torch.cat([padded(english, 0, longest, start=False), given], 1)
        return Examples(inputs, labels.masked_fill(labels == PAD, -100))

    test = padded([english for english, _ in found["test2016"]], 0, longest, start=False)
    return Captions(
        examples("train"), examples("valid"), test, [german for _, german in found["test2016"]], names[1],
        (len(names[0]), len(names[1])), longest,
    )  # fmt: skip


@torch.no_grad()
def bleu_of(model: nn.Module, captions: Captions) -> float:
    """BLEU of greedy translations of the test sources, on words in lower case."""
    model.eval()
    said: list[list[str]] = []
    for source in captions.test.split(128):
        target = torch.full((len(source), 1), START)
        for _ in range(captions.source + 1):
            target = torch.cat([target, model(torch.cat([source, target], 1))[:, :, -1:].argmax(1)], 1)
        for row in target[:, 1:].tolist():
            said.append([captions.vocabulary[i] for i in row[: row.index(END) if END in row else len(row)]])
    return bleu(said, captions.references)


# -------------------------------------------------------------------------------------------------------------- speech


class SpokenDigits(nn.Module):
    """Two convolutions over (bands, frames), an LSTM over frames, and the digit."""

    def __init__(self, bands: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.lstm = nn.LSTM(16 * bands // 4, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 10)

    def forward(self, spectrum: Tensor) -> Tensor:
        frames = self.features(spectrum).flatten(1, 2).transpose(1, 2)
        return self.head(self.lstm(frames)[0].mean(1))


def spectra(data: Path, bands: int = 32, frames: int = 62) -> tuple[Examples, Examples]:
    """Free spoken digits as logarithms of the power in bands of equal width on the mel scale, 2,700 recordings to train
    on and 300 to test on; the first second of each, normalised as a whole."""
    stored = np.load(data / "free_spoken_digits" / "fsdd_8k.npz")
    audio, offsets = stored["audio"], stored["offsets"]
    window, hop = 256, 128
    waves = np.zeros((len(offsets) - 1, window + hop * (frames - 1)), np.float32)
    for row, first, after in zip(waves, offsets, offsets[1:]):
        piece = audio[first:after][: len(row)]
        row[: len(piece)] = piece / 32768
    power = torch.stft(
        torch.from_numpy(waves), window, hop, window=torch.hann_window(window), center=False, return_complex=True
    ).abs().square()  # (N, 129, frames)  # fmt: skip
    hertz = torch.linspace(0, 4000, window // 2 + 1)
    mel = 2595 * torch.log10(1 + hertz / 700)
    edges = torch.linspace(0, float(mel[-1]), bands + 2)
    rise = (mel[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - mel[None]) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rise, fall).clamp_min(0)
    features = torch.einsum("bf,nft->nbt", filters, power).add(1e-6).log()[:, None]
    train = torch.from_numpy(~stored["is_test"])
    features = (features - features[train].mean()) / features[train].std()
    digits = torch.from_numpy(stored["digit"])
    return Examples(features[train], digits[train]), Examples(features[~train], digits[~train])
