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

from immunebench.authoring.export import KOHYA, LORA, Format, export
from immunebench.authoring.kohya import kohya_tensors
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


def write(engine: Any, folder: Path, form: Format = "diffusers") -> Path:
    return export(CELL.key, engine.plan, engine.catalog, engine.store, folder, form)


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


@pytest.mark.parametrize("xl", [False, True])
def test_kohya_s_names_are_those_that_diffusers_converts_back_to_the_same_tensors(tmp_path: Path, xl: bool) -> None:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_kohya, convert_unet_state_dict_to_peft
    from safetensors import safe_open
    from safetensors.torch import load_file

    engine, model = measured(tmp_path, "lora", defended=True, xl=xl)
    expected = model.sample([PROMPT], [0], steps=3, guidance=4.0).pixels[0]
    folder = write(engine, tmp_path / "out", "kohya")
    found = followed(folder)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert not (folder / LORA).exists()
    saved, written = load_file(tmp_path / "a" / "adapter-00009.safetensors"), load_file(folder / KOHYA)
    pipeline: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    options = {"unet_config": model.unet.config} if xl else {}
    back, alphas = pipeline.lora_state_dict(folder, weight_name=KOHYA, **options)
    # Both in the names of peft, as diffusers loads them.
    ours, theirs = (
        convert_unet_state_dict_to_peft({name.removeprefix("unet."): t for name, t in state.items()})
        for state in (saved, back)
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert set(alphas.values()) == {2.0}, "alpha is the rank, so that the strength is 1"
    with safe_open(folder / KOHYA, "pt") as file:  # type: ignore[no-untyped-call]
        assert file.metadata()["ss_network_dim"] == "2" and file.metadata()["ss_network_alpha"] == "2.0"
    if not xl:
        peft = {n.replace(".lora.down", ".lora_A").replace(".lora.up", ".lora_B"): t for n, t in saved.items()}
        reference = convert_state_dict_to_kohya(peft)
        assert written.keys() == reference.keys()
        assert all(torch.equal(written[name], reference[name].to(written[name].dtype)) for name in written)


def test_the_blocks_of_xl_are_numbered_as_in_the_original_code() -> None:
    """Names that sd-scripts gives to the attentions of Stable Diffusion XL, with two layers a block."""
    tail = "transformer_blocks.0.attn1.to_out.0"
    names = {
        "down_blocks.1.attentions.0": "input_blocks_4_1",
        "down_blocks.2.attentions.1": "input_blocks_8_1",
        "mid_block.attentions.0": "middle_block_1",
        "up_blocks.0.attentions.2": "output_blocks_2_1",
        "up_blocks.1.attentions.0": "output_blocks_3_1",
    }
    given = {f"unet.{name}.{tail}.lora.down.weight": np.zeros((4, 8), np.float32) for name in names}
    made = kohya_tensors(given, 4.0, layers_per_block=2)
    stems = [f"lora_unet_{name}_transformer_blocks_0_attn1_to_out_0" for name in names.values()]
    assert list(made) == [f"{stem}{end}" for stem in stems for end in (".lora_down.weight", ".alpha")]


def test_kohya_is_refused_for_what_is_no_low_rank_adapter(tmp_path: Path) -> None:
    engine, _ = measured(tmp_path, "textual-inversion", defended=False)
    with pytest.raises(UsageError, match="--format: is a format of low-rank adapters"):
        write(engine, tmp_path / "out", "kohya")
    assert not (tmp_path / "out").exists()


def test_the_model_has_its_networks_and_licence_and_not_the_pictures_beside_them(tmp_path: Path) -> None:
    engine, _ = measured(tmp_path, "lora", defended=False)
    base = Path(shutil.copytree(tiny_folder(), tmp_path / "base"))
    for name in ("samples.png", "loss.png", "run.json", "README.md", "LICENSE.md"):
        (base / name).write_text("")
    engine.catalog.base_folder = lambda name: base
    folder = write(engine, tmp_path / "out")
    files = {path.name for path in (folder / "model").iterdir() if path.is_file()}
    assert files == {"model_index.json", "LICENSE.md"}


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
