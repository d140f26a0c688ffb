"""Loading of boards from folders of results and from releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from immunebench.board.assembly.scored import score_folder, suite_folder
from immunebench.board.loading.load import Problem
from immunebench.board.release import release as releases
from immunebench.board.release.cite import ReleaseName
from immunebench.board.release.provenance import Provenance
from immunebench.board.release.snapshot import Snapshot, Standing, rules_digest, take
from immunebench.board.scores.model import BoardError
from immunebench.core.errors import UsageError


@dataclass(frozen=True)
class Found:
    """A loaded board and its origin.

    Attributes
    ----------
    release
        The release it is from; None for a board computed from results.
    problems
        Faults in the results, and records that were left out because of them.
    differences
        Differences from the citation, found while loading.
    """

    snapshot: Snapshot
    release: ReleaseName | None = None
    problems: tuple[Problem, ...] = ()
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """One side of a comparison: boards by suite, or a single row of a board."""

    boards: Mapping[str, Snapshot]
    row: Standing | None = None
    problems: tuple[Problem, ...] = ()


def load(results: Path, leaderboard: Path, *, suite: str | None = None, release: str | None = None) -> Found:
    """Return the board of a suite, from a release if one is given, else from results.

    Raises
    ------
    UsageError
        If a name is unknown, or no suite is given and there are several.
    BoardError
        If there is no such board, or the files of the release were changed.
    """
    if release is not None:
        manifest, boards, digest = releases.read(release, leaderboard)
        chosen = _chosen(suite, list(boards), f"release {release}")
        return Found(boards[chosen], ReleaseName(release, manifest.created, digest))
    folders = _suites(results)
    chosen = _chosen(suite, folders, str(results))
    scored = score_folder(suite_folder(chosen, results))
    return Found(take(scored, rules_digest(leaderboard)), problems=scored.problems)


def load_cited(cited: Provenance, results: Path, leaderboard: Path) -> Found:
    """Return the board that a citation refers to; raises as `load`."""
    suite = cited.suite.partition("@")[0]
    if cited.release is None:
        return load(results, leaderboard, suite=suite)
    name, _, digest = cited.release.rpartition("@")
    found = load(results, leaderboard, suite=suite, release=name)
    if found.release is not None and not found.release.digest.startswith(digest):
        changed = f"release changed: {name} cited {digest}, now {found.release.digest[:16]}"
        return Found(found.snapshot, found.release, differences=(changed,))
    return found


def side(name: str, results: Path, leaderboard: Path) -> Side:
    """Return the side of a comparison that an argument refers to.

    Parameters
    ----------
    name
        ``suite:defense``, the id of a release, or a folder of results, of all suites or of one.

    Raises
    ------
    UsageError
        If it is none of these.
    BoardError
        If there is no such board.
    """
    if Path(name).is_dir():
        return _folder(Path(name))
    if ":" in name:
        suite, _, defense = name.partition(":")
        scored = score_folder(suite_folder(suite, results))
        snapshot = take(scored, "")
        return Side({suite: snapshot}, snapshot.row(defense), scored.problems)
    if name in releases.names(leaderboard):
        return Side(releases.read(name, leaderboard)[1])
    choices = [*releases.names(leaderboard), *_suites(results)]
    raise UsageError("is no folder, no release and no suite:defense", value=name, choices=choices)


def citation_file(leaderboard: Path) -> Path:
    """Return ``CITATION.cff`` in the folder that has the leaderboard, else that of the package's checkout."""
    beside = leaderboard.resolve().parent / "CITATION.cff"
    return beside if beside.is_file() else Path(__file__).resolve().parents[4] / "CITATION.cff"


def _folder(folder: Path) -> Side:
    own = any(folder.glob("*.jsonl"))
    folders = [folder] if own else [folder / name for name in _suites(folder)]
    boards: dict[str, Snapshot] = {}
    problems: list[Problem] = []
    for part in folders:
        scored = score_folder(part)
        snapshot = take(scored, "")
        boards[snapshot.suite] = snapshot
        problems += scored.problems
    if not boards:
        raise BoardError(f"there are no records below {folder}")
    return Side(boards, problems=tuple(problems))


def _suites(results: Path) -> list[str]:
    """Return the folders of results that have records."""
    if not results.is_dir():
        return []
    return sorted(path.name for path in results.iterdir() if path.is_dir() and any(path.rglob("*.jsonl")))


def _chosen(suite: str | None, names: list[str], where: str) -> str:
    if suite is None and len(names) == 1:
        return names[0]
    if suite not in names or suite is None:
        message = f"{where} holds several suites; name one" if suite is None else f"{where} has no suite"
        message = message if names else f"{where} has no results"
        raise UsageError(message, field="--suite", value=suite, choices=names)
    return suite
