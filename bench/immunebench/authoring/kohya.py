"""Low-rank adapters under the key names of kohya-ss/sd-scripts (``networks/lora.py``), which most other tools read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEY = re.compile(r"unet\.(?P<module>.+)\.lora\.(?P<side>down|up)\.weight")
_BLOCK = re.compile(r"(?:(?P<part>down|up)_blocks\.(?P<block>\d+)|mid_block)\.attentions\.(?P<place>\d+)\.(?P<rest>.+)")


def kohya_tensors(
    tensors: Mapping[str, NDArray[Any]], alpha: float, layers_per_block: int | None = None
) -> dict[str, NDArray[Any]]:
    """Rename an adapter in diffusers' format: ``lora_unet_<module>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``.

    Parameters
    ----------
    tensors
        ``unet.<module>.lora.down.weight`` and ``.up.weight`` of every projection.
    alpha
        The update of a projection is (alpha / rank) up @ down.
    layers_per_block
        Of the UNet of Stable Diffusion XL, whose blocks sd-scripts names as the original code does:
        ``input_blocks_4_1`` for ``down_blocks.1.attentions.0``. None for the others, which it names as diffusers does.

    Raises
    ------
    ValueError
        A name is of another form.
    """
    import numpy as np

    found: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        parts = _KEY.fullmatch(name)
        if parts is None:
            raise ValueError(f"{name} is no tensor of a low-rank adapter of the UNet")
        module = parts["module"] if layers_per_block is None else _original(parts["module"], layers_per_block)
        key = f"lora_unet_{module.replace('.', '_')}"
        found[f"{key}.lora_{parts['side']}.weight"] = tensor
        found[f"{key}.alpha"] = np.array(alpha, dtype=tensor.dtype)
    return found


def _original(module: str, layers_per_block: int) -> str:
    """Return the name of a module of an attention block in the original code of Stable Diffusion XL.

    There all blocks are numbered through: a first convolution, then per resolution the layers and a change of size.
    Inside each, 0 is the residual block and 1 the attention; the middle has them at 0, 1 and 2.
    """
    found = _BLOCK.fullmatch(module)
    if found is None:
        raise ValueError(f"{module} is in no attention block")
    if found["part"] is None:
        return f"middle_block.1.{found['rest']}"
    number = int(found["block"]) * (layers_per_block + 1) + int(found["place"])
    side = f"input_blocks.{number + 1}" if found["part"] == "down" else f"output_blocks.{number}"
    return f"{side}.1.{found['rest']}"
