"""Stages: pure functions from immutable artifacts to an immutable artifact.

Each takes its key, the folders of its inputs and an empty folder; it fills that and returns figures to keep.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from immunebench.catalog import artefact
from immunebench.catalog.entry import Catalog, Entry, default_catalog, digests
from immunebench.core.errors import UsageError
from immunebench.core.types import Concept, Numerics, Params, Pictures, StageError, Weights
from immunebench.core.wording import fill
from immunebench.execution import resume
from immunebench.execution.grading import run_anchor, run_score
from immunebench.model import runtime
from immunebench.store.graph import runs_entries

if TYPE_CHECKING:
    from torch import Tensor

    from immunebench.methods.adapters import Adapter
    from immunebench.methods.context import AttackHandle, Context
    from immunebench.model.diffusion import LatentDiffusion
    from immunebench.store.graph import StageSpec

Report = Callable[[str, int, int], None]
Meta = dict[str, Any]
Key = Mapping[str, Any]
Stage = Callable[[Key, Mapping[str, Path], Path, Report], Meta]

_bases: dict[str, LatentDiffusion] = {}


def run_stage(spec: StageSpec, inputs: dict[str, Path], out: Path, report: Report) -> dict[str, object]:
    """Carry out one stage.

    Parameters
    ----------
    spec : StageSpec
        Its `stage` and `key` decide everything but the paths.
    inputs : dict of str to Path
        Folders of the artifacts that it reads, by the name of the input.
    out : Path
        Empty folder to fill.
    report : callable
        Progress: what, done, of how many.

    Returns
    -------
    dict
        Figures for the manifest: memory peaks in GiB, the environment, and what the stage adds.

    Raises
    ------
    StageError
        With the status that the cells above it get.
    """
    if spec.stage not in STAGES:
        raise UsageError("unknown stage", value=spec.stage, choices=STAGES)
    stage = STAGES[spec.stage]
    if "numerics" not in spec.key:
        # No base runs here, but a judge may: its threads must not depend on the machine either.
        if "judge" in spec.key:
            runtime.prepare_process(Numerics())
        return dict(stage(spec.key, inputs, out, report))
    numerics = Numerics.of(spec.key["numerics"])  # type: ignore[arg-type]
    runtime.prepare_process(numerics)
    try:
        with runtime.memory_guard(numerics) as memory:
            meta = stage(spec.key, inputs, out, report)
            memory.add(resume.current().earlier)
    finally:
        if runs_entries(spec):
            # Foreign code held this model; nothing that it may have left on it reaches another stage.
            _bases.clear()
    return {**meta, **memory.as_dict(), "environment": runtime.environment(numerics.device)}


def load_base(key: Key) -> LatentDiffusion:
    """Return the base that a key names, in its untouched state; kept for the next stage of this process."""
    from immunebench.model.diffusion import LatentDiffusion

    numerics = Numerics.of(key["numerics"])
    fixed = replace(numerics, sampler="", sampling_steps=0, guidance=0.0, memory_gib=0.0, threads=0, batch=0)
    name = f"{key['base']} {json.dumps(key.get('base_files'), sort_keys=True)} {fixed!r}"
    if name not in _bases:
        _bases.clear()
        _bases[name] = LatentDiffusion.load(_planned(key["base"], key), numerics)
    model = _bases[name]
    model.numerics = numerics
    model.restore()
    return model


def _planned(base: str, key: Key) -> Path:
    """Return the folder of a base; an OSError where the files of a hub's are others than those that the key names."""
    catalog = default_catalog()
    if catalog.models.bases[base].hub and catalog.base_files(base) != key["base_files"]:
        raise OSError(f"base {base}: its files changed after the run was planned; start it again")
    return catalog.base_folder(base)


