"""What a plan takes: prices by arithmetic, the simulated run, wider boards, and plans without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import house
from immunebench import api
from immunebench.bases.skeleton import clip_words, networks, tokenizer
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.catalog.outline import Outline
from immunebench.cli.main import app
from immunebench.core.errors import UsageError
from immunebench.declared.architecture import SHAPES
from immunebench.plan.card import Card, seconds_on
from immunebench.plan.forecast import forecast
from immunebench.plan.planning import make_plan
from immunebench.plan.prices import Known, prices
from immunebench.plan.simulation import Job, critical_path, jobs_of, simulate, widened
from immunebench.store.graph import Plan, StageSpec


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any downloaded weights, pictures or store."""
    for name in ("IMMUNEBENCH_WEIGHTS", "IMMUNEBENCH_DATA", "IMMUNEBENCH_STORE", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Catalog, Plan]:
    models = house.house(tmp_path / "house")
    catalog = load_catalog(tmp_path / "house", models=models)
    return catalog, make_plan(catalog.suite("tiny"), catalog)


# Two GPU stages of 4 s after one of 2 s on a core, and one of 3 s on a GPU that needs nothing.
FORK = [Job(2.0, False), Job(4.0, True, (0,)), Job(4.0, True, (0, 0)), Job(3.0, True)]


def test_the_simulated_run_is_the_one_drawn_by_hand() -> None:
    # One GPU: 0-3 the free one, 3-7 and 7-11 the others. Two: 0-3 the free one, 2-6 on the other, 3-7.
    one, two, many = (simulate(FORK, cards, 1) for cards in (1, 2, 9))
    assert (one.seconds, two.seconds, many.seconds) == (11.0, 7.0, 6.0)
    assert one.busy == 1.0 and two.busy == pytest.approx(11 / 14)
    assert critical_path(FORK) == 6.0


def test_cores_are_counted_apart_from_cards() -> None:
    judged = [Job(5.0, False) for _ in range(4)]
    assert simulate(judged, 64, 1).seconds == 20.0
    assert simulate(judged, 1, 4).seconds == 5.0


@pytest.mark.parametrize("cards", [1, 2, 3, 7])
def test_no_run_beats_the_critical_path_or_the_work_and_none_is_worse_than_grahams_bound(
    tiny: tuple[Catalog, Plan], cards: int
) -> None:
    jobs = [Job(1.0 + number % 5, True, job.inputs) for number, job in enumerate(jobs_of(tiny[1], prices(tiny[1])))]
    work, path = sum(job.seconds for job in jobs), critical_path(jobs)
    found = simulate(jobs, cards, 1).seconds
    assert max(path, work / cards) <= found + 1e-9
    assert found <= work / cards + path * (1 - 1 / cards) + 1e-9


def test_a_wider_board_repeats_what_a_defense_adds_and_no_control(tiny: tuple[Catalog, Plan]) -> None:
    _, made = tiny
    priced = prices(made)
    alone = {digest for cell in made.cells if cell.defense == "shield" for digest in made.roots[cell.key].stages}
    others = {digest for cell in made.cells if cell.defense != "shield" for digest in made.roots[cell.key].stages}
    own = len(alone - others)
    jobs, cells = widened(made, priced, ["shield"], 1)
    assert (len(jobs), cells) == (len(made.stages), len(made.cells))
    assert sum(job.seconds for job in jobs) == pytest.approx(sum(price.seconds for price in priced.values()))
    assert critical_path(jobs) == pytest.approx(critical_path(jobs_of(made, priced)))
    more, cells = widened(made, priced, ["shield"], 5)
    assert (len(more), cells) == (len(made.stages) + 4 * own, len(made.cells) + 4)
    assert critical_path(more) == pytest.approx(critical_path(jobs)), "they do not wait for each other"


def test_a_board_of_controls_cannot_be_widened(tiny: tuple[Catalog, Plan]) -> None:
    catalog, _ = tiny
    made = make_plan(catalog.suite("tiny"), catalog, defense="noise")
    with pytest.raises(UsageError, match="--defenses: needs a defense that is no control"):
        forecast(made, catalog, None, Known(), [1], 4, 100)


