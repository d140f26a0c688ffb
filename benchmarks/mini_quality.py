"""How good the judges of the embedded world are, and what its base draws.

Run ``python benchmarks/mini_quality.py``. Everything is measured on splits that no network was trained on.
Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immunebench.metrics.identity import ism0
from immunebench.metrics.similarity import caption_accuracy, image_similarity
from immunebench.mini import judge_data, world
from immunebench.mini.judge_augment import nothing
from immunebench.mini.judges import OBJECTS, STYLES, WEIGHTS, MiniJudge, load_public, to_input
from immunebench.mini.vocabulary import CONCEPTS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


#: Prompt, object and style.
Row = tuple[str, str, str]
#: Object and style asked for, and whether each was named right.
Named = tuple[str, str, bool, bool]


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


def equal_error_rate(same: Floats, other: Floats) -> float:
    """Rate at which as many same pairs are rejected as other pairs accepted, in [0, 1]."""
    thresholds = np.sort(np.concatenate([same, other]))
    rejected = np.searchsorted(np.sort(same), thresholds, "left") / len(same)
    accepted = 1 - np.searchsorted(np.sort(other), thresholds, "left") / len(other)
    nearest = int(np.abs(rejected - accepted).argmin())
    return float((rejected[nearest] + accepted[nearest]) / 2)


def rendered_accuracy(judge: MiniJudge, count: int) -> list[Finding]:
    """Object and style named right on held-out rendered pictures, by three networks."""
    held_out = judge_data.draw("known", "unseen", count)
    answers: dict[str, tuple[Floats, Floats]] = {
        "judge": judge.probabilities(held_out.pixels),
        "second judge": judge.probabilities(held_out.pixels, second=True),
    }
    logits = load_public(judge.folder)(to_input(held_out.pixels))
    answers["public judge"] = (logits[0].numpy(), logits[1].numpy())
    found = []
    for name, (by_object, by_style) in answers.items():
        target = None if name == "public judge" else 0.97
        for what, table in (("object", by_object), ("style", by_style)):
            right = float((table.argmax(1) == held_out.labels[what]).mean())
            found.append(Finding(f"{name}: {what} right, rendered", right, count, target))
    full = [wordings[0] for wordings in held_out.captions]
    rows = [i for i, text in enumerate(full) if text not in full[:i]]
    hits: list[float] = []
    for start in range(0, len(rows) - 19, 20):
        asked = rows[start : start + 20]
        captions = [full[i] for i in asked]
        hits.extend(caption_accuracy(judge, held_out.pixels[asked], captions, captions))
    return [*found, Finding("judge: caption right, 1 of 20, rendered", float(np.mean(hits)), len(hits), 0.9)]


def identity(judge: MiniJudge, people: int) -> list[Finding]:
    """Equal error rates between unseen people, and how surely a face is found."""
    views = judge_data.GROUP
    drawn = judge_data.draw("people", "unseen", people * views)
    faces, presence = judge.embed_faces(drawn.pixels)
    who = np.arange(len(faces)) // views
    family = who // judge_data.SIBLINGS["people"]
    first, second = np.triu_indices(len(faces), 1)
    cosine = (faces @ faces.T)[first, second]
    same, hard = who[first] == who[second], (who[first] != who[second]) & (family[first] == family[second])
    other = who[first] != who[second]
    scenes = world_pixels(500, person=False)
    void = nothing(500, scenes, None, np.random.default_rng(3))
    false_faces = np.concatenate([judge.embed_faces(scenes)[1], judge.embed_faces(void)[1]]) >= 0.5
    return [
        Finding("identity: EER, unseen people", equal_error_rate(cosine[same], cosine[other]), people, 0.05, False),
        Finding(
            "identity: EER, same skin, hair colour, glasses",
            equal_error_rate(cosine[same], cosine[hard]),
            people,
            0.05,
            False,
        ),
        Finding("identity: face found on portraits", float((presence >= 0.5).mean()), len(faces), 0.98),
        Finding(
            "identity: face found on scenes and nothing",
            float(false_faces.mean()),
            len(false_faces),
            0.02,
            False,
        ),
    ]


def world_pixels(count: int, *, person: bool | None = None) -> Bytes:
    """Held-out pictures of the known world."""
    return np.stack([world.draw("unseen", i, group="judges", person=person).pixels for i in range(count)])


def anchors(judge: MiniJudge, count: int, decoded: Bytes | None) -> list[Finding]:
    """The gap between every held-out concept's anchors, and where pictures of nothing fall in it."""
    void = nothing(count, world_pixels(200), decoded, np.random.default_rng(7))
    found, anchored = [], []
    for family, metric in (("style", image_similarity), ("object", image_similarity), ("identity", ism0)):
        names = [name for name in CONCEPTS if name.startswith(f"{family}/")]
        reference = {name: world.concept_pictures(name, "reference", 32)[0] for name in names}
        gaps = []
        for name in names:
            same = float(metric(judge, world.concept_pictures(name, "extra", 16)[0], reference[name]).mean())
            others = [float(metric(judge, reference[o], reference[name]).mean()) for o in names if o != name]
            gap = same - float(np.mean(others))
            gaps.append(gap)
            anchored.append((metric(judge, void, reference[name]).mean() - np.mean(others)) / gap)
        found.append(Finding(f"anchors of {family}: least m_same - m_other", min(gaps), len(names), 0.25))
    return [
        *found,
        Finding("pictures of nothing: mean anchored similarity", float(np.mean(anchored)), count, 0.05, False),
        Finding("pictures of nothing: greatest mean of a concept", float(np.max(anchored)), count),
    ]


