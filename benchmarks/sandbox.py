"""Measures what the box costs: stages of `mini-smoke` in this process and in boxes, alternately, on one store each.

Prints seconds and processor seconds of every stage (with the parent's own and admission's share) and the ratio of the
boxes to this process, and compares the artifacts. Exits 1 where bytes differ.

Example: python benchmarks/sandbox.py --steps 60 --box bubblewrap
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from immunebench import api
from immunebench.box import choice
from immunebench.execution.boxed import Boxes
from immunebench.execution.executor import Executor, Inline
from immunebench.execution.scheduler import execute
from immunebench.store.artifacts import Store
from immunebench.store.graph import Plan, StageSpec


def chosen(plan: Plan, steps: int) -> list[StageSpec]:
    """Return the pictures, protections and adaptations of a plan, shortened, inputs before their users."""
    named: dict[str, StageSpec] = {}
    for digest, spec in plan.stages.items():
        if spec.stage not in ("pictures", "protect", "adapt") or any(of not in named for of in spec.inputs.values()):
            continue
        key = dict(spec.key)
        params = dict(key.get("params", {}))  # type: ignore[arg-type]
        if "steps" in params:
            params["steps"] = steps
            params |= {"saves": [steps]} if "saves" in params else {}
            key["params"] = params
        named[digest] = StageSpec(spec.stage, key, {name: named[of].digest for name, of in spec.inputs.items()})
    return list(named.values())


def used() -> float:
    """Return processor seconds of this process and of its children that have ended."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def measured(store: Store, executor: Executor, spec: StageSpec) -> tuple[float, float]:
    """Make one stage; return seconds, and processor seconds by the manifest."""
    began = time.perf_counter()
    known = {spec.digest: spec}
    for digest in spec.inputs.values():
        manifest = store.manifest(digest)
        assert manifest is not None
        known[digest] = StageSpec(manifest["stage"], manifest["key"], manifest["inputs"])
    outcome = execute(known, store, executor)
    if outcome.failed:
        raise SystemExit(f"{spec.stage}: {outcome.failed}")
    manifest = store.manifest(spec.digest)
    assert manifest is not None
    return time.perf_counter() - began, float(manifest["cost"]["cpu_seconds"])


class Kept(Inline):
    """Keeps its template for the next stage."""

    def close(self) -> None:
        """Do nothing: the caller closes the boxes."""


def main() -> int:
    """Run the comparison; return the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--suite", default="mini-smoke")
    options.add_argument("--task", default="style-solano")
    options.add_argument("--defense", action="append", help="as in `run`, repeated; imma-lora, mist-8 and aspl-8")
    options.add_argument("--steps", type=int, default=60, help="steps of every stage")
    options.add_argument("--box", choices=choice.KINDS, default=choice.chosen())
    asked = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    defenses = ["none", *(asked.defense or ("imma-lora", "mist-8", "aspl-8"))]
    plan = api.plan_suite(asked.suite, task=asked.task, defense=defenses, attack="lora")
    wall, worked, differ = [0.0, 0.0], [0.0, 0.0], 0
    with tempfile.TemporaryDirectory() as folder:
        stores = [Store(Path(folder) / name) for name in ("inline", "boxed")]
        boxes = Boxes(stores[1], asked.box)
        executors = [Kept(stores[0]), Kept(stores[1], boxes=boxes)]
        for number, spec in enumerate(chosen(plan, asked.steps)):
            lines = {}
            for arm in (0, 1) if number % 2 else (1, 0):
                before = used()
                seconds, cpu = measured(stores[arm], executors[arm], spec)
                lines[arm] = (seconds, (used() - before) + (cpu if arm and Boxes.takes(spec) else 0.0))
            made = [store.manifest(spec.digest) for store in stores]
            differ += made[0] is None or made[1] is None or made[0]["files"] != made[1]["files"]
            print(f"{spec.stage:9} here {lines[0][0]:7.2f} s, {lines[0][1]:6.2f} of a processor; "
                  f"{asked.box} {lines[1][0]:7.2f} s, {lines[1][1]:6.2f}", flush=True)  # fmt: skip
            if Boxes.takes(spec) and number > 1:
                for arm in (0, 1):
                    wall[arm] += lines[arm][0]
                    worked[arm] += lines[arm][1]
        boxes.close()
    print(f"stages of entries but the first: {wall[1] / wall[0]:.3f} of the seconds, "
          f"{worked[1] / worked[0]:.3f} of the processor seconds; {differ} artifacts differ")  # fmt: skip
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
