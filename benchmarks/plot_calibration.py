"""Plot what `calibrate.py --json` measured: similarity over steps, and P against U of every setting.

    python benchmarks/plot_calibration.py docs/calibration/imma-*.json --out docs/calibration/imma.png

One column a dev task. A marker's shape is the number of steps, its shade the rate; settings that change more than
these two carry their name.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

GATE = 0.8
MARKERS = "osD^v"


def main() -> None:
    """Read the files and draw one figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    rows = [row for file in options.files for row in json.loads(file.read_text()) if "ceiling" in row]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    defended = any("P" in row for row in rows)
    figure, axes = plt.subplots(
        1 + defended, len(tasks), figsize=(4.2 * len(tasks), 3.4 * (1 + defended)), squeeze=False, layout="constrained"
    )
    for column, task in enumerate(tasks):
        own = [row for row in rows if row["task"] == task]
        curves(axes[0, column], own)
        axes[0, column].set_title(task)
        if defended:
            trade(axes[1, column], own)
    axes[0, 0].legend(fontsize=6, frameon=False)
    figure.savefig(options.out, dpi=130, metadata={"Software": None})
    print(options.out)


def settings(row: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a row, by name."""
    return tomllib.loads("\n".join(row["setting"].split(",")))


def short(row: dict[str, Any]) -> str:
    """What a setting is called beside its marker: only what is neither steps nor rate."""
    named = {k: v for k, v in settings(row).items() if k not in ("steps", "lr_out", "lr")}
    return ", ".join("max" if (k, v) == ("inner", False) else f"{k} {v}" for k, v in named.items())


def curves(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """Similarity over the attack's steps, one line a setting, between floor and undefended ceiling."""
    for i, row in enumerate(rows):
        steps = {0: row["floor"], **{int(k): v for k, v in row["s by step"].items()}}
        axis.plot(list(steps), list(steps.values()), lw=1, color=plt.cm.viridis(i / max(1, len(rows) - 1)),
                  marker=MARKERS[i % 5], ms=3, label=row["setting"])  # fmt: skip
    axis.axhline(rows[0]["floor"], color="0.5", ls=":", lw=1)
    if any("P" in row for row in rows):
        axis.axhline(rows[0]["ceiling"], color="0.2", ls="--", lw=1, label="undefended")
    axis.set_xlabel("steps of the attack")
    axis.set_ylabel("anchored similarity")


def trade(axis: Axes, rows: list[dict[str, Any]]) -> None:
    """P against U: right and up is good."""
    rates = sorted({settings(row).get("lr_out", 0) for row in rows})
    steps = sorted({settings(row).get("steps", 0) for row in rows})
    for row in rows:
        u = min(value for value in (row["U_gen"], row["U_ben"]) if value is not None)
        own = settings(row)
        shade = rates.index(own.get("lr_out", 0)) / max(1, len(rates) - 1)
        p = row["P"] if row["P"] is not None else 0.0
        axis.scatter(u, p, color=plt.cm.viridis(0.9 * shade), marker=MARKERS[steps.index(own.get("steps", 0)) % 5],
                     s=40, edgecolor="black", lw=0.5)  # fmt: skip
        axis.annotate(short(row) or f"{own.get('lr_out', 0):g}", (u, p), fontsize=6, xytext=(4, 3),
                      textcoords="offset points")  # fmt: skip
    axis.axvline(GATE, color="0.4", ls="--", lw=1)
    axis.set(xlim=(-0.05, 1.1), ylim=(-0.05, 1.05), xlabel="U: use that is left", ylabel="P: protection")


if __name__ == "__main__":
    main()
