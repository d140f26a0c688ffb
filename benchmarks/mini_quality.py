"""How much the embedded world's networks keep, draw and read, measured on pictures from which none of them learned.

Run ``python benchmarks/mini_quality.py``; ``--count 60 --base-count 40`` takes a few minutes on two cores. Prints
Markdown as it goes and writes JSON. What is measured, part by part (``--parts``):

- ``autoencoder``: PSNR beside that of the linear code of its size, and what the second reader reads after a round trip;
- ``base``: what the base draws of full captions, by the second reader;
- ``readers``: balanced accuracy of each trait, by both;
- ``nothing``: how near to each concept noise, grey, blotches and close-ups are, on the scale of its anchors;
- ``others``: real pictures of every concept of a family, scored as each other one, against what they truly share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate
from torch.nn import functional as F

from immunebench.mini import damage, readers, traits, world
from immunebench.mini.judges import WEIGHTS, MiniJudge, to_input
from immunebench.mini.training import check, export
from immunebench.mini.training.data import to_pixels
from immunebench.mini.vocabulary import CONCEPTS
from immunebench.model.runtime import derive_seed

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.int64]
PATCH = 4


@dataclass(frozen=True)
class Finding:
    """One measured figure with its target; ``at_least`` says on which side of the target is good."""

    what: str
    value: float
    n: int
    target: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """``yes`` or ``no`` against the target, empty where there is none."""
        if self.target is None:
            return ""
        return "yes" if (self.value >= self.target) == self.at_least or self.value == self.target else "no"


@dataclass(frozen=True)
class Part:
    """What one part found: figures, and longer tables by title."""

    findings: list[Finding]
    tables: dict[str, str]
    data: dict[str, Any]


def pictures(group: str, count: int, *, wide: bool) -> tuple[Bytes, Labels]:
    """Unseen pictures of the narrow or the wide world, and their labels."""
    drawn = [world.draw("unseen", i, group=f"quality {group}", wordings=0, wide=wide) for i in range(count)]
    return np.stack([p.pixels for p in drawn]), np.stack([traits.encode(p.labels) for p in drawn]).astype(np.int64)


def balanced(labels: Labels, found: Labels, *, lost: bool = False) -> dict[str, float]:
    """Mean over a trait's values of the share that is read right; with ``lost``, "cannot be read" is a value too."""
    scores = {}
    for at, (trait, values) in enumerate(traits.TRAITS.items()):
        asked = [v for v in range(len(values) + lost) if (labels[:, at] == v).any()]
        if asked:
            scores[trait] = float(np.mean([(found[labels[:, at] == v, at] == v).mean() for v in asked]))
    return scores


