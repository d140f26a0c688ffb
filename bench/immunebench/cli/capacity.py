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
    as_json: AsJson = False,
) -> None:
    """Measure attacks and defenses on a profile: peak memory, seconds per step, and the profiles that they fit.

    Example: immunebench capacity t4-16g --shape-of sd14 --entry imma-dreambooth
    """
    import sys

    from immunebench.board.loading.measured_capacity import measured, write
    from immunebench.catalog.loading import default_catalog
    from immunebench.core.errors import UsageError
    from immunebench.hardware.capacity import jobs, measure

    catalog = default_catalog()
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


def holding(demand: Demand, profiles: Sequence[Profile]) -> list[str]:
    """Return the profiles whose memory cap suffices, among those with the same memory-related settings."""
    from immunebench.declared.profile import lacks_ampere

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
    # If the cap was exceeded, the peak is only a lower bound.
    if demand.status != "fits":
        return []
    return [p.id for p in sorted(alike, key=lambda p: p.memory_gib) if p.memory_gib >= demand.peak_gib]


def register(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(capacity)
