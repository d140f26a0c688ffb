"""``immunebench check``: findings on an entry, a file of records, a folder of results or a bundle, in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from immunebench.board.loading.load import load_results
from immunebench.board.loading.marks import read_marks
from immunebench.catalog import loading, places
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.core.errors import UsageError
from immunebench.submission.code import check_code
from immunebench.submission.findings import Finding, errors, finding, of_error, of_problem
from immunebench.submission.folder import check_files, check_words

_MANIFESTS = ("defense.toml", "attack.toml")


def check(path: Path, *, run: bool = True, trust: bool = False) -> list[Finding]:
    """Check whatever lies at a path.

    Parameters
    ----------
    path
        Folder of an entry; ``.jsonl`` file of records; folder of a suite's results; bundle (``.tar``).
    run
        Whether to run a defense for two steps, which takes most of the time.
    trust
        Whether to run it where this machine has no box, too.

    Raises
    ------
    UsageError
        There is nothing at the path that could be checked.
    """
    if path.is_dir() and any((path / name).is_file() for name in _MANIFESTS):
        return check_entry(path, run=run, trust=trust)
    if path.suffix == ".jsonl" and path.is_file():
        return check_records(path.parent, path.name)
    if path.is_dir() and any(path.glob("*.jsonl")):
        return check_records(path)
    if path.is_dir() and path.name == "external":
        from immunebench.submission.external import check_external

        return check_external(path)
    if path.suffix == ".tar" and path.is_file():
        from immunebench.submission.bundles import check_bundle

        return check_bundle(path)
    what = "is no folder of an entry or of results, no file of records and no bundle:"
    raise UsageError(what if path.exists() else "no such file or folder", field="PATH", value=str(path))


def check_entry(folder: Path, *, run: bool = True, trust: bool = False) -> list[Finding]:
    """Check an entry: manifest, files, code, licence, citation; and, without errors so far, a small run of it."""
    folder = folder.resolve()
    found = [*check_files(folder, pictures=_holds_pictures(folder))]
    if not errors(found):
        found += check_code(folder)
    with entries_at(folder) as catalog:
        entry = _find(catalog, folder)
        if isinstance(entry, Finding):
            return [*found, entry]
        found += check_words(entry)
        if run and not errors(found) and entry.kind == "defense" and entry.artefact is None:
            from immunebench.submission.conformance import conformance

            found += conformance(entry, catalog, trust=trust)
    return found


def check_records(folder: Path, only: str | None = None) -> list[Finding]:
    """Check a suite's records against themselves, each other, the catalogue and their contact sheets."""
    marks = read_marks(folder, places.published("leaderboard"))
    _, problems = load_results(folder, sheets=True, catalog=loading.default_catalog(), marks=marks)
    # A wheel and a pull request need not hold the contact sheets.
    problems = [problem for problem in problems if "is missing" not in problem.message or problem.kind != "sheet"]
    return [of_problem(problem, folder) for problem in problems if only is None or problem.file in (only, ".")]


@contextmanager
def entries_at(folder: Path) -> Iterator[Catalog]:
    """Have the catalogue hold an entry's folder, in this process and in those that it starts.

    An entry that lies outside the checkout is found through ``IMMUNEBENCH_ENTRIES``, for the length of the block.
    """
    catalog = loading.default_catalog()
    if any(path.parent == folder for path in [*catalog.paths.values(), *(broken.path for broken in catalog.broken)]):
        yield catalog
        return
    before = os.environ.get("IMMUNEBENCH_ENTRIES")
    os.environ["IMMUNEBENCH_ENTRIES"] = str(folder.parents[1])
    loading.default_catalog.cache_clear()
    try:
        yield loading.default_catalog()
    finally:
        if before is None:
            del os.environ["IMMUNEBENCH_ENTRIES"]
        else:
            os.environ["IMMUNEBENCH_ENTRIES"] = before
        loading.default_catalog.cache_clear()


def _find(catalog: Catalog, folder: Path) -> Entry | Finding:
    kind = "defense" if (folder / "defense.toml").is_file() else "attack"
    table = catalog.defenses if kind == "defense" else catalog.attacks
    entry = table.get(folder.name)
    if entry is not None and entry.folder == folder:
        return entry
    for broken in catalog.broken:
        if broken.path == folder / f"{kind}.toml":
            file = str(broken.path)
            return finding("manifest", file, broken.reason.removeprefix(f"{file}: "))
    if folder.parent.name != f"{kind}s":
        why = f"lies in a folder {folder.parent.name!r}; entries are read from {kind}s/<id>/"
        return finding("manifest", folder, why)
    return of_error("manifest", UsageError(f"the name of this {kind} is another's", file=folder), folder)


def _holds_pictures(folder: Path) -> bool:
    try:
        return b"[artefact]" in (folder / "defense.toml").read_bytes()[:10_000_000]
    except OSError:
        return False
