"""Explains why an artifact is not in the store: what differs from the nearest one that is."""

from __future__ import annotations

import json
from collections.abc import Mapping

from immunebench.store.artifacts import Spec, Store
from immunebench.store.manifest import artifact_fault, read_manifest


def explain(store: Store, digest: str, specs: Mapping[str, Spec] | None = None) -> list[str]:
    """Return lines that say whether an artifact is in the store and, if not, how it differs from the nearest one.

    Parameters
    ----------
    store
        Where to look.
    digest
        Full digest.
    specs
        Planned stages by digest; needed to explain an artifact that was never made.
    """
    folder = store.path(digest)
    if folder is not None:
        fault = artifact_fault(folder)
        made = store.manifest(digest) or {}
        state = f"corrupted: {fault}" if fault else "whole"
        return [
            f"{made.get('stage')} {digest}: in the store, made {made.get('created')}, {state}",
            str(folder),
        ]
    note = store.failure(digest)
    spec = (specs or {}).get(digest)
    lines = []
    if note is not None:
        when = f"failed {note['created']} ({note['kind']})"
        lines.append(f"{note['stage']} {digest}: {when}: {note['message']}")
        lines += [f"  {line}" for line in str(note.get("traceback", "")).splitlines()]
    if spec is None:
        return lines or [f"{digest}: neither in the store nor in a plan of a known suite"]
    lines.append(f"{spec.stage} {digest}: not in the store")
    return lines + _differences(store, spec, specs or {}, "  ")


def _differences(store: Store, spec: Spec, specs: Mapping[str, Spec], indent: str) -> list[str]:
    wanted = _flat({**spec.key, "inputs": dict(spec.inputs)})
    best: tuple[int, str, dict[str, object]] | None = None
    for stage, folder in store.artifacts():
        made = read_manifest(folder) if stage == spec.stage else None
        if made is None:
            continue
        have = _flat({**made["key"], "inputs": made["inputs"]})
        distance = sum(wanted.get(name) != have.get(name) for name in wanted.keys() | have.keys())
        if best is None or (distance, folder.name) < best[:2]:
            best = (distance, folder.name, have)
    if best is None:
        return [f"{indent}no artifact of stage {spec.stage} is in the store"]
    names = sorted(n for n in wanted.keys() | best[2].keys() if wanted.get(n) != best[2].get(n))
    if not names:
        return [f"{indent}nearest is {best[1][:12]}, which differs in the stage's version alone"]
    lines = [f"{indent}nearest is {best[1][:12]}, which differs in:"]
    for name in names:
        new, old = wanted.get(name), best[2].get(name)
        lines.append(f"{indent}  {name}: wanted {_short(new)}, there {_short(old)}")
        missing = specs.get(str(new)) if name.startswith("inputs.") else None
        if missing is not None and not store.has(missing.digest):
            lines += _differences(store, missing, specs, indent + "    ")
    return lines


def _flat(value: object, name: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    inner = ((f"{name}.{key}" if name else str(key), item) for key, item in value.items())
    return {leaf: found for full, item in inner for leaf, found in _flat(item, full).items()}


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
