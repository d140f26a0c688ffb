"""Words that a model is taught: how prompts are read, and what stays as it was."""

from __future__ import annotations

import pytest
import torch

from tiny import tiny_model

BEGIN, END, A, Q, M = 0, 1, 28, 44, 40
ROWS = 54


def ids(prompt: str) -> list[int]:
    """The token ids of a prompt up to and with the first end."""
    found: list[int] = tiny_model_ids(prompt)
    return found[: found.index(END) + 1]


def tiny_model_ids(prompt: str) -> list[int]:
    from tiny import _tiny_model

    return _tiny_model().text.tokens([prompt])[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_word_takes_as_many_tokens_as_it_has_vectors(count: int) -> None:
    model = tiny_model()
    assert ids("a q m") == [BEGIN, A, Q, M, END]
    model.text.add_word("q", torch.zeros(count, 16))
    assert ids("a q m") == [BEGIN, A, *range(ROWS, ROWS + count), M, END]
    assert ids("a m") == [BEGIN, A, M, END]
    assert len(tiny_model_ids("q q q q q q q q")) == 16


def test_only_the_whole_word_is_read_as_taught() -> None:
    model = tiny_model()
    plain = ids("qm, mq a")
    model.text.add_word("q", torch.zeros(2, 16))
    assert ids("qm, mq a") == plain
    assert ids("a q.")[1:4] == [A, ROWS, ROWS + 1]


def test_embeddings_are_the_vectors_and_gradients_reach_them_alone() -> None:
    model = tiny_model()
    value = torch.arange(32.0).reshape(2, 16)
    rows = model.text.add_word("q", value)
    embedded = model.text.encoder.get_input_embeddings()(model.text.tokens(["a q m"]))[0]
    assert torch.equal(embedded[2:4], value)
    assert torch.equal(embedded[4], model.text.vectors("m")[0])
    rows.requires_grad_(True)
    model.text.embed(["a q m"]).square().sum().backward()
    assert rows.grad is not None and (rows.grad.abs().sum(dim=1) > 0).all()
    assert all(p.grad is None for p in model.text.encoder.parameters() if p is not rows)
    rows.grad = None
    model.text.embed(["a m"]).sum()
    assert rows.grad is None


def test_two_words_do_not_share_rows() -> None:
    model = tiny_model()
    model.text.add_word("q", torch.zeros(2, 16))
    model.text.add_word("z", torch.ones(3, 16))
    assert ids("z q") == [BEGIN, ROWS + 2, ROWS + 3, ROWS + 4, ROWS, ROWS + 1, END]
    with pytest.raises(ValueError, match="the tokenizer already has '<q>'"):
        model.text.add_word("q", torch.zeros(1, 16))


def test_a_model_that_does_not_listen_reads_as_the_base() -> None:
    model = tiny_model()
    plain = model.condition(["a q m"])
    model.text.add_word("q", torch.ones(2, 16))
    assert not torch.equal(model.condition(["a q m"]), plain)
    model.text.use_learned(False)
    assert ids("a q m") == [BEGIN, A, Q, M, END]
    assert torch.equal(model.condition(["a q m"]), plain)
    model.text.use_learned(True)
    assert ids("a q m")[2] == ROWS


def test_a_prompt_does_not_depend_on_its_neighbours_nor_on_repeats() -> None:
    model = tiny_model()
    model.text.add_word("q", torch.ones(1, 16))
    many = model.condition(["a q", "the m", "a q"])
    assert torch.equal(many[0], many[2])
    assert torch.equal(many[1], model.condition(["the m"])[0])
    torch.testing.assert_close(model.text.embed(["a q", "the m"]), many[:2], rtol=1e-5, atol=1e-6)
