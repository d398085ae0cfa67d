"""Accuracy and loss on held-out data, as a training run needs them after each epoch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .batches import Batches
from .precision import Execution, logits_of
from .processes import Processes


@torch.no_grad()
def validate(
    model: nn.Module, batches: Batches, execution: Execution, processes: Processes, batch_size: int
) -> tuple[float, float]:
    """Mean cross entropy and accuracy in eval mode, in the precision of the run; the train modes come back after it."""
    modes = {module: module.training for module in model.modules()}
    total = torch.zeros(3, dtype=torch.float64, device=batches.device)
    try:
        model.eval()
        for inputs, labels in batches.once(batch_size):
            if not len(inputs):
                continue
            with execution.autocast():
                logits = logits_of(model(inputs))
            loss = F.cross_entropy(logits, labels, reduction="sum")
            hits = (logits.argmax(1) == labels).sum()
            total += torch.stack([loss.double(), hits.double(), loss.new_tensor(labels.numel(), dtype=torch.float64)])
    finally:
        for module, mode in modes.items():
            module.training = mode
    loss_sum, hits, count = (sum(values) for values in zip(*processes.gather(total.tolist())))
    return loss_sum / count, hits / count
