"""A small world in which an entry that cheats is one function: a tiny base, three stages before it, and a box."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import house
from immunebench.box import choice
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Pictures
from immunebench.execution import boxed
from immunebench.execution.boxed import Boxes
from immunebench.execution.executor import Event, Inline
from immunebench.execution.scheduler import execute
from immunebench.store.artifacts import Store
from immunebench.store.graph import StageSpec
from tiny import tiny_base, tiny_pictures

NUMERICS = {"device": "cpu", "memory_gib": 64, "threads": 1, "resolution": 32, "batch": 4, "sampling_steps": 2}
TASK = "style-painter-of-the-cheated"
CONCEPT = {"id": TASK, "family": "style", "noun": "m", "caption": "a {token} {noun}", "token": "oqx"}
HONEST = """\
import torch
from immunebench import Weights


def honest(model):
    name, tensor = next(iter(model.unet_tensors("attention").items()))
    return Weights({name: tensor.detach() + 0.25})


def protect_model(model, concepts, params, ctx):
{cheat}
    return honest(model)
"""


def kinds() -> list[str]:
    """The boxes that this machine has, as far as the environment lets tests use them."""
    named = os.environ.get(choice.VARIABLE)
    return [
        kind for kind in choice.KINDS if kind != "none" and named in (None, "", kind) and choice.fault(kind) is None
    ]


def indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.strip().splitlines()) or "    pass\n"


@dataclass
class World:
    """What a cheat can reach for, and what became of its stage."""

    root: Path
    store: Store
    boxes: Boxes
    catalog: Callable[[], Catalog]
    events: list[Event] = field(default_factory=list)

    def entry(self, code: str, *, hook: str = "protect_model", more: str = "") -> Path:
        """Write the entry `cheat`, in the place of an earlier one."""
        folder = house.defense(self.root, "cheat", hook, more)
        (folder / "defense.py").write_text(code)
        return folder

    def spec(self, hook: str = "protect_model", inputs: dict[str, str] | None = None, **key: Any) -> StageSpec:
        """The stage of that entry."""
        (entry,) = self.catalog().defense("cheat").layers
        base = self.catalog().base_files("tiny")
        whole = {
            "entry": "cheat", "entry_files": dict(entry.files), "params": {"against": []}, "hook": hook, "budget": None,
            "against": {}, "base": "tiny", "base_revision": "r1", "base_files": dict(base), "numerics": NUMERICS,
            "concept": CONCEPT, "seed": 5, **key,
        }  # fmt: skip
        return StageSpec("protect", whole, inputs or {"owner": self.given("owner")})

    def given(self, split: str, count: int = 2) -> str:
        """Pictures in the store, by their digest."""
        spec = StageSpec("pictures", {"source": "toy", "concept": "style/the-secret-name", "split": split})
        if not self.store.has(spec.digest):
            with self.store.stage(spec) as draft:
                tiny_pictures(count, "a oqx m", seed=len(split)).save(draft.path)
        return spec.digest

    def run(self, spec: StageSpec) -> str:
        """Carry the stage out; return the line of its failure, empty where it was made."""
        self.events.clear()
        executor = Inline(self.store, boxes=_Shared(self.boxes))
        outcome = execute({spec.digest: spec, **self.known(spec)}, self.store, executor, tell=self.events.append)
        return outcome.failed.get(spec.digest, "")

    def known(self, spec: StageSpec) -> dict[str, StageSpec]:
        """The inputs, which the store has."""
        found = {}
        for digest in spec.inputs.values():
            manifest = self.store.manifest(digest)
            assert manifest is not None
            found[digest] = StageSpec(manifest["stage"], manifest["key"], manifest["inputs"])
        return found

    def cheat(self, code: str) -> str:
        """Run an entry that does this before it returns honest weights."""
        self.entry(HONEST.replace("{cheat}\n", indented(code)))
        return self.run(self.spec())

    def files(self, spec: StageSpec) -> dict[str, str]:
        """SHA-256 of the artifact's files."""
        manifest = self.store.manifest(spec.digest)
        assert manifest is not None
        return {name: entry["sha256"] for name, entry in manifest["files"].items()}

    def snapshot(self) -> dict[str, str]:
        """SHA-256 of everything around the entry: the store but for what a new stage adds, results, other entries."""
        skipped = ("locks", "runs", "tmp", "protect", "failures", "boxes", "bookmarks")
        return {
            path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not {"cheat", "mounts"} & set(path.parts) and not set(skipped) & set(path.parts)
        }


class _Shared:
    """Boxes that stay open for the next test."""

    def __init__(self, boxes: Boxes) -> None:
        self._boxes = boxes

    def takes(self, spec: Any) -> bool:
        return self._boxes.takes(spec)

    def make(self, spec: Any, inputs: dict[str, Path], tell: Any) -> Event:
        return self._boxes.make(spec, inputs, tell)

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Boxes]]:
    """Boxes of each kind, whose template is started once."""
    made: dict[str, Boxes] = {}

    def open_boxes(kind: str) -> Boxes:
        if kind not in made:
            os.environ["CHEATS_SECRET"] = "hunter2-of-the-parent"
            made[kind] = Boxes(Store(tmp_path_factory.mktemp(f"store-{kind}")), kind)  # type: ignore[arg-type]
        return made[kind]

    yield open_boxes
    os.environ.pop("CHEATS_SECRET", None)
    for boxes in made.values():
        boxes.close()


def make_world(root: Path, base: Path, boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> World:
    house.house(root)
    models = house.write(root / "models.toml", house.MODELS)
    (root / "weights/tiny/unet/config.json").unlink()
    for file in base.rglob("*"):
        if file.is_file():
            place = root / "weights/tiny" / file.relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    house.write(root / "results/tiny/none@1.jsonl", '{"cell": "honest"}\n')
    monkeypatch.setattr(boxed, "default_catalog", lambda: load_catalog(root, models=models))
    return World(root, boxes._store, boxes, lambda: load_catalog(root, models=models))


@pytest.fixture(params=["bubblewrap", "landlock"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, base: Path, opened: Callable[[str], Boxes],
    monkeypatch: pytest.MonkeyPatch,
) -> World:  # fmt: skip
    """A world with each box; skipped where this machine cannot have it."""
    if request.param not in kinds():
        pytest.skip(f"no {request.param} here: {choice.fault(request.param) or 'switched off by the environment'}")
    return make_world(tmp_path, base, opened(request.param), monkeypatch)


@pytest.fixture
def any_world(tmp_path: Path, base: Path, opened: Callable[[str], Boxes], monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with the best box that this machine has, or with none."""
    return make_world(tmp_path, base, opened([*kinds(), "none"][0]), monkeypatch)


def loaded(store: Store, digest: str) -> Pictures:
    folder = store.get(digest)
    assert folder is not None
    return Pictures.load(folder)