def load_distance(name: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a perceptual distance that ``models.toml`` names; see `Context.perceptual`."""
    distance: Callable[[Tensor, Tensor], Tensor] = _loader(default_catalog().models.perceptual[name].loader)(device)
    return distance


def recaption(pictures: Pictures, template: str, *, token: str, noun: str) -> Pictures:
    """Caption every picture from a template; see `wording.fill`."""
    captions = (fill(template, token=token, noun=noun, content=content) for content in pictures.captions)
    return Pictures(pictures.pixels, tuple(captions))


def pictures(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Draw or read a split of a concept from its source."""
    found = read_split(key, default_catalog())
    found.save(out)
    return {"pictures": len(found)}


def read_split(key: Key, catalog: Catalog) -> Pictures:
    """Return the pictures that the key of a stage ``pictures`` names."""
    name = catalog.models.sources[key["source"]].loader
    assert name is not None, "what a base draws is a stage of its own"
    load = _loader(name)
    named = {"files": key["files"]} if "files" in key else {}
    pixels, captions = load(key["concept"], key["split"], key["count"], **named)
    return Pictures(pixels, tuple(captions))


def protect(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Run a defense's hook once and check what it returns."""
    from immunebench.methods.bound import distances

    (entry,) = default_catalog().defense(key["entry"]).layers
    if "cloaked" in key:
        cloaked(entry, key, inputs["published"]).save(out)
        return {}
    _unchanged(entry, key)
    hook = key["hook"]
    model = _released(key, inputs)
    ctx = _context(key, inputs, out, report, model, resumes=True)
    concept = _concept(key["concept"], Pictures.load(inputs["owner"]))
    p = key.get("perceptual_budget")
    params = Params({**key["params"], "budget": key["budget"], **({} if p is None else {"perceptual_budget": p})})
    if hook == "protect_model":
        weights = call_hook(entry, hook, model, (concept,), params, ctx)
        if not isinstance(weights, Weights):
            raise StageError("error", f"{entry.id}: {hook} returned {type(weights).__name__}, not Weights")
        _named(entry, lambda: model.check(weights))
        weights.save(out / "weights.safetensors")
    else:
        published = Pictures.load(inputs["published"])
        protected = call_hook(entry, hook, model, concept, published, params, ctx)
        check_pictures(entry.id, published, protected, params.budget)
        if p is not None:
            check_perceptual(entry.id, distances(published, protected, ctx), p)
        protected.save(out)
    ctx.write_log()
    return {}


def cloaked(entry: Entry, key: Key, clean: Path) -> Pictures:
    """Read what a closed tool made of the published pictures and hold it to its declared bound.

    Raises
    ------
    StageError
        Kind ``skipped`` where the entry has no pictures of the task; ``error`` where they do not fit it.
    """
    name, task, p = entry.id, key["task"], key.get("perceptual_budget")
    if not key["cloaked"]:
        raise StageError("skipped", f"{name}: no pictures of the task {task} were submitted")
    published = Pictures.load(clean)
    protected = artefact.cloaked(name, entry.folder / task, key["cloaked"], published)
    check_pictures(name, published, protected, key["budget"])
    if p is not None:
        check_perceptual(name, artefact.distances(key["perceptual"]["id"], protected, published), p)
    return protected


def check_pictures(entry: str, published: Pictures, protected: object, budget: int | None) -> None:
    """Hold an image defense to its declared budget, on the 8-bit pixels that are saved.

    Raises
    ------
    StageError
        If the result is no `Pictures` of the same shape and captions, or a pixel moved by more than `budget`.
    """
    if not isinstance(protected, Pictures):
        raise StageError("error", f"{entry}: protect_images returned {type(protected).__name__}, not Pictures")
    if protected.pixels.shape != published.pixels.shape:
        raise StageError("error", f"{entry}: pictures of shape {protected.pixels.shape}, not {published.pixels.shape}")
    if protected.captions != published.captions:
        raise StageError("error", f"{entry}: protect_images changed the captions")
    if budget is None:
        return
    change = np.abs(protected.pixels.astype(np.int16) - published.pixels.astype(np.int16))
    if change.max() > budget:
        raise StageError("error", f"{entry}: Linf of {change.max()}/255 exceeds the declared budget of {budget}/255")


def check_perceptual(entry: str, distances: NDArray[np.float64], p: float) -> None:
    """Hold an image defense to its declared perceptual distance, measured on the 8-bit pixels that are saved.

    Raises
    ------
    StageError
        If a picture lies further than `p` from the published one.
    """
    furthest = distances.max()
    if not furthest <= p + 1e-6:
        raise StageError("error", f"{entry}: a perceptual distance of {furthest:.4f} exceeds the declared {p:g}")


def mix(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Put clean pictures in the places that the key names, the first of them in the first place."""
    extra, places = Pictures.load(inputs["extra"]), key["clean"]
    images = Pictures.load(inputs["images"]) if "images" in inputs else extra
    pixels, captions = images.pixels.copy(), list(images.captions)
    for place, picture, caption in zip(places, extra.pixels, extra.captions, strict=False):
        pixels[place], captions[place] = picture, caption
    count = len(images) if "images" in inputs else len(places)
    Pictures(pixels[:count], tuple(captions[:count])).save(out)
    return {"pictures": count}


def purify(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Let the attacker clean the pictures before training on them."""
    entry = default_catalog().attack(key["entry"])
    _unchanged(entry, key)
    model = load_base(key)
    ctx = _context(key, inputs, out, report, model)
    images = Pictures.load(inputs["images"])
    cleaned = _cleaned(entry, "purify", model, images, Params(key["params"]), ctx)
    cleaned.save(out)
    ctx.write_log()
    return {"pictures": len(cleaned)}


def _cleaned(
    entry: Entry, hook: str, model: LatentDiffusion, images: Pictures, params: Params, ctx: Context
) -> Pictures:
    cleaned = call_hook(entry, hook, model, images, params, ctx)
    if not isinstance(cleaned, Pictures):
        raise StageError("error", f"{entry.id}: {hook} returned {type(cleaned).__name__}, not Pictures")
    if cleaned.pixels.shape != images.pixels.shape or cleaned.captions != images.captions:
        raise StageError("error", f"{entry.id}: {hook} changed the number, the size or the captions of the pictures")
    return cleaned


def adapt(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Run an attack on pictures, from the released weights where there are some."""
    entry = default_catalog().attack(key["entry"])
    _unchanged(entry, key)
    model = _released(key, inputs)
    ctx = _context(key, inputs, out, report, model, resumes=True)
    images = recaption(Pictures.load(inputs["images"]), key["caption"], token=key["token"], noun=key["noun"])
    params = Params(key["params"])
    call_hook(entry, "adapt", model, images, params, ctx)
    missing = sorted(set(params.saves) - set(ctx.saved))
    if missing:
        raise StageError("error", f"{entry.id}: no adapter was saved at step {missing[0]}")
    ctx.write_log()
    return {"steps": params.steps}


def generate(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Draw `per_prompt` pictures for each prompt, each from its own noise, and clean them where the chain does."""
    from immunebench.methods.adapters import install

    model = _released(key, inputs)
    if "adapter" in inputs:
        install(model, inputs["adapter"], key["step"])
    prompts = key["prompts"]
    places = [(p, i) for p in range(len(prompts)) for i in range(key["per_prompt"])]
    cleaning = key.get("cleaning", {})
    drawn = model.sample(
        [prompts[p] for p, _ in places],
        [runtime.derive_seed("noise", json.dumps(key["noise_key"]), p, i) for p, i in places],
        negative=cleaning.get("negative_prompt", ""),
        progress=lambda done: report("generate", done, len(places)),
    )
    for code in cleaning.get("clean_samples", ()):
        entry = default_catalog().attack(code["entry"])
        _unchanged(entry, code)
        words = {"seed": runtime.derive_seed("clean", json.dumps(key["noise_key"])), "token": "", "noun": ""}
        ctx = _context({**code, **words}, {}, out, report, model)
        drawn = _cleaned(entry, "clean_samples", model, drawn, Params(code["params"]), ctx)
        ctx.check()
    drawn.save(out, [f"p{p:02d}-{i:02d}" for p, i in places])
    (out / "prompts.json").write_text(
        json.dumps({"prompts": prompts, "per_prompt": key["per_prompt"]}, indent=1) + "\n"
    )
    return {"pictures": len(drawn)}


STAGES: dict[str, Stage] = {
    "pictures": pictures,
    "protect": protect,
    "mix": mix,
    "purify": purify,
    "adapt": adapt,
    "generate": generate,
    "score": run_score,
    "anchor": run_anchor,
}


@dataclass(frozen=True, slots=True)
class Simulated:
    """An attack as a defense is lent it: its parameters, and what it trains."""

    entry: Entry
    params: Params
    ctx: Context

    def attach(self, model: LatentDiffusion) -> Adapter:
        """Put what the attack trains on a model."""
        module = importlib.import_module(self.entry.function("adapt").__module__)
        adapter: Adapter = module.attach(model, self.params, self.ctx)
        return adapter


def _context(
    key: Key, inputs: Mapping[str, Path], out: Path, report: Report, model: LatentDiffusion, *, resumes: bool = False
) -> Context:
    from immunebench.methods.context import Context

    attacks: dict[str, AttackHandle] = {}
    public, prior = (Pictures.load(inputs[name]) if name in inputs else None for name in ("public", "prior"))
    words = key.get("concept", key)
    caption, token, noun = words.get("caption", "{content}"), words["token"], words["noun"]
    bases = {name: _surrogate(name, key, model) for name in key.get("surrogates", {})}
    ctx = Context(
        model.numerics, key["seed"], out, report, attacks, public, prior, token=token, noun=noun, bases=bases,
        captioned=lambda pictures: recaption(pictures, caption, token=token, noun=noun),
    )  # fmt: skip
    if resumes:
        ctx.resume = resume.current()
        ctx.resume.loops = resume.known(key)
    if "perceptual" in key:
        ctx.distance = load_distance(key["perceptual"]["id"], str(model.device))
    if "upscaler" in key:
        ctx.upscaler = _loader(default_catalog().models.upscalers[key["upscaler"]["id"]].loader)(model.numerics)
    for name, attack in key.get("against", {}).items():
        attacks[name] = Simulated(default_catalog().attack(attack["entry"]), Params(attack["params"]), ctx)
    return ctx


def _loader(name: str) -> Callable[..., Any]:
    """Import what ``module:function`` names in ``models.toml``."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _surrogate(name: str, key: Key, model: LatentDiffusion) -> Callable[[], LatentDiffusion]:
    """Return what loads a base beside the stage's own, which is not loaded twice."""
    from immunebench.model.diffusion import LatentDiffusion

    if name == key["base"]:
        return lambda: model
    return lambda: LatentDiffusion.load(_planned(name, key["surrogates"][name]), model.numerics)


def _concept(view: Key, owner: Pictures) -> Concept:
    token, noun = view["token"], view["noun"]
    captioned = recaption(owner, view["caption"], token=token, noun=noun)
    return Concept(view["id"], view["family"], noun, token, captioned.captions[0], captioned)


def _released(key: Key, inputs: Mapping[str, Path]) -> LatentDiffusion:
    model = load_base(key)
    if "weights" in inputs:
        model.apply(Weights.load(inputs["weights"] / "weights.safetensors"))
    return model


def _unchanged(entry: Entry, key: Key) -> None:
    """Refuse code that is not the code of the key; an OSError, so that the next run tries again unasked."""
    if digests(entry.folder) != key["entry_files"]:
        raise OSError(f"{entry.id}: its files changed after the run was planned; start it again")


def call_hook(entry: Entry, hook: str, *arguments: object) -> Any:
    """Call an entry's function; what it raises becomes one line with the entry's name.

    Raises
    ------
    StageError
        If the function fails.
    """
    return _named(entry, lambda: entry.function(hook)(*arguments))


def _named(entry: Entry, call: Callable[[], Any]) -> Any:
    """Say in one line which entry failed; memory errors pass, for the guard to judge."""
    try:
        return call()
    except StageError as error:
        raise StageError(error.kind, f"{entry.id}: {error}") from error
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        text = " ".join(str(error).split())
        raise StageError("error", f"{entry.id}: {type(error).__name__}: {text}") from error
