"""The commands ``list`` and ``doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
from immunebench.cli.common import AsJson, StoreDir, print_columns, print_json, the_catalog

#: What is listed only where there is any.
_FAULTS = ("broken", "unfinished")


def list_(
    kind: Annotated[str | None, typer.Argument(help="suites, tasks, defenses, attacks, profiles or bases.")] = None,
    as_json: AsJson = False,
) -> None:
    """List suites, tasks, defenses, attacks, profiles and bases.

    Example: immunebench list defenses
    """
    found = _inventory(the_catalog())
    if kind is not None and kind not in found:
        raise UsageError("unknown kind", field="KIND", value=kind, choices=found)
    chosen = found if kind is None else {kind: found[kind]}
    if as_json:
        print_json(chosen)
        return
    for name, rows in chosen.items():
        if name in _FAULTS and kind is None and not rows:
            continue
        # A long list of tasks is read by family.
        for group in sorted({row["family"] for row in rows}) if name == "tasks" else [""]:
            shown = [[row["id"], row["title"]] for row in rows if row.get("family", "") == group or not group]
            print(f"{name}, {group}:" if group else f"{name}:" if shown else f"{name}: none")
            if shown:
                print_columns(shown)


def doctor(store: StoreDir = None, as_json: AsJson = False) -> None:
    """Check this machine: what is installed, and which profiles it can run.

    Example: immunebench doctor --json
    """
    from immunebench import api
    from immunebench.cli import report
    from immunebench.hardware.doctor import examine

    machine, verdicts = examine(the_catalog(), api.open_store(store).root)
    if as_json:
        print_json(machine.as_dict(verdicts))
    else:
        print("\n".join(report.machine_lines(machine, verdicts)))
    if not any(verdict.qualifies for verdict in verdicts):
        raise typer.Exit(1)


def _inventory(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    from immunebench.catalog.placeholders import leftovers

    entries = {"defenses": catalog.defenses, "attacks": catalog.attacks}
    found: dict[str, list[dict[str, Any]]] = {
        "suites": [{"id": s.id, "title": s.title, "version": s.version} for s in catalog.suites.values()],
        "tasks": [
            {"id": t.id, "title": t.title, "version": t.version, "family": t.family, "split": t.split}
            for t in catalog.tasks.values()
        ],
    }
    for kind, table in entries.items():
        found[kind] = [
            {
                "id": e.id,
                "title": e.title,
                "version": e.version,
                "hooks": list(e.hooks),
                "aliases": list(e.aliases),
            }
            for e in table.values()
        ]
    found["profiles"] = [{"id": p.id, "title": p.title, "version": p.version} for p in catalog.profiles.values()]
    found["bases"] = [
        {"id": n, "title": b.path or (f"your own, like {b.like}" if b.own else b.hub[0].repo), "revision": b.revision}
        for n, b in catalog.models.bases.items()
    ]
    found["broken"] = [{"id": f"{b.kind} {b.id}", "title": b.reason} for b in catalog.broken]
    found["unfinished"] = [
        {"id": f"{e.kind} {e.id}", "title": line}
        for table in entries.values()
        for e in table.values()
        if e.variant is None
        for line in leftovers(e)
    ]
    return found


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("list")(list_)
    app.command()(doctor)
