"""Does the embedded world order methods as papers report? Predictions made before the runs, held against the boards.

    python benchmarks/findings.py --without mini-smoke    # only on tasks that this suite, seen before, does not have
    python benchmarks/findings.py --on mini-smoke         # every prediction on the records of one suite, as a try

`docs/predictions.md` says where they come from, what the scores are, and when one is shown, contradicted, or cannot be
tested. Intervals are Student's t over tasks, paired; Welch's where the two sides have other families.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from scipy import stats
from tabulate import tabulate

from immunebench.board.assembly.scored import load_suite_results, newest
from immunebench.board.scores import scale
from immunebench.board.scores.curves import gains, part_kept_from, remaining
from immunebench.board.scores.measurement import Measurement
from immunebench.board.scores.reading import measurement
from immunebench.board.scores.row import MISSING
from immunebench.board.scores.task_score import score_utility
from immunebench.catalog.loading import default_catalog
from immunebench.declared.schema import DefenseName, Family, Id, Model, Text, load
from immunebench.declared.suite import Setting

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs/predictions/predictions.toml"
Cells = Sequence[Measurement]
Verdict = Literal["shown", "contradicted", "cannot be tested"]


class Untestable(Exception):
    """The reason why a prediction cannot be tested."""


class Side(Model):
    """A score of a defense under an attack; `at` is a multiple of the attack's steps, 0 before it."""

    defense: DefenseName
    chain: Text = "lora"
    score: Literal["A", "P", "gain", "speed", "E", "U", "lost_benign", "brisque"] = "A"
    at: float | None = Field(default=None, ge=0)
    families: tuple[Family, ...] = ()
    setting: Setting = Setting()

    def __str__(self) -> str:
        return f"{self.defense} under {self.chain} {self.setting.name}".rstrip()


class Prediction(Model):
    """`a` minus `b` (nothing: 0) lies on the side `sign` of `least`, or `within` of 0; `needs` must be shown first."""

    id: Id
    statement: Text
    sources: tuple[Id, ...] = Field(min_length=1)
    suites: tuple[Id, ...] = Field(min_length=1)
    a: Side
    b: Side | None = None
    sign: Literal["+", "-"] | None = None
    least: float = 0.0
    within: float | None = Field(default=None, gt=0)
    needs: tuple[Id, ...] = ()
    cannot: str = ""  # why no suite measures it
    seen: str = ""  # what was known of the outcome when it was written


