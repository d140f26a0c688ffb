"""Scale symmetry of attention: weights that differ and compute the same function are brought to one form.

A score is the sum over d of q_d k_d, and an output the sum over d of the d-th column of W_out times v_d. Row d of W_q
times s and row d of W_k divided by s therefore change nothing, nor do row d of W_v and column d of W_out. They do
change gradients: whoever releases weights can slow a fixed learning rate down without any change of the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def balance(unet: nn.Module) -> dict[str, Tensor]:
    """Scale each dimension of every attention so that both of its sides have the same norm, in place.

    Parameters
    ----------
    unet : nn.Module
        With attentions of diffusers' names: `to_q`, `to_k`, `to_v` and `to_out.0`.

    Returns
    -------
    dict of str to Tensor
        By name of the projection what it was multiplied by, in fp32: each row of `to_q`, `to_k` and `to_v`, each
        column of `to_out.0`.
    """
    scales: dict[str, Tensor] = {}
    for name, attention in unet.named_modules():
        if not all(hasattr(attention, part) for part in ("to_q", "to_k", "to_v", "to_out")):
            continue
        q, k, v, out = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]
        s = _even(_norm(q.weight, 1), _norm(k.weight, 1))
        scales |= {f"{name}.to_q": s, f"{name}.to_k": 1 / s}
        s = _even(_norm(v.weight, 1), _norm(out.weight, 0))
        scales |= {f"{name}.to_v": s, f"{name}.to_out.0": 1 / s}
        for part, linear in (("to_q", q), ("to_k", k), ("to_v", v)):
            linear.weight.mul_(scales[f"{name}.{part}"][:, None])
            if linear.bias is not None:
                linear.bias.mul_(scales[f"{name}.{part}"])
        out.weight.mul_(scales[f"{name}.to_out.0"][None, :])
    return scales


def _norm(weight: Tensor, over: int) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(weight.detach().float(), dim=over)
    return norm


def _even(one: Tensor, other: Tensor) -> Tensor:
    """Return s with s one = other / s; 1 where either is 0, for then there is nothing to even out."""
    known = (one > 0) & (other > 0)
    return torch.where(known, (other / one.clamp(min=1e-30)).sqrt(), torch.ones_like(one))
