"""Stages that are stopped in the middle and go on: to the same bytes, or from the start, never to another result."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalogs import use_catalog
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.loading import load_catalog
from immunebench.core import machine
from immunebench.core.types import Numerics, StageError
from immunebench.execution import resume, stages
from immunebench.execution.resume import KNOWN, Resume
from immunebench.methods.context import Context, Orders
from immunebench.methods.loops import running
from immunebench.model.diffusion import LatentDiffusion
from immunebench.store.bookmark import Bookmark
from immunebench.store.graph import StageSpec
from simulated import PARAMS
from tiny import tiny_context, tiny_folder, tiny_model, tiny_pictures

NUMERICS = {"device": "cpu", "memory_gib": 64, "threads": 1, "resolution": 32, "batch": 4, "sampling_steps": 2}
CONCEPT = {"id": "object-mug", "family": "object", "noun": "m", "caption": "a {token} {noun}", "token": "oqx"}
SHORT = {"steps": 5, "batch": 3, "lr": 1e-2, "weight_decay": 1e-2, "saves": [1, 2, 5]}
LORA = {**SHORT, "rank": 2}
INVERSION = {**SHORT, "num_vectors": 2, "initializer": "m"}
DREAMBOOTH = {
    **SHORT, "lr": 1e-3, "train": "networks", "text_encoder": True, "rank": 2, "prior_weight": 0.7, "prior_batch": 2,
    "decay": 0.5,
}  # fmt: skip
IMMA = {
    "tensors": "attention", "inner": True, "inner_steps": 1, "unroll": 0, "inner_reset": "never",
    "phase": "global", "steps": 4, "batch": 3,
    "lr_in": 1e-2, "lr_out": 1e-3, "retain": 0.5, "clip": 1.0,
}  # fmt: skip
ESD = {
    "tensors": "cross-attention", "form": "paper", "steps": 4, "batch": 2, "lr": 1e-3, "lr_style": 1e-3, "eta": 1.0,
    "sampling_steps": 4, "guidance": 2.0,
}  # fmt: skip
APDM = {
    "form": "code", "steps": 3, "inner_steps": 2, "batch": 2, "lr": 1e-3, "lr_in": 0.0, "prior_weight": 1.0,
    "beta": 1.0,
}  # fmt: skip
ABLATION = {
    "form": "model", "anchors": ["a m"], "anchors_style": ["a s"], "pictures": 3, "steps": 3, "batch": 2, "lr": 1e-3,
    "lr_style": 1e-3,
}  # fmt: skip
FREEZE = {
    "form": "code", "rho": 0.3, "innocents": 4, "user_steps": 2, "lr_user": 0.0, "steps": 4, "every": 2, "batch": 5,
    "lr_mask": 50.0, "lr_inner": 0.1, "penalty": 3.0, "temperature": 0.2,
}  # fmt: skip
MIST = {"semantic": 0.61, "textural": 1.0, "steps": 4, "alpha": 1 / 16}
ONCE = {"train_steps": 1, "pgd_steps": 1}
CLOAK = {"trials": 2, "states": 2, "apart": 1, "unroll": 1, "pgd_steps": 1}
ATTACKS: dict[str, dict[str, Any]] = {"lora": LORA, "dreambooth": DREAMBOOTH, "textual-inversion": INVERSION}


class Pulled(BaseException):
    """The plug was: nothing catches it."""


@dataclass
class Case:
    """A stage, and the loop of it that is stopped."""

    stage: str
    entry: str
    params: dict[str, Any]
    against: tuple[str, ...] = ()
    loop: str = "training"
    key: dict[str, Any] = field(default_factory=dict)


CASES = {
    "lora": Case("adapt", "lora", LORA),
    "dreambooth": Case("adapt", "dreambooth", DREAMBOOTH),
    "textual-inversion": Case("adapt", "textual-inversion", INVERSION),
    "imma-lora": Case("protect", "imma-lora", IMMA, ("lora",)),
    "imma-lora-reset": Case("protect", "imma-lora", {**IMMA, "inner_reset": "each_cycle"}, ("lora",)),
    "imma-lora-unrolled": Case("protect", "imma-lora", {**IMMA, "inner_steps": 2, "unroll": 1}, ("lora",)),
    "imma-multi": Case("protect", "imma-lora", {**IMMA, "steps": 6}, ("lora", "dreambooth", "textual-inversion")),
    "esd": Case("protect", "esd", ESD, loop="erasing"),
    "apdm-paper": Case("protect", "apdm-paper", APDM, loop="protecting"),
    "concept-ablation": Case("protect", "concept-ablation", ABLATION, loop="ablating"),
    "freeze-as-guard": Case("protect", "freeze-as-guard", FREEZE, ("dreambooth",), loop="learning the mask"),
    "mist": Case("protect", "mist", MIST, loop="perturbing"),
    "anti-dreambooth": Case("protect", "anti-dreambooth", PARAMS["anti-dreambooth"] | ONCE, ("dreambooth",), "rounds"),
    "simac": Case("protect", "simac", PARAMS["simac"] | ONCE, ("dreambooth",), "rounds"),
    "metacloak": Case("protect", "metacloak", PARAMS["metacloak"] | CLOAK, ("dreambooth",), "trials"),
}  # fmt: skip


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """The checkout's entries on a tiny base."""
    models = tiny_folder().parent / "resume-models.toml"
    models.write_text(
        '[bases.tiny]\npath = "base"\nformat = "diffusers"\nrevision = "1"\njudge = "none"\n'
        'unrelated_prompts = ["a", "b"]\n[judges]\n'
        '[sources.mini]\nloader = "immunebench.mini.world:concept_pictures"\nversion = 1\n'
    )
    return load_catalog(models=models)


