"""Training of the judge of captions (an open_clip model) and of the public classifier, on the narrow world."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from immunebench.mini import damage
from immunebench.mini.judges import NOTHING, OBJECTS, STYLES, Classifier, ClipJudge
from immunebench.mini.traits import IGNORE, TRAITS
from immunebench.mini.training.data import Rendered, to_input, token_ids
from immunebench.mini.training.schedule import Budget, Descent, autocast, descend

CLIP_SEED, PUBLIC_SEED = 103, 109
_KIND, _PROCEDURE = list(TRAITS).index("kind"), list(TRAITS).index("procedure")


def contrastive(images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss; pairs marked in ``same`` (n, n), equal captions, are all right answers."""
    logits = scale * F.normalize(images.float()) @ F.normalize(texts.float()).T
    target = same.float() / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T))


def _batch(pictures: Rendered, ready: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mildly changed and damaged pictures, their labels and their rows."""
    rows = (torch.rand(count, device=ready.device) * ready).long()
    x, labels = damage.damaged(to_input(pictures.pixels[rows]), pictures.labels[rows].long(), pictures.boxes[rows], None)
    return x.contiguous(memory_format=torch.channels_last), labels, rows


def train_clip(
    pictures: Rendered, tokenizer: CLIPTokenizer, folder: Path, device: torch.device, budget: Budget, *, batch: int = 512
) -> ClipJudge:
    """Captions against pictures, with heads for object and style that only the training needs."""
    torch.manual_seed(CLIP_SEED)
    network = ClipJudge(len(tokenizer)).to(device)
    heads = nn.Linear(128, len(OBJECTS) + len(STYLES)).to(device)
    whole = nn.ModuleDict({"clip": network, "heads": heads})
    void = torch.from_numpy(token_ids(tokenizer, [NOTHING])).to(device)
    ready = torch.tensor(float(pictures.ready), device=device)

    def loss_of() -> torch.Tensor:
        x, labels, rows = _batch(pictures, ready, batch)
        kind, procedure = labels[:, _KIND], labels[:, _PROCEDURE]
        ids = pictures.ids[rows, torch.randint(pictures.ids.shape[1], (batch,), device=device)]
        nothing = (kind == len(OBJECTS) - 1) & (procedure == len(STYLES) - 1)
        ids = torch.where(nothing[:, None], void, ids).long()
        with autocast(device):
            images, texts = network(x), network.text(ids)
            found = heads(images.float()).float()
        same = (ids[:, None] == ids[None]).all(2)
        scale = network.clip.logit_scale.exp().clamp(max=60)
        by_kind, by_style = found.split((len(OBJECTS), len(STYLES)), 1)
        return (contrastive(images, texts, same, scale)
                + 0.3 * F.cross_entropy(by_kind, kind, ignore_index=IGNORE)
                + 0.3 * F.cross_entropy(by_style, procedure, ignore_index=IGNORE))  # fmt: skip

    def refresh() -> None:
        pictures.refresh()
        ready.fill_(float(pictures.ready))

    descent = Descent(loss_of, list(whole.parameters()), device, rate=1e-3, decay=3e-2)
    for _ in descend("clip", descent, whole, folder, device, budget, seed=CLIP_SEED, batch=batch, refresh=refresh):
        pass
    return network.eval()


def train_public(
    pictures: Rendered, folder: Path, device: torch.device, budget: Budget, *, batch: int = 512
) -> Classifier:
    """Object and style of known pictures, and nothing."""
    torch.manual_seed(PUBLIC_SEED)
    network = Classifier().to(device, memory_format=torch.channels_last)
    ready = torch.tensor(float(pictures.ready), device=device)

    def loss_of() -> torch.Tensor:
        x, labels, _ = _batch(pictures, ready, batch)
        with autocast(device):
            by_object, by_style = network(x)
        return (F.cross_entropy(by_object.float(), labels[:, _KIND], ignore_index=IGNORE, label_smoothing=0.05)
                + F.cross_entropy(by_style.float(), labels[:, _PROCEDURE], ignore_index=IGNORE, label_smoothing=0.05))  # fmt: skip

    descent = Descent(loss_of, list(network.parameters()), device, rate=2e-3, decay=2e-2)
    for _ in descend("public", descent, network, folder, device, budget, seed=PUBLIC_SEED, batch=batch,
                     refresh=pictures.refresh):  # fmt: skip
        pass
    return network.eval()
