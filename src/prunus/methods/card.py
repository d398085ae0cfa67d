"""What is said of a named method, as data: the field's taxonomy, its source, and how it is called here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..errors import InputError

Level = Literal[
    "weight", "block", "kernel", "stripe", "filter shape", "filter", "channel", "neuron", "layer", "head", "token",
    "vocabulary", "expert", "any",
]  # fmt: skip
When = Literal["at initialisation", "during training", "after training", "any time"]
Rate = Literal["given", "per layer by rule", "automatic", "learned", "searched"]
Selection = Literal["criterion", "regulariser", "gates", "movement", "reconstruction", "search", "schedule", "rule"]
Specification = Literal["verified", "standard", "abstract", "reconstructed"]
Entry = Literal["criterion", "sparsify", "language", "method"]


@dataclass(frozen=True)
class Card:
    """One method of the literature.

    Attributes:
        id: the name that it is called by.
        title: of the paper, or what it is known as.
        paper: authors, venue, year, arXiv number.
        level: what it removes. when: at which time. rate: where the rate comes from. selection: how it chooses.
        needs: what it reads besides the weights: "activations", "labels", "gradients", "training" ...
        specification: how sure the definition is: checked against the authors' code ("verified"), standard knowledge
            of the paper ("standard"), its abstract only ("abstract"), or our reading of a survey's sentence
            ("reconstructed").
        entry: "criterion" is a name for `criterion=` of `prunus.prune`; "sparsify" one of `prunus.sparsify`;
            "language" one of `prunus.sparsify_language`; "method" is a whole procedure, run by `prunus.methods.run`.
        how: the call, as a line of Python.
        formula: in plain text.
        cost: in time and memory, beside one pass over the data.
        departures: where this implementation differs from the paper, and choices that the paper leaves open.
        evidence: what was measured here, negative results included.
        run: of a whole method: `run(task, **options) -> Outcome`.
        aliases: other names that the literature has for it; it answers to them as well.
    """

    id: str
    title: str
    paper: str
    level: Level
    when: When
    rate: Rate
    selection: Selection
    needs: tuple[str, ...]
    specification: Specification
    entry: Entry
    how: str
    formula: str
    cost: str = ""
    departures: str = ""
    evidence: str = ""
    run: Callable[..., Any] | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        empty = [f.name for f in fields(self) if f.name in ("id", "title", "paper", "how", "formula")]
        for name in empty:
            if not getattr(self, name):
                raise InputError(f"Card({self.id!r}): {name} must not be empty")
        if (self.entry == "method") != (self.run is not None):
            raise InputError(f"Card({self.id!r}): a whole method has run=, and nothing else has")

    @property
    def status(self) -> str:
        """ "works": a card is only written for what runs."""
        return "works"
