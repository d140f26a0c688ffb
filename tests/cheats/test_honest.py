"""Honest entries: the same bytes in every box as in this process, and a stage that goes on from its bookmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import NUMERICS, World

from catalogs import use_catalog
from immunebench.execution.executor import Inline
from immunebench.execution.scheduler import execute
from immunebench.store.artifacts import Store
from immunebench.store.graph import StageSpec

LORA = {"steps": 5, "batch": 2, "lr": 1e-2, "weight_decay": 1e-2, "saves": [1, 2, 5], "rank": 2}
ENTRY = Path(__file__).parents[2] / "attacks" / "lora" / "attack.py"
#: Dies in the middle of its first attempt.
DIES = """
import os
from pathlib import Path
import torch
place = ctx.keep("place", torch.zeros(3))
for step in ctx.counted(6, resumes=True):
    if step == 4 and not resumed:
        os._exit(9)
    place += torch.rand(3, generator=ctx.generator)
    ctx.log(step, x=place[0])
"""


def adaptation(world: World) -> StageSpec:
    (world.root / "attacks/lora/attack.py").write_bytes(ENTRY.read_bytes())
    entry, base = world.catalog().attack("lora"), world.catalog().base_files("tiny")
    key = {
        "entry": "lora", "entry_files": dict(entry.files), "params": LORA, "base": "tiny", "base_revision": "r1",
        "base_files": dict(base), "numerics": NUMERICS, "caption": "a {token} {noun}", "token": "sks", "noun": "m",
        "seed": 5,
    }  # fmt: skip
    return StageSpec("adapt", key, {"images": world.given("published")})


def test_an_attack_comes_to_the_same_bytes_as_in_this_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = adaptation(world)
    assert world.run(spec) == ""
    use_catalog(monkeypatch, world.catalog())
    here = Store(tmp_path / "here")
    (digest,) = spec.inputs.values()
    source = world.store.get(digest)
    assert source is not None
    with here.stage(world.known(spec)[digest]) as draft:
        for file in source.iterdir():
            if file.name != "manifest.json":
                (draft.path / file.name).write_bytes(file.read_bytes())
    outcome = execute({spec.digest: spec, **world.known(spec)}, here, Inline(here))
    assert not outcome.failed
    manifest = here.manifest(spec.digest)
    assert manifest is not None and manifest["meta"]["box"] == "none"
    names = {"adapter-00001.safetensors", "adapter-00002.safetensors", "adapter-00005.safetensors"}
    assert world.files(spec).keys() == names | {"adapter.json", "log.json"}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == world.files(spec)


def test_a_stage_whose_process_died_goes_on_from_the_parent_s_bookmark(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMMUNEBENCH_BOOKMARK_SECONDS", "0")
    first = 'resumed = any(Path(ctx.out).parent.joinpath("mark").iterdir())\n'
    head, loop = DIES.split("import torch\n")
    assert world.cheat(head + first + "import torch\n" + loop) == ""
    assert "continues after step 4 of 6" in [event.text for event in world.events if event.kind == "noted"]
    manifest = world.store.manifest(world.spec().digest)
    assert manifest is not None and manifest["cost"]["resumed"] == 1
    resumed = world.files(world.spec())
    assert world.cheat((head + "resumed = True\nimport torch\n" + loop).replace("resumed = True", "resumed = 1")) == ""
    assert world.files(world.spec()) == resumed
