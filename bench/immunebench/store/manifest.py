"""The manifest of an artifact: what it is, which files it has, and a digest of the manifest itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from immunebench.bases.weights import sha256
from immunebench.store.files import json_text, read_json

MANIFEST = "manifest.json"
#: SHA-256 of the manifest without this field. Stores from before it was introduced have manifests without it.
SEAL = "seal"


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    sha256: str
    size: Annotated[int, Field(ge=0)]


class _Manifest(BaseModel):
    """The fields that readers of a manifest rely on; others may stand beside them."""

    model_config = ConfigDict(strict=True)

    digest: str
    stage: str
    key: dict[str, JsonValue]
    inputs: dict[str, str]
    files: dict[str, _File]
    cost: dict[str, JsonValue]
    meta: dict[str, JsonValue]
    versions: dict[str, str]
    created: str


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with the digest of itself.

    Raises
    ------
    ValueError
        A number is not finite.
    """
    return {**manifest, SEAL: _digest(manifest)}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of an artifact's folder; None where it is missing or damaged."""
    manifest = read_json(folder / MANIFEST)
    return None if manifest is None or manifest_fault(folder, manifest) is not None else manifest


def manifest_fault(folder: Path, manifest: Mapping[str, Any] | None) -> str | None:
    """Say what is wrong with a manifest, None where it is sound and belongs into its folder."""
    if manifest is None:
        return f"{MANIFEST} is missing or no JSON"
    try:
        found = _Manifest.model_validate(manifest)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        return f"{MANIFEST}: {field} is missing or of another kind"
    if SEAL in manifest and not _seal_fits(manifest):
        return f"{MANIFEST} differs from its own digest"
    if (found.digest, found.stage) != (folder.name, folder.parent.parent.name):
        return f"{MANIFEST} is of {found.stage}/{found.digest[:12]}"
    return None


def artifact_fault(folder: Path) -> str | None:
    """Say what is wrong with an artifact, None where its manifest is sound and every file equals it."""
    manifest = read_json(folder / MANIFEST)
    fault = manifest_fault(folder, manifest)
    if fault is not None or manifest is None:
        return fault
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["size"] or sha256(file) != entry["sha256"]:
            return f"{name} differs from its hash"
    return None


def _seal_fits(manifest: Mapping[str, Any]) -> bool:
    try:
        return bool(manifest[SEAL] == _digest({name: v for name, v in manifest.items() if name != SEAL}))
    except ValueError:  # A number that is not finite, which no manifest is written with.
        return False


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json_text(manifest).encode()).hexdigest()
