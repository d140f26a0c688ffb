"""`export`: what an attack left, read by plain diffusers and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from immunebench.authoring.export import export
from immunebench.core.errors import UsageError
from immunebench.core.types import Weights
from immunebench.methods.adapters import Adapter, Dense, LowRank, Words
from immunebench.model.diffusion import LatentDiffusion
from immunebench.store.graph import Cell, StageSpec
from tiny import tiny_context, tiny_folder, tiny_model, tiny_xl_folder, tiny_xl_model

CELL = Cell("object-mug", "shield", "lora", "cpu", 0)
PROMPT = 'a q m and "q"'
ATTACKS: dict[str, Callable[[LatentDiffusion], Adapter]] = {
    "lora": lambda model: LowRank.attach(model, rank=2, seed=1),
    "dreambooth": Dense.attach,
    "dreambooth with text": lambda model: Dense.attach(model, text=True),
    "textual-inversion": lambda model: Words.attach(model, token="q", initializer="m", num_vectors=2),
}


def measured(root: Path, attack: str, *, defended: bool, xl: bool = False) -> tuple[Any, LatentDiffusion]:
    """Make the artifacts of a cell by hand; return what export asks of the engine, and the attacked model."""
    model = tiny_xl_model() if xl else tiny_model()
    inputs = {"adapter": "a"}
    (root / "a").mkdir()
    (root / "w").mkdir()
    generator = torch.Generator().manual_seed(3)
    if defended:
        inputs["weights"] = "w"
        shield = {n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in model.unet_tensors().items()}
        Weights(shield).save(root / "w" / "weights.safetensors")
        model.apply(Weights(shield))
    adapter = ATTACKS[attack](model)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tiny_context(model, root / "a").checkpoint(9, adapter)
    numerics = {"sampling_steps": 3, "guidance": 4.0, "resolution": 32}
    drawn = StageSpec("generate", {"numerics": numerics, "prompts": [PROMPT]}, inputs)  # type: ignore[dict-item]
    facts = SimpleNamespace(base="tiny", base_revision="r1")
    graph = SimpleNamespace(cell=CELL, final=9, pictures={9: "p"}, facts=facts)
    engine = SimpleNamespace(
        plan=SimpleNamespace(roots={CELL.key: graph}, stages={"p": drawn}),
        catalog=SimpleNamespace(base_folder=lambda base: tiny_xl_folder() if xl else tiny_folder()),
        store=SimpleNamespace(get=lambda digest: root / digest if (root / digest).is_dir() else None),
    )
    return engine, model


def write(engine: Any, folder: Path) -> Path:
    return export(CELL.key, engine.plan, engine.catalog, engine.store, folder)


def followed(folder: Path) -> Any:
    """Run the lines of the README; return the picture that they draw."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "immunebench" not in code
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code, names)
    return np.asarray(names["pictures"][0])


@pytest.mark.parametrize(("xl", "defended"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_readme_s_lines_draw_the_attacked_model_s_picture(
    tmp_path: Path, attack: str, xl: bool, defended: bool
) -> None:
    engine, model = measured(tmp_path, attack, defended=defended, xl=xl)
    # The seed of the README, drawn by the engine in the shape that the pipeline draws.
    expected = model.sample([PROMPT], [0], steps=3, guidance=4.0).pixels[0]
    found = followed(write(engine, tmp_path / "out"))
    assert np.abs(found.astype(int) - expected).max() <= 2
    model.restore()
    plain = model.sample([PROMPT], [0], steps=3, guidance=4.0).pixels[0]
    assert np.abs(plain.astype(int) - expected).max() > 2


def test_a_base_in_half_precision_s_variant_is_read_by_the_same_lines(tmp_path: Path) -> None:
    engine, model = measured(tmp_path, "lora", defended=False, xl=True)
    expected = model.sample([PROMPT], [0], steps=3, guidance=4.0).pixels[0]
    hub = Path(shutil.copytree(tiny_xl_folder(), tmp_path / "hub"))
    for file in hub.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
        file.write_bytes(b"of single precision: the engine reads the other")
    engine.catalog.base_folder = lambda base: hub
    found = followed(write(engine, tmp_path / "out"))
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_words_are_written_in_brackets_and_nothing_else_is(tmp_path: Path) -> None:
    engine, _ = measured(tmp_path, "textual-inversion", defended=False)
    text = (write(engine, tmp_path / "out") / "README.md").read_text()
    assert 'pipe.load_textual_inversion("learned_embeds.safetensors", token="<q>")' in text
    assert '"a <q> m and \\"<q>\\""' in text
    assert "load_lora_weights" not in text and "2 vectors for `<q>`, saved at step 9" in text


def test_networks_trained_whole_are_in_the_model_and_nothing_beside_it(tmp_path: Path) -> None:
    engine, _ = measured(tmp_path, "dreambooth", defended=True)
    folder = write(engine, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model", "provenance.json"]
    assert "pipe.load" not in (folder / "README.md").read_text()
    origin = json.loads((folder / "provenance.json").read_text())
    assert origin == {"cell": CELL.key, "defense": "w", "adapter": "a"}


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    engine, _ = measured(tmp_path, "lora", defended=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    with pytest.raises(UsageError, match="DIR: must be a new or empty folder"):
        write(engine, tmp_path / "full")
    description = tmp_path / "a" / "adapter.json"
    description.write_text(description.read_text().replace("diffusers-lora", "other"))
    with pytest.raises(UsageError, match="CELL: its adapter is not in a diffusers format: 'object-mug/shield"):
        write(engine, tmp_path / "out")
    (tmp_path / "a").rename(tmp_path / "gone")
    with pytest.raises(UsageError, match="CELL: is not measured in this store"):
        write(engine, tmp_path / "out")
    assert not (tmp_path / "out").exists()
