"""Stages: pure functions from immutable artifacts to an immutable artifact.

Each takes its key, the folders of its inputs and an empty folder, which it fills; it returns figures for the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immunebench.catalog.catalog import Catalog
from immunebench.catalog.loading import default_catalog
from immunebench.core import machine
from immunebench.core.errors import UsageError
from immunebench.core.types import Numerics, Params, Pictures, StageError, Weights
from immunebench.execution import masks, resume
from immunebench.execution.grading import run_anchor, run_score
from immunebench.model import runtime
from immunebench.store.graph import runs_entries

if TYPE_CHECKING:
    from immunebench.store.graph import StageSpec
from immunebench.core.wording import recaption
from immunebench.execution.hooks import (
    Report,
    call_hook,
    check_perceptual,
    check_pictures,
    check_unchanged,
    cleaned,
    cloaked,
    concept_of,
    make_context,
    named,
    returned,
)
from immunebench.execution.inputs import Key, forget_base, load_base, loader, released

Meta = dict[str, Any]
Stage = Callable[[Key, Mapping[str, Path], Path, Report], Meta]


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
        Its kind becomes the status of the cells that need the stage.
    """
    if spec.stage not in STAGES:
        raise UsageError("unknown stage", value=spec.stage, choices=STAGES)
    stage = STAGES[spec.stage]
    if "numerics" not in spec.key:
        # No base runs here, but a judge may, whose number of threads must not depend on the machine either.
        if "judge" in spec.key:
            runtime.prepare_process(Numerics())
        return dict(stage(spec.key, inputs, out, report))
    numerics = Numerics.of(spec.key["numerics"])  # type: ignore[arg-type]
    runtime.prepare_process(numerics)
    try:
        with runtime.memory_guard(numerics) as memory:
            meta = stage(spec.key, inputs, out, report)
            memory.add(resume.earlier())
    finally:
        if runs_entries(spec):
            # An entry had this model, so the next stage loads a new one.
            forget_base()
    return {**meta, **memory.as_dict(), "environment": machine.environment(numerics.device)}


def pictures(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Draw or read a split of a concept from its source."""
    found = read_split(key, default_catalog())
    found.save(out)
    return {"pictures": len(found)}


def read_split(key: Key, catalog: Catalog) -> Pictures:
    """Return the pictures that the key of a stage ``pictures`` names."""
    name = catalog.models.sources[key["source"]].loader
    assert name is not None, "what a base draws is a stage of its own"
    load = loader(name)
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
    check_unchanged(entry, key)
    hook = key["hook"]
    model = released(key, inputs)
    ctx = make_context(key, inputs, out, report, model, resumes=True)
    concept = concept_of(key["concept"], Pictures.load(inputs["owner"]))
    p = key.get("perceptual_budget")
    params = Params({**key["params"], "budget": key["budget"], **({} if p is None else {"perceptual_budget": p})})
    if hook == "protect_model":
        weights = call_hook(entry, hook, model, (concept,), params, ctx)
        with returned(entry, hook):
            if not isinstance(weights, Weights):
                raise StageError("error", f"{entry.id}: {hook} returned {type(weights).__name__}, not Weights")
            named(entry, lambda: model.check(weights))
        weights.save(out / "weights.safetensors")
    elif hook == "freeze":
        mask = call_hook(entry, hook, model, (concept,), params, ctx)
        ratio = masks.admit(entry, mask, model, out)
        ctx.write_log()
        return {**ratio}
    else:
        published = Pictures.load(inputs["published"])
        protected = call_hook(entry, hook, model, concept, published, params, ctx)
        with returned(entry, hook):
            check_pictures(entry.id, published, protected, params.budget)
            if p is not None:
                check_perceptual(entry.id, distances(published, protected, ctx), p)
        protected.save(out)
    ctx.write_log()
    return {}


def mix(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Replace pictures by clean ones at the places that the key names, in order."""
    extra, places = Pictures.load(inputs["extra"]), key["clean"]
    images = Pictures.load(inputs["images"]) if "images" in inputs else extra
    pixels, captions = images.pixels.copy(), list(images.captions)
    for place, picture, caption in zip(places, extra.pixels, extra.captions, strict=False):
        pixels[place], captions[place] = picture, caption
    count = len(images) if "images" in inputs else len(places)
    Pictures(pixels[:count], tuple(captions[:count])).save(out)
    return {"pictures": count}


def restore(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Leave tensors out of released weights, so that the base's take their place."""
    from immunebench.model.tensors import selected

    weights = Weights.load(inputs["weights"] / "weights.safetensors")
    kept = {name: tensor for name, tensor in weights.tensors.items() if not selected(name, key["tensors"])}
    Weights(kept).save(out / "weights.safetensors")
    return {"restored": len(weights.tensors) - len(kept)}


def purify(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Clean the pictures by the attacker's purifier before training."""
    entry = default_catalog().attack(key["entry"])
    check_unchanged(entry, key)
    model = load_base(key)
    ctx = make_context(key, inputs, out, report, model)
    images = Pictures.load(inputs["images"])
    clean = cleaned(entry, "purify", model, images, Params(key["params"]), ctx)
    clean.save(out)
    ctx.write_log()
    return {"pictures": len(clean)}


def adapt(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Run an attack on pictures, from the released weights where there are some."""
    entry = default_catalog().attack(key["entry"])
    check_unchanged(entry, key)
    model = released(key, inputs)
    if "mask" in inputs:
        masks.enforce(model, inputs["mask"])
    ctx = make_context(key, inputs, out, report, model, resumes=True)
    images = recaption(Pictures.load(inputs["images"]), key["caption"], token=key["token"], noun=key["noun"])
    params = Params(key["params"])
    call_hook(entry, "adapt", model, images, params, ctx)
    missing = sorted(set(params.saves) - set(ctx.saved))
    if missing:
        raise StageError("error", f"{entry.id}: no adapter was saved at step {missing[0]}")
    masks.check_adapters(entry, model, out, ctx.saved)
    ctx.write_log()
    return {"steps": params.steps, "optimiser_bytes": ctx.optimiser_bytes, **masks.trained(out, params.steps)}


def generate(key: Key, inputs: Mapping[str, Path], out: Path, report: Report) -> Meta:
    """Draw `per_prompt` pictures for each prompt, each from its own noise, and clean them where the chain does."""
    from immunebench.methods.adapters import install

    model = released(key, inputs)
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
        check_unchanged(entry, code)
        words = {"seed": runtime.derive_seed("clean", json.dumps(key["noise_key"])), "token": "", "noun": ""}
        ctx = make_context({**code, **words}, {}, out, report, model)
        drawn = cleaned(entry, "clean_samples", model, drawn, Params(code["params"]), ctx)
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
    "restore": restore,
    "purify": purify,
    "adapt": adapt,
    "generate": generate,
    "score": run_score,
    "anchor": run_anchor,
}
