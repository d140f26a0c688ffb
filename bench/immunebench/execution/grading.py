"""The stages ``score`` and ``anchor``: folders of pictures in, ``scores.json`` out."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from immunebench.bases.weights import require
from immunebench.catalog.loading import default_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Pictures
from immunebench.metrics.table import METRICS, Judge, find, score

Report = Callable[[str, int, int], None]
Key = Mapping[str, Any]


@cache
def load_judge(name: str) -> Judge:
    """Return a judge of ``models.toml`` by name; it is loaded once a process."""
    judges = default_catalog().models.judges
    if name not in judges:
        raise UsageError("unknown judge", field="judge", value=name, choices=judges)
    for weights in judges[name].weights:
        require(weights, asked_by=f"judge {name}")
    module, _, function = judges[name].loader.partition(":")
    return getattr(importlib.import_module(module), function)()  # type: ignore[no-any-return]


def _metrics(key: Key) -> list[str]:
    """Return the ids of the metrics of a key; a version that this code does not compute is refused."""
    for row in key["metrics"]:
        if find(row["id"]).version != row["version"]:
            raise UsageError(f"metric {row['id']} has version {METRICS[row['id']].version} here", value=row["version"])
    return [row["id"] for row in key["metrics"]]


def _score(
    key: Key, metrics: list[str], pictures: Pictures, reference: Pictures | None, **more: Any
) -> dict[str, list[float]]:
    asked = any("judge" in find(metric).needs for metric in metrics)
    judge = load_judge(key["judge"]) if asked else None
    return score(
        metrics,
        judge,
        pictures,
        reference,
        captions=key.get("captions", ()),
        contents=key.get("contents"),
        concept=key.get("concept"),
        genres=key.get("genres", ()),
        **more,
    )


def run_score(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> dict[str, Any]:
    """Score pictures: inputs ``generated`` (and ``reference``, ``training``, ``other_0``, ...), or ``protected``
    against ``published``.

    Writes ``scores.json``: ``{"metrics": {"<id>@<version>": {"values": [...], "mean": x}}}``; the mean of no
    values is 0.
    """
    loaded = {name: Pictures.load(folder) for name, folder in inputs.items()}
    pictures = loaded["generated"] if "generated" in loaded else loaded["protected"]
    reference = loaded.get("reference", loaded.get("published"))
    others = _joined([loaded[name] for name in _others(inputs)])
    found = _score(key, _metrics(key), pictures, reference, training=loaded.get("training"), others=others)
    report("score", len(pictures), len(pictures))
    table = {
        name: {"values": values, "mean": float(np.mean(values)) if values else 0.0} for name, values in found.items()
    }
    (out / "scores.json").write_text(json.dumps({"metrics": table}, indent=1, allow_nan=False) + "\n")
    return {}


def run_anchor(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> dict[str, Any]:
    """Score real pictures: inputs ``reference``, ``same`` and ``other_0``, ``other_1``, ...

    Writes ``scores.json``: ``m_same``, mean of the unseen pictures of the concept, and ``m_other``, mean
    over the other concepts, each against the concept's reference.
    """
    (metric,) = _metrics(key)
    reference = Pictures.load(inputs["reference"])

    def mean(name: str) -> float:
        (values,) = _score(key, [metric], Pictures.load(inputs[name]), reference).values()
        return float(np.mean(values))

    values = {"m_same": mean("same"), "m_other": float(np.mean([mean(name) for name in _others(inputs)]))}
    report("anchor", 1, 1)
    (out / "scores.json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    return {}


def _others(inputs: Mapping[str, Path]) -> list[str]:
    """Return the names of the inputs that hold the family's other concepts."""
    return sorted(name for name in inputs if name.startswith("other_"))


def _joined(parts: Sequence[Pictures]) -> Pictures | None:
    if not parts:
        return None
    captions = tuple(caption for part in parts for caption in part.captions)
    return Pictures(np.concatenate([part.pixels for part in parts]), captions)
