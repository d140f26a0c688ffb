"""The command ``capacity``."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli.common import AsJson

if TYPE_CHECKING:
    from immunebench.declared.profile import Profile
    from immunebench.hardware.capacity import Job
    from immunebench.records.demand import Demand


def capacity(
    profiles: Annotated[list[str], typer.Argument(metavar="PROFILE...", help="Profiles of `list profiles`.")],
    base: Annotated[str | None, typer.Option("--base", help="A base of `list bases`, with its weights.")] = None,
    shape_of: Annotated[
        str | None, typer.Option("--shape-of", help="sd14, sd21-base, sdxl, or a narrow one; random weights.")
    ] = None,
    entry: Annotated[
        list[str] | None, typer.Option("--entry", help="Only this attack or defense; may be repeated.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps to run of each, at least 3.")] = 4,
    out: Annotated[
        Path | None, typer.Option("--out", help="Markdown file to write, and JSON next to it: leaderboard/capacity.md.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="By arithmetic: peak of the live tensors; needs no GPU.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure attacks and defenses on a profile: peak memory, seconds per step, and the profiles that they fit.

    Example: immunebench capacity t4-16g --shape-of sd14 --entry imma-dreambooth

    Without a GPU: immunebench capacity t4-16g --estimate --shape-of sd14
    """
    import sys

    from immunebench.board.loading.measured_capacity import measured, write
    from immunebench.catalog.loading import default_catalog
    from immunebench.core.errors import UsageError
    from immunebench.hardware.capacity import jobs, measure

    catalog = default_catalog()
    if estimate:
        if base is not None or out is not None:
            raise UsageError("is arithmetic on a shape; nothing is measured that could be written:",
                             field="--estimate", value="--base" if base is not None else "--out")  # fmt: skip
        _estimate(jobs(catalog, profiles, base=None, shape=shape_of, entries=entry or (), steps=steps, measured=False),
                  as_json=as_json)  # fmt: skip
        return
    planned = jobs(catalog, profiles, base=base, shape=shape_of, entries=entry or (), steps=steps)
    if out is not None and not out.parent.is_dir():
        raise UsageError("no such folder", field="--out", value=str(out.parent))
    if out is not None and out.suffix != ".md":
        raise UsageError("is a Markdown file, so its name must end in .md, not",
                         field="--out", value=out.name)  # fmt: skip
    found = []
    for number, demand in enumerate(measure(planned), 1):
        found.append(demand)
        took = "" if demand.seconds is None else f", {demand.seconds:g} s a step"
        line = f"[{number}/{len(planned)}] {demand.entry} on {demand.profile}: {demand.status}, "
        print(f"{line}{demand.peak_gib:.2f} GiB{took}", file=sys.stderr)
    held = [holding(demand, list(catalog.profiles.values())) for demand in found]
    libraries = {name: version(name) for name in ("torch", "diffusers", "peft")}
    made = measured(found, held, f"{datetime.now(UTC):%Y-%m-%d}", platform.machine(), libraries)
    if out is not None:
        write(made, out)
    print(json.dumps(made.model_dump(mode="json")["rows"], indent=1) if as_json else made.markdown(), end="")
    if any(demand.status in ("error", "killed") for demand in found):
        raise typer.Exit(1)


def _estimate(planned: Sequence[Job], *, as_json: bool) -> None:
    """Print the peak of each job by arithmetic, and the operations of its steps."""
    import sys
    from dataclasses import asdict

    from tabulate import tabulate

    from immunebench.hardware.estimate import estimate

    found = []
    for number, job in enumerate(planned, 1):
        print(f"[{number}/{len(planned)}] {job.entry} on {job.profile}", file=sys.stderr)
        found.append(estimate(job))
    if as_json:
        print(json.dumps([{**asdict(e), "fits": e.fits} for e in found], indent=1))
        return
    rows = [
        (e.entry, e.profile, f"{e.cap_gib:g}", f"{e.peak_gib:.2f}", f"{e.steps_gib:.2f}",
         ", ".join(f"{count:,}" for count in dict.fromkeys(e.operations)), "yes" if e.fits else "no")
        for e in found
    ]  # fmt: skip
    heads = ("entry", "profile", "cap GiB", "peak GiB", "of it training", "operations a step", "fits")
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))
    print(f"\nArithmetic on the {planned[0].model}, not a measurement: the largest sum of live tensors. Fragmentation, "
          "workspaces and the CUDA context are not in it.")  # fmt: skip


def holding(demand: Demand, profiles: Sequence[Profile]) -> list[str]:
    """Return the profiles whose memory cap suffices, among those with the same memory-related settings."""
    from immunebench.declared.profile import lacks_ampere

    own = next(p for p in profiles if p.id == demand.profile)
    same = (
        "device", "frozen_dtype", "trained_dtype", "vae_dtype", "checkpointing", "attention", "optimiser_state",
        "release_gradients", "offload", "micro_batch", "masters",
    )  # fmt: skip
    older = lacks_ampere(own.compute_capability)
    alike = [
        p
        for p in profiles
        if all(getattr(p, name) == getattr(own, name) for name in same) and lacks_ampere(p.compute_capability) == older
    ]
    # If the cap was exceeded, the peak is only a lower bound.
    if demand.status != "fits":
        return []
    return [p.id for p in sorted(alike, key=lambda p: p.memory_gib) if p.memory_gib >= demand.peak_gib]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(capacity)
