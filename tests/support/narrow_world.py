"""A full-size base's form with few channels, a profile for it, and a defense of two steps, as entries of one's own."""

from __future__ import annotations

import json
from pathlib import Path

from immunebench.bases import base_folder, own
from immunebench.catalog.entry import sha256
from immunebench.catalog.places import PACKAGE
from tiny import narrow_folder

BUDGET = 5
_DEFENSE = f"""\
id = "two-steps"
version = 3
title = "Two steps"
authors = ["Somebody"]
licence = "Apache-2.0"
kind = "data"
hooks = ["protect_images"]
status = "original"
budget = {BUDGET}
description = "Two steps up the denoising loss."
threat_model = "The attacker trains on the changed pictures."
"""
_CODE = '''\
"""Two steps up the denoising loss."""

from immunebench import Concept, Context, Draws, LatentDiffusion, Params, Perturbation, Pictures


def protect_images(
    model: LatentDiffusion, concept: Concept, published: Pictures, params: Params, ctx: Context
) -> Pictures:
    x = Perturbation(model, published.pixels, params.budget, seed=ctx.seed_of("start"), start="random")
    draws = Draws(ctx.captioned(published).captions, ctx.seed_of("noise"))
    for _ in ctx.counted(2, "perturbing"):
        x.ascend(lambda images, rows: model.losses(draws.batch(model, images, rows)), 3.0)
    return Pictures(x.pictures(), published.captions)
'''


def write(root: Path, weights: Path) -> None:
    """Write the entries, and the base ``narrow`` among the weights that a user added."""
    for folder in ("bases", "profiles", "defenses/two-steps"):
        (root / folder).mkdir(parents=True)
    added = narrow_folder(weights / "bases" / "narrow", half=True)
    digest = own.digest(added)
    files = {name: sha256(added / name) for name in base_folder.loaded_files(added)}
    (added / base_folder.ORIGIN).write_text(json.dumps({"checkpoint": digest, "files": files}))
    (root / "bases/narrow.toml").write_text(
        f'id = "narrow"\ntitle = "Few channels"\nlike = "sd14"\n[checkpoints]\ntrained = "{digest}"\n'
    )
    profile = (PACKAGE / "profiles/cpu.toml").read_text().replace('id = "cpu"', 'id = "quick"')
    (root / "profiles/quick.toml").write_text(profile.replace("sampling_steps = 20", "sampling_steps = 1"))
    (root / "defenses/two-steps/defense.toml").write_text(_DEFENSE)
    (root / "defenses/two-steps/defense.py").write_text(_CODE)
    (root / "defenses/two-steps/cite.bib").write_text("@misc{two-steps, title = {Two steps}, author = {Body, Some}}\n")
