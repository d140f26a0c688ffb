"""UCE's closed form against least squares by NumPy, and the two algorithms of that name against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exact import Exact, copied, exact_model
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import Concept, Params, Pictures
from tiny import tiny_context, tiny_pictures

#: The text of the tiny base has 16 places; every letter is a word.
LENGTH, START, END = 16, 0, 1
PUBLIC = ("a r", "a b", "a r", "the d")


@pytest.fixture(scope="module")
def model() -> Exact:
    return exact_model()


def edit(model: Exact, folder: Path, entry: str, caption: str = "a picture of q", **params: Any) -> dict[str, Any]:
    """Run an entry on the concept "q"; its tensors as NumPy arrays."""
    model.restore()
    catalog = load_catalog()
    ctx = tiny_context(model, folder)
    ctx.public = Pictures(tiny_pictures(len(PUBLIC)).pixels, PUBLIC)
    concept = Concept("relearn-q", "relearn", "m", "q", caption, tiny_pictures(2, caption))
    resolved = Params({**catalog.defense(entry).params("other"), **params})
    hook = catalog.defense(entry).layers[0].function("protect_model")
    return {name: tensor.numpy() for name, tensor in hook(model, (concept,), resolved, ctx).tensors.items()}


def text(model: Exact, prompt: str) -> NDArray[np.float64]:
    return model.condition([prompt])[0].double().numpy()


def fitted(W: NDArray[np.float64], c: Any, v: Any, p: Any, *, a: float, b: float, lam: float) -> NDArray[np.float64]:
    """argmin lam |X - W|^2 + a sum |X c - v|^2 + b sum |X p - W p|^2, as one stacked system of equations."""
    left = np.concatenate([lam**0.5 * np.eye(W.shape[1]), a**0.5 * c, b**0.5 * p])
    right = np.concatenate([lam**0.5 * W.T, a**0.5 * v, b**0.5 * p @ W.T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def key_value(model: Exact) -> dict[str, Any]:
    own = copied(model.unet_tensors("cross-attention"))
    return {n: t.double().numpy() for n, t in own.items() if n.endswith((".to_k.weight", ".to_v.weight"))}


def test_the_form_of_the_paper_edits_from_the_last_word_on_and_preserves_the_empty_text(
    model: Exact, tmp_path: Path
) -> None:
    found = edit(model, tmp_path, "uce-paper", preserve=2, texts=["{name}", "a b {name}"])
    model.restore()
    # "q" is at place 1, "a b q" at 3; the guide is a blank, so the last token is the start token or "b".
    one, other = text(model, "q")[1:], text(model, " ")[: LENGTH - 1]
    two, guided = text(model, "a b q")[3:], text(model, "a b  ")[2 : LENGTH - 1]
    c, g = np.concatenate([one, two]), np.concatenate([other, guided])
    p = np.concatenate([text(model, kept) for kept in ("", "a r", "a b")])
    weights = key_value(model)
    assert found.keys() == weights.keys()
    for name, W in weights.items():
        expected = fitted(W, c, g @ W.T, p, a=1.0, b=1 / 3, lam=0.5)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9)
        assert abs(expected - W).max() > 1e-3


@pytest.mark.parametrize(("caption", "guide", "at"), [("a picture of q", "", 0), ("a picture in q style", "art", 3)])
def test_the_later_form_edits_one_row_a_text(model: Exact, tmp_path: Path, caption: str, guide: str, at: int) -> None:
    found = edit(model, tmp_path, "uce-head", caption)
    model.restore()
    # "art" is no word of the tiny tokenizer: its letters are a, r and t, and the last of them is at place 3.
    c, g = text(model, "q")[1:2], text(model, guide)[at : at + 1]
    for name, W in key_value(model).items():
        expected = fitted(W, c, g @ W.T, c[:0], a=1.0, b=1.0, lam=0.5)
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9)


def test_the_two_algorithms_are_told_apart(model: Exact, tmp_path: Path) -> None:
    paper, head = edit(model, tmp_path, "uce-paper"), edit(model, tmp_path, "uce-head")
    assert max(abs(paper[name] - head[name]).max() for name in paper) > 1e-3


def test_a_large_weight_on_the_old_matrix_leaves_it_and_a_small_one_reaches_the_guide(
    model: Exact, tmp_path: Path
) -> None:
    kept, moved = (edit(model, tmp_path, "uce-head", lam=lam) for lam in (1e9, 1e-6))
    model.restore()
    c, g = torch.tensor(text(model, "q")[1]), torch.tensor(text(model, "")[0])
    for name, W in key_value(model).items():
        np.testing.assert_allclose(kept[name], W, rtol=0, atol=1e-6)
        np.testing.assert_allclose(moved[name] @ c.numpy(), W @ g.numpy(), rtol=0, atol=1e-5)


def test_both_are_erasures_that_a_task_may_start_from() -> None:
    catalog = load_catalog()
    for name in ("uce-paper", "uce-head"):
        assert catalog.defense(name).erases
        assert catalog.defense(f"{name}+imma-lora").erases
