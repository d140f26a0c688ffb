"""Expansion of a suite to cells, and of the cells to a plan: the graph of all their stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.layers import Defense
from immunebench.core.errors import UsageError
from immunebench.declared.scoring import TRACK
from immunebench.declared.suite import Setting, Suite
from immunebench.declared.task import Task
from immunebench.pictures.dataset_source import require
from immunebench.plan.builder import Builder
from immunebench.plan.checks import check_base, check_defense, check_predictions, check_setting, check_task
from immunebench.store.graph import Cell, Plan

#: Id of the control without a defense.
NONE = "none"


def make_plan(
    suite: Suite,
    catalog: Catalog,
    *,
    task: str | Sequence[str] | None = None,
    defense: str | Sequence[str] | None = None,
    attack: str | Sequence[str] | None = None,
    seed: int | Sequence[int] | None = None,
    profile: str | None = None,
) -> Plan:
    """Plan a suite, or a part of it.

    Parameters
    ----------
    suite
        The suite; its names are resolved in ``catalog``.
    task, attack
        Restrict the plan to these tasks and chains of the suite.
    defense
        Plan these defenses instead of the suite's; any in the catalogue.
    seed, profile
        Use these instead of the suite's.

    Raises
    ------
    UsageError
        If a name is unknown, an entry is invalid, or a file that the plan must hash is missing.
    """
    file = catalog.paths.get(("suite", suite.id))
    tasks = _select("--task", task, suite.names("tasks"), file)
    seeds = list(suite.seeds) if seed is None else [seed] if isinstance(seed, int) else list(seed)
    further = suite.none_seeds if seed is None else ()
    if wrong := [number for number in seeds if not isinstance(number, int) or isinstance(number, bool)]:
        raise UsageError("must be a whole number, not", field="--seed", value=wrong[0])
    if any(number < 0 for number in seeds):
        raise UsageError("must not be negative, not", field="--seed", value=min(seeds))
    builder = Builder(suite, catalog, file, profile)
    for name in _many(attack):
        builder.attacks(name, "--attack")  # Reports invalid chains before chains that the suite lacks.
    chains = _select("--attack", attack, suite.names("chains"), file)
    cells = [
        Cell(name, entry.id, chain, builder.specs.profile.id, number, setting)
        for name, entry, chain, setting in _places(suite, catalog, _many(defense), file)
        if name in tasks and chain in chains
        for number in dict.fromkeys([*seeds, *(further if entry.id == NONE and setting.usual else ())])
    ]
    for name in _many(defense):
        entry = catalog.defense(name)
        if entry.id not in {cell.defense for cell in cells}:
            if not any(_suits(entry, catalog.task(place), {}) for place in tasks):
                check_defense(catalog, entry, catalog.task(tasks[0]), file, "--defense")
            raise UsageError("fits no task of the suite that was chosen:", field="--defense", value=name)
    if not cells:
        raise UsageError("has no cell of this selection", file=file)
    for name in dict.fromkeys(cell.task for cell in cells):
        check_task(catalog, catalog.task(name))
    if not catalog.outlined:
        # Reports all missing data sets at once, before the first is read.
        require(catalog, [catalog.task(name) for name in dict.fromkeys(cell.task for cell in cells)])
    for name, entry_id, setting in dict.fromkeys((cell.task, cell.defense, cell.setting) for cell in cells):
        check_defense(catalog, catalog.defense(entry_id), catalog.task(name), file)
        check_setting(catalog, catalog.defense(entry_id), catalog.task(name), setting, file)
    _check_models(cells, catalog, builder)
    roots = {cell.key: builder.cell(cell) for cell in cells}
    return Plan(suite, tuple(cells), builder.specs.stages, roots)


def _places(
    suite: Suite, catalog: Catalog, wanted: Sequence[str], file: Path | None
) -> Iterator[tuple[str, Defense, str, Setting]]:
    """Yield task, defense, chain and setting of each cell of the suite, or of the ``wanted`` defenses instead."""
    seen = set()
    known = {name: catalog.defense(name, file=file, field="defenses") for name in suite.names("defenses")}
    named = {entry.id: entry for entry in known.values()}
    for block in suite.blocks:
        own = [known[name] for name in block.defenses]
        chosen = [catalog.defense(name, field="--defense") for name in wanted] if wanted else own
        # A defense that the suite does not list is run where others of its track are; without any, wherever it applies.
        tracks = {TRACK[entry.kind_of] for entry in own}
        for entry in chosen:
            here = entry in own or (
                entry.id not in named and (TRACK[entry.kind_of] in tracks or not _has_track(named.values(), entry))
            )
            places = itertools.product(block.tasks, block.chains, block.settings) if here else ()
            for name, chain, setting in places:
                task = catalog.task(name, file=file, field="tasks")
                place = name, entry.id, chain, _settled(setting, entry, task)
                if place not in seen and _suits(entry, task, named):
                    seen.add(place)
                    yield name, entry, chain, place[3]


def _check_models(cells: Sequence[Cell], catalog: Catalog, builder: Builder) -> None:
    """Check that every base of the cells can be run on the profile and by the entries that use it."""
    on: dict[str, dict[str, Entry]] = {}
    for name, defense, chain, setting in dict.fromkeys((c.task, c.defense, c.chain, c.setting) for c in cells):
        cleaning, attack = builder.attacks(chain)
        entries = [layer for entry in (catalog.defense(defense), *cleaning, attack) for layer in entry.layers]
        lent = [base for entry in entries for base in entry.surrogates]
        for base in filter(None, (catalog.task(name).base, setting.surrogate, setting.attacker_base, *lent)):
            on.setdefault(base, {}).update({entry.id: entry for entry in entries})
    for base, known in on.items():
        check_base(catalog, base, builder.specs.profile)
        check_predictions(catalog, known.values(), base)


def _settled(setting: Setting, entry: Defense, task: Task) -> Setting:
    """Return a setting without redundant parts: the task's own base, and a surrogate that the defense does not use."""
    # The base that a closed tool computed on is unknown, and no stage of its pictures runs a base.
    computes = any("protect_images" in layer.hooks and layer.artefact is None for layer in entry.layers)
    surrogate = setting.surrogate if computes else None
    bases = {"surrogate": surrogate, "attacker_base": setting.attacker_base}
    return setting.model_copy(update={name: None if base == task.base else base for name, base in bases.items()})


def _has_track(entries: Iterable[Defense], entry: Defense) -> bool:
    return any(TRACK[other.kind_of] == TRACK[entry.kind_of] for other in entries)


def _suits(entry: Defense, task: Task, named: Mapping[str, Defense]) -> bool:
    """Return whether a defense applies to a task; one that the suite lists always does."""
    misplaced = "protect_images" in entry.hooks if task.family == "relearn" else entry.erases
    return entry.id in named or not misplaced


def _many(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _select(option: str, wanted: str | Sequence[str] | None, known: Sequence[str], file: Path | None) -> list[str]:
    chosen = _many(wanted)
    for name in chosen:
        if name not in known:
            raise UsageError("is not in the suite:", file=file, field=option, value=name, choices=known)
    return [name for name in known if not chosen or name in chosen]
