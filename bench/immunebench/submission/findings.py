"""`Finding`: something that is wrong with an entry, a file of records or a bundle, for people and for programs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from immunebench.board.loading.load import Problem
from immunebench.core.errors import UsageError, printable, shortened

Severity = Literal["error", "warning"]
_LONGEST = 600

#: Every code, with what to do about it.
HINTS: dict[str, str] = {
    "manifest": "docs: CONTRIBUTING.md, Add a defense; `immunebench new defense` writes a manifest that is sound",
    "licence": "name the licence by its SPDX id, such as Apache-2.0, MIT, GPL-3.0-only",
    "citation": "cite.bib holds one BibTeX entry with title, author and year",
    "unfinished": "replace the text that `immunebench new` wrote",
    "file": "an entry's folder holds the manifest, its code (.py), cite.bib and README.md, and nothing else",
    "link": "put the file itself there",
    "import": "entries import immunebench, numpy, torch, scipy, PIL, torchvision and harmless parts of Python; the "
    "context gives files, seeds and devices",
    "submodule": "import names from immunebench itself; docs/api.md lists them",
    "call": "the context gives models, pictures, seeds and files; nothing is read, written or run beside it",
    "patch": "change tensors that the hook was given, and no module, class or function of a library",
    "random": "draw from ctx.rng or ctx.generator, so that the same seed gives the same artifact",
    "syntax": "the code must parse",
    "run": "the entry's own code failed on a small run; the line is the last one of its own",
    "box": "install bubblewrap, or use a kernel with Landlock; --trust runs the entry without a box, after it was read",
    "finite": "weights must stay finite when they are cast to half precision",
    "unchanged": "the entry releases what it was given",
    "nondeterministic": "take all random numbers from the context, or declare deterministic = false in the manifest",
    "record": "leaderboard/rules.md, Marks and findings, says what records are held to",
    "bundle": "`immunebench bundle` writes bundles that are sound",
    "external": "docs: CONTRIBUTING.md, External evaluations",
}


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes
    ----------
    code
        One of `HINTS`; programs may rely on it.
    severity
        An ``error`` keeps a submission out; a ``warning`` does not.
    file, line
        Where it is; the line is None for a whole file or folder.
    message
        What is wrong, in one line, safe to print.
    """

    code: str
    severity: Severity
    file: str
    line: int | None
    message: str

    @property
    def hint(self) -> str:
        """What to do about it."""
        return HINTS[self.code]

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.severity}: {self.message} [{self.code}]"

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the finding with its hint as JSON types."""
        return dataclasses.asdict(self) | {"hint": self.hint}


def finding(
    code: str, file: Path | str, message: str, line: int | None = None, severity: Severity = "error"
) -> Finding:
    """Return a finding whose texts are safe to print."""
    name = printable(shown(Path(file)))
    return Finding(code, severity, name, line, printable(" ".join(shortened(message, _LONGEST).split())))


def of_error(code: str, error: UsageError, file: Path) -> Finding:
    """Return the finding of an error that a reader raised."""
    named = Path(error.file) if error.file is not None else file
    text = str(error)
    return finding(code, named, text.removeprefix(f"{printable(error.file)}: ") if error.file else text)


def of_problem(problem: Problem, folder: Path) -> Finding:
    """Return the finding of a problem of records."""
    severity: Severity = "error" if problem.lost else "warning"
    return finding("record", folder / problem.file, f"{problem.kind}: {problem.message}", problem.line, severity)


def shown(path: Path) -> str:
    """Return a path relative to the current folder where it lies below it."""
    here = Path(os.path.abspath(path))
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(path)


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that keep a submission out."""
    return [found for found in findings if found.severity == "error"]