def psnr(a: Bytes, b: Floats | Bytes) -> float:
    """Mean over pictures in dB."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


# ---------------------------------------------------------------- autoencoder and base


def linear_code(learned: Bytes, pixels: Bytes, numbers: int) -> Floats:
    """Pictures after the best linear code of ``numbers`` numbers for each 4 x 4 patch, learned on other pictures."""
    side = pixels.shape[1] // PATCH

    def patches(x: Bytes) -> Floats:
        cut = x.astype(np.float64).reshape(len(x), side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        return cut.reshape(len(x) * side * side, -1)

    known = patches(learned)
    mean = known.mean(0)
    axes = np.linalg.eigh(np.cov(known - mean, rowvar=False))[1][:, ::-1][:, :numbers]
    back = (patches(pixels) - mean) @ axes @ axes.T + mean
    whole = back.reshape(len(pixels), side, side, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.asarray(np.clip(whole.reshape(pixels.shape), 0, 255))


def autoencoder(options: argparse.Namespace) -> Part:
    """What a round trip keeps: decibels, and traits."""
    pipeline = export.open_pipeline(options.base)
    pixels, labels = pictures("trip", options.count, wide=False)
    learned = np.stack([p.pixels for p in world.stream("train", max(300, options.count), group="quality code")])
    back = export.reconstructed(pipeline.vae, pixels)
    channels = int(pipeline.vae.config.latent_channels)
    own, linear = psnr(pixels, back), psnr(pixels, linear_code(learned, pixels, channels))
    second = readers.load(options.reader, options.judges)
    before, after = (balanced(labels, check.answers(second, shown, "cpu")) for shown in (pixels, back))
    rows = [[t, f"{before[t]:.3f}", f"{after[t]:.3f}", f"{after[t] / max(before[t], 1e-9):.3f}"] for t in before]
    kept = float(np.mean(list(after.values())) / np.mean(list(before.values())))
    findings = [
        Finding("autoencoder: PSNR, dB", own, options.count, 26.0),
        Finding(
            f"autoencoder: dB above the linear code of {channels} numbers a patch", own - linear, options.count, 2.0
        ),
        Finding("autoencoder: traits read after a round trip, of those before", kept, options.count, 0.97),
    ]
    tables = {
        "Traits read in pictures and in their round trips": _table(rows, ["trait", "pictures", "round trips", "kept"])
    }
    return Part(findings, tables, {"psnr": own, "linear": linear, "before": before, "after": after})


def base(options: argparse.Namespace) -> Part:
    """What the base draws of what its captions say."""
    pipeline = export.open_pipeline(options.base)
    second = readers.load(options.reader, options.judges)
    drawn, rendered = check.drawn(pipeline, second, options.base_count, "cpu")
    worst = min(drawn, key=lambda trait: drawn[trait])
    findings = [
        Finding("base: captioned traits drawn, mean", float(np.mean(list(drawn.values()))), options.base_count, 0.9),
        Finding(f"base: captioned traits drawn, the worst ({worst})", drawn[worst], options.base_count, 0.7),
    ]
    rows = [[trait, f"{drawn[trait]:.3f}", f"{rendered[trait]:.3f}"] for trait in drawn]
    return Part(findings, {"What the base draws of its captions": _table(rows, ["trait", "drawn", "rendered"])},
                {"drawn": drawn, "rendered": rendered})  # fmt: skip


# ---------------------------------------------------------------- readers


def reading(options: argparse.Namespace) -> Part:
    """Balanced accuracy of each trait on wide pictures, and which answers are taken for which."""
    pixels, labels = pictures("reading", options.count, wide=True)
    findings, columns, mistaken = [], {}, {}
    for name in ("reader", "second"):
        found = check.answers(readers.load(name, options.judges), pixels, "cpu")
        columns[name] = scores = balanced(labels, found, lost=True)
        mistaken[name] = mistakes(labels, found)
        worst = min(scores, key=lambda trait: scores[trait])
        findings += [
            Finding(
                f"{name}: balanced accuracy, mean over traits",
                float(np.mean(list(scores.values()))),
                options.count,
                0.97,
            ),
            Finding(f"{name}: balanced accuracy, the worst ({worst})", scores[worst], options.count, 0.85),
        ]
    rows = [
        [t, *(f"{columns[n][t]:.3f}" for n in columns), *(mistaken[n].get(t, "") for n in columns)]
        for t in columns["reader"]
    ]
    heads = ["trait", *columns, *(f"{name} takes most often" for name in columns)]
    return Part(findings, {"Readers": _table(rows, heads)}, columns)


def mistakes(labels: Labels, found: Labels) -> dict[str, str]:
    """The commonest mistake of each trait that is mistaken, as a share of the pictures with the true value."""
    said = {}
    for at, (trait, values) in enumerate(traits.TRAITS.items()):
        names = [*values, "unreadable"]
        pairs = {(t, f) for t, f in zip(labels[:, at], found[:, at], strict=True) if t != f and t != traits.IGNORE}
        rates = {
            (t, f): ((labels[:, at] == t) & (found[:, at] == f)).sum() / (labels[:, at] == t).sum() for t, f in pairs
        }
        if rates:
            true, read = max(rates, key=lambda pair: rates[pair])
            said[trait] = f"{names[true]} for {names[read]} ({rates[true, read]:.2f})"
    return said


# ---------------------------------------------------------------- likeness


def _own(concept: str, count: int) -> Bytes:
    return world.concept_pictures(concept, "extra", count)[0]


class Scale:
    """Anchored likeness: 0 for near misses, 1 for a concept's own pictures."""

    def __init__(self, judge: MiniJudge, count: int) -> None:
        self.judge, self.count = judge, count
        self.anchors = cache(self._anchors)

    def _anchors(self, concept: str) -> tuple[float, float]:
        near = world.concept_pictures(f"{world.NEAR}{concept}", "reference", max(64, self.count))[0]
        same = _own(concept, self.count)
        return tuple(float(self.judge.agreement(shown, concept)[0].mean()) for shown in (near, same))  # type: ignore[return-value]

    def __call__(self, pixels: Bytes, concept: str) -> Floats:
        """s = (m - m_other) / (m_same - m_other) of each picture (n,)."""
        other, same = self.anchors(concept)
        return np.asarray((self.judge.agreement(pixels, concept)[0] - other) / (same - other))

    def of_traits(self, share: float, concept: str) -> float:
        """The same scale for a true share of traits in common."""
        other, same = self.anchors(concept)
        return (share * same - other) / (same - other)


def void(count: int, real: Bytes) -> dict[str, Bytes]:
    """Pictures of nothing by kind: noise, grey, blotches, close-ups of real pictures."""
    torch.manual_seed(derive_seed("quality", "void"))
    cpu = torch.device("cpu")
    shown = to_input(real[np.arange(count) % len(real)])
    level = torch.rand(count, 1, 1, 1) * 2 - 1
    corner = torch.randint(0, 44, (count, 2)).tolist()
    crops = torch.cat([F.interpolate(x[None, :, i : i + 20, j : j + 20], 64, mode="bilinear")
                       for x, (i, j) in zip(shown, corner, strict=True)])  # fmt: skip
    made = {
        "noise": torch.rand(count, 3, 64, 64) * 2 - 1,
        "grey": level.expand(-1, 3, 64, 64) + 0.02 * torch.randn(count, 3, 64, 64),
        "blotches": torch.cat([damage.clouds(1, int(cells), cpu) for cells in np.resize([4, 6, 10, 16], count)]),
        "close-ups": crops,
    }
    return {name: np.asarray(to_pixels(x).numpy()) for name, x in made.items()}