@pytest.fixture(autouse=True)
def here(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages find that catalogue, its base without reading it again, and the pictures that they are given."""
    tiny_model()
    monkeypatch.setattr(LatentDiffusion, "load", lambda folder, numerics: tiny_model())
    use_catalog(monkeypatch, catalog)
    for name, seed, caption in (("given", 0, "a q"), ("public", 1, "a red b"), ("prior", 2, "a m")):
        (tmp_path / name).mkdir()
        tiny_pictures(5, caption, seed=seed).save(tmp_path / name)


def planned(case: Case) -> StageSpec:
    known = stages.default_catalog()
    attacks = {name: known.attack(name) for name in case.against}
    entry: Entry = known.attack(case.entry) if case.stage == "adapt" else known.defense(case.entry).layers[0]
    key = {
        "base": "tiny", "base_files": {}, "numerics": NUMERICS, "seed": 5, "entry": case.entry,
        "entry_files": dict(entry.files), "params": {"against": list(case.against), **case.params},
        "against": {n: {"entry": n, "entry_files": dict(a.files), "params": ATTACKS[n]} for n, a in attacks.items()},
    }  # fmt: skip
    if case.stage == "adapt":
        key |= {"caption": "a {token} {noun}", "token": "sks", "noun": "m"}
    else:
        key |= {"hook": entry.hooks[0], "budget": 4 if "protect_images" in entry.hooks else None, "concept": CONCEPT}
    return StageSpec(case.stage, {**key, **case.key})


@dataclass
class Attempt:
    """What became of a stage: the files it made, the steps it reported, the lines it told."""

    files: dict[str, bytes]
    reported: list[int]
    told: list[str]
    earlier: Any = None


def attempt(
    case: Case, folder: Path, out: str, *, stop_at: int | None = None, bookmarks: bool = True, digest: str = ""
) -> Attempt:
    """Carry a stage out with a bookmark after each step; pull the plug at the `stop_at`-th report of its loop."""
    spec, place = planned(case), folder / out
    place.mkdir()
    done = Attempt({}, [], [])

    def report(what: str, step: int, total: int) -> None:
        if what == case.loop:
            done.reported.append(step)
            if len(done.reported) == stop_at:
                raise Pulled

    inputs = {name: folder / "given" for name in ("owner", "published", "images")}
    inputs |= {name: folder / name for name in ("public", "prior")}
    bookmark = Bookmark(
        folder / "bookmark", digest or spec.digest, every=0, tell=lambda line, seconds: done.told.append(line)
    )
    with suppress(Pulled), running(Resume(bookmark if bookmarks else None)):
        stages.run_stage(spec, inputs, place, report)
    done.files = {file.relative_to(place).as_posix(): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    done.earlier = bookmark.earlier
    return done


@pytest.mark.parametrize("name", CASES)
def test_a_stage_that_is_stopped_in_every_step_comes_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    steps = next(case.params[word] for word in ("steps", "rounds", "trials") if word in case.params)
    quiet = attempt(case, tmp_path, "quiet", bookmarks=False)
    assert quiet.reported == list(range(1, steps + 1))
    for n in range(1, steps):
        # The second report comes before the second bookmark: each attempt brings the loop one step on.
        stopped = attempt(case, tmp_path, f"out-{n}", stop_at=2)
        assert stopped.reported == [n, n + 1]
    last = attempt(case, tmp_path, "out")
    assert last.reported == [steps]
    assert last.told == [f"continues after step {steps - 1} of {steps}"]
    assert last.files == quiet.files
    assert last.earlier.resumed == steps - 1


def test_bookmarks_change_nothing_where_nobody_stops_the_stage(tmp_path: Path) -> None:
    quiet = attempt(CASES["imma-multi"], tmp_path, "quiet", bookmarks=False)
    watched = attempt(CASES["imma-multi"], tmp_path, "watched")
    assert watched.files == quiet.files and watched.told == []
    assert [page.name for page in (tmp_path / "bookmark").iterdir()] == ["000004"]


def looped(
    folder: Path, entry: Callable[[Context, list[Any]], None], stop_at: int | None = None, told: list[str] | None = None
) -> list[Any]:
    """Run a made-up entry, which adds to a list what it computes; return that list."""
    seen: list[Any] = []

    def report(what: str, done: int, total: int) -> None:
        if done == stop_at:
            raise Pulled

    def tell(line: str, seconds: float) -> None:
        if told is not None:
            told.append(line)

    (folder / "out").mkdir(parents=True, exist_ok=True)
    mark = Bookmark(folder / "bookmark", "d", every=0, tell=tell)
    ctx = Context(Numerics(), 0, folder / "out", report, loops=Resume(mark))
    with suppress(Pulled):
        entry(ctx, seen)
    return seen


def walk(ctx: Context, seen: list[Any]) -> None:
    """Keep two tensors and a file, as entries do."""
    average, other = ctx.keep("average", torch.zeros(2)), ctx.keep("other", {"x": torch.zeros(1)})
    for step in ctx.counted(4, resumes=True):
        average.mul_(0.5).add_(torch.rand(2, generator=ctx.generator))
        other["x"] += ctx.rng.normal()
        (ctx.out / "adapter-00001.safetensors").write_bytes(b"saved")
        seen.append((step, average.tolist(), other["x"].item()))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def alter(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def harm(page: Path) -> None:
        found = json.loads((page / "bookmark.json").read_text())
        change(found)
        (page / "bookmark.json").write_text(json.dumps(found))

    return harm


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit of a tensor": (lambda page: flip(page / "tensors-00000.safetensors"), "damaged (tensors-00000.safetensors)"),
    "a bit of the log": (lambda page: flip(page / "state.json"), "damaged (state.json)"),
    "a cut file": (lambda page: (page / "state.json").write_text("{"), "damaged (state.json)"),
    "a lost save": (lambda page: (page / "out" / "adapter-00001.safetensors").unlink(), "damaged (out/adapter-00001"),
    "one file too many": (lambda page: (page / "out" / "x.txt").touch(), "damaged (out/x.txt)"),
    "no manifest": (lambda page: (page / "bookmark.json").unlink(), "damaged (bookmark.json)"),
    "no JSON": (lambda page: (page / "bookmark.json").write_text("[1"), "damaged (bookmark.json)"),
    "another version": (alter(lambda found: found.update(format=0)), "of another version"),
    "another library": (alter(lambda found: found["environment"]["versions"].update(torch="0")), "another machine"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_bookmark_is_said_once_and_the_loop_begins_anew(tmp_path: Path, harm: str) -> None:
    whole = looped(tmp_path / "a", walk)
    assert looped(tmp_path / "b", walk, stop_at=3) == whole[:3]
    (page,) = (tmp_path / "b" / "bookmark").iterdir()
    do, said = HARMS[harm]
    do(page)
    told: list[str] = []
    assert looped(tmp_path / "b", walk, told=told) == whole
    (line,) = told
    assert said in line and "\n" not in line


def test_a_stage_with_a_damaged_bookmark_comes_to_the_bytes_of_a_fresh_one(tmp_path: Path) -> None:
    quiet = attempt(CASES["lora"], tmp_path, "quiet", bookmarks=False)
    attempt(CASES["lora"], tmp_path, "stopped", stop_at=4)
    (page,) = (tmp_path / "bookmark").iterdir()
    flip(page / "out" / "adapter-00002.safetensors")
    again = attempt(CASES["lora"], tmp_path, "again")
    assert again.reported == [1, 2, 3, 4, 5] and again.files == quiet.files
    assert again.told == ["the bookmark is not used: it is damaged (out/adapter-00002.safetensors)"]


def test_a_bookmark_of_another_stage_is_not_taken_up(tmp_path: Path) -> None:
    attempt(CASES["lora"], tmp_path, "stopped", stop_at=4)
    other = Case("adapt", "lora", {**LORA, "lr": 1e-3})
    again = attempt(other, tmp_path, "again")
    assert again.told == ["the bookmark is not used: it is of another stage"]
    assert again.files == attempt(other, tmp_path, "quiet", bookmarks=False).files


def test_a_bookmark_that_does_not_fit_what_is_set_up_is_not_taken_up(tmp_path: Path) -> None:
    """Of the same digest, as after a change of the engine: nothing of it is used, not even a part."""
    attempt(CASES["lora"], tmp_path, "stopped", stop_at=4)
    other = Case("adapt", "lora", {**LORA, "rank": 3})
    again = attempt(other, tmp_path, "again", digest=planned(CASES["lora"]).digest)
    assert again.told == ["the bookmark is not used: it does not fit what the stage sets up"]
    assert again.files == attempt(other, tmp_path, "quiet", bookmarks=False).files


def test_the_memory_cap_holds_for_the_attempts_before_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(machine, "process_peak", lambda: 100 * machine.GIB)
        attempt(CASES["lora"], tmp_path, "stopped", stop_at=3)
    with pytest.raises(StageError, match=r"cap of 64 GiB: .* process peak 100\.00 GiB") as caught:
        attempt(CASES["lora"], tmp_path, "again")
    assert caught.value.kind == "over_memory"


def test_every_known_entry_is_one_of_the_checkout_as_it_is(catalog: Catalog) -> None:
    """Who changes an entry reads its loops again, then says `resumes` there, and takes it off the list."""
    entries = [entry for kind in (catalog.defenses, catalog.attacks) for entry in kind.values()]
    there = {digest for entry in entries for digest in entry.files.values()}
    assert there >= KNOWN.keys()


@pytest.mark.parametrize("foreign", ["entry", "attack"])
def test_code_that_nobody_read_does_not_resume(tmp_path: Path, foreign: str) -> None:
    key = dict(planned(CASES["imma-lora"]).key)
    assert resume.known(key) == ("training",)
    changed = {"attack.py": "0" * 64}
    assert resume.known({**key, **({"entry_files": changed} if foreign == "entry" else {
        "against": {"lora": {**key["against"]["lora"], "entry_files": changed}}  # type: ignore[index,dict-item]
    })}) == ()  # fmt: skip


def test_an_entry_may_name_tensors_and_say_that_a_loop_resumes(tmp_path: Path) -> None:
    whole = looped(tmp_path / "a", walk)
    assert looped(tmp_path / "b", walk, stop_at=3) == whole[:3]
    assert looped(tmp_path / "b", walk) == whole[2:]


def test_a_loop_that_does_not_say_so_begins_anew(tmp_path: Path) -> None:
    def entry(ctx: Context, seen: list[Any]) -> None:
        for step in ctx.counted(4):
            seen.append((step, ctx.rng.normal()))

    assert looped(tmp_path, entry, stop_at=3) == looped(tmp_path, entry)[:3]
    assert not (tmp_path / "bookmark").exists()


def test_an_inner_loop_is_part_of_the_outer_one_s_step(tmp_path: Path) -> None:
    def entry(ctx: Context, seen: list[Any]) -> None:
        for step in ctx.counted(3, "outer", resumes=True):
            for inner in ctx.counted(2, "inner", resumes=True):
                seen.append((step, inner, ctx.rng.normal()))

    def pulled(ctx: Context, seen: list[Any]) -> None:
        report = ctx.report
        ctx.report = lambda what, done, total: report(what, done if what == "inner" and len(seen) == 4 else 0, total)
        entry(ctx, seen)

    whole = looped(tmp_path / "a", entry)
    assert looped(tmp_path / "b", pulled, stop_at=2) == whole[:4]
    # The second outer step was not through, so it is taken again from its begin.
    assert looped(tmp_path / "b", entry) == whole[2:]


def test_loops_one_after_the_other_are_told_apart_by_their_number(tmp_path: Path) -> None:
    def entry(ctx: Context, seen: list[Any]) -> None:
        total = ctx.keep("total", torch.zeros(()))
        for part in range(3):
            for step in ctx.counted(2, resumes=True):
                total += ctx.rng.normal()
                seen.append((part, step, total.item()))

    def pulled(ctx: Context, seen: list[Any]) -> None:
        report = ctx.report
        ctx.report = lambda what, done, total: report(what, done if len(seen) == 4 else 0, total)
        entry(ctx, seen)

    whole = looped(tmp_path / "a", entry)
    assert looped(tmp_path / "b", pulled, stop_at=2) == whole[:4]
    # What comes before the second loop is computed again, its first step is not.
    assert looped(tmp_path / "b", entry) == [*whole[:2], *whole[3:]]


def test_no_bookmark_between_a_gradient_and_its_update_nor_of_what_a_loop_made(tmp_path: Path) -> None:
    def accumulating(ctx: Context, seen: list[Any]) -> None:
        w = torch.nn.Parameter(torch.ones(2))
        adam = ctx.adamw({"w": w}, lr=0.1)
        for step in ctx.counted(8, resumes=True):
            adam.backward((w * ctx.rng.normal()).sum())
            if step % 3 == 2:
                adam.update()
            seen.append((step, w.tolist()))

    whole = looped(tmp_path / "a", accumulating)
    assert looped(tmp_path / "b", accumulating, stop_at=5) == whole[:5]
    assert looped(tmp_path / "b", accumulating) == whole[3:]

    def late(ctx: Context, seen: list[Any]) -> None:
        adam = None
        w = torch.nn.Parameter(torch.ones(2))
        for _ in ctx.counted(4, resumes=True):
            adam = adam or ctx.adamw({"w": w}, lr=0.1)
            adam.step((w * ctx.rng.normal()).sum())

    looped(tmp_path / "c", late, stop_at=3)
    assert not (tmp_path / "c" / "bookmark").exists()


def test_the_loss_scale_of_half_precision_is_kept(tmp_path: Path) -> None:
    """On a GPU it doubles and halves; here its own state alone can be carried from one optimiser to another."""
    ctx = tiny_context(tiny_model(), tmp_path)
    w = torch.nn.Parameter(torch.ones(2))
    one, other = (ctx.adamw({"w": w}, lr=0.1) for _ in range(2))
    for adam in (one, other):
        adam._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    for _ in range(3):
        one.step(w.sum())
    one.set_lr_factor(0.5)
    tensors, value = one.extra_state()
    other.load_extra_state(tensors, json.loads(json.dumps(value)))
    assert other._scaler.get_scale() == 16 and other._scaler.state_dict() == one._scaler.state_dict()
    assert other._adamw.param_groups[0]["lr"] == 0.05
    assert other._adamw.state[w]["step"] == 3


def test_orders_are_permutations_run_together() -> None:
    given, rng = Orders(np.random.default_rng(1), 5, 3), np.random.default_rng(1)
    drawn = np.concatenate([next(given) for _ in range(5)])
    np.testing.assert_array_equal(drawn, np.concatenate([rng.permutation(5) for _ in range(3)]))
