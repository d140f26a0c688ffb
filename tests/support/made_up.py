"""Results of made-up entries, for tests of what shows a board: records and contact sheets, no model."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.model import Board
from immunebench.board.scores.reading import measurement
from immunebench.declared import scoring
from immunebench.records.files import write_records
from immunebench.records.record import (
    AnchorValues,
    Baseline,
    Baselines,
    BenignValues,
    CellNames,
    ChainLink,
    Code,
    Cost,
    Measured,
    Record,
    Score,
    Sheet,
    Utility,
)

TASKS = ("style-solano", "style-weave", "object-mug", "object-robot", "identity-ada", "identity-elio")
CHAINS = ("lora", "dreambooth", "jpeg50+lora")
KINDS = {
    "none": "control",
    "none-replicate": "control",
    "noise": "control",
    "destroy": "control",
    "esd": "erasure",
    "mist-8": "data",
    "aspl-8": "data",
    "glaze-open": "data",
    "esd-imma": "layered",
    "freeze-as-guard": "api",
}
CONTROLS = ("none", "none-replicate", "noise", "destroy")
TWO = ("imma-lora", "mist-8")
FIFTEEN = (
    "imma-lora",
    "imma-multi",
    "imma-dreambooth",
    "imma-ti",
    "mima",
    "freeze-as-guard",
    "esd",
    "uce",
    "esd-imma",
    "mist-8",
    "aspl-8",
    "glaze-open",
    "noise-16-tuned",
    "a-defense-with-a-name-of-forty-letters-ok",
    "wall",
)
STEPS = (30, 60, 120)


def entries(names: Sequence[str]) -> tuple[str, ...]:
    """Names with the controls."""
    return (*names, *CONTROLS)


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return zlib.crc32("/".join(map(str, parts)).encode()) / 2**32


def strength(defense: str, task: str, chain: str) -> float:
    """The P that a made-up defense has."""
    fixed = {"none": 0.0, "none-replicate": 0.06 * (draw(task, chain) - 0.5), "noise": 0.05, "destroy": 0.95}
    if defense in fixed:
        return fixed[defense]
    base = draw("p", defense) ** 1.5
    return min(1.0, max(0.0, base + 0.35 * (draw(defense, task, chain) - 0.5) - 0.1 * (chain == "dreambooth")))


def record(defense: str, task: str, chain: str, seed: int = 0, suite: str = "toy", **changes: object) -> Record:
    """The record of a made-up cell: floor 0.1, ceiling 0.9."""
    p = strength(defense, task, chain)
    m = 0.9 - 0.8 * p
    kind = KINDS.get(defense, "model")
    images = kind == "data" or defense == "noise"
    use = 0.1 if defense == "destroy" else 1.0 if kind == "control" else 0.7 + 0.3 * draw("u", defense)
    hooks = ("protect_images",) if images else () if defense.startswith("none") else ("protect_model",)
    family = task.partition("-")[0]
    metric = f"{scoring.TARGET_METRIC[family]}@1"
    seconds = {} if not hooks else {"protect": 2.0 + 600 * draw("s", defense) ** 3}

    def score(mean: float, steps: dict[int, tuple[float, ...]] | None = None) -> Score:
        values = tuple(mean + d for d in (-0.02, 0.02, -0.01, 0.01))
        return Score(values=values, n=4, mean=mean, per_step=steps or {})

    def curve(end: float) -> dict[int, tuple[float, ...]]:
        means = {step: 0.1 + (end - 0.1) * (step / STEPS[-1]) ** 0.6 for step in STEPS}
        return {step: (mean - 0.02, mean + 0.02) for step, mean in means.items()}

    links = "+".join(f"{name}@1" for name in chain.split("+"))
    names = CellNames(
        task=task,
        task_version=1,
        family=family,
        concept=f"{family}/{task.partition('-')[2]}",
        concept_kind="near",
        base="mini",
        base_revision="1",
        defense=defense,
        defense_version=1,
        defense_title=f"The defense {defense}",
        defense_kind=kind,
        hooks=hooks,
        budget=8 if images else None,
        chain=chain,
        links=tuple(ChainLink(attack=name, version=1) for name in chain.split("+")),
        profile="cpu",
        profile_version=1,
        seed=seed,
    )
    made = Record(
        suite=suite,
        suite_version="1.0",
        track=None,
        comparability=f"{suite}@1.0/{task}@1/{links}/{metric}/cpu@1",
        cell=names,
        metric=metric,
        status="ok",
        scores={metric: score(m, curve(m))},
        baseline=Baselines(
            floor=Baseline(digest="f" * 64, scores={metric: score(0.1)}),
            ceiling=Baseline(digest="c" * 64, scores={metric: score(0.9, curve(0.9))}),
        ),
        anchors=AnchorValues(m_same=1.0, m_other=0.0, digest="a" * 64),
        utility=Utility(
            g=0.05 + 0.76 * use, g_base=0.81, g0=0.05, benign=BenignValues(s=0.1 + 0.8 * use, floor=0.1, ceiling=0.9)
        ),
        fidelity={
            "ssim@1": Measured(values=(0.97 * use,), n=1, mean=0.97 * use),  # 1.0 would say that nothing was changed
            "linf@1": Measured(values=(8.0,), n=1, mean=8.0),
        }
        if images
        else None,
        cost={
            stage: Cost(seconds=s, peak_reserved_gib=0.0, peak_process_gib=1.1)
            for stage, s in (seconds | {"adapt": 26.5}).items()
        },
        artefacts={"pictures": "b" * 64},
        env={"torch": "2.8.0", "device": "cpu"},
        code=Code(version="0.1.0", commit="0" * 40, dirty=False, entry_files={}),
        params={"steps": 240, "lr": 0.001},
        created="2026-01-02T03:04:05+00:00",
    )
    return made.model_copy(update=changes)


def records(
    names: Sequence[str] = TWO, tasks: Iterable[str] = TASKS, chains: Sequence[str] = CHAINS, suite: str = "toy"
) -> list[Record]:
    """Records of entries and controls on every task and chain."""
    tasks = tuple(tasks)
    return [record(name, task, chain, suite=suite) for name in entries(names) for task in tasks for chain in chains]


def board(made: Iterable[Record]) -> Board:
    """The board of records."""
    return aggregate(map(measurement, made))


def with_statistics(plain: Board) -> Board:
    """A board with made-up intervals and ranks: each interval reaches 0.08 to both sides, three share rank 1."""

    def around(value: float | None) -> tuple[float, float] | None:
        return None if value is None else (max(0.0, value - 0.08), min(1.0, value + 0.08))

    rows, place = [], 0
    for row in plain.rows:
        ranked = row.passes and not row.control
        place += ranked
        rows.append(
            dataclasses.replace(
                row,
                area=None
                if row.area is None
                else dataclasses.replace(
                    row.area,
                    interval=around(row.a),
                    family_interval={name: (a - 0.1, a + 0.1) for name, a in row.area.family.items()},
                    chain_interval={name: (a - 0.1, a + 0.1) for name, a in row.area.chain.items()},
                    matched=row.area.chain.get("lora"),
                ),
                u_interval=around(row.u),
                rank=(1 if place <= 3 else place) if ranked else None,
                track=row.kind,
                badges=("brittle",) if row.defense == "mima" else (),
            )
        )
    return dataclasses.replace(
        plain,
        rows=tuple(rows),
        smallest_difference=0.11,
        suite="toy",
        interval_rule="95 % Student's t over tasks",
    )


def sheet_bytes(text: str) -> bytes:
    """A small contact sheet."""
    image = Image.new("RGB", (600, 220), "white")
    pen = ImageDraw.Draw(image)
    for y, name in enumerate(("reference", "undefended", "defended")):
        pen.text((4, 60 + 55 * y), name, "black")
        for x in range(5):
            shade = tuple(int(60 + 180 * draw(text if y == 2 else y, x, c)) for c in "rgb")
            pen.rectangle((90 + 100 * x, 30 + 62 * y, 180 + 100 * x, 88 + 62 * y), shade)
    pen.text((4, 8), text, "black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_results(folder: Path, made: Iterable[Record]) -> list[Record]:
    """Write records of one suite with a contact sheet each, one file a defense, as a run does."""
    by_file: dict[str, list[Record]] = {}
    written = []
    (folder / "sheets").mkdir(parents=True)
    for one in made:
        name = f"sheets/{one.cell.key.replace('/', '--')}.png"
        data = sheet_bytes(f"{one.cell.task}: {one.cell.defense} against {one.cell.chain}")
        (folder / name).write_bytes(data)
        whole = one.model_copy(update={"sheet": Sheet(file=name, sha256=hashlib.sha256(data).hexdigest())})
        by_file.setdefault(f"{one.cell.defense}@{one.cell.defense_version}.jsonl", []).append(whole)
        written.append(whole)
    for name, group in by_file.items():
        write_records(folder / name, group)
    return written
