"""Criteria that propagate importance from the output of the network back to its units; higher means keep."""

from __future__ import annotations

from torch import Tensor


def nisp(propagated_importance: Tensor) -> Tensor:
    """Importance of the final responses, carried back through absolute weights.

    Args:
        propagated_importance: (units,) from `prunus.statistics.propagated_importance`. Not comparable across layers.

    Source: Yu, Li, Chen, Lai, Morariu, Han, Gao, Lin, Davis, "NISP: Pruning Networks using Neuron Importance Score
    Propagation", CVPR 2018, arXiv:1711.05908.
    """
    return propagated_importance


def lrp(relevance: Tensor) -> Tensor:
    """Mean over examples of the relevance of a unit for the right class, all positions together.

    Args:
        relevance: (units,) from `prunus.statistics.relevance`. Each layer of a chain shares out the same total, so
            scores are comparable across layers.

    Source: Yeom, Seegerer, Lapuschkin, Binder, Wiedemann, Müller, Samek, "Pruning by explaining: A novel criterion for
    deep neural network pruning", Pattern Recognition 2021, arXiv:1912.08881.
    """
    return relevance
