"""The concepts of the embedded world: known to the base, or held out from its training.

A *known* concept occurs in the base's training pictures and captions. A held-out concept does not: ``near`` is a new
parameter setting of a known procedure (an artist who uses known strokes differently, one particular mug, one particular
person), ``far`` a procedure, a kind of object or a trait that no training picture has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["known", "near", "far"]
Role = Literal["suite", "dev", "benign", "spare"]

#: Single-token words that no caption uses, as placeholders of attackers and owners.
RARE_TOKENS = (
    "sks",
    "oqx",
    "zvf",
    "wqd",
    "jbx",
    "kyv",
    "pgz",
    "vrq",
    "xud",
    "fyj",
    "qmh",
    "bxz",
    "hjw",
    "ukq",
    "dzv",
    "ncq",
)


@dataclass(frozen=True)
class ConceptEntry:
    """One row of the table.

    Attributes
    ----------
    kind
        ``known``, ``near`` or ``far``, see the module.
    role
        ``suite``: protected and attacked in the suites. ``dev``: for calibration, in no suite. ``benign``: for benign
        fine-tuning. ``spare``: a further member of the family, as another reference for unrelated concepts.
    noun
        The class noun in the attacker's captions.
    """

    kind: Kind
    role: Role
    noun: str


def _rows(family: str, kind: Kind, role: Role, nouns: dict[str, str]) -> dict[str, ConceptEntry]:
    return {f"{family}/{name}": ConceptEntry(kind, role, noun) for name, noun in nouns.items()}


def _of(noun: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, noun)


CONCEPTS: dict[str, ConceptEntry] = {
    **_rows("style", "near", "suite", _of("style", "solano", "brandt", "moreau", "ivarsen", "haddad", "tanaka")),
    **_rows("style", "far", "suite", _of("style", "weave", "rays")),
    **_rows("style", "near", "dev", _of("style", "okafor")),
    **_rows("style", "near", "benign", _of("style", "lindqvist")),
    **_rows("style", "near", "spare", _of("style", "castell", "petrov")),
    **_rows("style", "far", "spare", _of("style", "blobs")),
    **_rows("object", "near", "suite", {
        "mug": "mug", "backpack": "backpack", "mug-2": "mug", "backpack-2": "backpack", "house": "house",
        "car": "car"}),
    **_rows("object", "far", "suite", {"lighthouse": "lighthouse", "robot": "robot"}),
    **_rows("object", "near", "dev", {"umbrella": "umbrella"}),
    **_rows("object", "near", "benign", {"boat": "boat"}),
    **_rows("object", "near", "spare", {
        "mug-3": "mug", "backpack-3": "backpack", "boat-2": "boat", "cat": "cat"}),
    **_rows("object", "far", "spare", {"windmill": "windmill", "teapot": "teapot"}),
    **_rows("identity", "near", "suite", _of("person", "ada", "bruno", "gita", "hugo", "ines", "jonas")),
    **_rows("identity", "far", "suite", _of("person", "elio", "freya")),
    **_rows("identity", "near", "dev", _of("person", "chidi", "kofi")),
    **_rows("identity", "near", "benign", _of("person", "dana")),
    **_rows("identity", "near", "spare", _of("person", "lena", "mika")),
    **_rows("known", "known", "suite", {"mosaic": "style", "hatching": "style", "church": "church", "fish": "fish"}),
    **_rows("known", "known", "dev", {"cat": "cat", "watercolour": "style"}),
}  # fmt: skip


def family(role: Role, name: str) -> list[str]:
    """Return the concept ids of a family (``style``, ``object``, ``identity``, ``known``) with a role, in order."""
    return [key for key, entry in CONCEPTS.items() if entry.role == role and key.startswith(f"{name}/")]
