"""Purifiers in chains: their place, what they may borrow, and what they do while and after pictures are drawn."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import house
from catalogs import use_catalog
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import load_catalog
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics, Pictures
from immunebench.execution import inputs, stages
from immunebench.model import upscale
from immunebench.model.sampling import make_sampler
from immunebench.plan.planning import Plan, make_plan
from immunebench.store.graph import StageSpec
from tiny import tiny_folder, tiny_model, tiny_pictures

PURIFIER = house.ATTACK.partition("[params]")[0].replace("lora", "{id}").replace("LoRA", "{id}")
PURIFIER = PURIFIER.replace('"adapt"', '"purify"')
NUMERICS = {"device": "cpu", "memory_gib": 64, "threads": 1, "resolution": 32, "batch": 2, "sampling_steps": 4}
CODE = """
import numpy as np
from immunebench import Pictures

def purify(model, pictures, params, ctx):
    return pictures

def clean_samples(model, pictures, params, ctx):
    return Pictures(np.full_like(pictures.pixels, params.grey), {captions})
"""


SAME = "def purify(*arguments):\n    return arguments\n"


def purifier(root: Path, name: str, more: str = "", code: str = SAME) -> Path:
    """Write a purifier and return its manifest."""
    house.write(root / f"attacks/{name}/attack.py", code)
    return house.write(root / f"attacks/{name}/attack.toml", PURIFIER.format(id=name) + more)


def sampling_purifier(root: Path, captions: str = "pictures.captions") -> Path:
    """Write a purifier that also cleans what is drawn: it paints it grey."""
    words = '[params]\ngrey = 7\nnegative_prompt = "z"\n[presets.tiny]\nnegative_prompt = "q b"\n'
    file = purifier(root, "washed", words, CODE.format(captions=captions))
    file.write_text(file.read_text().replace('["purify"]', '["purify", "clean_samples"]'))
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    house.house(tmp_path / "house")
    purifier(tmp_path / "house", "jpeg")
    purifier(tmp_path / "house", "gaussian")
    return tmp_path / "house"


def plan(root: Path, chain: str, **wanted: object) -> Plan:
    suite = root / "suites/tiny.toml"
    suite.write_text(suite.read_text().replace('chains = ["lora"]', f'chains = ["{chain}"]'))
    catalog = load_catalog(root, models=root / "models.toml")
    return make_plan(catalog.suite("tiny"), catalog, **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("lora+jpeg", "cleans pictures after 'lora' has trained on them: 'lora+jpeg' (valid: jpeg+lora)"),
        ("gaussian+lora+jpeg", "has trained on them: 'gaussian+lora+jpeg' ("),
        ("jpeg", "is no chain of purifiers and one attack: 'jpeg'"),
        ("lora+lora", "is no chain of purifiers and one attack: 'lora+lora'"),
        ("jpg+lora", "(nearest: 'jpeg')"),
    ],
)
def test_a_chain_that_cannot_run_is_refused_in_one_line(root: Path, chain: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(root, chain)
    assert said in str(error.value) and "tiny.toml" in str(error.value) and "\n" not in str(error.value)


def links(made: Plan, cell: str) -> tuple[list[str], dict[str, str]]:
    """The entries of a cell's purify stages, the last first, and the inputs of the adaptation."""
    graph = made.roots[cell]
    adapt = made.stages[made.stages[made.stages[graph.curve[2]].inputs["generated"]].inputs["adapter"]]
    found, images = [], made.stages[adapt.inputs["images"]]
    while images.stage == "purify":
        found.append(str(images.key["entry"]))
        images = made.stages[images.inputs["images"]]
    return found, {"stage": images.stage}


def test_purifiers_follow_each_other_on_defended_and_undefended_pictures(root: Path) -> None:
    made = plan(root, "gaussian+jpeg+lora", defense=["none", "noise"])
    assert links(made, "style-a/none/gaussian+jpeg+lora/cpu/0") == (["jpeg", "gaussian"], {"stage": "pictures"})
    assert links(made, "style-a/noise/gaussian+jpeg+lora/cpu/0") == (["jpeg", "gaussian"], {"stage": "protect"})


