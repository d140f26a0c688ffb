"""The command `capacity`: parse, call, print."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from immunebench.capacity import Demand
    from immunebench.schema import Profile

#: The file's own words, under the table.
_NOTE = (
    "Peak: what the allocator reserved on a GPU, the resident memory of the process on a CPU; a process on a GPU needs "
    "the CUDA context beside it, which the caps of the profiles leave out. Fits: every profile of the same precision "
    "whose cap is above the peak."
)


def capacity(
    profiles: Annotated[list[str], typer.Argument(metavar="PROFILE...", help="Profiles of `list profiles`.")],
    base: Annotated[str | None, typer.Option("--base", help="A base of `list bases`, with its weights.")] = None,
    shape_of: Annotated[
        str | None, typer.Option("--shape-of", help="sd14, sd21-base or sd14-narrow, with random weights.")
    ] = None,
    entry: Annotated[
        list[str] | None, typer.Option("--entry", help="Only this attack or defense; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Real steps that each takes, at least 3.")] = 4,
    out: Annotated[
        Path | None, typer.Option("--out", help="Markdown file to write, such as leaderboard/capacity.md.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure what attacks and defenses take on a profile: peak memory, seconds a step, and where they fit.

    Example: immunebench capacity t4-16g --shape-of sd14 --entry imma-dreambooth
    """
    import sys

    from immunebench.capacity import jobs, measure
    from immunebench.entry import default_catalog
    from immunebench.errors import UsageError

    catalog = default_catalog()
    planned = jobs(catalog, profiles, base=base, shape=shape_of, entries=entry or (), steps=steps)
    if out is not None and not out.parent.is_dir():
        raise UsageError("no such folder", field="--out", value=str(out.parent))
    found = []
    for number, demand in enumerate(measure(planned), 1):
        found.append(demand)
        took = "" if demand.seconds is None else f", {demand.seconds:g} s a step"
        line = f"[{number}/{len(planned)}] {demand.entry} on {demand.profile}: {demand.status}, "
        print(f"{line}{demand.peak_gib:.2f} GiB{took}", file=sys.stderr)
    text = report(found, list(catalog.profiles.values()))
    if out is not None:
        out.write_text(text, "utf-8")
    print(json.dumps([vars(demand) for demand in found], indent=1) if as_json else text)
    if any(demand.status in ("error", "killed") for demand in found):
        raise typer.Exit(1)


def report(found: Sequence[Demand], profiles: Sequence[Profile]) -> str:
    """Return a Markdown page: what was measured, on what, and which caps would hold it."""
    from tabulate import tabulate

    head = ["entry", "profile", "cap GiB", "peak GiB", "process GiB", "s / step", "batch", "status", "fits"]
    rows = [
        [
            d.entry, f"{d.profile}{' (emulated)' if d.emulated else ''}", f"{d.cap_gib:g}", f"{d.peak_gib:.2f}",
            f"{d.process_gib:.2f}", "-" if d.seconds is None else f"{d.seconds:.3g}", d.batch, d.status,
            ", ".join(holding(d, profiles)) or "-",
        ]
        for d in found
    ]  # fmt: skip
    devices = ", ".join(sorted({d.device for d in found if d.device})) or "-"
    models = ", ".join(sorted({d.model for d in found}))
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft"))
    lines = [
        "# Capacity", "",
        f"{models}; {devices}; {platform.machine()}, {libraries}; {datetime.now(UTC):%Y-%m-%d}.", "",
        tabulate(rows, head, tablefmt="github", disable_numparse=True), "", _NOTE, "",
    ]  # fmt: skip
    if any(d.model.startswith("shape") for d in found):
        lines[-1:] = ["Shapes have random weights: memory and time do not depend on their values.", ""]
    complaints = [f"- {d.entry} on {d.profile}: {' '.join(d.reason.split())}" for d in found if d.reason]
    return "\n".join([*lines, *complaints, *([""] if complaints else [])])


def holding(demand: Demand, profiles: Sequence[Profile]) -> list[str]:
    """Name the profiles whose caps hold one peak; only those that compute alike, for others take other memory."""
    from immunebench.schema import lacks_ampere

    own = next(p for p in profiles if p.id == demand.profile)
    same = (
        "device", "frozen_dtype", "trained_dtype", "vae_dtype", "checkpointing", "attention", "optimiser_state",
        "release_gradients", "offload", "micro_batch",
    )  # fmt: skip
    older = lacks_ampere(own.compute_capability)
    alike = [
        p
        for p in profiles
        if all(getattr(p, name) == getattr(own, name) for name in same) and lacks_ampere(p.compute_capability) == older
    ]
    # Under a cap that was not enough the peak says only what is too little.
    if demand.status != "fits":
        return []
    return [p.id for p in sorted(alike, key=lambda p: p.memory_gib) if p.memory_gib >= demand.peak_gib]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(capacity)
