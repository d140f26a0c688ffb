"""What runs in the process of one stage: sets up what the stage needs from its job alone, then carries it out.

The job was cut by `immunebench.execution.lending`: no prompts of the evaluation, no name of the concept, nothing of
other entries. What the stage writes and says is not believed; see `immunebench.execution.admission`.
"""

from __future__ import annotations

import faulthandler
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from immunebench.box.child import WorkFailed
from immunebench.box.messages import Channel, Marked, Note, Progress
from immunebench.core import machine
from immunebench.execution.executor import resolve
from immunebench.execution.failures import failed_message
from immunebench.execution.resume import Resume
from immunebench.methods.loops import running
from immunebench.store import bookmark
from immunebench.store.bookmark import Bookmark

_REPORT_EVERY = 0.2
Job = Mapping[str, Any]


@dataclass(frozen=True)
class JobSpec:
    """The part of a planned stage that its code may know."""

    stage: str
    key: Mapping[str, Any]
    inputs: Mapping[str, str]
    digest: str = ""


def warm() -> None:
    """Import what stages import, so that their processes are forked with it; run no model and touch no GPU."""
    import diffusers
    import numpy
    import peft
    import PIL.PngImagePlugin
    import safetensors.torch
    import torch
    import transformers

    from immunebench.execution import admission, stages
    from immunebench.methods import bound, consistency, perturb, restoration, surrogate
    from immunebench.metrics import perceptual
    from immunebench.mini import judges, upscaler
    from immunebench.model import sampling, upscale
    from immunebench.store.artifacts import versions

    names = ("AutoencoderKL", "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler",
             "UNet2DConditionModel")  # fmt: skip
    _ = [getattr(diffusers, name) for name in names]
    _ = [getattr(transformers, name) for name in ("CLIPTextModel", "CLIPTokenizer")]
    torch.set_num_threads(1)
    with torch.no_grad():  # The first optimiser imports a compiler, whether or not anything is compiled.
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    assert (
        numpy,
        peft,
        safetensors,
        admission,
        stages,
        bound,
        consistency,
        perturb,
        restoration,
        surrogate,
    ) is not None
    assert (sampling, upscale, perceptual, judges, upscaler, PIL) is not None
    machine.environment()
    versions()
    bookmark._engine()


def stage(job: Job, channel: Channel) -> dict[str, Any]:
    """Carry out a stage of the suite; returns the figures that it claims."""
    from immunebench.catalog import loading
    from immunebench.execution import stages

    def carry_out(inputs: dict[str, Path], out: Path, report: Callable[[str, int, int], None]) -> dict[str, object]:
        loading.give(stand_in(job))
        return stages.run_stage(JobSpec(job["stage"], job["key"], {}), inputs, out, report)  # type: ignore[arg-type]

    return _carried_out(job, channel, carry_out)


def other(job: Job, channel: Channel) -> dict[str, Any]:
    """Carry out a stage by the function that the job names, as tests have them."""
    spec = JobSpec(job["stage"], job["key"], job["digests"], job["digest"])
    function = resolve(job["run_stage"])
    return _carried_out(job, channel, lambda inputs, out, report: function(spec, inputs, out, report))


def _carried_out(job: Job, channel: Channel, call: Callable[..., dict[str, object]]) -> dict[str, Any]:
    told = 0.0

    def report(what: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > _REPORT_EVERY or done == total:
            told = now
            channel.say(Progress(what=str(what)[:200], done=int(done), total=int(total)))

    # Printed shortly before the parent ends this process, so that it can say where the time went.
    faulthandler.dump_traceback_later(float(job["told_after"]), file=2)
    inputs = {name: Path(folder) for name, folder in job["inputs"].items()}
    mark = _Bookmark(Path(job["bookmark"]), job["token"], channel, float(job["every"]))
    try:
        with running(Resume(mark)):
            return dict(call(inputs, Path(job["out"]), report))
    except Exception as error:
        raise WorkFailed(failed_message(error, Path(job["out"]))) from error


class _Bookmark(Bookmark):
    """Bookmarks that the parent takes each as it is written."""

    def __init__(self, folder: Path, token: str, channel: Channel, every: float) -> None:
        super().__init__(folder, token, every=every, tell=self._told)
        self._channel = channel

    def _told(self, line: str, seconds: float) -> None:
        self._channel.say(Note(line=line[:500], resumes=line.startswith("continues")))

    def write(self, state: Mapping[str, Any], tensors: Mapping[str, Any], out: Path, device: str) -> None:
        """Write a bookmark, and wait until the parent has it."""
        before = [page.name for page in self._pages()]
        super().write(state, tensors, out, device)
        for page in self._pages():
            if page.name not in before:
                self._channel.say(Marked(page=page.name))
                self._channel.wait()


def stand_in(job: Job) -> Any:
    """Return a catalogue that knows the entries, the bases and the networks of one job alone."""
    from immunebench.catalog.catalog import Catalog
    from immunebench.catalog.entry import Entry
    from immunebench.declared.manifest import AttackManifest, DefenseManifest
    from immunebench.declared.models import Models

    class OneStage(Catalog):
        def base_folder(self, base: str, **where: Any) -> Path:
            return Path(job["bases"][base])

        def base_files(self, base: str) -> dict[str, str]:
            # Compared outside, and only read from here.
            key = job["key"]
            return dict(key["base_files"] if base == key["base"] else key["surrogates"][base]["base_files"])

    networks: dict[str, Any] = {
        kind: {name: SimpleNamespace(loader=loader) for name, loader in job[kind].items()}
        for kind in ("perceptual", "upscalers")
    }
    bases = {name: SimpleNamespace(embedded=True) for name in job["bases"]}
    models: Any = Models.model_construct(bases=bases, **networks)
    catalog = OneStage(models, Path("/"))
    for found in job["entries"]:
        manifest: Any = (DefenseManifest if found["kind"] == "defense" else AttackManifest).model_construct(
            id=found["id"],
            hooks=tuple(found["hooks"]),
            variants={},
            aliases=(),
            version=0,
            **({"trains": found["trains"]} if found["kind"] == "attack" else {}),
        )
        table = catalog.defenses if found["kind"] == "defense" else catalog.attacks
        table[found["id"]] = Entry(found["id"], found["kind"], Path(found["folder"]), manifest)
    return catalog
