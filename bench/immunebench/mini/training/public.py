"""Training of the public classifier, on the narrow world."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from immunebench.mini import damage
from immunebench.mini.judges import Classifier
from immunebench.mini.training.data import Rendered, to_input
from immunebench.mini.training.schedule import Budget, Descent, autocast, descend
from immunebench.mini.traits import IGNORE, TRAITS

SEED = 109
_KIND, _PROCEDURE = list(TRAITS).index("kind"), list(TRAITS).index("procedure")


def _batch(pictures: Rendered, ready: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mildly changed and damaged pictures, and their labels."""
    rows = (torch.rand(count, device=ready.device) * ready).long()
    x, labels = damage.damaged(
        to_input(pictures.pixels[rows]), pictures.labels[rows].long(), pictures.boxes[rows], None
    )
    return x.contiguous(memory_format=torch.channels_last), labels


def train(pictures: Rendered, folder: Path, device: torch.device, budget: Budget, *, batch: int = 512) -> Classifier:
    """Train the classifier of objects and styles, with a class for pictures without content."""
    torch.manual_seed(SEED)
    network = Classifier().to(device).to(memory_format=torch.channels_last)
    ready = torch.tensor(float(pictures.ready), device=device)

    def loss_of() -> torch.Tensor:
        x, labels = _batch(pictures, ready, batch)
        with autocast(device):
            by_object, by_style = network(x)
        pairs = ((by_object, labels[:, _KIND]), (by_style, labels[:, _PROCEDURE]))
        losses = [F.cross_entropy(answer.float(), true, ignore_index=IGNORE, label_smoothing=0.05)
                  for answer, true in pairs]  # fmt: skip
        return losses[0] + losses[1]

    descent = Descent(loss_of, list(network.parameters()), device, rate=2e-3, decay=2e-2)
    for _ in descend("public", descent, network, folder, device, budget, seed=SEED, batch=batch,
                     refresh=pictures.refresh):  # fmt: skip
        pass
    network.eval()
    return network
