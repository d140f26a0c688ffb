"""Text output of records and of the machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from immunebench.board.scores.integrity import integrity_share
from immunebench.core.errors import UsageError, printable, shortened

if TYPE_CHECKING:
    from immunebench.hardware.doctor import Machine, Verdict
    from immunebench.records.files import Line
    from immunebench.records.record import Record

#: Most characters of what is said of a damaged line.
_LONGEST = 400


def find_records(key: str, results: Path, suite: str | None = None) -> list[tuple[Path, Record]]:
    """Return the records of a cell with their files: one per suite, of the defense's newest version, sorted by suite.

    Parameters
    ----------
    key
        The cell's key.
    results
        Folder of results.
    suite
        Only this suite.

    Raises
    ------
    UsageError
        No record has that key, or none is of that suite; the message has the nearest key.
    """
    keys: set[str] = set()
    found: dict[str, tuple[Path, Record]] = {}
    for file, _, record in _readable(results):
        if record is None:
            continue
        keys.add(record.cell.key)
        before = found.get(record.suite)
        newer = before is None or record.cell.defense_version > before[1].cell.defense_version
        if record.cell.key == key and newer:
            found[record.suite] = file, record
    if not found:
        raise UsageError(f"no record below {results} of the cell", field="CELL", value=key, choices=keys)
    if suite is not None and suite not in found:
        raise UsageError("has no record of the cell:", field="--suite", value=suite, choices=found)
    return [found[name] for name in sorted(found) if suite in (None, name)]


def referenced(results: Path) -> set[str]:
    """Return the digests of all artifacts that records in a folder refer to, also those whose line is damaged."""
    found: set[str] = set()
    for _, line, record in _readable(results):
        if record is None:
            found.update(digest.decode() for digest in re.findall(rb"[0-9a-f]{64}", line.text))
            continue
        found.update(record.artefacts.values())
        baselines = (record.baseline.floor, record.baseline.ceiling, record.anchors)
        found.update(part.digest for part in baselines if part is not None)
    return found


def _readable(results: Path) -> Iterator[tuple[Path, Line, Record | None]]:
    """Yield file, line and record of every line of records below a folder; a line that holds none is reported."""
    from immunebench.records.files import BrokenLine, read_lines

    for file in sorted(results.rglob("*.jsonl")):
        try:
            for line in read_lines(file):
                try:
                    yield file, line, line.record()
                except BrokenLine as error:
                    said = f"passed over: {file}:{line.number}: {shortened(error.message, _LONGEST)}"
                    print(printable(said), file=sys.stderr)
                    yield file, line, None
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror}", file=file) from error


def lines(record: Record, file: Path) -> list[str]:
    """Format a record as text: outcome, scores, utility, cost, environment, files."""
    return [printable(line) for line in _lines(record, file)]


def _lines(record: Record, file: Path) -> list[str]:
    cell = record.cell
    out = [f"{cell.key}  ({record.suite} {record.suite_version}, {cell.defense_title})"]
    out.append(f"status       {record.status}" + (f": {record.reason}" if record.reason else ""))
    if cell.defense_kind == "artefact":
        out.append(f"made by      {record.params.get('tool')} {record.params.get('tool_version')}")
    if record.failure is not None:
        out.append(f"failed stage {record.failure.stage} {record.failure.digest}")
        out.append(f"traceback    immunebench why {record.failure.digest[:12]}")
    floor, ceiling = record.baseline.floor, record.baseline.ceiling
    for name, score in record.scores.items():
        steps = "  ".join(f"step {step}: {mean:.3f}" for step, mean in sorted(score.means.items()))
        out.append(f"score        {name} {score.mean:.3f} over {score.n} pictures  ({steps})")
    out += _protection(record)
    for label, base in (("floor", floor), ("ceiling", ceiling)):
        score_of = None if base is None else base.scores.get(record.metric)
        if score_of is not None:
            out.append(f"{label:<12} {record.metric} {score_of.mean:.3f}")
    if record.anchors is not None:
        out.append(f"anchors      same {record.anchors.m_same:.3f}, other {record.anchors.m_other:.3f}")
    use = record.utility
    if use.g is not None and use.g_base is not None:
        out.append(f"utility      captions {use.g:.3f}, base {use.g_base:.3f}, guess {use.g0:.3f}")
    if use.benign is not None:
        ends = f"floor {use.benign.floor:.3f}, ceiling {use.benign.ceiling:.3f}"
        out.append(f"utility      benign concept {use.benign.s:.3f}, {ends}")
    for name, measured in (record.fidelity or {}).items():
        out.append(f"fidelity     {name} {measured.mean:.3f}")
    out += _pictures(record)
    out += _beside(record)
    for stage, cost in record.cost.items():
        memory = f"process peak {cost.peak_process_gib:.2f} GiB, reserved {cost.peak_reserved_gib:.2f} GiB"
        out.append(f"cost         {stage} {cost.seconds:.1f} s, {memory}")
    out += [f"environment  {name} {value}" for name, value in sorted(record.env.items())]
    out += [f"artefact     {name} {digest}" for name, digest in sorted(record.artefacts.items())]
    out.append(f"record       {file}")
    out.append(f"sheet        {file.parent / record.sheet.file if record.sheet else 'none'}")
    return out


def _protection(record: Record) -> Iterator[str]:
    """Yield P of this cell alone; nothing where it is undefined."""
    from immunebench.board.scores.cell import cell_score
    from immunebench.board.scores.reading import measurement
    from immunebench.board.scores.scale import clip

    p_raw = cell_score(measurement(record)).p_raw
    if p_raw is not None:
        yield f"P            {clip(p_raw):.2f} of this seed (raw {p_raw:.3f}; 0: as undefended, 1: nothing learned)"


def _beside(record: Record) -> list[str]:
    """Format the additional measurements: whether the attack learned, copied or collapsed, and integrity."""
    out = []
    if record.prompt_chance is not None:
        out.append(f"prompts      a guess {record.prompt_chance:.3f}")
    for name, measured in (record.unseen or {}).items():
        out.append(f"unseen       {name} {measured.mean:.3f} over {measured.n} real pictures of the concept")
    use = record.utility
    if use.collapse is not None and use.collapse_base is not None:
        out.append(f"collapse     unrelated pictures {use.collapse:.3f}, base {use.collapse_base:.3f}")
    if record.erasure is not None:
        pair = {"base": record.erasure.base, "released model": record.erasure.released}
        out += [f"concept      {found.mean:.3f} in the {whose}, unattacked" for whose, found in pair.items() if found]
    if record.integrity is not None:
        own = record.integrity
        pairs = {
            "before any adaptation": own.before, "after a benign one": own.after_benign,
            "of the same model by another kernel": own.floor, "of the same model from other noise": own.ceiling,
        }  # fmt: skip
        for when, found in pairs.items():
            out += [f"integrity    {name} {measured.mean:.3f} {when}" for name, measured in (found or {}).items()]
        share = integrity_share(own)
        if share is not None:
            out.append(
                f"integrity    {share.value:.2f} ({share.low:.2f} to {share.high:.2f}) of another noise's change"
            )
    return out


def _pictures(record: Record) -> list[str]:
    """Format measurements of purified pictures, and the additional metrics of papers on image protection."""
    out, cleaned = [], record.purified
    if cleaned is not None:
        for side, found in (("clean", cleaned.to_clean), ("protected", cleaned.to_protected)):
            out += [f"purified     {name} {m.mean:.3f} to the {side} pictures" for name, m in (found or {}).items()]
        if cleaned.seconds_per_picture is not None:
            out.append(f"purified     {cleaned.seconds_per_picture:.3f} s a picture")
    for whose, found in record.beside.items():
        out += [f"beside       {name} {m.mean:.3f} over {m.n} pictures, {whose}" for name, m in found.items()]
    return out


def machine_lines(machine: Machine, verdicts: list[Verdict]) -> list[str]:
    """Format a machine as text: its properties, then every profile with the reasons why it cannot run."""
    out = [
        f"python   {machine.python} on {machine.platform}",
        f"cores    {machine.cores}",
        f"memory   {machine.memory_gib:g} GiB",
        f"disk     {machine.disk_free_gib:g} GiB free at {machine.store}",
    ]
    out += [f"box      {machine.box}"] if machine.box else []
    out += [f"gpu      {gpu.name}, {gpu.memory_gib:g} GiB" for gpu in machine.gpus] or ["gpu      none"]
    out += [f"library  {name} {version}" for name, version in machine.versions.items() if name != "python"]
    out += [
        f"base     {name}: {'available' if found else 'its files are missing'}"
        for name, found in machine.weights.items()
    ]
    out += [f"broken   {line}" for line in machine.broken]
    for verdict in verdicts:
        state = "qualifies" if verdict.qualifies else "; ".join(verdict.reasons)
        out.append(f"profile  {verdict.profile}: {state}")
    return out