class Predictions(Model):
    """The file of predictions; `read` says what of a source was at hand."""

    sources: dict[Id, dict[Literal["title", "url", "read"], Text]]
    predictions: tuple[Prediction, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Outcome:
    """What a suite says of a prediction; `agrees` compares the mean alone."""

    verdict: Verdict
    why: str = ""
    difference: float | None = None
    interval: tuple[float, float] | None = None
    tasks: int = 0
    agrees: bool | None = None


def reading(side: Side, own: Cells, none: Cells) -> float | None:
    """Return a side's score of one task, a mean over seeds; None if not measured or the attack learns too little."""
    if side.score in ("U", "lost_benign"):
        utility = score_utility(own[0].task, own)
        return utility.u if side.score == "U" else None if utility.u_ben is None else 1 - utility.u_ben
    if side.score == "brisque":
        known = [value for cell in own if (value := cell.data.beside.get("attacked", {}).get("brisque")) is not None]
        return scale.mean(known) if known else None
    gain = remaining(own) if side.score == "E" else gains(none, own)
    if gain is None or (side.score != "E" and not gain.informative):
        return None
    if side.at is None:
        return gain.area
    if side.at == 0:
        before = [scale.anchored(s, c.m_same, c.m_other) for c in own if (s := c.beside.concept_released) is not None]
        return part_kept_from(gain.none[gain.final], scale.mean(before)) if before else None
    n = round(side.at * gain.final)
    if n not in gain.defended or side.score == "gain":
        return gain.defended.get(n)
    part = part_kept_from(gain.none[n], gain.defended[n])
    return gain.defended[n] / gain.defended[gain.final] if side.score == "speed" else part


def values(side: Side, cells: Cells) -> dict[str, float]:
    """Return a side's score by task; raises `Untestable` where there is none."""
    rows: dict[str, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        here = (cell.setting, cell.chain) == (side.setting, side.chain) and cell.status not in MISSING
        if here and (not side.families or cell.family in side.families):
            rows[cell.defense][cell.task].append(cell)
    if not (own := rows.get(side.defense, {})):
        raise Untestable(f"row {side} is not on the board")
    if failed := sorted(task for task, group in own.items() if not all(cell.measured for cell in group)):
        raise Untestable(f"row {side} failed on {', '.join(failed)}")
    found = {task: reading(side, group, rows["none"].get(task, ())) for task, group in sorted(own.items())}
    if not (known := {task: value for task, value in found.items() if value is not None}):
        raise Untestable(f"row {side} has no {side.score}: not measured, or the attack learns too little")
    return known


def judge(prediction: Prediction, cells: Cells) -> Outcome:
    """Hold one prediction against the measurements of one suite; raises `Untestable`."""
    a = values(prediction.a, cells)
    b = values(prediction.b, cells) if prediction.b else dict.fromkeys(a, 0.0)
    paired = [a[task] - b[task] for task in sorted(a.keys() & b.keys())]
    apart = not paired and prediction.b is not None and prediction.a.families != prediction.b.families
    sides = [list(a.values()), list(b.values())] if apart else [paired]
    tasks, mean = sum(map(len, sides)), scale.mean(sides[0] or [0.0]) - (scale.mean(sides[1]) if apart else 0.0)
    if min(map(len, sides)) < 2:
        raise Untestable(f"no interval of {min(map(len, sides))} task(s)")
    test = stats.ttest_ind(*sides, equal_var=False) if apart else stats.ttest_1samp(paired, 0.0)
    low, high = map(float, test.confidence_interval(0.95))
    if (bound := prediction.within) is not None:
        agrees, shown, against = abs(mean) < bound, -bound < low and high < bound, low > bound or high < -bound
    else:
        turn, least = (1 if prediction.sign == "+" else -1), prediction.least
        ends = sorted((turn * low, turn * high))
        agrees, shown, against = turn * mean > least, ends[0] > least, ends[1] < least
    why = "" if shown or against else f"the interval holds the bound: {tasks} tasks leave +-{(high - low) / 2:.2f}"
    verdict: Verdict = "shown" if shown else "contradicted" if against else "cannot be tested"
    return Outcome(verdict, why, mean, (low, high), tasks, agrees)


def judge_all(predictions: Sequence[Prediction], boards: Mapping[str, Cells]) -> dict[tuple[str, str], Outcome]:
    """Hold each prediction against each of its suites; by (prediction, suite). What it needs must stand above it."""
    found: dict[tuple[str, str], Outcome] = {}
    for one in predictions:
        for suite in one.suites:
            unmet = [f"rests on {need}, not shown here" for need in one.needs if found[need, suite].verdict != "shown"]
            try:
                if one.cannot or suite not in boards or unmet:
                    raise Untestable(one.cannot or (unmet[0] if suite in boards else f"no results of {suite}"))
                found[one.id, suite] = judge(one, boards[suite])
            except Untestable as error:
                found[one.id, suite] = Outcome("cannot be tested", str(error))
    return found


def main() -> None:
    """Print a table of verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="", help="hold every prediction against this suite alone")
    parser.add_argument("--without", default="", help="leave out the tasks of this suite")
    arguments = parser.parse_args()
    known = default_catalog().suite(arguments.without).names("tasks") if arguments.without else ()
    predictions = load(FILE, Predictions).predictions
    if arguments.on:
        predictions = tuple(one.model_copy(update={"suites": (arguments.on,)}) for one in predictions)
    boards, lost = {}, []
    for suite in sorted({suite for one in predictions for suite in one.suites}):
        if (folder := ROOT / "results" / suite).is_dir():
            found = load_suite_results(folder)
            boards[suite] = [measurement(r) for r in newest(found.records) if r.cell.task not in known]
            lost += [f"left out: {problem}" for problem in found.problems if problem.lost]
    lines = []
    for (key, suite), o in judge_all(predictions, boards).items():
        mean, ends = (f"{o.difference:+.2f}", "{:+.2f} to {:+.2f}".format(*o.interval)) if o.interval else ("", "")
        sign = "" if o.agrees is None else "as predicted" if o.agrees else "other"
        lines.append((key, suite, o.verdict, mean, ends, o.tasks or "", sign, o.why))
    heads = ("prediction", "suite", "verdict", "difference", "95 %", "tasks", "sign", "why")
    print(tabulate(lines, heads, tablefmt="github", disable_numparse=True))
    print(*lost, "Known before: " + "; ".join(f"{one.id} ({one.seen})" for one in predictions if one.seen), sep="\n")


if __name__ == "__main__":
    main()
