"""Sweep one parameter of an attack or a defense on the dev tasks and print P and U of every setting.

    python benchmarks/calibrate.py --entry imma-lora --set lr_out=1e-4 --set lr_out=3e-4 --workers 2

Every ``--set`` is one run (several parameters: ``a=1,b=2``). The stages are those of ``mini-dev`` otherwise:
the store shares what a parameter does not touch. Nothing is tuned on a task that a suite scores.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from immunebench import api
from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.reading import measurement
from immunebench.execution import scheduler
from immunebench.records.building import build_record
from immunebench.store.graph import CellGraph, Plan, StageSpec


def vary(plan: Plan, entry: str, parameters: Mapping[str, Any]) -> Plan:
    """The same plan with other parameters in every stage of an entry, and new digests from there on."""
    renamed: dict[str, str] = {}
    stages: dict[str, StageSpec] = {}
    for digest, spec in plan.stages.items():
        key: dict[str, Any] = dict(spec.key)
        if key.get("entry") == entry:
            key["params"] = {**key["params"], **parameters}
        adapter = plan.stages.get(spec.inputs.get("adapter", ""))
        if "saves" in parameters and adapter and adapter.key.get("entry") == entry:
            # The n-th picture of the curve is still the n-th, at another step.
            before: Any = adapter.key["params"]
            key["step"] = parameters["saves"][before["saves"].index(key["step"])]
        changed = StageSpec(spec.stage, key, {name: renamed[d] for name, d in spec.inputs.items()})
        renamed[digest] = changed.digest
        stages[changed.digest] = changed

    def mapped(value: Any) -> Any:
        if isinstance(value, str):
            return renamed.get(value, value)
        if isinstance(value, dict):
            return {name: mapped(v) for name, v in value.items()}
        if isinstance(value, tuple | frozenset):
            return type(value)(mapped(v) for v in value)
        if is_dataclass(value):
            return replace(value, **{f.name: mapped(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]
        return value

    roots = {key: mapped(graph) for key, graph in plan.roots.items()}
    return replace(plan, stages=stages, roots=roots)


def attacked(plan: Plan, graph: CellGraph) -> set[str]:
    """What the similarity after the attack, before it and without a defense depends on."""
    todo = [*graph.curve.values(), *graph.ceiling.values(), graph.floor, graph.anchor]
    seen: set[str] = set()
    while todo:
        digest = todo.pop()
        if digest not in seen:
            seen.add(digest)
            todo.extend(plan.stages[digest].inputs.values())
    return seen


def main() -> None:
    """Run every setting and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entry", required=True, help="attack or defense whose parameters are set")
    parser.add_argument("--set", action="append", default=[], help="name=value[,name=value]; one run each")
    parser.add_argument("--defense", default="none", help="the defense that is measured, if not the entry itself")
    parser.add_argument("--attack", default="lora", help="the chain that is measured")
    parser.add_argument("--task", action="append", help="dev task; all by default")
    parser.add_argument("--no-utility", action="store_true", help="measure the attack alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    store = api.open_store(options.store)
    plans: dict[str, Plan] = {}
    for setting in options.set or [""]:
        parameters = tomllib.loads("\n".join(re.split(r",(?![^\[]*\])", setting)))
        # `none` beside it: A is over the curves of both.
        both = list(dict.fromkeys(["none", options.defense]))
        plan = api.plan_suite("mini-dev", task=options.task, defense=both, attack=options.attack)
        plans[setting or "preset"] = vary(plan, options.entry, parameters)
    stages = {digest: spec for plan in plans.values() for digest, spec in plan.stages.items()}
    if options.no_utility:
        graphs = [(plan, graph) for plan in plans.values() for graph in plan.roots.values()]
        wanted = {digest for plan, graph in graphs for digest in attacked(plan, graph)}
        stages = {digest: spec for digest, spec in stages.items() if digest in wanted}
    outcome = scheduler.Outcome()

    def tell(event: Any) -> None:
        if event.kind in ("made", "failed"):
            print(f"{event.kind} {stages[event.digest].stage}", len(outcome.present), "of", len(stages), flush=True)

    executor = api.make_executor(store, options.workers, processes=True)
    scheduler.execute(stages, store, executor, tell=tell, outcome=outcome)
    rows: list[dict[str, Any]] = []
    for setting, plan in plans.items():
        records = [build_record(cell, plan.roots[cell.key], store) for cell in plan.cells]
        for task in sorted({record.cell.task for record in records}):
            record = next(r for r in records if (r.cell.task, r.cell.defense) == (task, options.defense))
            none = next(r for r in records if (r.cell.task, r.cell.defense) == (task, "none"))
            if record.anchors is None or record.metric not in record.scores:
                rows.append({"setting": setting, "task": task, "status": record.status, "reason": record.reason})
                continue
            low, span = record.anchors.m_other, record.anchors.m_same - record.anchors.m_other

            def s(value: float, low: float = low, span: float = span) -> float:
                return round((value - low) / span, 3)

            score, base = record.scores[record.metric], record.baseline
            assert base.floor and base.ceiling
            top, floor = base.ceiling.scores[record.metric], s(base.floor.scores[record.metric].mean)
            row = {
                "setting": setting, "task": task, "status": record.status, "floor": floor, "ceiling": s(top.mean),
                "se": round(float(np.std(top.values, ddof=1) / len(top.values) ** 0.5 / span), 3),
                "s by step": {step: s(value) for step, value in score.means.items()},
                "g": record.utility.g, "g_base": record.utility.g_base,
            }  # fmt: skip
            if options.defense != "none":
                board = aggregate([measurement(record), measurement(none)])
                (scored,) = (r for r in board.rows if r.defense == record.cell.defense)
                row |= {
                    "A": scored.a,
                    "P(1)": scored.area and scored.area.p.get(1.0),
                    "U_gen": scored.u_gen,
                    "U_ben": scored.u_ben,
                }
            rows.append(row)
    for row in rows:
        print(json.dumps(row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
