"""Seconds of a stage on a GPU by arithmetic: operations of the networks by an assumed share of the card's rate.

No figure here is measured. The operations are counted from the networks; the rates are those of the vendors' data
sheets; the shares and the least time of a pass are assumptions, meant to be right within a factor of three.
"""

from __future__ import annotations

from dataclasses import dataclass

from immunebench.declared.architecture import SHAPES, Shape
from immunebench.store.graph import StageSpec

#: Dense rates in 10^12 operations a second of the vendors' data sheets: half precision on tensor cores, and fp32.
RATES = {
    "t4": (65.0, 8.1), "v100": (112.0, 14.0), "a10": (125.0, 31.2), "a30": (165.0, 10.3), "a100": (312.0, 19.5),
    "h200": (989.0, 67.0),
}  # fmt: skip
#: Assumed share of these rates that the denoiser and the autoencoder (fp32, without TF32) reach at batch 1.
DENOISER_SHARE, AUTOENCODER_SHARE = 0.25, 0.5
#: Assumed least seconds of a forward pass and of a training step: kernels are started one by one.
LEAST_PASS, LEAST_STEP = 0.02, 0.1
#: Assumed seconds until a stage computes: an entry's stage loads the base anew, a sampler keeps it.
LOADING, KEPT = 10.0, 2.0
#: Assumed seconds of a picture before a judge on one core, and of the judge to begin with.
JUDGED, JUDGE = 0.5, 1.0
#: Training passes without and with activations computed again, in forward passes.
_TRAINING, _CHECKPOINTED = 3, 4
#: The architecture that is assumed where a base of no declared one runs.
_USUAL = "sd14"


@dataclass(frozen=True)
class Card:
    """A GPU: its rates in 10^12 operations a second. Of the profile `cpu` there is none."""

    name: str
    half: float
    single: float

    @classmethod
    def of(cls, profile: str) -> Card:
        """Return the card of a profile by the first part of its name; that of an unknown one is an A10."""
        name = profile.split("-")[0]
        if name == "cpu":
            return cls("", 0.0, 0.0)
        return cls(name if name in RATES else "a10", *RATES.get(name, RATES["a10"]))

    @property
    def stands_for_gpu(self) -> bool:
        """Whether there is a GPU at all."""
        return bool(self.name)


def on_card(spec: StageSpec) -> bool:
    """Return whether a stage holds a GPU."""
    numerics = spec.key.get("numerics")
    return isinstance(numerics, dict) and numerics.get("device") == "cuda"


def seconds_on(card: Card, spec: StageSpec, units: float) -> float:
    """Return the seconds of a stage by arithmetic.

    Parameters
    ----------
    card
        Where it runs.
    spec
        The stage.
    units
        Its work, see `immunebench.plan.prices.units`: passes of a picture through training, denoising steps x pictures,
        or pictures.
    """
    numerics, work = spec.key.get("numerics"), _shape(spec).work
    if not isinstance(numerics, dict) or not on_card(spec):
        return JUDGE + JUDGED * units if spec.stage in ("score", "anchor") else 1.0
    half = card.half if numerics.get("frozen_dtype") != "float32" else card.single
    denoise = work.unet / (half * DENOISER_SHARE)
    encode, decode = (part / (card.single * AUTOENCODER_SHARE) for part in (work.encode, work.decode))
    if spec.stage == "generate":
        steps = number(numerics.get("sampling_steps"))
        # Guidance runs the denoiser on the prompt and on the empty one, in one pass of two pictures.
        return KEPT + units * max(2 * denoise, LEAST_PASS) + units / steps * decode
    passes = _CHECKPOINTED if numerics.get("checkpointing") else _TRAINING
    return LOADING + units * max(passes * denoise + encode, LEAST_STEP)


def _shape(spec: StageSpec) -> Shape:
    name = str(spec.key.get("base", ""))
    return SHAPES.get(name, SHAPES[_USUAL])


def number(value: object) -> float:
    """Return a value as a number, 1 where it is none."""
    return float(value) if isinstance(value, (int, float)) else 1.0
