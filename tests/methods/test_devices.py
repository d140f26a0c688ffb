"""Every entry with its model on another device than the host: nothing mixes the two, and little is read back.

Torch's meta device stands in for a GPU. What CUDA would refuse (a tensor of the host beside one of the device) is
noted, and so is each read from the device to the host with the line that asked for it: a read inside a loop makes a GPU
wait at each step.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Numerics, Params, Pictures
from immunebench.execution.hooks import Simulated
from immunebench.methods.context import Context
from immunebench.mini import upscaler
from immunebench.mini.judges import load_public_distance
from immunebench.model import optim
from immunebench.model.diffusion import LatentDiffusion
from tiny import tiny_context, tiny_folder, tiny_pictures

aten = torch.ops.aten
CATALOG = load_catalog()
#: An index may lie on the host, and a copy is what moves a tensor.
MAY_MIX = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten.copy_, aten._to_copy)


#: Files that read the device at each step, and why.
READS = {"methods/perturb.py": "a gradient that is not finite ends the stage at once; pictures are rounded on the host"}


class OtherDevice(TorchDispatchMode):
    """Answers what would need values, and notes mixed operations and reads by the line that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[str] = set()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        away = first is not None and first.device.type == "meta"
        if func is aten._local_scalar_dense.default and first is not None and away:
            self.reads[asked()] += 1
            return 0.5 if first.is_floating_point() else first.dtype is torch.bool or 1
        if func is aten.equal.default:
            return True
        if func is aten._to_copy.default and first is not None and away:
            device, dtype = kwargs.get("device"), kwargs.get("dtype") or first.dtype
            if device is not None and torch.device(device).type == "cpu":
                self.reads[asked()] += 1
                return torch.full(first.shape, 0.25 if dtype.is_floating_point else 1, dtype=dtype)
        if func is aten.copy_.default and first is not None and isinstance(args[1], torch.Tensor):
            if not away and args[1].device.type == "meta":
                self.reads[asked()] += 1
            if away != (args[1].device.type == "meta"):
                return first
        if func is aten.nonzero.default and first is not None and away:
            self.reads[asked()] += 1
            return torch.zeros(1, first.ndim, dtype=torch.int64, device="meta")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors if t.ndim}) > 1 and func.overloadpacket not in MAY_MIX:
            self.mixed.add(f"{func} at {asked()}")
        return func(*args, **kwargs)


def asked() -> str:
    """The line of the package, or of an entry, that an operation comes from."""
    for frame in reversed(traceback.extract_stack()):
        for root in ("/immunebench/", "/defenses/", "/attacks/"):
            if root in frame.filename and "/tests/" not in frame.filename:
                place = frame.filename.rsplit(root, 1)[1]
                return f"{place if root == '/immunebench/' else root[1:] + place}:{frame.lineno}"
    return "?"


#: What decides how long an entry takes, and words that the tiny vocabulary has.
LEAST: dict[str, Any] = {
    "batch": 2, "inner_steps": 1, "pictures": 2, "sampling_steps": 4, "drawing_steps": 1, "saves": [], "train_steps": 1,
    "deletions": 1, "candidates": 2, "trials": 1, "states": 2, "apart": 1, "unroll": 1, "advance": 1, "probe_steps": 1,
    "contents": ["a"], "styles": ["k", "l", "m"], "rank": 2,
}  # fmt: skip


def settings(entry: Any, steps: int) -> Params:
    own = entry.params("sd14")
    loops = dict.fromkeys(("steps", "user_steps", "rounds", "pgd_steps"), steps) | {"saves": [steps]}
    short = {**LEAST, **loops}
    bounds = {"budget": entry.budget, "perceptual_budget": entry.perceptual_budget} if entry.kind == "defense" else {}
    return Params({**own, **{name: value for name, value in short.items() if name in own}, **bounds})


@contextmanager
def away(monkeypatch: pytest.MonkeyPatch, out: Path) -> Iterator[tuple[LatentDiffusion, Context, OtherDevice]]:
    """A model on the other device, with all that a manifest can ask for; values are nobody's business there."""
    mode = OtherDevice()
    clip = torch.nn.utils.clip_grad_norm_

    def each_alone(numerics: Numerics) -> Callable[..., torch.optim.Optimizer]:
        return lambda parameters, **options: torch.optim.AdamW(parameters, foreach=False, **options)

    monkeypatch.setattr(optim, "_maker", each_alone)
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, c, foreach=None: clip(p, c, foreach=False))
    monkeypatch.setattr(Context, "check", lambda self: None)
    monkeypatch.setattr(Context, "checkpoint", lambda self, step, adapter: self.saved.append(step))
    numerics = Numerics(device="meta", resolution=32, sampling_steps=4, batch=2)
    with mode:
        model = LatentDiffusion.load(tiny_folder(), numerics)
    ctx = tiny_context(model, out, seed=4)
    ctx.token, ctx.noun = "q", "m"
    ctx.prior, ctx.public = tiny_pictures(4, "a m", seed=1), tiny_pictures(4, "a z", seed=2)
    ctx.upscaler = upscaler.load(Numerics(resolution=32))
    with mode:
        ctx.distance = load_public_distance("meta")
        yield model, ctx, mode


def run(name: str, hook: str, steps: int, monkeypatch: pytest.MonkeyPatch, out: Path) -> OtherDevice:
    entry = (CATALOG.attacks | CATALOG.defenses)[name]
    own = tiny_pictures(2, "a q")
    noise = np.random.default_rng(6).normal(0, 5, own.pixels.shape)
    given = Pictures((own.pixels + noise).clip(0, 255).round().astype(np.uint8), ("a {subject}", "b"))
    concept = Concept("object-m", "object", "m", "q", "a q", own)
    with away(monkeypatch, out) as (model, ctx, mode):
        attacks = {n: CATALOG.attack(n) for n in entry.against}
        ctx.attacks = {n: Simulated(a, settings(a, steps), ctx) for n, a in attacks.items()}
        call, params = entry.function(hook), settings(entry, steps)
        if hook in ("protect_model", "freeze"):
            call(model, (concept,), params, ctx)
        elif hook == "protect_images":
            call(model, concept, given, params, ctx)
        else:
            call(model, own if hook == "adapt" else given, params, ctx)
    return mode


CASES = [
    (name, hook)
    for name, entry in {**CATALOG.attacks, **CATALOG.defenses}.items()
    # Variants of one code differ in numbers alone; those with bases of their own are too large for the tiny model.
    if entry.variant is None and not entry.surrogates and entry.artefact is None
    for hook in entry.hooks
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hook"), CASES)
def test_no_entry_mixes_devices_or_reads_the_device_back_at_each_step(
    name: str, hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = (run(name, hook, steps, monkeypatch, tmp_path) for steps in (1, 2))
    assert not short.mixed and not long.mixed
    growing = {line for line, count in long.reads.items() if count > short.reads[line]}
    undeclared = sorted(line for line in growing if line.rpartition(":")[0] not in READS)
    assert not undeclared, "reads of the device at each step"
