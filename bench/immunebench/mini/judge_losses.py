"""Losses of the judges' training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


def classification(logits: Tensor, labels: NDArray[Any]) -> Tensor:
    """Cross-entropy with light smoothing over the rows whose label is not -1."""
    target = torch.from_numpy(np.asarray(labels, np.int64))
    if not bool((target >= 0).any()):
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float(), target, ignore_index=-1, label_smoothing=0.05)


def contrastive(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss; pairs marked in ``same`` (n, n), equal captions, are all right answers."""
    logits = scale * F.normalize(images.float()) @ F.normalize(texts.float()).T
    target = same.float() / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T))


def grouped(embedding: Tensor, groups: NDArray[np.int64], temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2): rows of one group attract, all others repel.

    Parameters
    ----------
    embedding
        (n, d), not normalised.
    groups
        (n,); rows of group -1 only repel.
    """
    unit = F.normalize(embedding.float())
    own = torch.from_numpy(groups)
    self_pair = torch.eye(len(own), dtype=torch.bool)
    logits = (unit @ unit.T / temperature).masked_fill(self_pair, -1e4)
    log_share = logits - logits.logsumexp(1, keepdim=True)
    positive = (own[:, None] == own[None]) & (own[:, None] >= 0) & ~self_pair
    anchors = positive.any(1)
    per_anchor = (log_share * positive).sum(1)[anchors] / positive.sum(1)[anchors]
    return -per_anchor.mean()


class Heads(nn.Module):
    """Linear heads that only the training needs, one for each attribute."""

    def __init__(self, width: int, classes: Mapping[str, int], values: int = 0) -> None:
        super().__init__()
        self.by_name = nn.ModuleDict({name: nn.Linear(width, count) for name, count in classes.items()})
        self.values = nn.Linear(width, values) if values else None

    def loss(self, embedding: Tensor, labels: Mapping[str, NDArray[Any]]) -> Tensor:
        """Mean loss over attributes; ``traits`` are regressed."""
        parts = [classification(head(embedding), labels[name]) for name, head in self.by_name.items() if name in labels]
        if self.values is not None:
            parts.append(4 * F.mse_loss(self.values(embedding).float(), torch.from_numpy(labels["traits"]).float()))
        return torch.stack(parts).mean()
