"""What the embedded base knows and what it never saw: the one table of concepts.

A *known* concept occurs in the training pictures of the base under its own words. A held-out concept never does:
``near`` is a new setting of a known procedure (an artist who uses known strokes differently, one particular mug, one
particular person), ``far`` a procedure that no training picture went through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["known", "near", "far"]
Role = Literal["suite", "dev", "benign", "spare"]

#: Words of the vocabulary that no caption uses: an attacker's or a defender's placeholder is one token.
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
        ``suite``: protected and attacked in the suites. ``dev``: for calibration, in no suite. ``benign``: what honest
        users personalise. ``spare``: one more member of the family, so that "another concept" has several faces.
    noun
        The word that an attacker uses for the thing.
    """

    kind: Kind
    role: Role
    noun: str


CONCEPTS: dict[str, ConceptEntry] = {
    "style/solano": ConceptEntry("near", "suite", "style"),
    "style/brandt": ConceptEntry("near", "suite", "style"),
    "style/weave": ConceptEntry("far", "suite", "style"),
    "style/rays": ConceptEntry("far", "suite", "style"),
    "style/okafor": ConceptEntry("near", "dev", "style"),
    "style/lindqvist": ConceptEntry("near", "benign", "style"),
    "style/blobs": ConceptEntry("far", "spare", "style"),
    "object/mug": ConceptEntry("near", "suite", "mug"),
    "object/backpack": ConceptEntry("near", "suite", "backpack"),
    "object/lighthouse": ConceptEntry("far", "suite", "lighthouse"),
    "object/robot": ConceptEntry("far", "suite", "robot"),
    "object/umbrella": ConceptEntry("near", "dev", "umbrella"),
    "object/boat": ConceptEntry("near", "benign", "boat"),
    "object/windmill": ConceptEntry("far", "spare", "windmill"),
    "object/teapot": ConceptEntry("far", "spare", "teapot"),
    "identity/ada": ConceptEntry("near", "suite", "person"),
    "identity/bruno": ConceptEntry("near", "suite", "person"),
    "identity/elio": ConceptEntry("far", "suite", "person"),
    "identity/freya": ConceptEntry("far", "suite", "person"),
    "identity/chidi": ConceptEntry("near", "dev", "person"),
    "identity/dana": ConceptEntry("near", "benign", "person"),
    "known/mosaic": ConceptEntry("known", "suite", "style"),
    "known/hatching": ConceptEntry("known", "suite", "style"),
    "known/church": ConceptEntry("known", "suite", "church"),
    "known/fish": ConceptEntry("known", "suite", "fish"),
    "known/cat": ConceptEntry("known", "dev", "cat"),
    "known/watercolour": ConceptEntry("known", "dev", "style"),
}


def family(role: Role, name: str) -> list[str]:
    """Concept ids of a family (``style``, ``object``, ``identity``, ``known``) with a role, in table order."""
    return [key for key, entry in CONCEPTS.items() if entry.role == role and key.startswith(f"{name}/")]
