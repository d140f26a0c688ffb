"""Similarity against the share of frozen tensors, for a target and an innocent concept: FreezeAsGuard's own figure.

    python benchmarks/freeze_ratio.py --task object-umbrella --rho 0.2 --rho 0.5 --json docs/freezing/ratio.json

A good mask lets the target fall and keeps the innocent concept; a random mask of as many tensors is the control, and
one of the largest tensors says whether a learned mask has learned more than their size. The stages are those of
``mini-dev`` otherwise: the store shares what rho does not touch. Prints a row for each mask, ratio and attack, and
writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrate import attacked, vary  # type: ignore[import-not-found]

from immunebench import api
from immunebench.execution import scheduler
from immunebench.records.building import build_record
from immunebench.records.record import Record
from immunebench.store.graph import Plan

MASKS = ("freeze-as-guard", "random-freeze", "largest-freeze")
CODE = {"largest-freeze": "random-freeze", "freeze-as-guard-code": "freeze-as-guard"}
COLOURS = {
    "freeze-as-guard": "#b3588c", "freeze-as-guard-code": "#7a4fa3", "random-freeze": "#767676",
    "largest-freeze": "#4f7da3",
}  # fmt: skip


def row_of(record: Record, rho: float) -> dict[str, Any]:
    """One point of the figure; similarities are anchored, those of the innocent concept raw."""
    row: dict[str, Any] = {
        "defense": record.cell.defense, "rho": rho, "attack": record.cell.chain, "task": record.cell.task,
        "status": record.status,
    }  # fmt: skip
    mask, anchors, base = record.enforcement, record.anchors, record.baseline
    if mask is not None:
        row |= {"tensors": mask.frozen_tensors / mask.tensors, "parameters": mask.frozen_parameters / mask.parameters}
        row["binds"] = mask.binds
        row |= {name: side.model_dump() for name, side in (("enforced", mask.enforced), ("free", mask.free)) if side}
    if anchors is not None and record.metric in record.scores and base.floor and base.ceiling:
        low, span = anchors.m_other, anchors.m_same - anchors.m_other
        curves = {"target": record.scores[record.metric], "target_free": base.ceiling.scores[record.metric]}
        row |= {name: {n: (m - low) / span for n, m in score.means.items()} for name, score in curves.items()}
        row["floor"] = (base.floor.scores[record.metric].mean - low) / span
        row["final"] = record.final_step
    if record.utility.benign is not None:
        row["innocent"] = record.utility.benign.model_dump()
    return row


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel an attack: the target's similarity, and the innocent one's share of what it is without a mask."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    attacks = sorted({row["attack"] for row in rows if "target" in row})
    figure, axes = plt.subplots(1, len(attacks), figsize=(5.2 * len(attacks), 3.6), squeeze=False, sharey=True)
    for axis, attack in zip(axes[0], attacks, strict=True):
        own = [row for row in rows if row["attack"] == attack and "target" in row]
        for defense in sorted({row["defense"] for row in own}):
            points = sorted((row for row in own if row["defense"] == defense), key=lambda row: row["rho"])
            rho = [row["rho"] for row in points]
            target = [row["target"][row["final"]] for row in points]
            axis.plot(rho, target, "o-", color=COLOURS.get(defense), label=f"{defense}: target")
            kept = [(r, row["innocent"]) for r, row in zip(rho, points, strict=True) if "innocent" in row]
            share = [(i["s"] - i["floor"]) / (i["ceiling"] - i["floor"]) for _, i in kept]
            axis.plot([r for r, _ in kept], share, "s--", color=COLOURS.get(defense), label=f"{defense}: innocent")
        axis.axhline(own[0]["target_free"][own[0]["final"]], color="black", linewidth=0.8)
        axis.axhline(own[0]["floor"], color="black", linewidth=0.8, linestyle=":")
        axis.set_title(attack, loc="left", fontsize=10)
        axis.set_xlabel("share of the tensors that is frozen, rho")
    axes[0][0].set_ylabel("similarity (target), share kept (innocent)")
    axes[0][-1].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run every mask at every ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", help="dev task; object-umbrella by default")
    parser.add_argument("--rho", action="append", type=float, help="0.2 and 0.5 by default")
    parser.add_argument("--defense", action="append", choices=[*MASKS, "freeze-as-guard-code"])
    parser.add_argument("--attack", action="append", help="lora and dreambooth by default")
    parser.add_argument("--no-utility", action="store_true", help="leave the innocent concept out")
    parser.add_argument("--no-run", action="store_true", help="read what the store holds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--json", type=Path, help="the plot lies beside it")
    options = parser.parse_args()
    store = api.open_store(options.store)
    plans: list[tuple[float, Plan]] = []
    for rho in options.rho or [0.2, 0.5]:
        for defense in options.defense or MASKS:
            for attack in options.attack or ["lora", "dreambooth"]:
                plan = api.plan_suite(
                    "mini-dev", task=options.task or ["object-umbrella"], defense=[defense], attack=[attack]
                )
                plans.append((rho, vary(plan, CODE.get(defense, defense), {"rho": rho})))
    stages = {digest: spec for _, plan in plans for digest, spec in plan.stages.items()}
    if options.no_utility:
        wanted = {d for _, plan in plans for graph in plan.roots.values() for d in attacked(plan, graph)}
        stages = {digest: spec for digest, spec in stages.items() if digest in wanted}
    outcome = scheduler.Outcome()

    def tell(event: Any) -> None:
        if event.kind in ("made", "failed"):
            print(f"{event.kind} {stages[event.digest].stage} {event.text}", len(outcome.present), "of", len(stages),
                  flush=True)  # fmt: skip

    if not options.no_run:
        executor = api.make_executor(store, options.workers, processes=True)
        scheduler.execute(stages, store, executor, tell=tell, outcome=outcome)
    rows = [
        row_of(build_record(cell, plan.roots[cell.key], store), rho)
        for rho, plan in plans
        for cell in plan.cells
        if cell.defense != "none"
    ]
    for row in rows:
        print(json.dumps(row))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
        draw(rows, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
