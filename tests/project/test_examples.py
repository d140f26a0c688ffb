"""The worked examples run, and say what is true."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from immunebench import Concept, Params, Pictures
from immunebench.catalog.loading import load_catalog
from tiny import tiny_context, tiny_model, tiny_pictures

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
WORLD1 = ROOT / "tests" / "fixtures" / "world1" / "mini-lite"
MINI = ROOT / "bench" / "immunebench" / "mini" / "weights" / "mini"


def load(name: str) -> ModuleType:
    """Import an example as a module, which runs nothing of it."""
    file = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What a class of it is called is looked up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example's folder of entries, and an environment that is put back."""
    folder = EXAMPLES / "write_a_defense" / "entries"
    monkeypatch.setenv("IMMUNEBENCH_ENTRIES", str(folder))
    yield folder


def test_every_example_is_tested_here() -> None:
    scripts = {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.py")}
    assert scripts == {
        "read_the_board",
        "score_your_own_model",
        "write_a_defense/run",
        "write_a_defense/entries/defenses/pushaway/defense",
    }


def test_the_defense_is_listed_and_planned(entries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = load_catalog(entries)
    assert not [broken for broken in catalog.broken if broken.path.is_relative_to(entries)]
    assert catalog.defense("pushaway").hooks == ("protect_model",)
    planned = load("write_a_defense/run").main(["--dry-run"])
    assert set(planned["defense"]) == {"none", "pushaway"}
    assert os.environ["IMMUNEBENCH_ENTRIES"] == str(entries)
    assert "object-mug/pushaway/lora/cpu/0" in capsys.readouterr().out


def test_the_defense_raises_the_loss_of_the_concept_above_that_of_the_rest(entries: Path, tmp_path: Path) -> None:
    model = tiny_model()
    ctx = tiny_context(model, tmp_path)
    owner, ctx.public = tiny_pictures(4, "a q", seed=1), tiny_pictures(4, "a r", seed=5)
    params = Params({"tensors": "cross-attention", "steps": 12, "batch": 4, "lr": 3e-3, "keep": 1.0})
    concept = Concept("object-mug", "object", "m", "q", "a q", owner)

    def loss(pictures: Pictures) -> float:
        seeds = torch.Generator().manual_seed(9)
        with torch.no_grad():
            return float(model.loss(model.draw(model.prepare(pictures), [0, 1, 2, 3] * 4, seeds)))

    before = loss(owner), loss(ctx.public)
    hook = load_catalog(entries).defense("pushaway").layers[0].function("protect_model")
    weights = hook(model, (concept,), params, ctx)
    model.check(weights)
    after = loss(owner), loss(ctx.public)
    model.restore()
    assert after[0] - before[0] > max(0.0, after[1] - before[1])


def test_the_table_of_the_defense_is_the_boards(entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The run itself takes minutes, so records of another one are read.
    example = load("write_a_defense/run")
    monkeypatch.setattr(example, "RESULTS", tmp_path)
    shutil.copytree(WORLD1, tmp_path / "mini-smoke")
    table = example.scores().set_index("defense")
    assert table.loc["none", "A"] == 0 and table.loc["none", "U"] == 1
    assert table.loc["destroy", "A"] > 0.5 and table.loc["destroy", "U"] < 0.1


def test_a_model_of_ones_own_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    # A LoRA that nobody trained changes nothing, so that its pictures are the base's.
    unet = UNet2DConditionModel.from_pretrained(MINI / "unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    StableDiffusionPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(unet))
    example = load("score_your_own_model")
    asked = ["object-mug", str(MINI), "--undefended-lora", str(tmp_path), "--prompts", "2"]
    found = example.main(asked)
    assert found["base"] == found["your model"] == pytest.approx(found["undefended"], abs=1e-5)
    assert found["base"] < 0.3 and "P is not said" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        example.main(["relearn-cat", str(MINI)])


def test_a_by_defense_and_task_is_the_boards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pivot = load("read_the_board").main([str(WORLD1), "--csv", str(tmp_path / "board.csv")])
    table = pd.read_csv(tmp_path / "board.csv", index_col="defense")
    assert list(table.index) == ["imma-lora", "none", "none-replicate", "destroy"]
    families = {"identity": 0.0, "object": 0.0, "relearn": 0.0, "style": 0.0}
    for defense, row in pivot.iterrows():
        means = [row[[task for task in row.index if task.startswith(family)]].mean() for family in families]
        assert sum(means) / len(means) == pytest.approx(table.loc[str(defense), "a"])
    assert "imma-lora" in capsys.readouterr().out
