"""Records with chosen scores, for tests of what reads results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from immunebench.records.files import write_records
from immunebench.records.record import Record

METRIC = "image_similarity@1"
FLOOR, CEILING = 0.1, 0.9


def measured(mean: float) -> dict[str, Any]:
    """Four pictures around a mean; anchors are 0 and 1, so P_raw = (0.9 - mean) / 0.8."""
    return {METRIC: {"values": [mean - 0.02, mean + 0.02, mean, mean], "n": 4, "mean": mean, "per_step": {"9": mean}}}


def unlike(scores: dict[str, Any]) -> dict[str, Any]:
    """The same with its pictures in another order: no attack gives the floor's scores one by one."""
    return {name: {**score, "values": score["values"][::-1]} for name, score in scores.items()}


def value(
    defense: str = "shield", m: float = 0.5, *, task: str = "style-a", chain: str = "lora", seed: int = 0, **more: Any
) -> dict[str, Any]:
    """The JSON value of a sound record; `more` replaces fields of it, or of its cell."""
    control = defense in ("none", "none-replicate", "destroy")
    cell = {
        "task": task,
        "task_version": 1,
        "family": "style",
        "concept": "style/a",
        "concept_kind": "near",
        "base": "tiny",
        "base_revision": "1",
        "defense": defense,
        "defense_version": 1,
        "defense_title": "Title",
        "defense_kind": "control" if control else "model",
        "hooks": ["protect_model"],
        "budget": None,
        "chain": chain,
        "links": [{"attack": chain, "version": 3}],
        "profile": "cpu",
        "profile_version": 1,
        "seed": seed,
    }
    cell |= {name: more.pop(name) for name in list(more) if name in cell}
    suite = more.get("suite_version", "1.0")
    defaults = {
        "schema_version": 1,
        "suite": "tiny",
        "suite_version": suite,
        "track": None,
        "comparability": f"tiny@{suite}/{task}@1/{chain}@3/{METRIC}/cpu@1",
        "cell": cell,
        "metric": METRIC,
        "status": "ok",
        "scores": measured(CEILING if defense == "none" else m),
        "baseline": {
            "floor": {"digest": "f", "scores": unlike(measured(FLOOR))},
            "ceiling": {"digest": "c", "scores": measured(CEILING)},
        },
        "anchors": {"m_same": 1.0, "m_other": 0.0, "digest": "a"},
        "utility": {
            "g": 0.8,
            "g_base": 0.8,
            "g0": 0.05,
            "benign": {"s": 0.9, "floor": 0.1, "ceiling": 0.9},
        },
        "code": {"version": "0.1.0", "commit": None, "dirty": None, "entry_files": {}},
        "created": "2026-01-02T03:04:05+00:00",
    }
    return defaults | more


def record(*arguments: Any, **more: Any) -> Record:
    """A sound record; see `value`."""
    import json

    return Record.model_validate_json(json.dumps(value(*arguments, **more)))


def write(folder: Path, records: Iterable[Record]) -> Path:
    """Write records to the files that they belong into."""
    files: dict[str, list[Record]] = {}
    for each in records:
        files.setdefault(f"{each.cell.defense}@{each.cell.defense_version}.jsonl", []).append(each)
    for name, group in files.items():
        write_records(folder / name, group)
    return folder
