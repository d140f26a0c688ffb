"""BibTeX references of the suite, a release and all methods shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.board.text import latex_escape
from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    from immunebench.catalog.entry import Entry

SUITE_KEY = "immunebench"
#: BibTeX keys that need no escaping in ``\\cite{...}``.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/+-]*")
#: TeX commands that do more than typeset; rejected, since references are pasted into papers.
_ACTIVE = re.compile(
    r"\\\s*(input|include|write|immediate|openin|openout|read|catcode|[egx]?def|let|csname|special|directlua|new\w+)\b|\^\^"
)
_BEGIN = re.compile(r"@\s*(\w+)\s*\{\s*([^\s,{}]+)\s*,")


def works(text: str, file: Path) -> dict[str, str]:
    """Return the entries of a BibTeX text by key; text between entries is a comment, as in BibTeX.

    Raises
    ------
    UsageError
        If a brace is not closed, a key is duplicated or has characters that are special in TeX, or a command does
        more than typeset.
    """
    found: dict[str, str] = {}
    position = 0
    while match := _BEGIN.search(text, position):
        position = _closing(text, match.start(), file)
        _check(match[2], text[match.start() : position], file)
        if match[2] in found:
            raise UsageError("holds a key twice:", file=file, value=match[2])
        found[match[2]] = text[match.start() : position]
    return found


def _check(key: str, work: str, file: Path) -> None:
    if not _KEY.fullmatch(key):
        raise UsageError("a key must be letters, digits and :._/+-, not", file=file, value=key)
    if active := _ACTIVE.search(work):
        raise UsageError("holds a command that does more than typeset:", file=file, field=key, value=active[0])


def entry_works(entry: Entry) -> dict[str, str]:
    """Return the references of a defense or attack by key; empty if it has no ``cite.bib``.

    Raises
    ------
    UsageError
        If its ``cite.bib`` cannot be read.
    """
    path = entry.folder / "cite.bib"
    if not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot be read as text", file=path) from error
    # Control characters could change a reader's terminal.
    return works("".join(c for c in text if c.isprintable() or c in "\n\t"), path)


def collect(entries: Iterable[Entry], suite: str) -> str:
    """Return all references of a citation, each once: the suite, then those of the entries.

    Parameters
    ----------
    entries
        Defenses and attacks that are shown. Their references to the suite itself are replaced by `suite`.
    suite
        BibTeX of the suite and, if there is one, of the release.

    Raises
    ------
    UsageError
        If two entries use the same key for different works.
    """
    found: dict[str, tuple[str, Path]] = {}
    for entry in entries:
        for key, text in entry_works(entry).items():
            before = found.setdefault(key, (text, entry.folder / "cite.bib"))
            if before[0] != text:
                message = f"key {key!r} stands for another work in {before[1]}"
                raise UsageError(message, file=entry.folder / "cite.bib")
    methods = [text for key, (text, _) in sorted(found.items()) if key != SUITE_KEY]
    return "\n\n".join([suite, *methods])


def suite_work(citation: Path) -> str:
    """Return BibTeX of the suite, from its ``CITATION.cff``.

    Raises
    ------
    UsageError
        If the file cannot be read, or has no title, version or authors.
    """
    found = _citation(citation)
    fields = {"title": _protected(found["title"]), "author": _authors(found), "version": latex_escape(found["version"])}
    year = re.match(r"\d{4}", str(found.get("date-released", "")))
    fields |= {"year": year[0]} if year else {}
    fields |= {name: str(found[of]) for name, of in (("doi", "doi"), ("url", "repository-code")) if of in found}
    return _bibtex("software", SUITE_KEY, fields)


def release_work(citation: Path, release: str, created: str, digest: str) -> str:
    """Return BibTeX of a release of the leaderboard; raises as `suite_work`."""
    found = _citation(citation)
    fields = {
        "title": _protected(f"{found['title'].partition(':')[0]} leaderboard, release {release}"),
        "author": _authors(found),
        "year": created[:4],
        "version": latex_escape(release),
        "note": f"SHA-256 of its checksums: {digest}",
    }
    return _bibtex("misc", f"{SUITE_KEY}-{release}", fields)


def _closing(text: str, start: int, file: Path) -> int:
    depth = 0
    for position in range(text.index("{", start), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise UsageError("holds an entry whose brace is never closed", file=file)


def _citation(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError("cannot be read", file=path) from error
    for name in ("title", "version", "authors"):
        if not isinstance(found, dict) or not found.get(name):
            raise UsageError("is required and missing", file=path, field=name)
    return found | {"title": str(found["title"]), "version": str(found["version"])}


def _authors(found: dict[str, Any]) -> str:
    return " and ".join(_author_names(found["authors"]))


def _author_names(authors: Iterable[dict[str, str]]) -> Iterator[str]:
    for author in authors:
        if "family-names" in author:
            parts = (author["family-names"], author.get("given-names", ""))
            yield ", ".join(latex_escape(part) for part in parts if part)
        else:
            # Braces keep BibTeX from splitting the name of an organisation into given and family names.
            yield f"{{{latex_escape(author.get('name', ''))}}}"


def _protected(title: str) -> str:
    name, colon, rest = title.partition(":")
    return f"{{{latex_escape(name)}}}{colon}{latex_escape(rest)}" if colon else f"{{{latex_escape(title)}}}"


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = (f"  {name.ljust(width)} = {{{value}}}," for name, value in fields.items())
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
