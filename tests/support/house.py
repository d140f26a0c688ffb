"""A small house of entries in a folder, for tests of what reads manifests."""

from __future__ import annotations

from pathlib import Path

DEFENSE = """\
id = "{id}"
version = 1
title = "Title of {id}"
authors = ["A. Author"]
licence = "Apache-2.0"
kind = "{kind}"
hooks = {hooks}
status = "control"
description = "What it does."
threat_model = "None."
"""

ATTACK = """\
id = "lora"
version = 3
title = "LoRA"
authors = ["A. Author"]
licence = "Apache-2.0"
hooks = ["adapt"]
description = "What it does."
[params]
rank = 4
steps = 9
batch = 1
lr = 1e-4
saves = [9]
[presets.tiny]
steps = 2
saves = [1, 2]
"""

TASK = """\
id = "style-a"
version = 1
family = "style"
base = "tiny"
split = "suite"
title = "The style of A"
[concept]
source = "toy"
name = "style/a"
kind = "near"
noun = "style"
[owner]
caption = "a painting of {content} in {token} style"
token = "oqx"
[attacker]
caption = "{content} in {token} style"
token = "sks"
[evaluation]
prompts = ["a house in {token} style", "a tree in {token} style"]
[benign]
concept = "style/b"
noun = "style"
caption = "{content} in {token} style"
token = "zvf"
prompts = ["a house in {token} style", "a tree in {token} style"]
[anchors]
others = ["style/c"]
"""

SUITE = """\
id = "tiny"
version = "1.0"
title = "Tiny"
profile = "cpu"
seeds = [0]
tasks = ["style-a"]
defenses = ["none", "shield", "noise", "none-replicate"]
chains = ["lora"]
prompts = 2
pictures = 3
curve_pictures = 2
"""

MODELS = """\
[bases.tiny]
path = "weights/tiny"
format = "diffusers"
revision = "r1"
judge = "toy"
unrelated_prompts = ["a red house", "a blue tree", "a cat", "a dog"]
[judges.toy]
loader = "toy.judges:load"
files = ["weights/judge.safetensors"]
[sources.toy]
loader = "toy.world:pictures"
version = 7
"""


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def defense(root: Path, name: str, hook: str | None, more: str = "", kind: str = "control") -> Path:
    """Write a defense with one hook or none and return its folder."""
    hooks = f'["{hook}"]' if hook else "[]"
    write(root / f"defenses/{name}/defense.toml", DEFENSE.format(id=name, kind=kind, hooks=hooks) + more)
    if hook:
        write(root / f"defenses/{name}/defense.py", f"def {hook}(*arguments):\n    return arguments\n")
    return root / f"defenses/{name}"


def house(root: Path) -> Path:
    """Write a house and its ``models.toml``, and return the latter's path."""
    write(root / "pyproject.toml", "[tool.immunebench]\n")
    write(root / "attacks/lora/attack.toml", ATTACK)
    write(root / "attacks/lora/attack.py", "def adapt(*arguments):\n    return arguments\n")
    defense(root, "none", None)
    defense(root, "none-replicate", None, "replicate = true\n")
    defense(root, "noise", "protect_images", "budget = 8\n[variants.noise-16]\nbudget = 16\n")
    shield = 'against = "lora"\naliases = ["buckler"]\n[params]\nsteps = 10\nlr = 0.1\nkeep = true\n'
    shield += '[presets.tiny]\nsteps = 5\n[variants.shield-max]\ntitle = "Max"\nparams = { lr = 0.5 }\n'
    defense(root, "shield", "protect_model", shield, kind="model")
    write(root / "tasks/style/style-a.toml", TASK)
    write(root / "suites/tiny.toml", SUITE)
    write(root / "weights/tiny/unet/config.json", "{}")
    write(root / "weights/judge.safetensors", "judge")
    return write(root / "models.toml", MODELS)
