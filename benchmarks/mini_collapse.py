"""Error rates of the collapse detector on the embedded world: the tables of its model card.

    python benchmarks/mini_collapse.py

The threshold is read off the dev part: rendered pictures of the known world, dev concepts, pictures of nothing and
destroyed weights. The held-out part has other draws, other seeds, other concepts and kinds of nothing that neither
the judges nor the threshold have met.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from immunebench.catalog.loading import default_catalog
from immunebench.core.types import Numerics, Weights
from immunebench.metrics.collapse import NOTHING, collapse
from immunebench.mini import damage, judges, world
from immunebench.mini.training.data import to_input, to_pixels
from immunebench.mini.training.readers import decoded_nothing
from immunebench.mini.vocabulary import CONCEPTS
from immunebench.model.diffusion import LatentDiffusion
from immunebench.model.runtime import derive_seed

Bytes = NDArray[np.uint8]
Part = Literal["dev", "held-out"]
Named = tuple[str, Bytes]


def rendered(part: Part, count: int) -> Iterator[Named]:
    """Known world in every style, and portraits."""
    for style in world.STYLE_NAMES:
        drawn = [world.draw("unseen", i, group=f"collapse {part}", style=style, person=False) for i in range(count)]
        yield f"rendered, {style}", np.stack([picture.pixels for picture in drawn])
    drawn = [world.draw("unseen", i, group=f"collapse {part}", person=True) for i in range(count)]
    yield "rendered, portraits", np.stack([picture.pixels for picture in drawn])


def concepts(part: Part, count: int) -> Iterator[Named]:
    """Rendered pictures of the dev concepts, or of all others that are held out from the base."""
    for name, entry in CONCEPTS.items():
        if entry.kind != "known" and (entry.role == "dev") == (part == "dev"):
            yield f"rendered, {name}", world.concept_pictures(name, "owner", count)[0]


def nothing(model: LatentDiffusion, part: Part, real: Bytes, count: int) -> Iterator[Named]:
    """Pictures of nothing as the readers met them, and what the base decodes of latents that mean nothing."""
    import torch

    # All of it draws from torch's own generator, as the trainings do.
    torch.manual_seed(derive_seed("nothing", part) % 2**31)
    shown, cpu = to_input(torch.from_numpy(real)), torch.device("cpu")
    yield "nothing, all kinds", to_pixels(damage.nothing(4 * count, shown, None, cpu)).numpy()
    for cells in (4, 8, 16):
        yield f"nothing, blotches of {64 // cells} pixels", to_pixels(damage.clouds(count, cells, cpu)).numpy()
    yield "nothing, decoded latents", decoded_nothing(model.vae, torch.from_numpy(real), -(-count // 4) * 4).numpy()


def unknown_nothing(count: int) -> Iterator[Named]:
    """Kinds of nothing that the judges were not trained with."""
    rng = np.random.default_rng(derive_seed("nothing", "unknown"))
    at = np.indices((64, 64))

    def pink() -> Bytes:
        frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
        frequency[0, 0] = 1
        flat = np.fft.fft2(rng.standard_normal((3, 64, 64))) / frequency ** rng.uniform(0.5, 1.5)
        field = np.moveaxis(np.fft.ifft2(flat).real, 0, -1)
        scaled = (field - field.mean()) / field.std() * rng.uniform(20, 60) + rng.uniform(60, 200)
        return np.asarray(np.clip(scaled, 0, 255), np.uint8)

    def blocks() -> Bytes:
        side = int(rng.choice([2, 4, 8, 16]))
        return np.asarray(
            np.kron(rng.integers(0, 256, (64 // side, 64 // side, 3)), np.ones((side, side, 1))), np.uint8
        )

    def halves() -> Bytes:
        first, second = rng.integers(0, 256, (2, 3))
        chosen = np.where((at[0] < rng.integers(16, 48))[..., None], first, second)
        return np.asarray(chosen, np.uint8)

    def rings() -> Bytes:
        distance = np.hypot(*(at - rng.integers(0, 64, (2, 1, 1))))
        grey = 127 + 120 * np.cos(distance / rng.uniform(1, 6))
        return np.repeat(grey[..., None], 3, 2).astype(np.uint8)

    kinds: dict[str, Callable[[], Bytes]] = {"pink noise": pink, "blocks": blocks, "halves": halves, "rings": rings}
    for name, draw in kinds.items():
        yield f"untrained nothing, {name}", np.stack([draw() for _ in range(count)])


def sampled(model: LatentDiffusion, part: Part, count: int) -> Iterator[Named]:
    """What the base draws, as it is and with noise on its weights as the control `destroy` puts there."""
    import torch

    rng = np.random.default_rng(derive_seed("prompts", part))
    subjects = [*(f"a {name}" for name in world.OBJECT_NAMES), "a portrait of a person"]
    prompts = [f"{rng.choice(subjects)} in {rng.choice(world.STYLE_NAMES)} style" for _ in range(count)]
    seeds = [derive_seed("collapse", part, i) for i in range(count)]
    noise = torch.Generator().manual_seed(derive_seed("destroy", part) % 2**31)
    for strength in (0.0, 0.2, 0.35, 0.8, 1.6):
        model.restore()
        own = {name: w.detach().float() for name, w in model.unet.named_parameters()}
        broken = {
            name: w + strength * w.std(correction=0) * torch.randn(w.shape, generator=noise) for name, w in own.items()
        }
        model.apply(Weights(broken))
        name = f"base, destroyed by {strength:g}" if strength else "base"
        yield name, model.sample(prompts, seeds).pixels
    model.restore()


def part_of_world(model: LatentDiffusion, part: Part, count: int) -> Iterator[Named]:
    """All sets of one part."""
    known = list(rendered(part, count))
    yield from known
    yield from concepts(part, count)
    yield from sampled(model, part, max(1, count // 3))
    yield from nothing(model, part, np.concatenate([pixels for _, pixels in known]), count)
    if part == "held-out":
        yield from unknown_nothing(count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="pictures a set; a third of it of the base")
    count = parser.parse_args().count
    judge = judges.load()
    model = LatentDiffusion.load(default_catalog().base_folder("mini"), Numerics())
    for part in ("dev", "held-out"):
        rows = []
        for name, pixels in part_of_world(model, part, count):
            p = judge.nothing_probability(pixels)
            around = [f"{(p >= t).mean():.3f}" for t in (0.15, 0.2, NOTHING, 0.3, 0.4)]
            rows.append([name, len(p), f"{collapse(judge, pixels).mean():.3f}", *around])
        heads = [part, "n", "collapsed", *(f"p >= {t}" for t in (0.15, 0.2, NOTHING, 0.3, 0.4))]
        print(tabulate(rows, heads, tablefmt="github", disable_numparse=True), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
