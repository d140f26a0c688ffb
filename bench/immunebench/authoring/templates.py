"""``immunebench new defense`` and ``new attack``: create a working entry as a starting point."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from immunebench.authoring.scaffold import Created, Draft, Table, checked_id, command, toml, write_all
from immunebench.catalog import placeholders
from immunebench.catalog.places import folders_to_write
from immunebench.core.errors import UsageError
from immunebench.declared import schema, scoring
from immunebench.declared.manifest import AttackManifest, DefenseManifest
from immunebench.declared.suite import Suite

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog

PROTECT_MODEL = '''\
"""{title}: {docstring}"""

from __future__ import annotations

from immunebench import Concept, Context, LatentDiffusion, Params, Weights, training


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """Replace this by your method: it ascends the denoising loss on the owner's pictures and returns UNet tensors."""
    # What may change: UNet tensors by name; "attention", "cross-attention" or all of them.
    theta = model.trainable(model.unet_tensors(params.tensors))
    ascend = ctx.adamw(theta, lr=params.lr)
    # A defense only has the owner's pictures and caption. ctx.public_batches has pictures of unrelated concepts.
    data = model.prepare(concepts[0].owner)
    # Batches and noise depend on the stage's seed; take all other random numbers from ctx.rng or ctx.generator.
    for step, batch in ctx.steps(params.steps, model, data, batch=params.batch):
        with training(theta):
            loss = model.loss(batch)
            ascend.step(-loss, clip=1.0)
        ctx.log(step, loss=loss)
    return Weights(theta)
'''

PROTECT_IMAGES = '''\
"""{title}: {docstring}"""

from __future__ import annotations

import numpy as np

from immunebench import Concept, Context, LatentDiffusion, Params, Pictures


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    """Replace this by your method: it changes every pixel by the whole budget, with a random sign."""
    # Pixels are uint8, (n, height, width, 3). Return as many, of the same size; L_inf must be at most params.budget.
    sign = ctx.rng.choice(np.array([-1, 1]), size=published.pixels.shape)
    pixels = np.clip(published.pixels + params.strength * params.budget * sign, 0, 255)
    return Pictures(np.rint(pixels).astype(np.uint8), published.captions)
'''

FREEZE = '''\
"""{title}: {docstring}"""

from __future__ import annotations

from immunebench import Concept, Context, LatentDiffusion, Mask, Params


