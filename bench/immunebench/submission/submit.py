"""``immunebench submit``: from an entry to its records, a preview of its row, and the text of a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from immunebench import api
from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.assembly.scored import load_suite_results, newest
from immunebench.board.scores.model import Board, BoardError, Row
from immunebench.board.scores.reading import measurement
from immunebench.board.text import interval_text, number
from immunebench.catalog import places
from immunebench.core.errors import UsageError
from immunebench.execution.executor import RunStage
from immunebench.execution.progress import duration
from immunebench.plan.estimate import estimate
from immunebench.records.attestation import NO_BOX
from immunebench.records.record import Record
from immunebench.submission.check import check_entry, check_records, entries_at
from immunebench.submission.findings import Finding, errors, shown
from immunebench.submission.running import missing, only, records_of


@dataclass(frozen=True)
class Submission:
    """What came of a submission.

    Attributes
    ----------
    findings
        Of the entry and of its records.
    file
        The file of records; None if nothing was run.
    lines
        What there is to say: what is missing, or the preview of the row.
    text
        The text of the pull request; empty if nothing was run or an error is left.
    """

    findings: tuple[Finding, ...]
    file: Path | None = None
    lines: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Request:
    """Arguments of a submission; see the command ``submit``."""

    entry: Path
    suite: str = "mini-smoke"
    profile: str | None = None
    results: Path = Path("results")
    store: str | None = None
    workers: int = 1
    timeout: float | None = None
    dry_run: bool = False
    trust: bool = False
    run_stage: RunStage | str | None = None


def submit(request: Request) -> Submission:
    """Check an entry, run what is missing of a suite, check the records, and say how its row would stand.

    With `dry_run` the entry is only read, and what would be run is estimated.

    Raises
    ------
    UsageError
        There is no defense at the path, no such suite, or the suite has no task for it.
    """
    folder = request.entry.resolve()
    if not (folder / "defense.toml").is_file():
        raise UsageError("is no folder of a defense (it has no defense.toml):", field="PATH", value=str(request.entry))
    found = check_entry(folder, run=not request.dry_run and request.run_stage is None, trust=request.trust)
    if errors(found):
        return Submission(tuple(found))
    with entries_at(folder) as catalog:
        plan = api.plan_suite(request.suite, catalog=catalog, defense=folder.name, profile=request.profile)
        entry = catalog.defense(folder.name)
        place = request.results / plan.suite.id
        file = place / f"{entry.id}@{entry.version}.jsonl"
        store = api.open_store(request.store)
        left = missing(plan, records_of(file))
        part = only(plan, left)
        if request.dry_run:
            cost = estimate(part, store)
            took = duration(cost.with_workers(request.workers))
            return Submission(tuple(found), None, (f"{len(left)} of {len(plan.cells)} cells to run: about {took}",))
        if left:
            api.measure(
                part, store, place, workers=request.workers, timeout=request.timeout, trust=request.trust,
                processes=request.run_stage is None or isinstance(request.run_stage, str), run_stage=request.run_stage,
            )  # fmt: skip
        found += check_records(place, file.name)
        records = list(records_of(file).values())
        lines = tuple(_lines(preview(place, records), entry.id, records, plan.suite.id))
    text = "" if errors(found) else pull_request(folder, file, records, lines, found)
    return Submission(tuple(found), file, lines, text)


def preview(folder: Path, records: Iterable[Record]) -> Board | str:
    """Return the board as it would be if records were vouched for, with the vouched ones beside; or why there is none.

    Parameters
    ----------
    folder
        Results of the suite; the published ones are read too where those are others.
    records
        Of one entry.
    """
    own = list(records)
    published = places.published("results")
    folders = [folder, *([published / folder.name] if published is not None else [])]
    others: dict[str, list[Record]] = {}
    for place in dict.fromkeys(path.resolve() for path in folders if path.is_dir()):
        loaded = load_suite_results(place)
        for record in newest(loaded.records):
            entry = record.cell.defense, record.cell.defense_version
            if entry in loaded.vouched and record.cell.defense not in {one.cell.defense for one in own}:
                others.setdefault(f"{record.cell.key} {entry[1]}", []).append(record)
    try:
        return aggregate([measurement(record) for record in [*own, *(group[0] for group in others.values())]])
    except BoardError as error:
        return str(error)


def _lines(board: Board | str, name: str, records: list[Record], suite: str) -> Iterator[str]:
    row = None if isinstance(board, str) else board.row(name)
    if isinstance(board, str) or row is None:
        yield f"no row: {board if isinstance(board, str) else 'no record can be used'}"
        return
    yield f"row on {suite}, if it is reproduced:"
    area = row.area
    interval = f", 95 % {interval_text(row.a_interval)}" if row.a_interval else ""
    yield f"  A {number(row.a)}{interval}; P(1) {number(None if area is None else area.p.get(1.0))}; U {number(row.u)}"
    yield f"  {_standing(row, board)}"
    remarks = [*("incomplete: " + reason for reason in row.incomplete), *row.badges, *row.flags]
    if remarks:
        yield f"  remarks: {'; '.join(remarks)}"
    failed = sorted({record.status for record in records} - {"ok"})
    if failed:
        yield f"  {sum(record.status != 'ok' for record in records)} of {len(records)} cells: {', '.join(failed)}"


def _standing(row: Row, board: Board) -> str:
    if row.rank is not None:
        group = [other.defense for other in board.leagues[row.league] if other.rank == row.rank and other is not row]
        alike = f", together with {', '.join(group)}" if group else ""
        return f"tie group {row.rank} of {row.league}{alike}"
    if not row.passes:
        return f"not ranked ({row.league})"
    return f"no rank: {board.interval_rule}"


def pull_request(folder: Path, file: Path, records: list[Record], lines: Iterable[str], found: list[Finding]) -> str:
    """Return the text of the pull request that hands in an entry and its records."""
    first = records[0]
    boxes = sorted({box for record in records if record.attestation for box in record.attestation.boxes.values()})
    machine = ", ".join(f"{name} {first.env[name]}" for name in ("processor", "device", "torch") if name in first.env)
    seconds = sum(cost.seconds for record in records for cost in record.cost.values())
    open_points = [f"- [ ] {one.message} ({one.file})" for one in found]
    return "\n".join(
        [
            f"# {first.cell.defense_title} ({first.cell.defense}@{first.cell.defense_version}) on {first.suite}",
            "",
            *lines,
            "",
            f"- Entry: `{shown(folder)}`; records: `{shown(file)}`, {len(records)} cells.",
            f"- Machine: {machine or 'unknown'}; run time of its cells {duration(seconds)}.",
            f"- Box: {', '.join(boxes) or NO_BOX}.",
            f"- To run cells of it again: `immunebench verify {shown(file)} --cells 2`",
            "",
            *(["Still open:", "", *open_points] if open_points else ["`immunebench check` has no findings."]),
        ]
    )