def base(judge: MiniJudge, folder: Path, count: int, pictures: int) -> list[Finding]:
    """Macro accuracy of the second judge on what a base draws.

    ``count`` pictures of each object and of each style, ``pictures`` of each pair of both.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(13)

    def draw(prompts: Sequence[str]) -> Bytes:
        parts = []
        for i in range(0, len(prompts), 32):
            seeds = [torch.Generator().manual_seed(i + j) for j in range(len(prompts[i : i + 32]))]
            images = pipeline(list(prompts[i : i + 32]), height=64, width=64, num_inference_steps=20,
                              guidance_scale=4.0, generator=seeds, output_type="np").images  # fmt: skip
            parts.append((images * 255).round().astype(np.uint8))
        return np.concatenate(parts)

    subjects = [*world.OBJECT_NAMES, "portrait of a person"]
    classes = [*world.OBJECT_NAMES, "person"]
    by_object = [
        (f"a {s} in plain style", c, "plain") for s, c in zip(subjects, classes, strict=True) for _ in range(count)
    ]
    by_style = [
        (f"a {rng.choice(world.OBJECT_NAMES)} in {style} style", "", style)
        for style in STYLES[:-1]
        for _ in range(count)
    ]
    pairs = [
        (f"a {s} in {style} style", c, style)
        for s, c in zip(subjects, classes, strict=True)
        for style in STYLES[1:-1]
        for _ in range(pictures)
    ]

    def named(rows: list[Row]) -> list[Named]:
        objects_, styles_ = judge.probabilities(draw([row[0] for row in rows]), second=True)
        answers = zip(rows, objects_.argmax(1), styles_.argmax(1), strict=True)
        return [(c, s, OBJECTS[int(o)] == c, STYLES[int(t)] == s) for (_, c, s), o, t in answers]

    of_pairs = named(pairs)
    return [
        *by_group("known objects", [(c, hit) for c, _, hit, _ in named(by_object)]),
        *by_group("known styles", [(s, hit) for _, s, _, hit in named(by_style)]),
        *by_group("pairs, by object", [(c, o and t) for c, _, o, t in of_pairs]),
        *by_group("pairs, by style", [(s, o and t) for _, s, o, t in of_pairs]),
        *by_group("pairs, each by itself", [(f"{c} in {s}", o and t) for c, s, o, t in of_pairs]),
    ]


def by_group(what: str, answers: Sequence[tuple[str, bool]]) -> list[Finding]:
    """Macro accuracy over the groups of ``(group, right)``, and the group that is named right least often."""
    hits: dict[str, list[bool]] = {}
    for group, right in answers:
        hits.setdefault(group, []).append(right)
    means = {group: float(np.mean(found)) for group, found in hits.items()}
    worst = min(means, key=lambda group: means[group])
    return [
        Finding(f"base: {what}, macro accuracy", float(np.mean(list(means.values()))), len(answers), 0.85),
        Finding(f"base: {what}, the worst ({worst})", means[worst], len(hits[worst]), 0.6),
    ]


def table(findings: Sequence[Finding]) -> str:
    """The findings as a Markdown table."""
    from tabulate import tabulate

    rows = []
    for f in findings:
        target = "" if f.target is None else f"{'≥' if f.at_least else '≤'} {f.target:g}"
        rows.append([f.what, f"{f.value:.3f}", f.n, target, f.verdict])
    return tabulate(rows, ["measure", "value", "n", "target", "met"], tablefmt="github", disable_numparse=True)


def main() -> None:
    """Measure and print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judges", type=Path, default=WEIGHTS, help="weights of the judges")
    parser.add_argument(
        "--base", type=Path, default=WEIGHTS.parent / "mini", help="pipeline folder; left out if absent"
    )
    parser.add_argument("--count", type=int, default=1000, help="pictures a measure")
    parser.add_argument("--per-prompt", type=int, default=20, help="pictures of each object and style")
    parser.add_argument("--per-pair", type=int, default=20, help="pictures of each pair of object and style")
    parser.add_argument(
        "--decoded", type=Path, help="round-trips.npz of the judges' training: adds decoded noise to nothing"
    )
    parser.add_argument("--json", type=Path, default=Path("mini-quality.json"))
    options = parser.parse_args()
    judge = MiniJudge(options.judges)
    decoded = np.load(options.decoded)["decoded"] if options.decoded else None
    with torch.inference_mode():
        findings = [
            *rendered_accuracy(judge, options.count),
            *identity(judge, max(40, options.count // 8)),
            *anchors(judge, options.count, decoded),
        ]
        if (options.base / "model_index.json").is_file():
            findings += base(judge, options.base, options.per_prompt, options.per_pair)
    print(table(findings))
    options.json.write_text(json.dumps([asdict(f) | {"met": f.verdict} for f in findings], indent=1) + "\n")


if __name__ == "__main__":
    main()
