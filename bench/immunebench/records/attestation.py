"""What a record rests on: hashes of the files that it was made from, the box of every entry, numbers of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from immunebench.records.record import Attestation, Box
from immunebench.store.graph import CellGraph

#: Logs and captions carry nothing that is scored, and logs hold times.
_PAYLOAD = (".png", ".safetensors")
#: Stages that run an entry's code.
_ENTRIES = ("protect", "purify", "adapt")
NO_BOX = "none"


class Manifests(Protocol):
    """The part of a store's interface that an attestation needs."""

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """Return an artifact's manifest, None if there is none."""


def attest(graph: CellGraph, store: Manifests) -> Attestation | None:
    """Return the attestation of a cell whose stages are in a store; None where its final scores are missing."""
    last = graph.final
    scores = store.manifest(graph.curve[last])
    drawn = store.manifest(graph.pictures[last])
    if scores is None or drawn is None:
        return None
    named = {
        **graph.protect,
        "scores": graph.curve[last],
        "ceiling_scores": graph.ceiling[last],
        "floor_scores": graph.floor,
        "defended_floor_scores": graph.defended_floor,
        "anchors": graph.anchor,
        "pictures": graph.pictures[last],
        "published": graph.published,
        "adapter": str(drawn.get("inputs", {}).get("adapter", "")),
    }
    found = {name: made for name, digest in named.items() if digest and (made := store.manifest(digest)) is not None}
    names = [name for name in drawn.get("files", {}) if name.endswith(".png")]
    if not names:
        return None
    return Attestation(
        files={name: payload_digest(made.get("files", {})) for name, made in found.items()},
        boxes=_boxes(graph, store),
        prompts=len({name.partition("-")[0] for name in names}),
        pictures=len(names),
    )


def payload_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one SHA-256 for an artifact's pictures, weights and scores, from the files of its manifest.

    It is what ``sha256sum *.png *.safetensors scores.json | sort -k2 | sha256sum`` prints in the artifact's folder.
    """
    names = sorted(name for name in files if name.endswith(_PAYLOAD) or name == "scores.json")
    text = "".join(f"{files[name]['sha256']}  {name}\n" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()


def _boxes(graph: CellGraph, store: Manifests) -> dict[str, Box]:
    """Return the box of the own entries' stages, by a short digest of the stage; absent from a manifest is none."""
    found: dict[str, Box] = {}
    for digest in graph.stages:
        made = store.manifest(digest) if digest in graph.parts["attack"] else None
        if made is not None and made["stage"] in _ENTRIES:
            found[f"{made['stage']}-{digest[:12]}"] = cast(Box, made.get("meta", {}).get("box", NO_BOX))
    return found
