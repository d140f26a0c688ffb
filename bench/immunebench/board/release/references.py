"""BibTeX for the suite, a release and every method shown."""

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
#: What stands in ``\\cite{...}`` and needs no escape there.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/+-]*")
#: Commands of TeX that do more than typeset: a reference is pasted into somebody's paper.
_ACTIVE = re.compile(
    r"\\\s*(input|include|write|immediate|openin|openout|read|catcode|[egx]?def|let|csname|special|directlua|new\w+)\b|\^\^"
)
_BEGIN = re.compile(r"@\s*(\w+)\s*\{\s*([^\s,{}]+)\s*,")


def works(text: str, file: Path) -> dict[str, str]:
    """The entries of a BibTeX text by key; what stands between them is comment, as BibTeX has it.

    Raises
    ------
    UsageError
        A brace is never closed, a key is there twice or holds characters that TeX acts on, or a command does more
        than typeset.
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
    """What an entry asks to be cited, by key; empty where it has no ``cite.bib``.

    Raises
    ------
    UsageError
        Its ``cite.bib`` cannot be read.
    """
    path = entry.folder / "cite.bib"
    if not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("cannot be read as text", file=path) from error
    # What a terminal would obey is no part of a reference.
    return works("".join(c for c in text if c.isprintable() or c in "\n\t"), path)


def collect(entries: Iterable[Entry], suite: str) -> str:
    """All references of a citation, each once: the suite, then what the entries ask for.

    Parameters
    ----------
    entries
        Defenses and attacks that are shown. What they cite as the suite itself is left to `suite`.
    suite
        BibTeX of the suite and, where there is one, of the release.

    Raises
    ------
    UsageError
        Two entries give one key to different works.
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
    """BibTeX of the suite, from its ``CITATION.cff``.

    Raises
    ------
    UsageError
        The file cannot be read, or lacks its title, version or authors.
    """
    found = _citation(citation)
    fields = {"title": _protected(found["title"]), "author": _authors(found), "version": latex_escape(found["version"])}
    year = re.match(r"\d{4}", str(found.get("date-released", "")))
    fields |= {"year": year[0]} if year else {}
    fields |= {name: str(found[of]) for name, of in (("doi", "doi"), ("url", "repository-code")) if of in found}
    return _bibtex("software", SUITE_KEY, fields)


def release_work(citation: Path, release: str, created: str, digest: str) -> str:
    """BibTeX of one release of the leaderboard; errors as `suite_work`."""
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
            # Braces keep BibTeX from taking the words of an organisation for given and family names.
            yield f"{{{latex_escape(author.get('name', ''))}}}"


def _protected(title: str) -> str:
    name, colon, rest = title.partition(":")
    return f"{{{latex_escape(name)}}}{colon}{latex_escape(rest)}" if colon else f"{{{latex_escape(title)}}}"


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = (f"  {name.ljust(width)} = {{{value}}}," for name, value in fields.items())
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
