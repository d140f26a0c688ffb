"""A stage of one loop without a model, for tests of bookmarks through the store and the executors."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from immunebench.store.bookmark import Spent
from toy_stages import Toy

STEPS = 12
SPENT = Spent(seconds=1000.0, cpu_seconds=500.0, peak_process_gib=77.0)


def walk(spec: Toy, inputs: dict[str, Path], out: Path, report: Callable[[str, int, int], None]) -> dict[str, object]:
    """Take a random walk and write where it went; in the middle of the first attempt obey `key["do"]`."""
    import torch

    from immunebench.core.types import Numerics
    from immunebench.execution.resume import Resume
    from immunebench.methods.context import Context
    from immunebench.methods.loops import current

    loops = current()
    assert isinstance(loops, Resume)
    ctx = Context(Numerics(), 1, out, report, loops=loops)
    place = ctx.keep("place", torch.zeros(2))
    for step in ctx.counted(STEPS, "walking", resumes=True):
        if step == STEPS // 2 and not Path(spec.key["marker"]).exists():
            Path(spec.key["marker"]).touch()
            assert loops.bookmark is not None
            match spec.key["do"]:
                case "exit":
                    os._exit(9)
                case "interrupt":
                    raise KeyboardInterrupt
                case "raise":
                    raise ValueError("this walk is broken")
                case "disk full":
                    raise OSError(28, "No space left on device")
        if spec.key["do"] != "nothing" and step == STEPS // 2 - 2 and loops.bookmark is not None:
            loops.bookmark.earlier = SPENT  # as if this had taken so much until here
        place += torch.randn(2, generator=ctx.generator) + ctx.rng.normal()
        time.sleep(spec.key.get("seconds", 0.0))
        ctx.log(step, x=place[0], y=place[1])
    ctx.write_log()
    (out / "value.json").write_text(json.dumps(place.tolist()))
    return {}
