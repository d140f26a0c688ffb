"""Plot what `calibrate.py --json` measured: similarity over steps, and P against U of every setting.

    python benchmarks/plot_calibration.py docs/calibration/imma-*.json --out docs/calibration/imma.png

One column a dev task. Every setting has a letter, a shade and a marker, the same in all panels; the legend names it.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

GATE = 0.8
MARKERS = "osD^v"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    """Read the files and draw one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    rows = [row for file in options.files for row in json.loads(file.read_text()) if "ceiling" in row]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    settings = sorted({row["setting"] for row in rows}, key=strength)
    defended = any("P" in row for row in rows)
    figure, axes = plt.subplots(
        1 + defended, len(tasks), figsize=(3.6 * len(tasks) + 3, 3.4 * (1 + defended)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, task in enumerate(tasks):
        own = [row for row in rows if row["task"] == task]
        curves(axes[0, column], own, settings)
        axes[0, column].set_title(task)
        if defended:
            trade(axes[1, column], own, settings)
    handles = [
        Line2D([], [], color=colour(i, settings), marker=MARKERS[i % 5], label=f"{LETTERS[i]}  {setting}")
        for i, setting in enumerate(settings)
    ]
    if defended:
        handles.append(Line2D([], [], color="0.2", ls="--", label="undefended, last step"))
    handles.append(Line2D([], [], color="0.5", ls=":", label="before the attack"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=7, frameon=False)
    figure.savefig(options.out, dpi=130, metadata={"Software": None})
    print(options.out)


def strength(setting: str) -> tuple[float, int, str]:
    """Sort by rate, then by steps, then by what else is set."""
    own = tomllib.loads("\n".join(setting.split(",")))
    return float(own.get("lr_out", own.get("lr", 0))), int(own.get("steps", 0)), setting


def colour(index: int, settings: Sequence[str]) -> Any:
    """The shade of a setting: the darker, the smaller its rate."""
    return plt.cm.viridis(0.92 * index / max(1, len(settings) - 1))


def curves(axis: Axes, rows: list[dict[str, Any]], settings: Sequence[str]) -> None:
    """Similarity over the attack's steps, one line a setting, between floor and undefended ceiling."""
    for row in rows:
        i = settings.index(row["setting"])
        steps = {0: row["floor"], **{int(k): v for k, v in row["s by step"].items()}}
        axis.plot(list(steps), list(steps.values()), lw=1, color=colour(i, settings), marker=MARKERS[i % 5], ms=4)
        axis.annotate(LETTERS[i], (max(steps), steps[max(steps)]), fontsize=7, xytext=(4, -2),
                      textcoords="offset points")  # fmt: skip
    axis.axhline(rows[0]["floor"], color="0.5", ls=":", lw=1)
    if any("P" in row for row in rows):
        axis.axhline(rows[0]["ceiling"], color="0.2", ls="--", lw=1)
    axis.set(xlabel="steps of the attack", ylabel="anchored similarity")


def trade(axis: Axes, rows: list[dict[str, Any]], settings: Sequence[str]) -> None:
    """P against U: right and up is good."""
    for row in rows:
        i = settings.index(row["setting"])
        u = min(value for value in (row["U_gen"], row["U_ben"]) if value is not None)
        p = row["P"] if row["P"] is not None else 0.0
        axis.scatter(u, p, color=[colour(i, settings)], marker=MARKERS[i % 5], s=36, edgecolor="black", lw=0.5)
        axis.annotate(LETTERS[i], (u, p), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axis.axvline(GATE, color="0.4", ls="--", lw=1)
    axis.set(xlim=(-0.05, 1.1), ylim=(-0.05, 1.05), xlabel="U: use that is left", ylabel="P: protection")


if __name__ == "__main__":
    main()
