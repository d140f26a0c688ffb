"""Schema of hardware profiles: device, memory limit, precision and sampler of a suite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from immunebench.declared.schema import Count, Id, Model, Text, Values

DType = Literal["float32", "float16", "bfloat16"]


def lacks_ampere(compute_capability: str) -> bool:
    """Whether a GPU is older than Ampere (8.0): no bfloat16, no flash attention. False for an empty string."""
    return bool(compute_capability) and float(compute_capability) < 8


class Profile(Model):
    """``profiles/<id>.toml``: the reference hardware and numerical settings; see `Numerics` for the fields.

    ``compute_capability`` is set for GPUs that lack a feature otherwise used, such as 7.5 for a T4.
    """

    id: Id
    version: Annotated[int, Field(ge=1)]
    title: Text
    device: Literal["cpu", "cuda"]
    memory_gib: Annotated[float, Field(gt=0)]
    precision: Literal["fp32", "fp16", "bf16"]
    frozen_dtype: DType
    trained_dtype: DType
    vae_dtype: DType
    threads: Annotated[int, Field(ge=1)]
    resolution: Annotated[int, Field(ge=8, multiple_of=8)]
    batch: Count
    attention: Literal["eager", "sdpa"]
    checkpointing: bool
    optimiser_state: Literal["float32", "8bit"]
    sampler: Literal["ddim"]
    sampling_steps: Count
    guidance: Annotated[float, Field(ge=0)]
    release_gradients: bool = False
    offload: bool = False
    micro_batch: Annotated[int, Field(ge=0, le=10_000)] = 0
    masters: bool = False
    compute_capability: Annotated[str, Field(pattern=r"^(\d+\.\d)?$")] = ""

    @model_validator(mode="after")
    def _the_card_has_bfloat16(self) -> Profile:
        for name in ("frozen_dtype", "trained_dtype", "vae_dtype"):
            if getattr(self, name) == "bfloat16" and lacks_ampere(self.compute_capability):
                raise ValueError(f"{name}: a GPU of compute_capability {self.compute_capability} has no bfloat16")
        return self

    @model_validator(mode="after")
    def _masters_are_of_half_precision(self) -> Profile:
        if self.masters and (self.frozen_dtype == "float32" or self.trained_dtype != "float32"):
            raise ValueError("masters: needs a frozen_dtype of half precision and a trained_dtype of float32")
        if self.masters and self.release_gradients:
            raise ValueError("masters: gradients arrive together, so release_gradients would free none early")
        return self

    def numerics(self, *, sampling: bool) -> Values:
        """Return the settings that can change a stage's results, with or without those of the sampler."""
        values: Values = self.model_dump(mode="json", exclude={"id", "version", "title"})
        # Optional fields at their default are left out, so that adding a field does not change existing cache keys.
        values = {k: v for k, v in values.items() if type(self).model_fields[k].is_required() or v}
        if not sampling:
            values = {k: v for k, v in values.items() if k not in ("sampler", "sampling_steps", "guidance")}
        return values