def test_seconds_on_a_card_are_operations_by_rate() -> None:
    numerics = {"device": "cuda", "frozen_dtype": "float16", "sampling_steps": 50}
    spec = StageSpec("generate", {"base": "sd14", "numerics": numerics})  # type: ignore[dict-item]
    # An A10: 31.25 and 15.6 of 10^12 a second. Two passes of 0.80327 a step, one of 2.51452 a picture.
    expected = 2.0 + 10 * 50 * 2 * 0.80327 / 31.25 + 10 * 2.51452 / 15.6
    assert seconds_on(Card.of("a10-24g"), spec, 500.0) == pytest.approx(expected)
    # Whatever the card, a pass takes its kernels' time.
    assert seconds_on(Card.of("h200-141g"), spec, 500.0) > 2.0 + 500 * 0.02
    assert Card.of("rtx-9") == Card.of("a10-24g")


@pytest.mark.slow
def test_the_work_of_a_shape_is_that_of_its_networks() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    shape = SHAPES["sdxl-narrow"]
    with torch.device("meta"):
        parts = networks(shape)
        side = shape.resolution // 8
        latent, text = torch.zeros(1, 4, side, side), torch.zeros(1, 77, shape.unet["cross_attention_dim"])
        width = shape.unet.get("projection_class_embeddings_input_dim", 0) - 6 * shape.unet.get(
            "addition_time_embed_dim", 0
        )
        more = {"text_embeds": torch.zeros(1, width), "time_ids": torch.zeros(1, 6)} if shape.text_2 else None
        picture = torch.zeros(1, 3, shape.resolution, shape.resolution)
        passes = {
            "unet": lambda: parts["unet"](latent, torch.zeros(1), text, added_cond_kwargs=more),
            "encode": lambda: parts["vae"].encode(picture),
            "decode": lambda: parts["vae"].decode(latent),
        }
        for part, run in passes.items():
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                run()
            assert counter.get_total_flops() / 1e12 == pytest.approx(getattr(shape.work, part), rel=1e-3), part


def test_clips_words_are_those_of_its_tokenizer() -> None:
    vocabulary = tokenizer().get_vocab()
    whole = {word.removesuffix("</w>") for word in vocabulary if word.endswith("</w>")}
    letters = {word for word in whole if len(word) == 1}
    assert clip_words() - letters == whole - letters


def test_a_suite_is_planned_without_weights_and_pictures(bare: Path) -> None:
    catalog = load_catalog()
    with pytest.raises(UsageError, match="weights of the base sd14 are missing"):
        api.plan_suite("sd14-lite", catalog=catalog, task="sd14-church")
    outline = Outline.of(catalog)
    made = api.plan_suite("sd14-lite", catalog=outline, task=["sd14-church", "sd14-vase"])
    assert len(made.cells) == 2 * (2 * 3 + 2)
    assert any("base sd14, 2.2 GB" in line for line in outline.absent)
    assert any("task sd14-vase" in line for line in outline.absent)
    assert {price.source for price in prices(made).values()} == {"arithmetic"}


def test_an_outline_refuses_what_no_weights_could_repair(bare: Path) -> None:
    outline = Outline.of(load_catalog())
    with pytest.raises(UsageError, match="profile: has pictures of 64 pixels, the base sd14 draws 512"):
        api.plan_suite("sd14-lite", catalog=outline, task="sd14-church", profile="cpu")


def test_where_everything_is_there_an_outline_plans_what_will_be_run(tmp_path: Path) -> None:
    models = house.house(tmp_path / "house")
    catalog = load_catalog(tmp_path / "house", models=models)
    outline = Outline.of(catalog)
    planned = make_plan(catalog.suite("tiny"), catalog)
    assert make_plan(outline.suite("tiny"), outline).stages.keys() == planned.stages.keys()
    assert outline.absent == []


def test_the_command_says_what_was_absent_and_what_is_arithmetic(bare: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "sd14-lite", "--task", "sd14-church", "--gpus", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["runs"]) == ["1", "2", "8", "64"]
    assert found["runs"]["1"]["seconds"] >= found["card_seconds"] >= found["runs"]["64"]["seconds"]
    text = CliRunner().invoke(app, ["plan", "sd14-lite", "--task", "sd14-church", "--defenses", "100"])
    assert "weights of the base sd14, 2.2 GB" in text.stderr and "arithmetic, not measured" in text.stdout
    dry = CliRunner().invoke(app, ["run", "sd14-lite", "--task", "sd14-church", "--dry-run"])
    assert dry.exit_code == 0 and "cells" in dry.stdout and "planned without" in dry.stderr


@pytest.mark.parametrize("option", ["--gpus", "--cores", "--defenses"])
def test_numbers_below_one_are_refused(option: str) -> None:
    done = CliRunner().invoke(app, ["plan", "mini-smoke", option, "0"])
    assert isinstance(done.exception, UsageError) and option in str(done.exception)
