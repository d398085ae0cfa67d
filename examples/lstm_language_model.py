"""LSTM language model: predict the next word, with half the parameters.

    PRUNUS_DATA=... python examples/lstm_language_model.py

Text: the two small parts of the Penn Treebank in the data folder. penn_treebank/test.txt (82,430 words) is trained on
and the first 10,000 words of valid.txt are tested on, with the 1,000 most frequent words; the others count as one.
Without the folder a text is simulated: a random walk in which each of 200 words has eight successors. Perplexity is
exp(mean negative log-likelihood per word), lower is better. Baseline: the frequencies of single words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from _common import Row, Table, arguments
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.data import find_root
from prunus.errors import StoredFileError

WORDS, STEPS = 1000, 35


class LanguageModel(nn.Module):
    def __init__(self, words: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, hidden, num_layers=2, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(hidden, words)

    def forward(self, words: Tensor) -> Tensor:
        """(N, T) word numbers to (N, T, words) logits of the next word."""
        states, _ = self.lstm(self.drop(self.embed(words)))
        return self.head(self.drop(states))


def penn_treebank() -> tuple[list[str], list[str]]:
    folder = find_root() / "penn_treebank"
    learn, test = (
        (folder / part).read_text(encoding="utf-8").replace("\n", " <eos> ").split()
        for part in ("test.txt", "valid.txt")
    )
    return learn, test[:10_000]


def random_walk(seed: int, length: int) -> tuple[list[str], list[str]]:
    random = torch.Generator().manual_seed(seed)
    successors = torch.randint(200, (200, 8), generator=random)
    choices = torch.multinomial(1 / torch.arange(1.0, 9.0), length, replacement=True, generator=random)
    word, text = 0, []
    for choice in choices.tolist():
        word = int(successors[word, choice])
        text.append(f"w{word}")
    return text[: length * 9 // 10], text[length * 9 // 10 :]


def texts(seed: int, quick: bool) -> tuple[list[str], list[str]]:
    """A long text to train on, word by word, and one to test on."""
    if quick:
        return random_walk(seed, length=24_000)
    try:
        return penn_treebank()
    except (StoredFileError, FileNotFoundError) as error:
        print(f"{error}\nA simulated text is used instead.")
        return random_walk(seed, length=100_000)


def passages(text: list[str], numbers: dict[str, int]) -> Tensor:
    """(N, STEPS + 1): the text in pieces, each beginning with the last word of the one before; rare words are 0."""
    words = torch.tensor([numbers.get(word, 0) for word in text])
    return words[: (len(words) - 1) // STEPS * STEPS + 1].unfold(0, STEPS + 1, STEPS)


def train(model: nn.Module, text: Tensor, epochs: int, lr: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    batches = -(-len(text) // 20)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * batches, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for batch in text[torch.randperm(len(text))].split(20):
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor) -> float:
    model.eval()
    losses = [
        F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        for batch in text.split(20)
    ]
    return math.exp(float(sum(losses)) / text[:, 1:].numel())


def main(given: Sequence[str] | None = None) -> dict[str, Row]:
    args = arguments(__doc__, "lstm_language_model", given)
    parts = texts(args.seed, args.quick)
    numbers = {word: number for number, (word, _) in enumerate(Counter(parts[0]).most_common(WORDS - 1), start=1)}
    learn, test = (passages(part, numbers) for part in parts)
    vocabulary = len(numbers) + 1

    model = LanguageModel(vocabulary, *((24, 32) if args.quick else (96, 128)))
    train(model, learn, epochs=2 if args.quick else 6, lr=2e-2 if args.quick else 4e-3)

    table = Table()
    frequencies = learn[:, 1:].flatten().bincount(minlength=vocabulary) + 1
    surprise = -(frequencies / frequencies.sum()).log()[test[:, 1:]].mean()
    table.add("word frequencies", None, perplexity=math.exp(surprise))
    cuts = {
        criterion: prunus.prune(model, test[:2, :-1], target={"params": 0.5}, criterion=criterion, seed=args.seed)
        for criterion in ("random", "l2_norm")
    }
    table.add("dense", cuts["random"].report.before, perplexity=perplexity(model, test))
    for criterion, cut in cuts.items():
        table.add(f"{criterion}: pruned", cut.report.after, perplexity=perplexity(cut.model, test))
        train(cut.model, learn, epochs=1 if args.quick else 2, lr=5e-3 if args.quick else 2e-3)
        table.add(f"{criterion}: fine-tuned", cut.report.after, perplexity=perplexity(cut.model, test))
    return table.finish(cuts["l2_norm"], args)


if __name__ == "__main__":
    main()