def test_cleaning_while_drawing_enters_the_attacked_pictures_alone(root: Path) -> None:
    sampling_purifier(root)
    made = plan(root, "washed+lora", defense=["none", "shield"])
    graph = made.roots["style-a/shield/washed+lora/cpu/0"]
    attacked = [*graph.pictures.values(), *graph.ceiling_pictures.values()]
    for digest in attacked:
        cleaning: Any = made.stages[digest].key["cleaning"]
        assert cleaning["negative_prompt"] == "q b"
        (code,) = cleaning["clean_samples"]
        assert (code["entry"], code["params"]["grey"], list(code["entry_files"])) == ("washed", 7, ["attack.py"])
    others = [spec for d, spec in made.stages.items() if spec.stage == "generate" and d not in attacked]
    # The floors of both models, unrelated prompts of both, the benign attack on both and its floor; and the ends of
    # integrity's scale: the start model by another kernel, and from other noise.
    assert len(others) == 9 and not [spec for spec in others if "cleaning" in spec.key]


def test_negative_prompts_of_a_chain_are_joined(root: Path) -> None:
    sampling_purifier(root)
    purifier(root, "picky", '[params]\nnegative_prompt = "c d"\n')
    made = plan(root, "picky+washed+lora", defense="none")
    digest = made.roots["style-a/none/picky+washed+lora/cpu/0"].pictures[2]
    cleaning: Any = made.stages[digest].key["cleaning"]
    assert cleaning["negative_prompt"] == "c d, q b" and len(cleaning["clean_samples"]) == 1


def test_keys_of_chains_without_such_options_have_no_new_field(root: Path) -> None:
    """Every committed digest rests on this: a field that is at its default stands in no key."""
    fields = {
        "purify": {
            "entry", "entry_files", "params", "base", "base_revision", "base_files", "numerics", "token", "noun",
            "seed",
        },
        "generate": {
            "base", "base_revision", "base_files", "numerics", "prompts", "per_prompt", "noise_key", "step",
        },
        "protect": {
            "entry", "entry_files", "params", "hook", "budget", "against", "base", "base_revision", "base_files",
            "numerics", "concept", "seed",
        },
    }  # fmt: skip
    catalog = load_catalog()
    suites = [make_plan(catalog.suite(name), catalog) for name in ("mini-smoke", "mini-demo")]
    plans = [plan(root, "jpeg+lora"), *suites]
    seen = {(spec.stage, frozenset(spec.key)) for made in plans for spec in made.stages.values()}
    assert {(stage, found) for stage, found in seen if stage in fields} == {
        (stage, frozenset(wanted)) for stage, wanted in fields.items()
    }


@pytest.mark.parametrize(
    ("hooks", "more", "said"),
    [
        ('["clean_samples"]', "", 'hooks must be ["adapt"], ["purify"] or ["purify", "clean_samples"]'),
        ('["adapt", "purify"]', "", "hooks must be"),
        ('["purify"]', "[params]\nnegative_prompt = 3\n", "params.negative_prompt must be a string, not 3"),
        ('["adapt"]', '[params]\nnegative_prompt = "b"\n', "params.negative_prompt applies to a purifier only"),
        ('["purify", "clean_samples"]', "", "does not define the function 'clean_samples'"),
        ('["purify"]', 'needs = ["upscale"]\n', "needs"),
    ],
)
def test_a_manifest_that_asks_for_what_is_not_offered_is_named(root: Path, hooks: str, more: str, said: str) -> None:
    file = purifier(root, "odd", more)
    file.write_text(file.read_text().replace('["purify"]', hooks))
    (broken,) = load_catalog(root, models=root / "models.toml").broken
    assert said in broken.reason and "odd/attack" in broken.reason


@pytest.fixture
def catalog(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    """The house with the tiny base's own weights, as stages see it."""
    sampling_purifier(root)
    shutil.copytree(tiny_folder(), root / "weights/tiny", dirs_exist_ok=True)
    found = load_catalog(root, models=root / "models.toml")
    use_catalog(monkeypatch, found)
    inputs._bases.clear()
    yield found
    inputs._bases.clear()


def drawn(catalog: Catalog, out: Path, cleaning: dict[str, Any], guidance: float = 3.0) -> Pictures:
    """What the generate stage draws of two prompts with the tiny base."""
    out.mkdir()
    key: dict[str, Any] = {
        "base": "tiny", "base_files": {}, "numerics": {**NUMERICS, "guidance": guidance}, "prompts": ["a q", "b c"],
        "per_prompt": 1, "noise_key": ["t", 0], "step": None, **({"cleaning": cleaning} if cleaning else {}),
    }  # fmt: skip
    stages.run_stage(StageSpec("generate", key, {}), {}, out, lambda what, done, total: None)
    return Pictures.load(out)


def test_the_negative_prompt_is_that_of_the_pipeline_of_diffusers(catalog: Catalog, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    from immunebench.model.runtime import derive_seed

    model = tiny_model()
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder(), safety_checker=None)
    pipe.scheduler = make_sampler(model.numerics.sampler, model.schedule)
    pipe.set_progress_bar_config(disable=True)
    seeds = [derive_seed("noise", '["t", 0]', p, 0) for p in range(2)]
    noise = torch.stack([torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(s)) for s in seeds])
    pictures = {}
    for negative in ("", "q b"):
        expected = pipe(
            prompt=["a q", "b c"], negative_prompt=[negative] * 2, latents=noise, num_inference_steps=4,
            guidance_scale=3.0, height=32, width=32, output_type="np",
        ).images  # fmt: skip
        cleaning = {"negative_prompt": negative} if negative else {}
        pictures[negative] = drawn(catalog, tmp_path / f"out{negative}", cleaning).pixels
        assert np.abs(pictures[negative] / 255 - expected).max() < 0.51 / 255 + 1e-4
    assert np.abs(pictures[""].astype(int) - pictures["q b"]).max() > 2


