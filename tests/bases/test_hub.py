"""Weights from the model hub: what arrives is what the hub states, safetensors, and of the packages' own addresses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save

from immunebench.bases import weights
from immunebench.core.errors import UsageError

TENSORS = save({"a": torch.arange(6.0).reshape(2, 3)})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Stands for the hub's client: serves one file of one commit, and states a digest."""

    def __init__(self, content: bytes, stated: str | None = None) -> None:
        self.content = content
        self.stated = hashlib.sha256(content).hexdigest() if stated is None else stated
        self.asked: list[tuple[str, str, str]] = []

    def metadata(self, url: str) -> SimpleNamespace:
        self.url = url
        return SimpleNamespace(commit_hash=COMMIT, etag=self.stated)

    def download(self, repository: str, name: str, *, revision: str, local_dir: str) -> str:
        self.asked.append((repository, name, revision))
        file = Path(local_dir) / name
        file.write_bytes(self.content)
        return str(file)


def served(monkeypatch: pytest.MonkeyPatch, folder: Path, hub: Hub) -> None:
    import huggingface_hub

    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(folder))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", hub.metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)


@pytest.mark.parametrize("name", ["clip-vit-b32", "dino-vits16"])
def test_a_file_is_kept_as_the_hub_has_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = Hub(TENSORS)
    served(monkeypatch, tmp_path, hub)
    said: list[str] = []
    file = weights.fetch(name, said.append)
    assert file == weights.require(name) and file.read_bytes() == TENSORS
    assert load(file.read_bytes())["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    (asked,) = hub.asked
    assert asked[2] == COMMIT, "the commit that the digest was stated for, not whatever is newest by then"
    assert asked[0] in hub.url and asked[1] in hub.url and asked[0] in said[0]


@pytest.mark.parametrize(
    ("content", "stated", "reason"),
    [
        (TENSORS, "0" * 64, "has another SHA-256 than the hub states"),
        (TENSORS, "", "the hub states no SHA-256"),
        (TENSORS, "0" * 40, "the hub states no SHA-256"),  # a Git object's number, of files not kept as LFS
        (b"\x80\x02}q\x00.", None, "is not a safetensors file"),  # a pickle
        (TENSORS[:-4], None, "is not a safetensors file"),
    ],
)
def test_what_is_not_as_stated_or_no_safetensors_is_not_kept(
    content: bytes, stated: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served(monkeypatch, tmp_path, Hub(content, stated))
    with pytest.raises(UsageError, match=f"no source of clip-vit-b32 could be reached.*{reason}") as caught:
        weights.fetch("clip-vit-b32", lambda line: None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_addresses_are_those_of_the_installed_packages() -> None:
    import timm
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME
    from open_clip.pretrained import get_pretrained_cfg
    from torchvision.models import ResNet50_Weights

    openai = get_pretrained_cfg("ViT-B-32-quickgelu", "openai")
    assert f"{weights.HUB_CLIP[0]}/" == openai["hf_hub"]
    assert weights.HUB_CLIP[1] == HF_SAFE_WEIGHTS_NAME
    assert weights.HUB_DINO[0] == timm.get_pretrained_cfg("vit_small_patch16_224.dino").hf_hub_id
    assert ResNet50_Weights.IMAGENET1K_V1.url == weights.TORCHVISION_RESNET50


def test_the_published_sizes_fit_the_architectures_that_are_loaded() -> None:
    """CLIP ViT-B/32 has 151,277,313 parameters, DINO's ViT-S/16 21,665,664, ResNet-50 25,557,032."""
    import open_clip
    import timm
    from torchvision import models

    from immunebench.metrics import networks

    def count(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    dino = timm.create_model(networks.DINO, pretrained=False, num_classes=0)  # torch 2.8 cannot on the meta device
    with torch.device("meta"):
        found = [
            dino,
            models.get_model(networks.CLASSIFIER, weights=None),
            open_clip.model.CLIP(**open_clip.get_model_config(networks.CLIP)),
        ]
    assert [count(network) for network in found] == [21_665_664, 25_557_032, 151_277_313]
