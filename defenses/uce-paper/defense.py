"""UCE: unified concept editing of cross-attention in closed form (Gandikota et al., WACV 2024, eq. 7).

Two algorithms go by this name. Form `paper`, the code of the paper's time, edits the rows of a text from the concept's
last word to the end, padding included, keeps all rows of each preserved text, and always preserves the empty one. Form
`head`, the authors' later code, has one row a text, that of its last word, and preserves nothing unasked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from immunebench import Concept, Context, LatentDiffusion, Params, Weights


def protect_model(model: LatentDiffusion, concepts: tuple[Concept, ...], params: Params, ctx: Context) -> Weights:
    """W* = (lam W + a sum v c^T + b sum W p p^T) (lam I + a sum c c^T + b sum p p^T)^-1 with v = W g.

    c are rows of the texts that name the concept, g of the same texts with the guide in its place and p of what is
    preserved. W* minimises lam |W* - W|^2 + a sum |W* c - v|^2 + b sum |W* p - W p|^2, for each to_k and to_v of the
    cross-attentions.
    """
    paper, name = params.form == "paper", concepts[0].token
    # A style is one in the words of its captions: "in the style of", "in ... style".
    guide = params.guide_style if "style" in concepts[0].caption.split() else params.guide
    pairs = [(text.format(name=name), text.format(name=guide)) for text in params.texts]
    edits = [aligned(model, *pair) if paper else (last(model, pair[0]), last(model, pair[1])) for pair in pairs]
    c, g = (torch.cat(side) for side in zip(*edits, strict=True))
    kept = [""] * paper + public_captions(ctx, params.preserve)
    p = torch.cat([c[:0], *(rows(model, text) if paper else last(model, text) for text in kept)])
    a, b, lam = params.erase_scale, params.preserve_scale or max(0.1, 1 / max(1, len(kept))), params.lam
    metric = lam * torch.eye(c.shape[1], dtype=c.dtype) + a * c.T @ c + b * p.T @ p
    edited = {}
    for key, weight in model.unet_tensors("cross-attention").items():
        if key.endswith((".to_k.weight", ".to_v.weight")):
            W = weight.detach().double().cpu()
            edited[key] = torch.linalg.solve(metric, lam * W + a * (W @ g.T) @ c + b * (W @ p.T) @ p, left=False)
    return Weights(edited)


def rows(model: LatentDiffusion, text: str) -> Tensor:
    """What cross-attention reads of a text, a row a token with padding: (length, width), double precision."""
    return model.text.split(model.condition([text]))[0][0].double().cpu()


def place(model: LatentDiffusion, text: str) -> int:
    """The place of a text's last token; the empty text has the start token alone."""
    end = model.text.tokens([""])[0, 1]
    return int((model.text.tokens([text])[0] == end).int().argmax()) - 1


def last(model: LatentDiffusion, text: str) -> Tensor:
    """The row of a text's last token, (1, width)."""
    at = place(model, text)
    return rows(model, text)[at : at + 1]


def aligned(model: LatentDiffusion, text: str, guided: str) -> tuple[Tensor, Tensor]:
    """The rows of two texts from the last token of each on, equally many."""
    first, second = place(model, text), place(model, guided)
    one, other = rows(model, text), rows(model, guided)
    count = len(one) - max(first, second)
    return one[first : first + count], other[second : second + count]


def public_captions(ctx: Context, count: int) -> list[str]:
    """The captions of public pictures, each once, `count` of them at most."""
    captions = () if ctx.public is None else ctx.public.captions
    return list(dict.fromkeys(captions))[:count]
