"""Does half precision change the scores? One suite in two profiles, the same seeds, P and U compared cell by cell.

    python benchmarks/precision.py --profile cpu --profile cpu-bf16 --seed 0 --seed 1 --seed 2 --workers 2

P of a defense, task, chain and seed is that of its record alone, unclipped, at the last step of the attack. Differences
are paired. Defenses share what the attack learns without one, so the standard error is that of the mean over (task,
chain, seed), each the mean over its defenses. Of the second profile's training steps it says in how many a tensor's
gradient overflowed or was zero everywhere. Prints Markdown and writes JSON. Exits 1 where a cell failed or has no
partner, or where the mean difference of P is above 0.1 for a defense or over all.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from immunebench import api
from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.reading import measurement
from immunebench.core.machine import environment
from immunebench.store.artifacts import Store

LIMIT = 0.1
#: Defense, task, chain and seed.
Place = tuple[str, str, str, int]


def scores(options: argparse.Namespace, profile: str, store: Store) -> tuple[dict[Place, dict[str, float]], list[Any]]:
    """Run the suite in a profile; return P_raw and U of every cell, where it has them, and the training's logs."""
    plan = api.plan_suite(options.suite, task=options.task, seed=options.seed, profile=profile)
    records = api.measure(plan, store, options.results / profile / plan.suite.id, workers=options.workers)
    failed = [record for record in records if record.status != "ok"]
    for record in failed:
        print(f"{profile}: {record.cell}: {record.status}: {record.reason}", file=sys.stderr)
    found: dict[Place, dict[str, float]] = {
        (cell.defense, cell.task, cell.chain, cell.seed): {} for cell in (record.cell for record in records)
    }
    for seed in options.seed:
        cells = [measurement(record) for record in records if record.cell.seed == seed and record.status == "ok"]
        for row in aggregate(cells).rows:
            use = {own.task: own.u for own in row.utilities if own.u is not None}
            for score in row.scores:
                if score.p_raw is not None:
                    u = {"U": use[score.task]} if score.task in use else {}
                    found[row.defense, score.task, score.chain, seed] = {"P": score.p_raw, **u}
    logs = []
    for digest, spec in plan.stages.items():
        made = store.path(digest) if spec.stage in ("adapt", "protect") else None
        if made and (made / "log.json").is_file():
            logs += json.loads((made / "log.json").read_text())
    return found, logs


def paired(one: dict[Place, dict[str, float]], other: dict[Place, dict[str, float]], what: str) -> list[dict[str, Any]]:
    """Mean of the second less the first, its standard error and the largest difference, by defense and over all.

    The undefended cells, whose P is 0 by definition, are left out.
    """
    places = sorted(place for place in one.keys() & other.keys() if what in one[place] and what in other[place])
    groups: dict[str, list[Place]] = {}
    for place in places:
        if place[0] != "none":
            groups.setdefault(place[0], []).append(place)
    if not groups:
        return []
    groups["all"] = [place for own in list(groups.values()) for place in own]
    rows = []
    for defense, own in groups.items():
        gaps: list[float] = [other[place][what] - one[place][what] for place in own]
        shared: dict[tuple[str, str, int], list[float]] = {}
        for place, gap in zip(own, gaps, strict=True):
            shared.setdefault(place[1:], []).append(gap)
        means = [statistics.mean(group) for group in shared.values()]
        error = statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        rows.append({
            "defense": defense, "pairs": len(gaps), "of": what,
            "first": round(statistics.mean(one[place][what] for place in own), 3),
            "second": round(statistics.mean(other[place][what] for place in own), 3),
            "difference": round(statistics.mean(gaps), 3), "standard error": round(error, 3),
            "largest": round(float(max(gaps, key=abs)), 3),
        })  # fmt: skip
    return rows


def main() -> int:
    """Run both profiles and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="mini-smoke")
    parser.add_argument("--profile", action="append", help="two; default cpu and cpu-bf16")
    parser.add_argument("--seed", action="append", type=int, help="default 0, 1 and 2")
    parser.add_argument("--task", action="append", help="default: all of the suite")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--results", type=Path, default=Path("precision"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.profile = options.profile or ["cpu", "cpu-bf16"]
    options.seed = options.seed or [0, 1, 2]
    if len(options.profile) != 2:
        parser.error("--profile: name two")
    store = api.open_store(options.store)
    (one, _), (other, logs) = (scores(options, profile, store) for profile in options.profile)
    rows = [row for what in ("P", "U") for row in paired(one, other, what)]
    # Tensors that overflow alone are left out, as `skipped`, where gradients are released.
    counted = [row for row in logs if "zero" in row]
    steps = {
        "profile": options.profile[1], "counted": len(counted),
        "with an overflow": sum(row.get("overflowed", row.get("skipped", 0)) > 0 for row in counted),
        "with a gradient of zeros": sum(row["zero"] > 0 for row in counted),
    }  # fmt: skip
    first, second = options.profile
    print(f"| of | defense | pairs | {first} | {second} | difference | standard error | largest |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("|", " | ".join(str(row[k]) for k in ("of", "defense", "pairs", "first", "second")), end=" | ")
        print(" | ".join(str(row[k]) for k in ("difference", "standard error", "largest")), "|")
    print(f"training steps of {steps}")
    if options.json:
        cells = [
            {
                "defense": place[0],
                "task": place[1],
                "chain": place[2],
                "seed": place[3],
                first: one.get(place),
                second: other.get(place),
            }
            for place in sorted(one.keys() | other.keys())
        ]
        made = {"suite": options.suite, "rows": rows, "steps": steps, "cells": cells, "environment": environment("cpu")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    alone = sorted(p for p in one.keys() | other.keys() if "P" not in one.get(p, {}) or "P" not in other.get(p, {}))
    for place in alone:
        print(f"{'/'.join(map(str, place))}: no P in both profiles", file=sys.stderr)
    apart = [row for row in rows if row["of"] == "P" and abs(row["difference"]) > LIMIT]
    for row in apart:
        print(f"{row['defense']}: the mean difference of P is above {LIMIT}", file=sys.stderr)
    return int(bool(alone or apart or not rows))


if __name__ == "__main__":
    sys.exit(main())
