"""What the house knows: records may name only tasks, attacks, entries and versions that are in the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.declared.suite import Suite
    from immunebench.records.record import Record


def stranger(record: Record, catalog: Catalog) -> str | None:
    """Say what a record names that the house does not have, with the field; None where there is nothing.

    Records of a suite that the catalogue lacks, and of older versions of one, are not held to it: the catalogue no
    longer says what was there then.
    """
    suite = catalog.suites.get(record.suite)
    if suite is None:
        return None
    theirs, ours = _numbers(record.suite_version), _numbers(suite.version)
    if theirs != ours:
        newer = f"suite_version: is {record.suite_version!r}, and the newest here is {suite.version!r}"
        return newer if theirs > ours else None
    for check in (_names, _defense, _in_suite, _pictures, _rests_on):
        for found in check(record, catalog, suite):
            return found
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))


def _version(where: str, name: str, theirs: int, ours: int) -> Iterator[str]:
    if not 1 <= theirs <= ours:
        yield f"{where}: is {theirs}, and the newest version of {name} here is {ours}"


def _names(record: Record, catalog: Catalog, suite: Suite) -> Iterator[str]:
    cell = record.cell
    try:
        task = catalog.task(cell.task, field="cell.task")
        profile = catalog.profile(cell.profile, field="cell.profile")
        attacks = [catalog.attack(link.attack, field=f"cell.links.{n}.attack") for n, link in enumerate(cell.links)]
    except UsageError as error:
        yield str(error)
        return
    yield from _version("cell.task_version", cell.task, cell.task_version, task.version)
    yield from _version("cell.profile_version", cell.profile, cell.profile_version, profile.version)
    for number, (link, attack) in enumerate(zip(cell.links, attacks, strict=True)):
        yield from _version(f"cell.links.{number}.version", link.attack, link.version, attack.version)
    if cell.task_version == task.version and cell.family != task.family:
        yield f"cell.family: is {cell.family!r}, and the task {cell.task} is of {task.family!r}"
    if cell.base not in catalog.models.bases:
        yield f"cell.base: unknown base {cell.base!r}"


def _defense(record: Record, catalog: Catalog, suite: Suite) -> Iterator[str]:
    cell = record.cell
    try:
        entry = catalog.defense(cell.defense, field="cell.defense")
    except UsageError as error:
        yield f"{error}: a row needs the entry's folder"
        return
    yield from _version("cell.defense_version", cell.defense, cell.defense_version, entry.version)
    if cell.defense_version != entry.version:
        return
    said: tuple[tuple[str, object, object], ...] = (
        ("defense_kind", cell.defense_kind, entry.kind_of),
        ("hooks", cell.hooks, entry.hooks),
        ("budget", cell.budget, entry.budget),
        ("perceptual_budget", cell.perceptual_budget, entry.perceptual_budget),
    )
    for name, theirs, ours in said:
        if theirs != ours:
            yield f"cell.{name}: is {theirs!r}, and the entry's manifest says {ours!r}"


def _in_suite(record: Record, catalog: Catalog, suite: Suite) -> Iterator[str]:
    cell = record.cell
    if cell.task not in suite.names("tasks"):
        yield f"cell.task: {cell.task!r} is no task of {suite.id} {suite.version}"
    if cell.chain not in suite.names("chains"):
        yield f"cell.chain: {cell.chain!r} is no chain of {suite.id} {suite.version}"
    links = "+".join(link.attack for link in cell.links)
    named = "+".join(catalog.attack(name).id for name in cell.chain.split("+"))
    if links != named and links != cell.chain:
        yield f"cell.links: are {links!r}, and the chain is {cell.chain!r}"


def _pictures(record: Record, catalog: Catalog, suite: Suite) -> Iterator[str]:
    """Hold the number of scores to what the suite draws."""
    expected, name = suite.prompts * suite.pictures, record.metric
    parts = {"scores": record.scores}
    for where, part in (("floor", record.baseline.floor), ("ceiling", record.baseline.ceiling)):
        if part is not None:
            parts[f"baseline.{where}.scores"] = part.scores
    for where, scores in parts.items():
        if name in scores and len(scores[name].values) != expected:
            drawn = f"{suite.prompts} prompts x {suite.pictures}"
            yield f"{where}.{name}.n: is {len(scores[name].values)}, and the suite draws {drawn}"


def _rests_on(record: Record, catalog: Catalog, suite: Suite) -> Iterator[str]:
    """Look for the hashes that every run of these hooks leaves."""
    made = record.attestation
    if made is None or record.status != "ok":
        return
    for name in ("scores", "pictures", *(hook for hook in record.cell.hooks if hook.startswith("protect_"))):
        if name not in made.files:
            yield f"attestation.files.{name}: is missing, and every run of this cell makes it"
