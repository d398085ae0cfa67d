"""Accuracy and loss on held-out data, as a training run needs them after each epoch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import Batches
from .precision import Execution, logits_of
from .processes import Processes


@torch.no_grad()
def validate(
    model: nn.Module, batches: Batches, execution: Execution, processes: Processes, batch_size: int
) -> tuple[float, float]:
    """Mean cross entropy and accuracy in eval mode, in the precision of the run; the train modes come back after it."""
    modes = {module: module.training for module in model.modules()}
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    count = 0
    try:
        model.eval()
        for inputs, labels in batches.once(batch_size):
            if not len(inputs):
                continue
            with execution.autocast():
                logits = logits_of(model(inputs))
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
            hits.append((logits.argmax(1) == labels).sum())
            count += labels.numel()
    finally:
        for module, mode in modes.items():
            module.training = mode
    # One transfer per pass; sums in Python's double precision, which not every device has.
    mine = (sum(torch.stack(losses).tolist()), sum(torch.stack(hits).tolist()), count) if losses else (0.0, 0, 0)
    loss, right, total = (sum(values) for values in zip(*processes.gather(mine)))
    return loss / total, right / total