def freeze(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Mask:
    """Replace this by your method: it freezes a share of the UNet's tensors, drawn at random."""
    # The publisher's interface neither updates nor adapts a frozen tensor. At least one must stay free.
    names = list(model.unet_tensors("all"))
    chosen = ctx.rng.permutation(len(names))[: int(params.rho * (len(names) - 1))]
    return Mask.of(names, [names[i] for i in chosen])
'''

ADAPT = '''\
"""{title}: {docstring}"""

from __future__ import annotations

from immunebench import Context, LatentDiffusion, LowRank, Params, Pictures, training


def attach(model: LatentDiffusion, params: Params, ctx: Context) -> LowRank:
    """Attach what this attack trains to a model; defenses that simulate the attack call it, too."""
    return LowRank.attach(model, rank=params.rank, seed=ctx.seed_of("adapter"))


def adapt(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> None:
    """Replace this by your method: it trains low-rank adapters on the attacker's captioned pictures."""
    adapter = attach(model, params, ctx)
    optimiser = ctx.adamw(adapter.parameters, lr=params.lr)
    data = model.prepare(pictures)
    for step, batch in ctx.steps(params.saves[-1], model, data, batch=params.batch):
        with training(adapter.parameters):
            loss = model.loss(batch)
            optimiser.step(loss, clip=1.0)
        ctx.log(step, loss=loss)
        # Every step in `saves` of the manifest must be saved; pictures are sampled from these checkpoints.
        if step + 1 in params.saves:
            ctx.checkpoint(step + 1, adapter)
'''

PURIFY = '''\
"""{title}: {docstring}"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from immunebench import Context, LatentDiffusion, Params, Pictures


def purify(model: LatentDiffusion, pictures: Pictures, params: Params, ctx: Context) -> Pictures:
    """Replace this by your method: it applies a median filter."""
    # Pixels are uint8, (n, height, width, 3). Return as many, of the same size and with the same captions.
    window = ImageFilter.MedianFilter(params.window)
    cleaned = [np.asarray(Image.fromarray(picture).filter(window)) for picture in pictures.pixels]
    return Pictures(np.stack(cleaned), pictures.captions)
'''

CITE = f"""\
@misc{{{{{{id}},
  title  = {{{{{placeholders.PAPER_TITLE}}}}},
  author = {{{{{placeholders.PAPER_AUTHOR}}}}},
  year   = {{{{2026}}}},
}}}}
"""

ERASE = PROTECT_MODEL.replace(
    "Replace this by your method: it ascends the denoising loss on the owner's pictures and returns UNet tensors.",
    "Replace this by your method: it ascends the denoising loss on what the base knows of the concept.",
)
LAYERED = (
    PROTECT_MODEL.replace(
        "\nfrom immunebench import Concept", "\nimport numpy as np\n\nfrom immunebench import Concept"
    ).replace("Params, Weights, training", "Params, Pictures, Weights, training")
    + PROTECT_IMAGES[PROTECT_IMAGES.index("\n\ndef protect_images") :]
)

TEST = '''\
"""The entry {id} keeps the rules of the benchmark; add what your method promises."""

from __future__ import annotations

from pathlib import Path

from immunebench.submission.check import check_entry
from immunebench.submission.findings import errors

ENTRY = Path(__file__).resolve().parents[2] / "defenses" / "{id}"


def test_the_entry_has_no_errors() -> None:
    assert errors(check_entry(ENTRY)) == []
'''

Hook = Literal["protect_model", "protect_images", "freeze", "adapt", "purify"]
#: What a skeleton is written for: a track of defenses, or the hook of an attack.
CODE: Mapping[str, str] = {
    "model": PROTECT_MODEL,
    "data": PROTECT_IMAGES,
    "erasure": ERASE,
    "layered": LAYERED,
    "api-enforced": FREEZE,
    "adapt": ADAPT,
    "purify": PURIFY,
}
_MODEL_PARAMS: Table = {
    "params": {"tensors": "attention", "steps": 1000, "batch": 1, "lr": 1e-5},
    "presets": {"mini": {"steps": 60, "batch": 4, "lr": 1e-4}},
}
MANIFEST: Mapping[str, Table] = {
    "model": {
        "kind": "model",
        "hooks": ["protect_model"],
        "threat_model": placeholders.THREAT_MODELS["protect_model"],
        **_MODEL_PARAMS,
    },
    "data": {
        "kind": "data",
        "hooks": ["protect_images"],
        "budget": 8,
        "threat_model": placeholders.THREAT_MODELS["protect_images"],
        "params": {"strength": 1.0},
    },
    "erasure": {
        "kind": "erasure",
        "hooks": ["protect_model"],
        "threat_model": placeholders.THREAT_MODELS["protect_model"],
        **_MODEL_PARAMS,
    },
    "layered": {
        "kind": "layered",
        "hooks": ["protect_model", "protect_images"],
        "budget": 8,
        "threat_model": placeholders.THREAT_MODELS["protect_images"],
        "params": {"tensors": "attention", "steps": 1000, "batch": 1, "lr": 1e-5, "strength": 1.0},
        "presets": {"mini": {"steps": 60, "batch": 4, "lr": 1e-4}},
    },
    "api-enforced": {
        "kind": "api",
        "hooks": ["freeze"],
        "threat_model": placeholders.THREAT_MODELS["freeze"],
        "params": {"rho": 0.2},
        "limits": {"rho": {"least": 0, "most": 1}},
    },
    "adapt": {
        "hooks": ["adapt"],
        "params": {"rank": 4, "steps": 1000, "batch": 1, "lr": 1e-4, "saves": [125, 250, 500, 1000, 2000]},
        "presets": {"mini": {"steps": 128, "batch": 4, "lr": 4e-3, "saves": [16, 32, 64, 128, 256]}},
    },
    "purify": {"hooks": ["purify"], "params": {"window": 3}},
}
TRACKS, ATTACK_HOOKS = ("model", "data", "erasure", "api-enforced", "layered"), ("adapt", "purify")
#: Tasks for calibration: a method in development must not be tuned on the scored ones.
DEV_SUITE = "mini-dev"


def new_defense(name: str, track: str, catalog: Catalog, out: Path | None = None) -> Created:
    """Write ``defenses/<name>`` for a track, its test, and a suite that compares it with the controls on dev tasks.

    Raises
    ------
    UsageError
        The name is not a valid id or is taken, or there is no such track; nothing is written.
    """
    _checked(name, track, TRACKS, catalog, "--track", "is no track:")
    # Wrecked pictures are no control of the judge; random noise of the same budget is what a perturbation must beat.
    control = {"data": "noise", "api-enforced": "random-freeze"}.get(track, "destroy")
    defenses = [entry for entry in ("none", control, name) if entry == name or entry in catalog.defenses]
    return _entry("defense", name, track, catalog, out, defenses, ["lora"])


def new_attack(name: str, hook: str, catalog: Catalog, out: Path | None = None) -> Created:
    """Write ``attacks/<name>`` with one hook and a suite that runs it, undefended, on the dev tasks.

    Raises
    ------
    UsageError
        The name is not a valid id or is taken, or there is no such hook; nothing is written.
    """
    _checked(name, hook, ATTACK_HOOKS, catalog, "--hook", "is not a hook of such an entry:")
    return _entry("attack", name, hook, catalog, out, ["none"], [name if hook == "adapt" else f"{name}+lora"])


def _checked(name: str, form: str, forms: tuple[str, ...], catalog: Catalog, option: str, why: str) -> None:
    checked_id(name, "ID")
    if any((kind, name) in catalog.paths for kind in ("defense", "attack", "suite")):
        raise UsageError("is the name of another entry or suite:", field="ID", value=name)
    if form not in forms:
        raise UsageError(why, field=option, value=form, choices=forms)


def _entry(
    kind: Literal["defense", "attack"],
    name: str,
    form: str,
    catalog: Catalog,
    out: Path | None,
    defenses: list[str],
    chains: list[str],
) -> Created:
    title = name.replace("-", " ").capitalize()
    manifest = {
        "id": name,
        "version": 1,
        "title": title,
        "authors": [placeholders.AUTHOR],
        "licence": "Apache-2.0",
        "status": "original",
        "description": placeholders.DESCRIPTION,
        **MANIFEST[form],
    }
    dev = catalog.suite(DEV_SUITE)
    tasks = list(dev.names("tasks"))
    families = scoring.FAMILIES.get(form)
    if families is not None:  # a track fixes its families: pictures of relearn tasks, say, have no owner
        tasks = [task for task in tasks if catalog.task(task).family in families]
    # One a family: a first run is a matter of minutes a task. An erasure has one family, and all tasks of it.
    if len({catalog.task(task).family for task in tasks}) > 1:
        tasks = list({catalog.task(task).family: task for task in reversed(tasks)}.values())[::-1]
    suite = {
        **dev.model_dump(mode="json", include={"profile", "seeds", "prompts", "pictures", "curve_pictures"}),
        "id": name,
        "version": "1.0",
        "title": f"{title} on the dev tasks",
        "tasks": tasks,
        "defenses": defenses,
        "chains": chains,
        "unrelated_pictures": 1,
    }
    folders = folders_to_write(out)
    folder, suite_file = folders[f"{kind}s"] / name, folders["suites"] / f"{name}.toml"

    def write_entry(place: Path) -> None:
        place.mkdir()
        (place / f"{kind}.toml").write_text(toml(manifest), "utf-8")
        (place / f"{kind}.py").write_text(CODE[form].format(title=title, docstring=placeholders.DOCSTRING), "utf-8")
        (place / "cite.bib").write_text(CITE.format(id=name), "utf-8")
        schema.load(place / f"{kind}.toml", DefenseManifest if kind == "defense" else AttackManifest)

    def write_suite(place: Path) -> None:
        place.write_text(toml(suite), "utf-8")
        schema.load(place, Suite)

    def write_test(place: Path) -> None:
        place.write_text(TEST.format(id=name), "utf-8")

    tests = {folders["root"] / "tests" / "entries" / f"test_{name.replace('-', '_')}.py": write_test}
    drafts: dict[Path, Draft] = {suite_file: write_suite, **(tests if kind == "defense" else {}), folder: write_entry}
    write_all(drafts)
    files = (f"{kind}.toml", f"{kind}.py", "cite.bib")
    return Created(
        name,
        (*(folder / file for file in files), *(place for place in drafts if place != folder)),
        (f"{kind} {name}: a working example ({form}), to be replaced by your method",),
        (
            *([f"immunebench check {shlex.quote(_shown(folder))}"] if kind == "defense" else []),
            command(folders["root"], f"run {name} --task {tasks[0]}"),
        ),
    )


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
