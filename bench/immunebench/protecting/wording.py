"""Says in plain sentences what is known of how long a protection of pictures lasts, and draws it as a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from immunebench.board.text import interval_text, number
from immunebench.protecting.lasting import Known, Published, Standing

#: Below this share of what attackers learn, there is too little to say that something undoes it.
LITTLE = 0.1
HEADS = (
    "defense", "board", "base", "score", "interval", "W", "least, attack alone", "least, cleaned first",
    "with clean pictures",
)  # fmt: skip
_ALWAYS = (
    "Whatever the figures: only these copies are protected. Pictures that are public already stay as they are, and an "
    "attacker who has some of them meets less protection. A copy cannot be strengthened once it is out, while whoever "
    "keeps it can wait for a better attack."
)


def paragraphs(known: Known) -> list[str]:
    """Return what is known as plain text, a paragraph each: figures, what undoes it, what others report, a warning."""
    found = [_figures(known), _undone(known), _others(known), _ALWAYS]
    if known.unread:
        found.append(f"Not read: {'; '.join(known.unread)}.")
    return [text for text in found if text]


def table(knowns: Iterable[Known]) -> list[tuple[str, ...]]:
    """Return one row of text for each defense on each board, below `HEADS`."""
    return [tuple(_row(standing)) for known in knowns for standing in known.standings]


def markdown(knowns: Iterable[Known]) -> str:
    """Return `table`, and the figures that others report of several protections at once, in Markdown."""
    from tabulate import tabulate

    knowns = list(knowns)
    rows = table(knowns)
    text = "No board here has a row of a defense of pictures.\n"
    if rows:
        text = tabulate(rows, headers=HEADS, tablefmt="github", disable_numparse=True) + "\n"
    lines = [f"- {_said(of)} {of.url}" for of in dict.fromkeys(of for known in knowns for of in known.of_its_kind)]
    return text + ("\nReported by others:\n\n" + "\n".join(lines) + "\n" if lines else "")


def _row(standing: Standing) -> Iterator[str]:
    yield standing.defense
    yield standing.board
    yield ", ".join(standing.bases)
    yield f"{standing.measure} {number(standing.value)}"
    yield interval_text(standing.interval)
    yield standing.work or "-"
    yield _least(standing.attack, standing.alone)
    yield _least(standing.cleaning, standing.cleaned)
    yield ", ".join(f"{share} %: {number(value)}" for share, value in standing.clean.items()) or "-"


def _least(chain: str, values: Mapping[str, float]) -> str:
    return f"{number(values[chain])} ({chain})" if chain else "-"


def _figures(known: Known) -> str:
    if not known.standings:
        return f"How long this lasts is not known: no board here has a row of {known.defense}."
    parts = [
        "Measured here, as the share of what attackers learn that is prevented under the strongest attack (1: nothing "
        "is learned; 0: as much as from unprotected pictures; A over all of training, P at its end):"
    ]
    for standing in known.standings:
        interval = f", {interval_text(standing.interval)} at 95 %" if standing.interval is not None else ""
        work = f"; W {standing.work}: so many times the steps to half of it" if standing.work else ""
        bases = " and ".join(standing.bases)
        parts.append(f"{standing.board} on {bases}: {standing.measure} {number(standing.value)}{interval}{work}.")
    if all(standing.embedded for standing in known.standings):
        parts.append(
            "All of this was measured on an embedded world of 64-pixel drawings: it compares methods there, and "
            "promises nothing for photographs or paintings on a full-size base."
        )
    return " ".join(parts)


def _undone(known: Known) -> str:
    """Say what cleaning and clean pictures leave where there is something to undo, else that there is little."""
    if not known.standings:
        return ""
    parts = []
    most = max(max([standing.value, *standing.alone.values()]) for standing in known.standings)
    if most < LITTLE:
        parts.append(
            f"Warning: under no attack on a board here does it prevent more than {number(most)} of what is learned; by "
            "these records it hardly protects."
        )
    for standing in known.standings:
        chain = standing.cleaning
        alone = standing.alone.get(chain.split("+")[-1], 0.0)
        if alone >= LITTLE and standing.cleaned[chain] <= alone / 2:
            left = f"{number(standing.cleaned[chain])} of {number(alone)}"
            parts.append(f"Warning: cleaning the pictures undoes it: {chain} leaves {left} ({standing.board}).")
        # With clean pictures alone there is nothing protected to undo.
        some = {share: value for share, value in standing.clean.items() if share < 100}
        share = min(some, key=lambda share: (some[share], share), default=0)
        if share and standing.value >= LITTLE and standing.clean[share] <= standing.value / 2:
            left = f"{number(standing.clean[share])} of {number(standing.value)}"
            parts.append(f"Warning: clean pictures undo it: {share} % of them leave {left} ({standing.board}).")
    if not any(standing.cleaned for standing in known.standings):
        parts.append("No board here has it against an attacker who cleans the pictures first.")
    if not any(standing.clean for standing in known.standings):
        parts.append("No board here has it against an attacker who has clean pictures too.")
    return " ".join(parts)


def _others(known: Known) -> str:
    parts = [_said(figure) for figure in known.of_its_kind]
    if parts:
        parts.insert(0, "Warning: others report of protections of this kind, on a full-size base:")
    if known.of_it:
        sources = "; ".join(dict.fromkeys(figure.source for figure in known.of_it))
        several = f"{len(known.of_it)} figures" if len(known.of_it) > 1 else "one figure"
        parts.append(f"Of the method itself others report {several} (immunebench reported): {sources}.")
    return " ".join(parts)


def _said(figure: Published) -> str:
    """Return a figure of others as one sentence, with its source."""
    value = f"{figure.metric} {figure.value} {figure.unit}".strip()
    under = f" under {figure.setting}" if figure.setting else ""
    return (
        f"{', '.join(map(_title, figure.methods))}{under}: {value} ({figure.measured}; {figure.base}). {figure.source}."
    )


def _title(method: str) -> str:
    return method.title().replace("booth", "Booth")
