"""Thresholds of the board.

`leaderboard/rules.md` states the same numbers in prose; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

Role = Literal["headline", "ladder", "public base"]

UTILITY_GATE: Final = 0.8
"""An entry that releases a model whose U lies below this is shown and not ranked."""

POWER_GATE: Final = 0.25
"""Least ceiling - floor, in anchored similarity, of a (task, chain) that counts."""

POWER_STANDARD_ERRORS: Final = 5.0
"""Least ceiling - floor in units of its own standard error."""

BELOW_FLOOR: Final = 1.2
"""A P_raw above this is flagged `below floor`."""

SGR_LEAST: Final = 0.05
"""IMMA's similarity gap ratio is undefined where the raw ceiling lies below this."""

CHANCE_ACCURACY: Final = 1.0 / 20.0
"""Caption accuracy of a guess among 20 captions, g0 of U_gen."""

REPLICATE_MOST: Final = 0.15
"""Largest mean |A| over tasks of the control `none-replicate`."""

DESTROY_MOST: Final = 0.25
"""Largest mean similarity s after the attack on the control `destroy`: wreckage must not pass for the concept."""

CONTROL_TASKS: Final = 3
"""Least informative tasks over which the mean of a control is held against its bound: fewer are a try-out."""

INTERVAL_TASKS: Final = 5
"""Least informative tasks that a row must have met for an interval and a rank."""

INTERVAL_TASKS_FAMILY: Final = 2
"""The same in each of its families: one task says nothing of the spread over tasks."""

FAMILY_TASKS: Final = 4
"""Least informative tasks of a family for an interval of the family's own."""

CONFIDENCE: Final = 0.95
"""Probability that an interval is made for."""

BUDGET_CLASSES: Final = (4, 8, 16)
"""Classes of changed pictures by the largest change of a pixel, measured after saving, of 255."""

PERCEPTUAL_CLASSES: Final = (0.05, 0.1, 0.2, 0.4)
"""Classes of changed pictures by the judge's mean perceptual distance, of entries that declare a perceptual one."""

ANCHORS_AGREE: Final = 0.001
"""Largest difference between two records' anchors of one cell that were measured on different machines."""

BASELINES_AGREE: Final = 0.01
"""Largest difference between two records' means of one floor, ceiling or benign baseline, on different machines."""

PUBLIC_BASE_ATTACKS: Final = frozenset({"restore", "merge-back"})
"""Attacks that assume a public base: a column of their own, never in the minimum."""

LADDER: Final = re.compile(r"adaptive-.+|.+-x\d+")
"""Attacks outside the headline that look for an entry's best response: ``adaptive-...`` and rungs ``...-x4``."""

TRACK: Final = {
    "model": "model",
    "data": "data",
    "artefact": "data",
    "layered": "layered",
    "api": "api-enforced",
    "erasure": "erasure",
    "control": "control",
}
"""Track of an entry, by the kind in its manifest. Ranks never cross tracks."""

FAMILIES: Final = {
    "model": frozenset({"style", "object", "identity", "relearn"}),
    "api-enforced": frozenset({"style", "object", "identity", "relearn"}),
    "data": frozenset({"style", "object", "identity"}),
    "layered": frozenset({"style", "object", "identity"}),
    "erasure": frozenset({"relearn"}),
}
"""Families of tasks that an entry of a track owes; it cannot choose fewer."""

TARGET_METRIC: Final = {
    "style": "image_similarity",
    "object": "image_similarity",
    "identity": "ism0",
    "relearn": "concept_probability",
}
"""The metric that P is made of, per task family."""

TRAIT_METRIC: Final = "trait_agreement"
"""What takes the place of an embedding's cosine where the judge reads traits, as the embedded world's does."""

BESIDE_FAMILY: Final = {"genre_shift": "style", "poor_match": "style", "fdfr": "identity", "ism": "identity"}
"""The one family of a metric that papers report besides and that means nothing in the others."""

COLLAPSE_MOST: Final = 0.5
"""A row is flagged `collapsed` where a larger part of a task's attacked pictures shows nothing."""

FIDELITY_METRIC: Final = "ssim"
"""Agreement of published with protected pictures; its mean is U of an entry that changes pictures."""


def target_metric(family: str, reads_traits: Sequence[str] = ()) -> str:
    """The metric that P is made of in a family, under a judge that reads the traits of some families.

    Raises
    ------
    KeyError
        There is no such family.
    """
    return TRAIT_METRIC if family in reads_traits else TARGET_METRIC[family]


def role(chain: str) -> Role:
    """What a chain such as ``jpeg50+lora`` counts for; its last attack decides between headline and ladder."""
    attacks = chain.split("+")
    if PUBLIC_BASE_ATTACKS & set(attacks):
        return "public base"
    rung = attacks[-1]
    return "ladder" if LADDER.fullmatch(rung) else "headline"


def budget_class(
    changes: Sequence[float], perceptual: float | None = None, seen: Sequence[float] = ()
) -> int | str | None:
    """Class of an entry that changes pictures: ranks are inside it.

    Parameters
    ----------
    changes
        Largest change of a pixel in each protected set, of 255, measured after saving.
    perceptual
        The perceptual distance that the entry declares and was held to in place of a largest change, by the network
        that it may optimise against.
    seen
        The mean perceptual distance of each protected set by the judge's network, which no entry is lent.

    Returns
    -------
    int | str | None
        The smallest of `BUDGET_CLASSES` that holds every change. For an entry that declares a perceptual distance the
        smallest of `PERCEPTUAL_CLASSES` that holds what the judge sees on average, as ``perceptual 0.2``, or where it
        did not look what is declared, as ``LPIPS 0.05``. None above the largest class and where nothing was measured.
    """
    if not changes:
        return None
    if perceptual is not None and not seen:
        return f"LPIPS {perceptual:g}"
    if perceptual is not None:
        found = next((most for most in PERCEPTUAL_CLASSES if sum(seen) / len(seen) <= most + 1e-6), None)
        return None if found is None else f"perceptual {found:g}"
    return next((most for most in BUDGET_CLASSES if max(changes) <= most + 1e-6), None)


#: Metrics that say how much of the concept is in a picture: P and SGR are computed on these.
LIKENESS = frozenset(
    {"image_similarity", "trait_agreement", "ism0", "ism", "concept_probability", "perceptual", "lpips"}
)