def nothing(options: argparse.Namespace) -> Part:
    """Where pictures of nothing fall on every concept's scale."""
    scale = Scale(MiniJudge(options.judges), options.concept_count)
    real, _ = pictures("void", 100, wide=False)
    kinds = void(options.concept_count, real)
    means = {c: {kind: float(scale(shown, c).mean()) for kind, shown in kinds.items()} for c in held_out()}
    rows = [[c, *(f"{x:.2f}" for x in scale.anchors(c)), *(f"{s:+.2f}" for s in means[c].values())] for c in means]
    findings = []
    for kind in kinds:
        worst = max(means, key=lambda c, kind=kind: abs(means[c][kind]))  # type: ignore[misc]
        mean, most = float(np.mean([abs(found[kind]) for found in means.values()])), abs(means[worst][kind])
        count = options.concept_count
        findings += [
            Finding(f"nothing, {kind}: mean of |mean s| over concepts", mean, count, 0.05, False),
            Finding(f"nothing, {kind}: |mean s|, the worst ({worst})", most, count, 0.15, False),
        ]
    return Part(findings, {"s of pictures of nothing": _table(rows, ["concept", "m_other", "m_same", *kinds])}, means)


def held_out(family: str = "") -> list[str]:
    """Concepts that have traits of their own."""
    return [c for c, entry in CONCEPTS.items() if entry.kind != "known" and c.startswith(family)]


def others(options: argparse.Namespace) -> Part:
    """Every concept's own pictures scored as every other concept of its family."""
    scale = Scale(MiniJudge(options.judges), options.concept_count)
    findings, tables, data = [], {}, {}
    for family in ("style", "object", "identity"):
        names = held_out(f"{family}/")
        table, excess = [], {}
        for shown in names:
            pixels, own = _own(shown, options.concept_count), world.concept_traits(shown)
            row = [shown]
            for judged in names:
                asked = world.concept_traits(judged)
                true = scale.of_traits(float(np.mean([own.get(t) == v for t, v in asked.items()])), judged)
                found = float(scale(pixels, judged).mean())
                if shown != judged:
                    excess[shown, judged] = found - true
                row.append(f"{found:+.2f} ({true:+.2f})")
            table.append(row)
        worst = max(excess, key=lambda pair: excess[pair])
        findings += [
            Finding(
                f"{family}: s of other concepts above what they share, mean",
                float(np.mean(list(excess.values()))),
                len(excess),
            ),
            Finding(
                f"{family}: the same, the worst ({worst[0]} as {worst[1]})", excess[worst], len(excess), 0.05, False
            ),
            Finding(
                f"{family}: pairs above by more than 0.05",
                float(np.mean([e > 0.05 for e in excess.values()])),
                len(excess),
            ),
        ]
        tables[f"{family}: s of pictures (down) as concepts (across), and by the traits in common"] = _table(
            table, ["shown", *(name.split("/")[1] for name in names)]
        )
        data[family] = {f"{a} as {b}": e for (a, b), e in excess.items()}
    return Part(findings, tables, data)


# ---------------------------------------------------------------- output


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def summary(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table."""
    rows = []
    for f in findings:
        target = "" if f.target is None else f"{'≥' if f.at_least else '≤'} {f.target:g}"
        rows.append([f.what, f"{f.value:.3f}", str(f.n), target, f.verdict])
    return _table(rows, ["measure", "value", "n", "target", "met"])


PARTS: Mapping[str, Callable[[argparse.Namespace], Part]] = {
    "autoencoder": autoencoder, "base": base, "readers": reading, "nothing": nothing, "others": others,
}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", type=Path, default=WEIGHTS, help="weights of the judges")
    parser.add_argument("--base", type=Path, default=WEIGHTS.parent / "mini", help="pipeline folder")
    parser.add_argument(
        "--reader", default="second", help="which reader looks at round trips and at what the base draws"
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--count", type=int, default=1000, help="pictures for readers and autoencoder")
    parser.add_argument("--base-count", type=int, default=1000, help="captions that the base draws")
    parser.add_argument("--concept-count", type=int, default=64, help="pictures of each concept and kind of nothing")
    parser.add_argument("--json", type=Path, default=Path("mini-quality.json"))
    options = parser.parse_args()
    findings: list[Finding] = []
    data: dict[str, Any] = {}
    for name in options.parts:
        part = PARTS[name](options)
        findings += part.findings
        data[name] = part.data
        for title, text in part.tables.items():
            print(f"## {title}\n\n{text}\n", flush=True)
        found = [asdict(f) | {"met": f.verdict} for f in findings]
        options.json.write_text(json.dumps({"findings": found, **data}, indent=1) + "\n")
    print(f"## Summary\n\n{summary(findings)}")


if __name__ == "__main__":
    main()
