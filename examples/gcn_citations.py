"""Graph convolution: the topic of scientific papers from their words and citations, with half the parameters.

    PRUNUS_DATA=... python examples/gcn_citations.py

Graph: Cora (2,708 papers, 1,433 words, 7 topics, 140 labelled papers) with its public split, from planetoid/cora.npz in
the data folder. Without it, scikit-learn's digits linked to their five nearest neighbours, 10 labelled images a digit.
Baseline: logistic regression on the features alone, without the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _common import Row, Table, arguments, digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import kneighbors_graph
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.data import find_root
from prunus.errors import StoredFileError


@dataclass(frozen=True)
class Nodes:
    """`adjacency` (N, N) normalised, `features` (N, F), `labels` (N,), and the nodes to train and to test on."""

    adjacency: Tensor
    features: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor


class GCN(nn.Module):
    """Three graph convolutions. Source: Kipf & Welling, 2017, arXiv:1609.02907."""

    def __init__(self, features: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)]
        )
        self.drop = nn.Dropout(0.5)

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(adjacency @ layer(self.drop(x)))
        return adjacency @ self.layers[-1](self.drop(x))


def normalised(links: np.ndarray) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 of a symmetric 0/1 matrix."""
    adjacency = torch.from_numpy(links).float() + torch.eye(len(links))
    scale = adjacency.sum(1).rsqrt()
    return scale[:, None] * adjacency * scale


def cora() -> Nodes:
    stored = np.load(find_root() / "planetoid" / "cora.npz")
    words = np.zeros(stored["feat_shape"], dtype=np.float32)
    papers = np.repeat(np.arange(len(words)), np.diff(stored["feat_indptr"]))
    words[papers, stored["feat_indices"]] = stored["feat_data"]
    links = np.zeros((len(words), len(words)), dtype=np.float32)
    links[tuple(stored["edges"].T)] = links[tuple(stored["edges"].T[::-1])] = 1
    train, test, labels = (torch.from_numpy(stored[name]).long() for name in ("train_idx", "test_idx", "labels"))
    return Nodes(normalised(links), F.normalize(torch.from_numpy(words), p=1), labels, train, test)


def neighbouring_digits() -> Nodes:
    pixels, labels = digits()
    features = pixels.flatten(1)
    near = kneighbors_graph(features.numpy(), 5).toarray()
    train = torch.cat([(labels == digit).nonzero()[:10, 0] for digit in range(10)])
    test = torch.ones(len(labels)).index_fill(0, train, 0).nonzero()[:, 0]
    return Nodes(normalised(np.maximum(near, near.T)), features, labels, train, test)


def graph(quick: bool) -> Nodes:
    if quick:
        return neighbouring_digits()
    try:
        return cora()
    except (StoredFileError, FileNotFoundError) as error:
        print(f"{error}\nThe graph of neighbouring digits is used instead.")
        return neighbouring_digits()


def train(model: nn.Module, nodes: Nodes, steps: int, lr: float = 0.01) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=5e-4)
    model.train()
    for _ in range(steps):
        logits = model(nodes.adjacency, nodes.features)[nodes.train]
        loss = F.cross_entropy(logits, nodes.labels[nodes.train])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, nodes: Nodes) -> float:
    model.eval()
    found = model(nodes.adjacency, nodes.features).argmax(1)
    return float((found == nodes.labels)[nodes.test].float().mean())


def main(given: Sequence[str] | None = None) -> dict[str, Row]:
    args = arguments(__doc__, "gcn_citations", given)
    nodes = graph(args.quick)
    inputs = (nodes.adjacency, nodes.features)

    model = GCN(nodes.features.shape[1], int(nodes.labels.max()) + 1)
    train(model, nodes, steps=40 if args.quick else 80)

    table = Table()
    features, labels = nodes.features.numpy(), nodes.labels.numpy()
    plain = LogisticRegression(C=100, max_iter=1000).fit(features[nodes.train], labels[nodes.train])
    table.add("features alone", None, accuracy=float(plain.score(features[nodes.test], labels[nodes.test])))
    cuts = {
        criterion: prunus.prune(model, inputs, target={"params": 0.5}, criterion=criterion, seed=args.seed)
        for criterion in ("random", "l2_norm")
    }
    table.add("dense", cuts["random"].report.before, accuracy=accuracy(model, nodes))
    for criterion, cut in cuts.items():
        table.add(f"{criterion}: pruned", cut.report.after, accuracy=accuracy(cut.model, nodes))
        train(cut.model, nodes, steps=10 if args.quick else 30)
        table.add(f"{criterion}: fine-tuned", cut.report.after, accuracy=accuracy(cut.model, nodes))
    return table.finish(cuts["l2_norm"], args)


if __name__ == "__main__":
    main()
