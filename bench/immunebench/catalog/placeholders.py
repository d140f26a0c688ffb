"""What ``immunebench new`` writes for an author to replace, and whether it was replaced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from immunebench.catalog.entry import Entry

AUTHOR = "Your Name"
DESCRIPTION = "What it does, in one sentence."
THREAT_MODELS = {
    "protect_model": "What the defender knows of the attacker, and what the attacker can reach.",
    "protect_images": "What the defender knows of the attacker; whether the attacker has clean pictures.",
    "freeze": "What the defender knows of the attacker; why the attacker fine-tunes through the publisher's interface.",
}
DOCSTRING = "describe what it does, the paper (section) that it follows, and where this version departs from it."
PAPER_TITLE, PAPER_AUTHOR = "Title of the paper", "Family, Given"


def leftovers(entry: Entry) -> list[str]:
    """Return one line for each part of an entry that still says what `immunebench new` wrote; empty if none does."""
    return [f"{file}: {field} still says {text!r}" for file, field, text in _leftovers(entry)]


def _leftovers(entry: Entry) -> Iterator[tuple[Path, str, str]]:
    manifest = entry.manifest
    if AUTHOR in manifest.authors:
        yield entry.path, "authors", AUTHOR
    if manifest.description == DESCRIPTION:
        yield entry.path, "description", DESCRIPTION
    threat_model = getattr(manifest, "threat_model", None)
    if isinstance(threat_model, str) and threat_model in THREAT_MODELS.values():
        yield entry.path, "threat_model", threat_model
    code, reference = entry.folder / f"{entry.kind}.py", entry.folder / "cite.bib"
    if DOCSTRING in _text(code):
        yield code, "the docstring", DOCSTRING
    written = _text(reference)
    for field, text in (("title", PAPER_TITLE), ("author", PAPER_AUTHOR)):
        if f"{{{text}}}" in written:
            yield reference, field, text


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError:
        return ""