def washing(catalog: Catalog) -> dict[str, Any]:
    """The key of a chain's clean_samples."""
    code = {"entry": "washed", "entry_files": dict(catalog.attack("washed").files), "params": {"grey": 7}}
    return {"clean_samples": [code]}


def test_what_is_drawn_is_cleaned_and_keeps_its_prompts(catalog: Catalog, tmp_path: Path) -> None:
    plain = drawn(catalog, tmp_path / "plain", {})
    made = drawn(catalog, tmp_path / "cleaned", washing(catalog))
    assert (made.pixels == 7).all() and plain.pixels.std() > 1
    assert made.captions == plain.captions == ("a q", "b c")
    assert not inputs._bases, "foreign code held this model"


def test_cleaning_that_changes_captions_or_code_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    stale = washing(catalog)
    stale["clean_samples"][0]["entry_files"] = {"attack.py": "0" * 64}
    with pytest.raises(OSError, match="files changed after the run was planned"):
        drawn(catalog, tmp_path / "stale", stale)
    sampling_purifier(catalog.models_path.parent, captions='("x",) * len(pictures)')
    again = load_catalog(catalog.models_path.parent, models=catalog.models_path)
    catalog.attacks.update(again.attacks)
    with pytest.raises(stages.StageError, match="washed: clean_samples changed the number, the size or the captions"):
        drawn(catalog, tmp_path / "bad", washing(catalog))


def test_an_upscaler_that_is_not_there_is_named_before_anything_runs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    purifier(root, "larger", 'needs = ["upscaler"]\n')
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="needs an upscaler, which the base 'tiny' does not provide"):
        plan(root, "larger+lora")
    models = root / "models.toml"
    named = models.read_text().replace('judge = "toy"', 'judge = "toy"\nupscaler = "sd-x4"')
    named += f'[upscalers.sd-x4]\nloader = "immunebench.model.upscale:load"\nfolder = "{upscale.FOLDER}"\n'
    models.write_text(named)
    with pytest.raises(UsageError, match=f"weights {upscale.FOLDER} are missing; put their diffusers folder at"):
        plan(root, "larger+lora")
    house.write(tmp_path / "cache" / upscale.FOLDER / "model_index.json", "{}")
    made = plan(root, "larger+lora", defense="none")
    (key,) = (spec.key for spec in made.stages.values() if spec.stage == "purify")
    assert key["upscaler"]["id"] == "sd-x4" and list(key["upscaler"]["files"]) == ["model_index.json"]  # type: ignore[index,call-overload]


def test_the_diffusion_upscaler_runs_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random network of the real one's form: four times as large, each picture from its own seed and caption."""
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionPipeline,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    base = StableDiffusionPipeline.from_pretrained(tiny_folder(), safety_checker=None)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=7, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8, num_class_embeds=1000,
    )  # fmt: skip
    StableDiffusionUpscalePipeline(
        vae=base.vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=unet,
        low_res_scheduler=DDPMScheduler(), scheduler=DDIMScheduler(prediction_type="v_prediction"),
    ).save_pretrained(tmp_path / upscale.FOLDER)  # fmt: skip
    monkeypatch.setenv("IMMUNEBENCH_WEIGHTS", str(tmp_path))
    network, pixels = upscale.load(Numerics()), tiny_pictures(2, side=16).pixels

    def larger(rows: list[int], seeds: list[int], noise_level: int = 20) -> np.ndarray:
        return network(pixels[rows], ["a q", "b"][: len(rows)], seeds, noise_level=noise_level, steps=2)

    both = larger([0, 1], [1, 2])
    assert both.shape == (2, 64, 64, 3) and both.dtype == np.uint8
    assert (larger([0], [1])[0] == both[0]).all()
    assert (larger([0], [3])[0] != both[0]).any() and (larger([0], [1], 300)[0] != both[0]).any()
