"""Stage functions of a few lines, for tests of the store and the executors without torch."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

#: Added to every value; 0 until a stage of this process changes it, as hostile code would change a judge.
bias = 0


@dataclass(frozen=True)
class Toy:
    """A planned stage with the attributes that the store reads."""

    stage: str
    key: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        body = json.dumps([self.stage, self.key, self.inputs], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()


def graph(*specs: Toy) -> dict[str, Toy]:
    """Specs by digest."""
    return {spec.digest: spec for spec in specs}


def two_bases(log: Path) -> list[Toy]:
    """Stages of the bases a and b: one of each at once, so that both workers have a base, then one after the other."""
    specs = [
        Toy("generate", {"value": n, "base": "ab"[n], "do": "sleep", "seconds": 2, "log": str(log)}) for n in (0, 1)
    ]
    for number in range(2, 8):
        needs = {str(place): spec.digest for place, spec in enumerate(specs)}
        specs.append(Toy("generate", {"value": number, "base": "ba"[number % 2], "log": str(log)}, needs))
    return specs


def processes_of(specs: list[Toy], log: Path) -> list[set[str]]:
    """The processes that made the stages of each base."""
    process = dict(line.split() for line in log.read_text().splitlines())
    return [{process[str(spec.key["value"])] for spec in specs if spec.key["base"] == base} for base in "ab"]


def add(spec: Toy, inputs: dict[str, Path], out: Path, report: Callable[[str, int, int], None]) -> dict[str, object]:
    """Write the key's value plus the inputs' values; obey `key["do"]`."""
    match spec.key.get("do"):
        case "patch":
            global bias
            bias = 1000
        case "raise":
            raise ValueError("this stage is broken")
        case "exit":
            (out / "half.txt").write_text("half")
            os._exit(7)
        case "exit once" if not Path(spec.key["marker"]).exists():
            Path(spec.key["marker"]).touch()
            (out / "half.txt").write_text("half")
            os._exit(7)
        case "kill once" if not Path(spec.key["marker"]).exists():
            Path(spec.key["marker"]).touch()
            (out / "half.txt").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            for step in range(int(spec.key["seconds"] / 0.02)):
                report("sleeping", step, 100)
                time.sleep(0.02)
        case "disk full":
            raise OSError(28, "No space left on device")
    if "log" in spec.key:
        with open(spec.key["log"], "a") as stream:
            stream.write(f"{spec.key['value']} {os.getpid()}\n")
    total = bias + spec.key["value"] + sum(json.loads((p / "value.json").read_text()) for p in inputs.values())
    report("adding", 1, 1)
    (out / "value.json").write_text(json.dumps(total))
    return {"threads": os.environ.get("OMP_NUM_THREADS", "")}


def every_stage(
    spec: Any, inputs: dict[str, Path], out: Path, report: Callable[[str, int, int], None]
) -> dict[str, object]:
    """Stand in for the real stages: files of the right names, values that depend on the digest alone."""
    if "fail" in os.environ.get("TOY_FAIL", "") and spec.key.get("entry") == "destroy":
        raise ValueError("the entry is broken")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    number = int(spec.digest[:8], 16) / 2**32
    match spec.stage:
        case "pictures":
            _picture(out / "p00-00.png", spec.digest)
        case "generate":
            for prompt in range(len(spec.key["prompts"])):
                for picture in range(spec.key["per_prompt"]):
                    _picture(out / f"p{prompt:02d}-{picture:02d}.png", spec.digest)
        case "adapt":
            for step in spec.key["params"]["saves"]:
                (out / f"adapter-{step:05d}.safetensors").write_bytes(bytes.fromhex(spec.digest))
        case "anchor":
            _write(out / "scores.json", {"m_same": 0.9, "m_other": 0.1})
        case "score":
            names = [f"{m['id']}@{m['version']}" for m in spec.key["metrics"]]
            generated = inputs.get("generated")
            count = 1 if generated is None else len(list(generated.glob("*.png")))
            values = [number * (1 - 0.01 * place / count) for place in range(count)]
            score = {"values": values, "mean": sum(values) / count}
            _write(out / "scores.json", {"metrics": dict.fromkeys(names, score)})
        case _:
            _write(out / "log.json", number)
    return {}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _picture(path: Path, digest: str) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), f"#{digest[:6]}").save(path)
