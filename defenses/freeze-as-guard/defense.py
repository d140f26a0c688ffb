"""FreezeAsGuard: learn which tensors a fine-tuning interface keeps frozen (Huang, Wang & Gao 2024, sec. 3).

m_i is the share of tensor i that is frozen, D = pre - ft the way back from the fine-tuned to the released weights, and
theta = ft + m D what a user of the interface ends with. The publisher moves m so that innocent concepts are still
learned and the target is not; the user goes on training what is left free. First order: ft is held in the publisher's
step. The authors' penalty c (rho - mean m)^2 loses strength with the number N of tensors, and with their constants its
first step alone saturates most of m. Form `paper` has c = `penalty` N, starts from m = 1/2 in the profile's precision
and freezes the rho N tensors of largest m. Form `code`, the authors' release, has c = `penalty`, draws x from U(0, 1),
keeps x and D in bfloat16 and rounds m.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from immunebench import Concept, Context, LatentDiffusion, Mask, Params, Pictures, StageError, training


def freeze(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Mask:
    """Learn the mask: each `every`-th step of an epoch is the publisher's, all others are the user's."""
    target, innocent = concepts[0].owner, innocents(params, ctx)
    data = model.prepare(joined(target, innocent))
    attack = ctx.attack(params.against[0]).params
    theta = model.trainable(model.unet_tensors("all"))
    tensors = list(theta.values())
    pre = [w.detach().clone() for w in tensors]
    user = ctx.adamw(theta, lr=params.lr_user or attack.lr)
    for step, batch in ctx.steps(params.user_steps, model, data, batch=attack.batch, what="fine-tuning", resumes=True):
        with training(theta):
            loss = model.loss(batch)
            user.step(loss)
        ctx.log(step, loss=loss)

    code, T = params.form == "code", params.temperature
    kind = torch.bfloat16 if code else tensors[0].dtype
    D = [(before - after.detach()).to(kind) for before, after in zip(pre, tensors, strict=True)]
    x = torch.rand(len(D), generator=ctx.generator) if code else torch.zeros(len(D))
    x = ctx.keep("x", x.to(kind).to(tensors[0].device))
    ctx.keep("D", {str(i): d for i, d in enumerate(D)})
    c = params.penalty * (1 if code else len(D))
    shift(tensors, D, torch.sigmoid(x / T))
    order, epoch = ctx.orders(len(data), params.batch), -(-len(data) // params.batch)
    for step in ctx.counted(params.steps, "learning the mask", resumes=True):
        rows = next(order)
        hostile = torch.as_tensor(rows < len(target), device=tensors[0].device)
        publisher = step % epoch % params.every == 0
        with training(theta):
            losses = model.losses(model.draw(data, rows, ctx.generator))
            loss = objective(losses, hostile) if publisher else losses.mean()
            gradients = torch.autograd.grad(loss, tensors)
        m = torch.sigmoid(x / T)
        if publisher:
            slope = mask_gradient(D, gradients, m, T)
            x.sub_(params.lr_mask * slope + penalty_gradient(m, params.rho, c, T))
            shift(tensors, D, torch.sigmoid(x / T) - m)
        else:
            descend(tensors, D, gradients, m, params.lr_inner)
        ctx.log(step, loss=loss, publisher=float(publisher), mean=m.float().mean(), spread=m.float().std())
    m = torch.sigmoid(x / T)
    # One tensor always stays free, else there is nothing to fine-tune.
    count = min(int((m > 0.5).sum()) if code else round(params.rho * len(D)), len(D) - 1)
    chosen = torch.argsort(x.float(), descending=True, stable=True)[:count].tolist()
    return Mask.of(theta, [name for i, name in enumerate(theta) if i in set(chosen)])


def objective(losses: Tensor, hostile: Tensor) -> Tensor:
    """(l_innocent - l_target) / 2 of a mixed batch, each the mean over its pictures; 0 where there is none."""
    means = [(losses * part).sum() / (part.sum() + 1e-5) for part in (~hostile, hostile)]
    return (means[0] - means[1]) / 2


def mask_gradient(D: list[Tensor], gradients: tuple[Tensor, ...], m: Tensor, T: float) -> Tensor:
    """d loss / dx_i = <D_i, d loss / d theta_i> m_i (1 - m_i) / T."""
    inner = torch.stack([(d * g).sum() for d, g in zip(D, gradients, strict=True)])
    return inner.to(m.dtype) * m * (1 - m) / T


def penalty_gradient(m: Tensor, rho: float, c: float, T: float) -> Tensor:
    """c d/dx_i (rho - mean m)^2."""
    return -2 * c * (rho - m.mean()) * m * (1 - m) / (T * len(m))


@torch.no_grad()
def shift(tensors: list[Tensor], D: list[Tensor], by: Tensor) -> None:
    """theta_i <- theta_i + by_i D_i."""
    for w, d, change in zip(tensors, D, by, strict=True):
        w.add_(change * d)


@torch.no_grad()
def descend(tensors: list[Tensor], D: list[Tensor], gradients: tuple[Tensor, ...], m: Tensor, eta: float) -> None:
    """ft_i <- ft_i - eta (1 - m_i) g_i, through theta = ft + m D, in theta and in D."""
    for w, d, g, share in zip(tensors, D, gradients, 1 - m, strict=True):
        w.sub_(eta * share**2 * g)
        d.add_((eta * share * g).to(d.dtype))


def innocents(params: Params, ctx: Context) -> Pictures:
    """Return the first `innocents` public pictures.

    Raises
    ------
    StageError
        If there are none.
    """
    public = ctx.public
    if public is None or len(public) == 0:
        raise StageError("error", "the innocent set is empty: the base offers no public pictures")
    count = min(params.innocents, len(public))
    return Pictures(public.pixels[:count], public.captions[:count])


def joined(first: Pictures, second: Pictures) -> Pictures:
    """Return two sets as one, the first one first."""
    return Pictures(np.concatenate([first.pixels, second.pixels]), (*first.captions, *second.captions))
